"""A BERT-like encoder whose layers differ: heads and MLP width of each layer, one width and depth for all.

    layers L, width H; per layer: heads, MLP neurons, attention variant

The usual choices are a quarter, a half, three quarters and the whole of the teacher's layers, width, heads and neurons.
Widths are rounded to multiples of 8 (of a smaller power of two for narrow teachers), the others to the nearest. A head
keeps the teacher's size, so what is cut is whole heads and whole neurons; with ``ranking = "importance"`` (here the
default) the ones that matter least, layer by layer.

Cost of layer i at N tokens: N (4 H A_i D + 2 H M_i) multiply-accumulates plus the core (softmax: 2 N^2 A_i D).

Sources: per-layer heads and MLP widths as in "HAT: Hardware-Aware Transformers for Efficient Natural Language
Processing", arXiv 2005.14187; slices and depth rule as `encoder`, arXiv 2201.12507. We depart from the former: an
encoder, one shared width, no arbitrary encoder-decoder attention, and heads of a fixed size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from nasdistill.interfaces import Example, SubSpace
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.io import IOSpec
from nasdistill_spaces.choices import half_up, layer_axis, source_layers, to_width, unique
from nasdistill_spaces.encoder.base import Choices, EncoderSpace, EncoderSpaceOptions
from nasdistill_spaces.images import unique_sorted
from nasdistill_spaces.layers import LayerShape

QUARTERS = (0.25, 0.5, 0.75, 1.0)


class BertFreeOptions(EncoderSpaceOptions):
    """The choices of every axis, and what all points share."""

    mlp: Choices | None = Field(None, min_length=1, description="Choices of MLP neurons, instead of the usual ones.")
    ranking: Literal["none", "importance"] = Field(
        "importance", description="Keep the first channels, heads and neurons of the teacher, or the most important."
    )

    @field_validator("mlp")
    @classmethod
    def _neurons(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if value is None else unique_sorted(value)


class BertFree(EncoderSpace):
    """Layers and width of a BERT-like encoder; heads, MLP width and attention variant of each layer."""

    options_model = BertFreeOptions
    options: BertFreeOptions
    name = "bert_free"
    examples = (
        Example({}, {"io": IOSpec("tokens", (10,), 3, 40)}, "default"),
        Example(
            {"layers": [1, 2], "hidden": [24, 48], "heads": [1, 4], "mlp": [16, 64], "attention": ["softmax", "linear"],
             "ranking": "none", "teacher": {"model_type": "roberta", "padding_id": 1}},
            {"io": IOSpec("tokens", (7,), 2, 40)},
            "few choices",
        ),
    )  # fmt: skip

    def table(self) -> dict[str, tuple[int, ...]]:
        """Return the choices of ``layers hidden heads mlp``, ascending."""
        o, t = self.options, self.options.teacher
        usual = {
            "layers": unique(half_up(part * t.layers) for part in QUARTERS),
            "hidden": unique(to_width(part * t.hidden, t.hidden) for part in QUARTERS),
            "heads": unique(half_up(part * t.heads) for part in QUARTERS),
            "mlp": unique(half_up(part * t.mlp) for part in QUARTERS),
        }
        return {axis: getattr(o, axis) or choices for axis, choices in usual.items()}

    def axes(self) -> tuple[Axis, ...]:
        """Return ``layers hidden``, then ``heads mlp attention`` of ``layer00`` on."""
        table, variants = self.table(), self.options.attention
        fewest, most = table["layers"][0], table["layers"][-1]
        axes = [
            Axis("layers", table["layers"], most, ordered=True, help="layers"),
            Axis("hidden", table["hidden"], table["hidden"][-1], ordered=True, help="width"),
        ]
        for layer in range(most):
            for name, text in (("heads", "attention heads"), ("mlp", "MLP neurons")):
                choices = table[name]
                axes.append(layer_axis(layer, fewest, name, choices, choices[-1], ordered=True, help=text))
            axes.append(layer_axis(layer, fewest, "attention", variants, variants[0], help="attention variant"))
        return tuple(axes)

    def size(self) -> int:
        """Return the number of points: widths * sum over layers L of (heads * neurons * variants) ** L."""
        table = self.table()
        each = math.prod((len(table["heads"]), len(table["mlp"]), len(self.options.attention)))
        return len(table["hidden"]) * sum(int(each**depth) for depth in table["layers"])

    def _layers(self, arch: Architecture) -> tuple[LayerShape, ...]:
        p = arch.params
        names = [f"layer{index:02d}" for index in range(int(p["layers"]))]
        return tuple(
            LayerShape(int(p[f"{n}.heads"]), int(p[f"{n}.mlp"]), str(p[f"{n}.attention"])) for n in names
        )  # fmt: skip

    def _choices(self, subspace: SubSpace | None) -> Mapping[str, tuple[Value, ...]]:
        given = {} if subspace is None else subspace.choices
        names = (axis for axis in self.axes() if axis.ordered)
        return {axis.name: tuple(sorted(given.get(axis.name, axis.choices))) for axis in names}

    def _largest(self, choices: Mapping[str, tuple[Value, ...]]) -> tuple[int, list[LayerShape]]:
        depth = self.options.teacher.layers
        sizes = [[1, 1] for _ in range(depth)]
        for count in choices["layers"]:
            for layer, source in enumerate(source_layers(int(count), depth)):
                for place, name in enumerate(("heads", "mlp")):
                    most = int(choices[f"layer{layer:02d}.{name}"][-1])
                    sizes[source][place] = max(sizes[source][place], most)
        variant = self.options.attention[0]
        return int(choices["hidden"][-1]), [LayerShape(heads, mlp, variant) for heads, mlp in sizes]
