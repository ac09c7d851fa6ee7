"""`minitron` as a transform: cut a decoder to shares of its sizes, without a search space around it.

    size = max(1, round(share * size))        for layers, width, heads (whole groups), queries per group, neurons

Ranking and slicing are those of the space `decoder` (:mod:`nasdistill_spaces.decoder.inherit`), which is the way to
search such networks; here the shares are given. The input may be a network of that space, or GPT-2, Llama, Qwen2 or
Mistral of transformers; the result is always a :class:`DecoderNet`, called by ids and mask. With all shares 1 it
computes what the input computes.

Cost: one forward per calibration batch.

Source: "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), arXiv 2407.14679.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import AttentionCore, Batch, Example, Transform, Transformed
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.options import ComponentOptions
from nasdistill_spaces.decoder.families import SERVED, read_teacher
from nasdistill_spaces.decoder.inherit import choose, score_parts, slicing_plan, spread
from nasdistill_spaces.decoder.model import DecoderNet, DecoderShape
from nasdistill_spaces.slicing import SliceCopier, top

Share = Annotated[float, Field(gt=0, le=1)]


class MinitronOptions(ComponentOptions):
    """Options of `minitron`: shares to keep, and how to rank."""

    layers: Share = Field(1.0, description="Share of the layers.")
    width: Share = Field(0.75, description="Share of the residual stream's channels.")
    heads: Share = Field(0.75, description="Share of the heads; of the groups where heads share keys and values.")
    queries: Share = Field(1.0, description="Share of the query heads in each kept group.")
    mlp: Share = Field(0.5, description="Share of the neurons of each MLP.")
    ranking: Literal["importance", "random", "inverse", "first"] = Field(
        "importance", description="What to keep; the others are there to compare with."
    )
    neurons: Literal["post", "pre"] = Field("post", description="Score neurons after or before the activation.")
    layer_score: Literal["bi", "ppl"] = Field("bi", description="Score layers by block influence or by the loss.")


class Minitron(Transform):
    """See the module's text."""

    options_model = MinitronOptions
    options: MinitronOptions
    examples = (
        Example(
            {"layers": 0.7, "queries": 0.5},
            {"model": f"{__name__}:example_model", "batch": f"{__name__}:example_batch"},
            "half",
        ),
        Example(
            {"width": 1.0, "heads": 1.0, "mlp": 1.0},
            {"model": f"{__name__}:example_model", "batch": f"{__name__}:example_batch"},
            "identity",
        ),
    )

    def apply(
        self, model: nn.Module, calibration: Sequence[Batch], forward: Callable[[nn.Module, Batch], Tensor]
    ) -> Transformed:
        """Return the smaller network; see :class:`nasdistill.interfaces.Transform`.

        Raises:
            MismatchError: the model is no decoder of a known family.
        """
        found = read_teacher(model)
        if found is None:
            raise MismatchError(
                f"minitron cuts decoders ({', '.join(SERVED)}, or networks of the space `decoder`), not a "
                f"{type(model).__name__}",
            )
        (shape, state), o = found, self.options
        own = next((module for module in model.modules() if isinstance(module, DecoderNet)), None)
        options = [{} if own is None else _options(own, layer) for layer in range(shape.layers)]
        batches = [batch for batch in calibration if "input_ids" in batch.inputs]
        teacher = own or self._lent(shape, state, options)
        scores = score_parts(teacher, batches, ranking=o.ranking, pre=o.neurons == "pre", layers=o.layer_score)
        depth = _kept(shape.layers, o.layers)
        found_layers = spread(depth, shape.layers) if scores.layers is None else top(scores.layers, depth).tolist()
        layers = tuple(int(index) for index in found_layers)
        small = self._cut(shape, layers)
        config = _config(small, [options[layer] for layer in layers])
        result = self.rebuild(model, config)
        kept, targets, copier = choose(small, shape, scores), dict(result.named_parameters()), SliceCopier()
        for name, (source, picks) in slicing_plan(small, shape, kept).items():
            copier.tensor(targets[name], state[source], *picks)
        for ours, theirs in enumerate(layers if own is not None else ()):
            core = teacher.get_submodule(f"layers.{theirs}.self_attn.core")
            result.get_submodule(f"layers.{ours}.self_attn.core").load_state_dict(core.state_dict())
        report = {
            "params": [sum(p.numel() for p in net.parameters()) for net in (teacher, result)],
            "ranked_by": o.ranking if o.ranking != "importance" else "activations" if batches else "norms of weights",
            "channels": kept.channels.tolist(), "layers": list(kept.layers),
            "heads": [heads.tolist() for heads in kept.heads],
            "neurons": [neurons.tolist() for neurons in kept.neurons],
        }  # fmt: skip
        return Transformed(result.train(model.training), report, config)

    def rebuild(self, model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
        """Return a network of the sizes of `config`; see :class:`nasdistill.interfaces.Transform`."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
        }
        options = fields.pop("attention_options")
        with seeded(0, "minitron"):
            net = self._net(DecoderShape(**fields), options)
        first = next(model.parameters())
        return net.to(device=first.device, dtype=first.dtype)

    def _net(self, shape: DecoderShape, options: Sequence[Any]) -> DecoderNet:
        cores: list[AttentionCore] = [
            self.host.create(Kind.ATTENTION, name, chosen, geometry=shape.geometry(layer))
            for layer, (name, chosen) in enumerate(zip(shape.attention, options, strict=True))
        ]
        return DecoderNet(shape, cores)

    def _lent(self, shape: DecoderShape, state: Mapping[str, Tensor], options: Sequence[Any]) -> DecoderNet:
        """Return a network of ours that holds the tensors themselves of a model of transformers."""
        with torch.device("meta"):
            net = self._net(shape, options)
        net.load_state_dict(state, assign=True)
        return net

    def _cut(self, shape: DecoderShape, layers: Sequence[int]) -> DecoderShape:
        """Return the sizes of the result for the kept layers."""
        o = self.options
        groups = [_kept(shape.kv_heads[layer], o.heads) for layer in layers]
        within = [_kept(shape.heads[layer] // shape.kv_heads[layer], o.queries) for layer in layers]
        return replace(
            shape, width=_kept(shape.width, o.width), kv_heads=tuple(groups),
            heads=tuple(count * queries for count, queries in zip(groups, within, strict=True)),
            mlp=tuple(_kept(shape.mlp[layer], o.mlp) for layer in layers),
            attention=tuple(shape.attention[layer] for layer in layers),
        )  # fmt: skip


def _kept(size: int, share: float) -> int:
    return max(1, round(share * size))


def _options(net: DecoderNet, layer: int) -> dict[str, Any]:
    core: Any = net.get_submodule(f"layers.{layer}.self_attn.core")
    found: dict[str, Any] = core.options.model_dump(mode="json")
    return found


def _config(shape: DecoderShape, options: Sequence[dict[str, Any]]) -> dict[str, Any]:
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(shape).items()}
    return {**fields, "attention_options": list(options)}


def example_model() -> nn.Module:
    """Return a small Llama of transformers with random weights for :func:`example_batch`."""
    from nasdistill.bridge.random_models import random_model
    from nasdistill.bridge.transformers import TokenModel

    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    model: Any = random_model("llama", "causal_lm", **sizes, intermediate_size=48, vocab_size=40)
    return TokenModel(model, "causal_lm")


def example_batch() -> Batch:
    """Return 16 samples of 10 tokens out of 40."""
    ids = torch.randint(40, (16, 10), generator=torch.Generator().manual_seed(0))
    return Batch({"input_ids": ids}, None, torch.arange(16))
