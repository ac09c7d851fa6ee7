"""AutoDistil's elastic BERT: students cut from a teacher's top-left corner, all layers of the same size.

    layers L, heads A, width H, MLP ratio R (R H neurons), and the attention variant of all layers or of each

Named parts `tiny`, `small` and `base` restrict all four axes to short intervals, so that students that share weights
are of similar size. The table, and how it is scaled to a teacher of another size, stands in
:mod:`nasdistill_spaces.encoder.sizes`; the axes are the union of the parts, or one part with the option ``subspace``. A
head keeps the teacher's size D: the inner width A D of attention is independent of H, and may exceed it. The classes of
transformers know no such networks; with ``stock_only`` there are only points that they know: widths are multiples of D,
and A = H / D is no axis.

Cost of one layer at N tokens: N (4 H A D + 2 R H^2) multiply-accumulates plus the core (softmax: 2 N^2 A D). The
paper's own formulas (:func:`nasdistill_spaces.encoder.sizes.reported_cost`) take the inner width for A H / 12, which it
is not in the paper's networks either.

Source: "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models", arXiv
2201.12507. We add the attention variant, other teachers than BERT-base, and ranking before slicing (off by default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from nasdistill.interfaces import Example, SubSpace
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.io import IOSpec
from nasdistill_spaces.choices import half_up, layer_axis, union, unique
from nasdistill_spaces.encoder.base import EncoderSpace, EncoderSpaceOptions
from nasdistill_spaces.encoder.sizes import SUBSPACES, scaled
from nasdistill_spaces.images import unique_sorted
from nasdistill_spaces.layers import LayerShape

SHORT = IOSpec("tokens", (10,), 3, 40)
"""An input for which networks are small."""


class EncoderOptions(EncoderSpaceOptions):
    """The part of the table, or the choices themselves, and what all points share."""

    subspace: Literal["all", "tiny", "small", "base"] = Field(
        "all", description="Which part of the table the axes have; `all` is their union."
    )
    mlp_ratio: tuple[Annotated[float, Field(gt=0, le=64)], ...] | None = Field(
        None, min_length=1, description="Choices of MLP neurons / H, instead of the table's."
    )
    attention_per_layer: bool = Field(False, description="One attention variant for each layer, not one for all.")

    stock_only: bool = Field(
        False, description="Only students that transformers opens without code of ours: heads fill the width."
    )

    @field_validator("mlp_ratio")
    @classmethod
    def _ratios(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if value is None else unique_sorted(value)

    @model_validator(mode="after")
    def _stock(self) -> EncoderOptions:
        if not self.stock_only:
            return self
        size = self.teacher.head_dim
        odd = [width for width in self.hidden or () if width % size]
        if odd:
            raise ValueError(f"with stock_only a width is a multiple of the size of a head, {size}: not {odd[0]}")
        if self.teacher.embedding in (self.hidden or ()):  # transformers leaves out the projection between the two
            raise ValueError(f"with stock_only no width is that of the embeddings, {self.teacher.embedding}")
        if self.heads is not None:
            raise ValueError("with stock_only the width says how many heads there are; leave out `heads`")
        others = [name for name in self.attention if name.rpartition(":")[2] != "softmax"]
        if others:
            raise ValueError(f"with stock_only attention is softmax, not {others[0]}")
        return self


class Encoder(EncoderSpace):
    """Layers, heads, width and MLP ratio of a BERT-like encoder, started from a teacher's weights."""

    options_model = EncoderOptions
    options: EncoderOptions
    name = "encoder"
    examples = (
        Example({}, {"io": SHORT}, "default"),
        Example(
            {"subspace": "tiny", "attention": ["softmax", "flow"], "attention_per_layer": True,
             "teacher": {"model_type": "electra", "layers": 6, "hidden": 48, "heads": 4, "mlp": 96, "embedding": 16},
             "ranking": "importance"},
            {"io": IOSpec("tokens", (7,), 40, 40, "masked_lm")},
            "per-layer attention",
        ),
    )  # fmt: skip

    def table(self) -> dict[str, tuple[Value, ...]]:
        """Return the choices of ``layers heads hidden mlp_ratio``, ascending; of ``heads`` none with `stock_only`."""
        o = self.options
        found = union(self._part(name) for name in (SUBSPACES if o.subspace == "all" else (o.subspace,)))
        axes = [axis for axis in ("layers", "heads", "hidden", "mlp_ratio") if axis in found]
        return {axis: getattr(o, axis) or found[axis] for axis in axes}

    def _part(self, name: str) -> dict[str, tuple[Value, ...]]:
        """Return the choices of a part of the table, as far as they are axes here."""
        teacher = self.options.teacher
        found = scaled(name, teacher)
        if self.options.stock_only:
            del found["heads"]
            size, most = teacher.head_dim, teacher.heads
            widths = unique(size * min(most, half_up(width / size)) for width in found["hidden"])
            found["hidden"] = tuple(width for width in widths if width != teacher.embedding) or (teacher.hidden,)
        return found

    def axes(self) -> tuple[Axis, ...]:
        """Return ``layers heads hidden mlp_ratio``, then ``attention``, or ``layer00.attention`` and so on."""
        helps = {"layers": "layers", "heads": "attention heads", "hidden": "width", "mlp_ratio": "MLP neurons / width"}
        table, o = self.table(), self.options
        axes = [Axis(n, choices, choices[-1], ordered=True, help=helps[n]) for n, choices in table.items()]
        if not o.attention_per_layer:
            return (*axes, Axis("attention", o.attention, o.attention[0], help="attention variant"))
        fewest, most = int(table["layers"][0]), int(table["layers"][-1])
        axes += [
            layer_axis(layer, fewest, "attention", o.attention, o.attention[0], help="attention variant")
            for layer in range(most)
        ]
        return tuple(axes)

    def size(self) -> int:
        """Return the number of points: heads * widths * ratios * sum over layers L of variants (or variants ** L).

        With `stock_only` without the heads.
        """
        table, variants = self.table(), len(self.options.attention)
        per_depth = (variants ** int(d) if self.options.attention_per_layer else variants for d in table["layers"])
        return math.prod(len(choices) for axis, choices in table.items() if axis != "layers") * sum(per_depth)

    def subspaces(self) -> tuple[SubSpace, ...]:
        """Return `tiny`, `small` and `base`, as far as the axes have their choices."""
        table, found = self.table(), []
        for name in SUBSPACES:
            wanted = self._part(name)
            choices = {axis: tuple(c for c in wanted[axis] if c in table[axis]) for axis in wanted}
            if all(choices.values()):
                count = math.prod(map(len, choices.values()))
                found.append(SubSpace(name, choices, f"{count} sizes of similar cost"))
        return tuple(found)

    def _layers(self, arch: Architecture) -> tuple[LayerShape, ...]:
        p = arch.params
        heads = int(p["hidden"]) // self.options.teacher.head_dim if self.options.stock_only else int(p["heads"])
        mlp = half_up(int(p["hidden"]) * float(p["mlp_ratio"]))
        each = self.options.attention_per_layer
        return tuple(
            LayerShape(heads, mlp, str(p[f"layer{index:02d}.attention" if each else "attention"]))
            for index in range(int(p["layers"]))
        )

    def _choices(self, subspace: SubSpace | None) -> Mapping[str, tuple[Value, ...]]:
        given = {} if subspace is None else subspace.choices
        return {name: tuple(sorted(given.get(name, choices))) for name, choices in self.table().items()}

    def _largest(self, choices: Mapping[str, tuple[Value, ...]]) -> tuple[int, list[LayerShape]]:
        hidden = int(choices["hidden"][-1])
        mlp = half_up(hidden * float(choices["mlp_ratio"][-1]))
        heads = hidden // self.options.teacher.head_dim if self.options.stock_only else int(choices["heads"][-1])
        layer = LayerShape(heads, mlp, self.options.attention[0])
        return hidden, [layer] * self.options.teacher.layers
