"""AutoFormer's space: plain vision transformers cut from a ViT or DeiT, in the parts tiny, small and base.

    embed C, depth L; per block: heads A_i, mlp_ratio r_i, attention variant

Patches of the teacher's size are embedded by one linear map, a class token stands before them, positions are learned;
blocks are pre-norm with GELU, and q, k and v are as wide as A_i heads of the teacher's size. The choices are
AutoFormer's tables, scaled to smaller teachers (:mod:`nasdistill_spaces.vit.sizes`). Students start from the teacher's
weights (:mod:`nasdistill_spaces.vit.weights`), and all those of a part can share one set of weights.

Cost of block i at N tokens: N (4 C A_i D + 2 r_i C^2) multiply-accumulates plus the core (softmax: 2 N^2 A_i D). With
heads of 64 its parameters are 3 * 64 A (C + 1) + 64 A C + C + 2 r C^2 + r C + C + 4 C.

Sources: "AutoFormer: Searching Transformers for Visual Recognition", arXiv 2107.00651; "An Image is Worth 16x16 Words:
Transformers for Image Recognition at Scale", arXiv 2010.11929; "Training data-efficient image transformers &
distillation through attention", arXiv 2012.12877. We depart from the first in having no relative positions, in the
choice of source blocks (spread over the teacher, not the first ones), and in the attention variant as an axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import (
    AttentionCore,
    AttentionGeometry,
    Batch,
    Example,
    InheritReport,
    ModelGeometry,
    ModelingSource,
    StockModel,
    SubSpace,
    TeacherInfo,
)
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.io import Cost, IOSpec
from nasdistill_spaces.choices import half_up, layer_axis, source_layers, union, unique
from nasdistill_spaces.cores import VariantOptions, Variants, core_class, fresh_core
from nasdistill_spaces.images import image_problem, unique_sorted
from nasdistill_spaces.layers import LayerShape
from nasdistill_spaces.plan import Plan, PlannedSpace
from nasdistill_spaces.sliced import SlicedWeights
from nasdistill_spaces.vit.model import VitNet, VitShape
from nasdistill_spaces.vit.planning import plan_of
from nasdistill_spaces.vit.reading import read_source
from nasdistill_spaces.vit.sizes import TABLES, VitSizes, read_sizes, scaled
from nasdistill_spaces.vit.standalone import PER_LAYER, vit
from nasdistill_spaces.vit.stock import stock_model
from nasdistill_spaces.vit.weights import inherit_weights, rank

Choices = tuple[Annotated[int, Field(ge=1, le=1 << 20)], ...]
SIZES = ("embed", "depth", "heads", "mlp_ratio")


class VitOptions(VariantOptions):
    """The table, or the choices themselves, and what all points share."""

    teacher: VitSizes = Field(
        default_factory=VitSizes, description="Sizes of the network students are cut from; read from the teacher."
    )
    table: Literal["all", "tiny", "small", "base"] = Field(
        "all", description="Which table the axes have; `all` is their union."
    )
    embed: Choices | None = Field(None, min_length=1, description="Choices of the width C, instead of the table's.")
    depth: Choices | None = Field(None, min_length=1, description="Choices of blocks, likewise.")
    heads: Choices | None = Field(None, min_length=1, description="Choices of heads, for each block.")
    mlp_ratio: tuple[Annotated[float, Field(gt=0, le=64)], ...] | None = Field(
        None, min_length=1, description="Choices of MLP neurons / C, for each block."
    )
    attention: Variants = Field(("softmax",), min_length=1, description="Attention variants, for each block.")
    ranking: Literal["none", "importance"] = Field(
        "none", description="Keep the first channels, heads and neurons of the teacher, or the most important ones."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout while training, after positions, attention and MLP.")

    @field_validator("embed", "depth", "heads", "mlp_ratio")
    @classmethod
    def _sorted(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if value is None else unique_sorted(value)

    @model_validator(mode="after")
    def _consistent(self) -> VitOptions:
        for name in ("embed", "depth", "heads"):
            given, most = getattr(self, name), getattr(self.teacher, name)
            if given and given[-1] > most:
                raise ValueError(f"{name} = {given[-1]} is more than the teacher's {most}")
        return self


class SuperVit(SlicedWeights):
    """Shared weights of vision transformers; ``shared`` and ``active`` are :class:`VitNet`."""

    stem: ClassVar[str] = "layers."

    def forward(self, image: Tensor) -> Tensor:
        """Compute the set architecture; as :meth:`VitNet.forward`."""
        return self.run(image)


class Vit(PlannedSpace):
    """Width and depth of a vision transformer; heads, MLP ratio and attention variant of each block."""

    options_model = VitOptions
    options: VitOptions
    examples = (
        Example({"table": "tiny"}, {"io": IOSpec("image", (1, 8, 8), 3)}, "default"),
        Example(
            {"embed": [12, 24], "depth": [1, 2], "heads": [1, 3], "mlp_ratio": [0.5, 2.0], "ranking": "importance",
             "attention": ["softmax", "flow"],
             "teacher": {"embed": 24, "heads": 3, "depth": 2, "mlp": 48, "patch": [4, 3], "prefix": 2, "pool": "mean",
                         "prefix_positions": False, "qkv_bias": False}},
            {"io": IOSpec("image", (2, 9, 6), 3)},
            "mean pool",
        ),
    )  # fmt: skip

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return ``teacher``: the sizes of its network; nothing for teachers that say nothing.

        Raises:
            MismatchError: not of a known family; what is missing is named.
        """
        if "teacher" in options or (not teacher.library and not teacher.model):
            return {}
        return {"teacher": read_sizes(teacher, "vit")}

    # ---- points ---------------------------------------------------------------------------------------------------

    def table(self) -> dict[str, tuple[Value, ...]]:
        """Return the choices of ``embed depth heads mlp_ratio``, ascending."""
        o = self.options
        found = union(scaled(name, o.teacher) for name in (TABLES if o.table == "all" else (o.table,)))
        return {axis: getattr(o, axis) or found[axis] for axis in SIZES}

    def axes(self) -> tuple[Axis, ...]:
        """Return ``embed depth``, then ``heads mlp_ratio attention`` of ``block00`` on."""
        table, variants = self.table(), self.options.attention
        fewest, most = int(table["depth"][0]), int(table["depth"][-1])
        axes = [Axis("embed", table["embed"], table["embed"][-1], ordered=True, help="width")]
        axes.append(Axis("depth", table["depth"], most, ordered=True, help="blocks"))
        for block in range(most):
            for name, text in (("heads", "attention heads"), ("mlp_ratio", "MLP neurons / width")):
                axes.append(_axis(block, fewest, name, table[name], table[name][-1], ordered=True, help=text))
            axes.append(_axis(block, fewest, "attention", variants, variants[0], help="attention variant"))
        return tuple(axes)

    def size(self) -> int:
        """Return the number of points: widths * sum over depths L of (heads * ratios * variants) ** L."""
        table = self.table()
        each = math.prod((len(table["heads"]), len(table["mlp_ratio"]), len(self.options.attention)))
        return len(table["embed"]) * sum(int(each ** int(depth)) for depth in table["depth"])

    def subspaces(self) -> tuple[SubSpace, ...]:
        """Return `tiny`, `small` and `base`, as far as the axes have their choices."""
        table, found = self.table(), []
        for name in TABLES:
            wanted = scaled(name, self.options.teacher)
            held = {axis: tuple(c for c in wanted[axis] if c in table[axis]) for axis in SIZES}
            if not all(held.values()):
                continue
            blocks = range(int(held["depth"][-1]))
            choices = {"embed": held["embed"], "depth": held["depth"]}
            choices |= {f"block{block:02d}.{axis}": held[axis] for block in blocks for axis in ("heads", "mlp_ratio")}
            found.append(SubSpace(name, choices, f"AutoFormer's table {name}"))
        return tuple(found)

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is no image classification that these networks can serve, or None."""
        if io.head != "classes":
            return f"its networks answer with classes, not {io.head}"
        problem = image_problem(io)
        if problem:
            return problem
        patch = self.options.teacher.patch_for(*io.shape[1:])
        if any(side < part for side, part in zip(io.shape[1:], patch, strict=True)):
            return f"images of {io.shape[1]} x {io.shape[2]} hold no patch of {patch[0]} x {patch[1]}"
        return None

    def reference(self) -> Architecture:
        """Return the largest point with the first variant: a teacher for the others."""
        return self.default()

    def depth(self, arch: Architecture) -> int:
        """Return the number of blocks."""
        return int(arch.params["depth"])

    def layer_map(self, arch: Architecture, teacher: ModelGeometry) -> dict[int, int]:
        """Return for each block the teacher's block that its weights came from, the last on the last."""
        depth = self.depth(arch)
        if teacher.layers < 1:
            return {}
        return {**dict(enumerate(source_layers(depth, teacher.layers))), depth - 1: teacher.layers - 1}

    # ---- networks -------------------------------------------------------------------------------------------------

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a :class:`VitNet`; see :class:`SearchSpace`."""
        self._require(arch, io)
        return self._net(self._shape(arch, io))

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`vit` of :mod:`nasdistill_spaces.vit.standalone` with its arguments."""
        self._require(arch, io)
        shape = self._shape(arch, io)
        config = {key: value for key, value in asdict(shape).items() if key != "layers"}
        config |= {key: list(config[key]) for key in ("patch", "grid")}
        config |= {key: [getattr(layer, key) for layer in shape.layers] for key in PER_LAYER}
        config["attention_options"] = [
            core.options.model_dump(mode="json") for core in (self._core(shape, layer) for layer in shape.layers)
        ]
        names = unique(layer.attention for layer in shape.layers)
        parts: dict[str, type] = {name: core_class(self, name) for name in names}
        sizes = {"hidden_size": shape.embed, "num_hidden_layers": len(shape.layers), "head_dim": shape.head_dim}
        per_layer = {
            index: {"num_attention_heads": layer.heads, "intermediate_size": layer.mlp}
            for index, layer in enumerate(shape.layers)
        }
        return ModelingSource(vit, config, parts, sizes, per_layer)

    def stock_model(self, arch: Architecture, io: IOSpec) -> StockModel | None:
        """Return the class of transformers where one has this shape: equal blocks, softmax, a head on the class
        token.
        """
        self._require(arch, io)
        return stock_model(self._shape(arch, io), io.shape)

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Slice the weights of a vision transformer into `student`; see :mod:`nasdistill_spaces.vit.weights`.

        Args:
            student: a network of this space.
            arch: its architecture.
            teacher: a model of timm or transformers, something that holds one, or a network of this space.
            calibration: for ``ranking = "importance"``: ranks by activations rather than by weights.

        Returns:
            None when the teacher has another structure.
        """
        if not isinstance(student, VitNet):
            return None
        source = read_source(teacher)
        if source is None:
            return None
        order = rank(source, teacher, calibration) if self.options.ranking == "importance" else None
        return inherit_weights(student, source, source_layers(len(student.layers), source.depth), order)

    def supernet(self, io: IOSpec, teacher: nn.Module | None = None, *, subspace: SubSpace | None = None) -> SuperVit:
        """Return shared weights for the whole space or a sub-space, as large as its largest member in every tensor.

        With ``ranking = "importance"`` channels, heads and neurons are ordered once, by the teacher's weights, the most
        important first. Without a teacher, or with one of another structure, the weights are fresh.

        Raises:
            ArchitectureError: a variant has tensors of its own, or `io` does not fit.
        """
        given = {} if subspace is None else subspace.choices
        choices = {axis.name: tuple(given.get(axis.name, axis.choices)) for axis in self.axes() if axis.ordered}
        first = self.architecture({name: max(values) for name, values in choices.items()})
        self._require(first, io)
        embed, deep = int(max(choices["embed"])), self.options.teacher.depth
        layers = [LayerShape(1, 1, self.options.attention[0])] * deep
        used: set[int] = set()
        for depth in choices["depth"]:
            for block, source in enumerate(source_layers(int(depth), deep)):
                heads, ratio = (max(choices[f"block{block:02d}.{name}"]) for name in ("heads", "mlp_ratio"))
                here = layers[source]
                neurons = half_up(embed * float(ratio))
                layers[source] = LayerShape(max(here.heads, int(heads)), max(here.mlp, neurons), here.attention)
                used.add(source)
        there = tuple(sorted(used))
        shared = self._net(self._shape_of(embed, tuple(layers[index] for index in there), io))
        found = None if teacher is None else read_source(teacher)
        if teacher is not None and found is not None:
            order = rank(found, teacher) if self.options.ranking == "importance" else None
            # The same blocks, unless this teacher is deeper or shallower than the options say.
            inherit_weights(shared, found, [i * found.depth // deep for i in there], order, nested=True)

        def build(arch: Architecture) -> VitNet:
            self.check(arch)
            return self._net(self._shape(arch, io))

        def sources(arch: Architecture) -> tuple[int, ...]:
            return source_layers(self.depth(arch), deep)

        return SuperVit(shared, there, build, sources, first)

    def _net(self, shape: VitShape) -> VitNet:
        return VitNet(shape, [self._core(shape, layer) for layer in shape.layers])

    def _shape(self, arch: Architecture, io: IOSpec) -> VitShape:
        p = arch.params
        embed = int(p["embed"])
        blocks = [f"block{index:02d}" for index in range(int(p["depth"]))]
        layers = (
            LayerShape(int(p[f"{b}.heads"]), half_up(embed * float(p[f"{b}.mlp_ratio"])), str(p[f"{b}.attention"]))
            for b in blocks
        )
        return self._shape_of(embed, tuple(layers), io)

    def _shape_of(self, embed: int, layers: tuple[LayerShape, ...], io: IOSpec) -> VitShape:
        """Return all sizes of a network; what no axis says is the teacher's."""
        sizes = self.options.teacher
        channels, height, width = io.shape
        patch = sizes.patch_for(height, width)
        return VitShape(
            channels=channels, patch=patch, grid=(height // patch[0], width // patch[1]), embed=embed,
            head_dim=sizes.size_of_head, layers=layers, prefix=sizes.prefix, prefix_positions=sizes.prefix_positions,
            pool=sizes.pool, qkv_bias=sizes.qkv_bias, activation=sizes.activation, eps=sizes.eps,
            dropout=self.options.dropout, outputs=io.outputs,
        )  # fmt: skip

    def _require(self, arch: Architecture, io: IOSpec) -> None:
        self.check(arch)
        reason = self.accepts(io)
        if reason:
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")

    def _core(self, shape: VitShape, layer: LayerShape) -> AttentionCore:
        return fresh_core(self, layer.attention, shape.geometry(layer), self.options.attention_options)

    # ---- cost -----------------------------------------------------------------------------------------------------

    def plan(self, arch: Architecture, io: IOSpec) -> Plan:
        """Return the network layer by layer.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        self._require(arch, io)

        def core_cost(geometry: AttentionGeometry, variant: str) -> Cost:
            n = geometry.tokens or 1
            return core_class(self, variant).cost(geometry, n, n, self.options.attention_options.get(variant))

        return plan_of(self._shape(arch, io), io.shape, core_cost)


def _axis(block: int, fewest: int, name: str, choices: Sequence[Value], default: Value, **more: Any) -> Axis:
    """Return an axis of one block, inactive where the block is not there."""
    return layer_axis(block, fewest, name, choices, default, stem="block", depth="depth", **more)
