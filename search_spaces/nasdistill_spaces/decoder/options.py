"""The options of `decoder`: the largest network, and which sizes of it are choices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nasdistill_spaces.cores import VariantOptions, Variants
from nasdistill_spaces.decoder.model import DecoderShape, parameter_count
from nasdistill_spaces.images import unique_sorted

Size = Annotated[int, Field(ge=1)]
AXES = ("layers", "width", "heads", "groups", "queries", "mlp")
"""Sizes that can be axes; `heads` where each query head has its own keys and values, else `groups` and `queries`."""


class DecoderOptions(VariantOptions):
    """The largest network (the teacher's sizes, filled in from it), the choices, and how weights are inherited."""

    style: Literal["gpt2", "llama"] = Field("gpt2", description="GPT-2's parts, or Llama's (Qwen2's, Mistral's).")
    layers: int = Field(4, ge=1, le=99, description="Layers of the largest network.")
    width: int = Field(64, ge=1, description="Channels C of the largest network.")
    heads: int = Field(4, ge=1, description="Query heads of the largest network.")
    kv_heads: int = Field(0, ge=0, description="Key/value heads of the largest network; 0 = as many as query heads.")
    head_dim: int = Field(0, ge=0, description="Size of a head, kept by all points; 0 = width / heads.")
    mlp: int = Field(256, ge=1, description="MLP neurons of the largest network.")
    vocabulary: int = Field(0, ge=0, description="Token ids, for `params`; networks take it from the task.")
    positions: int = Field(512, ge=1, description="Longest input.")
    activation: Literal["gelu_tanh", "gelu", "silu", "relu"] | None = Field(
        None, description="Activation; unset = gelu_tanh for gpt2, silu for llama."
    )
    eps: float = Field(1e-5, gt=0, description="Added to the variance in norms.")
    qkv_bias: bool | None = Field(None, description="Biases of q, k, v; unset = as the style has them.")
    out_bias: bool | None = Field(None, description="Bias of the attention's output; unset = as the style has it.")
    mlp_bias: bool | None = Field(None, description="Biases of the MLP; unset = as the style has them.")
    tied: bool = Field(True, description="The output matrix is the token embedding.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    rope_scaling: dict[str, Any] = Field(default_factory=dict, description="As in transformers; linear or llama3.")
    padding_id: int | None = Field(
        None, ge=0, description="Id that ends a classifier's texts, as in transformers; unset = the mask tells."
    )
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.5, 0.75, 1.0), min_length=1, description="Choices of every size, as shares of the largest."
    )
    divisor: int = Field(0, ge=0, description="Widths and neurons are multiples of it; 0 = up to 64, by the width.")
    choices: dict[Literal["layers", "width", "heads", "groups", "queries", "mlp"], tuple[Size, ...]] = Field(
        default_factory=dict, description="Choices of single axes, instead of `shares`."
    )
    per_layer: bool = Field(False, description="Heads and neurons of each layer are axes of their own.")
    attention: Variants = Field(
        ("softmax",), min_length=1, description="Variants, for each layer; with one there is no such axis."
    )
    params: float | None = Field(
        None, gt=0, description="Only points of so many parameters; up to 1 it is a share of the largest network's."
    )
    tolerance: float = Field(0.05, gt=0, lt=1, description="How far from `params` a point may be, as a share.")
    ranking: Literal["importance", "random", "inverse", "first"] = Field(
        "importance", description="What to keep of a teacher; the others are there to compare with."
    )
    ranking_seed: int = Field(0, ge=0, description="Of the random ranking.")
    neurons: Literal["post", "pre"] = Field("post", description="Score neurons after or before the activation.")
    layer_score: Literal["bi", "ppl"] = Field("bi", description="Score layers by block influence or by the loss.")
    head_residual: bool = Field(False, description="Add what dropped heads differ by to the weakest kept ones.")

    @field_validator("shares")
    @classmethod
    def _sorted(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return unique_sorted(value)

    @field_validator("choices")
    @classmethod
    def _sorted_choices(cls, value: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        empty = [name for name, sizes in value.items() if not sizes]
        if empty:
            raise ValueError(f"no choice for {empty[0]}")
        return {name: unique_sorted(sizes) for name, sizes in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> DecoderOptions:
        if self.heads % self.groups:
            raise ValueError(f"{self.groups} key/value heads do not divide {self.heads} query heads")
        if not self.head_dim and self.width % self.heads:
            raise ValueError("with head_dim = 0 the heads must divide the width")
        if self.style == "llama" and self.size % 2:
            raise ValueError(f"rotary positions need heads of an even size, not {self.size}")
        largest = self.largest()
        for name, sizes in self.choices.items():
            if name not in largest:
                axes = "`groups` and `queries`" if self.grouped else "`heads`"
                raise ValueError(f"choices of {name}: this network has {axes}")
            if sizes[-1] > largest[name]:
                raise ValueError(f"choices of {name}: {sizes[-1]} is more than the largest network's {largest[name]}")
        if self.params is not None:
            self._check_window()
        return self

    def _check_window(self) -> None:
        if not self.vocabulary:
            raise ValueError("`params` needs `vocabulary`, as the embedding counts too")
        if not any(self.in_window(point) for point in self.grid()):
            nearest = min(self.grid(), key=lambda point: abs(self.count(point) - self.target))
            raise ValueError(
                f"no point has {round(self.target):,} parameters within {self.tolerance:.0%}; the nearest has "
                f"{self.count(nearest):,}: {', '.join(f'{name} {size}' for name, size in nearest.items())}"
            )

    @property
    def groups(self) -> int:
        """Key/value heads of the largest network."""
        return self.kv_heads or self.heads

    @property
    def grouped(self) -> bool:
        """Whether query heads share keys and values."""
        return self.groups != self.heads

    @property
    def size(self) -> int:
        """Size of a head."""
        return self.head_dim or self.width // self.heads

    def largest(self) -> dict[str, int]:
        """Return the sizes of the largest network, by axis."""
        heads = {"groups": self.groups, "queries": self.heads // self.groups} if self.grouped else {"heads": self.heads}
        return {"layers": self.layers, "width": self.width, **heads, "mlp": self.mlp}

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the choices of each axis, ascending."""
        step = self.divisor or max(power for power in (1, 2, 4, 8, 16, 32, 64) if power <= max(1, self.width // 8))
        found, given = {}, {str(name): sizes for name, sizes in self.choices.items()}
        for name, most in self.largest().items():
            if name in given:
                found[name] = given[name]
                continue
            unit = step if name in ("width", "mlp") else 1
            cut = {min(most, max(unit, round(share * most / unit) * unit)) if share < 1 else most
                   for share in self.shares}  # fmt: skip
            found[name] = tuple(sorted(cut))
        return found

    def grid(self) -> Iterator[dict[str, int]]:
        """Yield all uniform points."""
        sizes = self.sizes()
        for values in itertools.product(*sizes.values()):
            yield dict(zip(sizes, values, strict=True))

    @property
    def target(self) -> float:
        """Parameters in the middle of the window."""
        assert self.params is not None
        return self.params * self.count(self.largest()) if self.params <= 1 else self.params

    def count(self, point: Mapping[str, int]) -> int:
        """Return the parameters of a uniform point as a language model."""
        sizes = self.lists(point)
        return parameter_count(
            self.shape(width=point["width"], heads=sizes["heads"], kv_heads=sizes["kv_heads"], mlp=sizes["mlp"])
        )

    def in_window(self, point: Mapping[str, int]) -> bool:
        """Return whether a uniform point has the parameters asked for."""
        return self.params is None or self.close(self.count(point))

    def close(self, parameters: int) -> bool:
        """Return whether a number of parameters lies in the window."""
        return abs(parameters - self.target) <= self.tolerance * self.target

    def lists(self, point: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return the sizes of a uniform point layer by layer."""
        groups = point["groups"] if self.grouped else point["heads"]
        heads = groups * point["queries"] if self.grouped else groups
        sizes = {"heads": heads, "kv_heads": groups, "mlp": point["mlp"]}
        return {name: (size,) * point["layers"] for name, size in sizes.items()}

    def shape(
        self,
        *,
        width: int,
        heads: tuple[int, ...],
        kv_heads: tuple[int, ...],
        mlp: tuple[int, ...],
        attention: tuple[str, ...] = (),
        vocabulary: int | None = None,
        head: str = "causal_lm",
        outputs: int | None = None,
    ) -> DecoderShape:
        """Return the shape of a network of these sizes; without `vocabulary` with the options' own."""
        gpt2, words = self.style == "gpt2", self.vocabulary if vocabulary is None else vocabulary
        biases = (gpt2 if bias is None else bias for bias in (self.qkv_bias, self.out_bias, self.mlp_bias))
        qkv, out, mlps = biases
        return DecoderShape(
            style=self.style, width=width, head_dim=self.size, heads=heads, kv_heads=kv_heads, mlp=mlp,
            attention=attention or ("softmax",) * len(heads), vocabulary=words, positions=self.positions, head=head,
            outputs=words if outputs is None else outputs, eps=self.eps, qkv_bias=qkv, out_bias=out, mlp_bias=mlps,
            activation=self.activation or ("gelu_tanh" if gpt2 else "silu"), tied=self.tied,
            rope_theta=self.rope_theta, rope_scaling=dict(self.rope_scaling),
            padding_id=self.padding_id if head == "classes" else None,
        )  # fmt: skip
