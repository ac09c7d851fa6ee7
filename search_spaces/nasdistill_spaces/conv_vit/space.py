"""Convolution stem + transformer blocks, for images of 8 to some hundred pixels.

    x = stem(image) + position;   x = x + attn(norm1(x));   x = x + mlp(norm2(x));   logits = head(norm(mean(x)))

The stem is a row of 3x3 convolutions with batch normalisation and ReLU (they become one node each after export). It
halves the image until the token grid is at most 8x8, for images above 64 pixels at most 14x14, and `reduction` times
more: 8 pixels give 4x4 tokens, 32 give 8x8, 224 give 14x14. Per block: heads, MLP ratio and attention variant. Every
variant of level *core* that the host knows can be a choice; its projections are the block's, so they start from the
teacher's whatever the variant.

Cost of one block at N tokens, width C, inner width I = heads * head_dim, MLP width R: N (4 C I + 2 C R) plus the core
(softmax: 2 N^2 I) multiply-accumulates.

Sources: convolution stems, "Early Convolutions Help Transformers See Better", arXiv 2106.14881; per-block choices,
"AutoFormer: Searching Transformers for Visual Recognition", arXiv 2107.00651. We depart from the latter in the stem,
the mean pool instead of a class token, and in having no shared weights. As there, the size of a head is fixed and the
number of heads changes the inner width: a head is then something that can be cut (cost falls, what remains computes
the same); `head_dim = 0` gives the other convention, width / heads. The variants' sources stand in their own files;
Flow-Attention ("Flowformer", arXiv 2202.06258) is one of the default choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import (
    AttentionCore,
    AttentionGeometry,
    Batch,
    Example,
    InheritReport,
    ModelingSource,
    TokenLayout,
)
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.io import Cost, IOSpec, conv_output
from nasdistill_spaces.conv_vit.inherit import inherit_weights
from nasdistill_spaces.conv_vit.model import BlockShape, ConvVitNet, StemLayer
from nasdistill_spaces.conv_vit.standalone import conv_vit
from nasdistill_spaces.cores import VariantOptions, Variants, core_class, fresh_core
from nasdistill_spaces.images import image_problem, unique_sorted
from nasdistill_spaces.plan import Plan, PlannedSpace, halvings_to

Width = Annotated[int, Field(ge=1, le=8192)]


class ConvVitOptions(VariantOptions):
    """The choices of every axis, and what all points share."""

    stem_width: tuple[Width, ...] = Field((8, 16, 32), min_length=1, description="Channels of the first convolution.")
    width: tuple[Width, ...] = Field((32, 64, 96, 128), min_length=1, description="Width C of the blocks.")
    depth: tuple[Annotated[int, Field(ge=1, le=99)], ...] = Field(
        (1, 2, 3, 4, 5, 6), min_length=1, description="Number of blocks."
    )
    reduction: tuple[Annotated[int, Field(ge=0, le=4)], ...] = Field(
        (0, 1), min_length=1, description="Further halvings of the token grid."
    )
    heads: tuple[Annotated[int, Field(ge=1, le=128)], ...] = Field(
        (1, 2, 4), min_length=1, description="Heads, for each block."
    )
    mlp_ratio: tuple[Annotated[int | float, Field(gt=0, le=16)], ...] = Field(
        (1, 2, 4), min_length=1, description="MLP neurons / C, for each block."
    )
    attention: Variants = Field(
        ("softmax", "flow", "sigmoid", "linear", "window"), min_length=1, description="Variants, for each block."
    )
    head_dim: int = Field(32, ge=0, le=1024, description="Size of a head; 0 means C / heads.")
    position: Literal["learned", "sincos"] = Field("learned", description="Position embedding of the tokens.")

    @field_validator("stem_width", "width", "depth", "reduction", "heads", "mlp_ratio")
    @classmethod
    def _sorted(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return unique_sorted(value)

    @model_validator(mode="after")
    def _consistent(self) -> ConvVitOptions:
        if self.head_dim == 0:
            bare = [width for width in self.width if all(width % heads for heads in self.heads)]
            if bare:
                raise ValueError(f"with head_dim = 0 no choice of heads divides width {bare[0]}")
            if self.width[-1] % self.heads[-1]:
                raise ValueError("with head_dim = 0 the largest number of heads must divide the largest width")
        return self


class ConvVit(PlannedSpace):
    """Convolution stem + transformer blocks; students start from a larger member's weights."""

    options_model = ConvVitOptions
    options: ConvVitOptions
    examples = (
        Example(name="default"),
        Example(
            {"stem_width": [8], "width": [16, 24], "depth": [1, 2], "heads": [2, 3], "mlp_ratio": [0.5, 1.5],
             "attention": ["softmax", "flow"], "head_dim": 0, "position": "sincos"},
            {"io": IOSpec("image", (2, 11, 6), 3)},
            "width / heads",
        ),
    )  # fmt: skip

    def axes(self) -> tuple[Axis, ...]:
        """Return ``stem_width width depth reduction``, then ``heads mlp_ratio attention`` of ``block00`` on."""
        o = self.options

        def present(block: int) -> Callable[[Mapping[str, Value]], bool] | None:
            """Return when a block is there; None means always."""
            return None if block < o.depth[0] else lambda params: int(params["depth"]) > block

        axes = [
            Axis("stem_width", o.stem_width, o.stem_width[-1], ordered=True, help="channels of the first convolution"),
            Axis("width", o.width, o.width[-1], ordered=True, help="width of the blocks"),
            Axis("depth", o.depth, o.depth[-1], ordered=True, help="number of blocks"),
            Axis("reduction", o.reduction, o.reduction[0], ordered=True, help="further halvings of the token grid"),
        ]
        for block in range(o.depth[-1]):
            name, active = f"block{block:02d}", present(block)
            axes += [
                Axis(f"{name}.heads", o.heads, o.heads[-1], active, ordered=True, help="attention heads"),
                Axis(f"{name}.mlp_ratio", o.mlp_ratio, o.mlp_ratio[-1], active, ordered=True, help="neurons / width"),
                Axis(f"{name}.attention", o.attention, o.attention[0], active, help="attention variant"),
            ]
        return tuple(axes)

    def constraints(self, params: Mapping[str, Value]) -> list[str]:
        """Return where heads do not divide the width (only with ``head_dim = 0``)."""
        if self.options.head_dim:
            return []
        width = int(params["width"])
        return [
            f"block{block:02d}.heads = {heads} does not divide width = {width}"
            for block in range(int(params["depth"]))
            if width % (heads := int(params[f"block{block:02d}.heads"]))
        ]

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is no image classification, or None."""
        return image_problem(io)

    def reference(self) -> Architecture:
        """Return the largest point (largest choices, no extra reduction, first variant): a teacher for the others."""
        return self.default()

    def size(self) -> int:
        """Return the number of points: sum over widths w and depths d of stems * reductions * (heads fitting w *
        ratios * variants) ** d.
        """
        o = self.options
        per_block = len(o.mlp_ratio) * len(o.attention)
        total = 0
        for width in o.width:
            heads = len(o.heads) if o.head_dim else sum(width % h == 0 for h in o.heads)
            total += sum((heads * per_block) ** depth for depth in o.depth)
        return total * len(o.stem_width) * len(o.reduction)

    def depth(self, arch: Architecture) -> int:
        """Return the number of blocks."""
        return int(arch.params["depth"])

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a :class:`ConvVitNet`; see :class:`SearchSpace`."""
        self._require(arch, io)
        stem = self._stem(arch, io)
        blocks = self._blocks(arch, stem[-1])
        cores = [self._core(shape) for shape in blocks]
        return ConvVitNet(stem, blocks, cores, io.outputs, self.options.position)

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`conv_vit` of :mod:`nasdistill_spaces.conv_vit.standalone` with its arguments."""
        self._require(arch, io)
        stem = self._stem(arch, io)
        blocks = self._blocks(arch, stem[-1])
        config = {
            "stem": [asdict(layer) for layer in stem],
            "heads": [shape.geometry.heads for shape in blocks],
            "head_dim": [shape.geometry.head_dim for shape in blocks],
            "mlp_hidden": [shape.hidden for shape in blocks],
            "attention": [shape.attention for shape in blocks],
            "attention_options": [self._core(shape).options.model_dump(mode="json") for shape in blocks],
            "position": self.options.position,
            "outputs": io.outputs,
        }
        return ModelingSource(
            conv_vit, config, {shape.attention: core_class(self, shape.attention) for shape in blocks}
        )

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Slice the weights of a teacher of this family into `student`; see :mod:`nasdistill_spaces.conv_vit.inherit`.

        Returns:
            None when the teacher has another structure.
        """
        if not isinstance(student, ConvVitNet):
            return None
        return inherit_weights(student, teacher, calibration)

    def plan(self, arch: Architecture, io: IOSpec) -> Plan:
        """Return the network layer by layer.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        self._require(arch, io)
        plan = Plan(io.shape)
        stem = self._stem(arch, io)
        for index, layer in enumerate(stem):
            cost = Cost.conv2d(layer.inputs, layer.outputs, 3, height=layer.height, width=layer.width)
            plan.add(
                f"stem.{index}", "conv", (layer.outputs, layer.height, layer.width),
                cost + Cost.norm(layer.outputs), label=f"conv 3x3 / {layer.stride}, {layer.outputs}",
            )  # fmt: skip
        tokens, width = stem[-1].height * stem[-1].width, stem[-1].outputs
        position = Cost(tokens * width if self.options.position == "learned" else 0, 0)
        plan.add("position", "add", (tokens, width), position, label=f"position, {self.options.position}")
        for index, shape in enumerate(self._blocks(arch, stem[-1])):
            self._plan_block(plan, f"blocks.{index}", shape, tokens)
        plan.add("pool", "mean", (width,), label="mean over tokens")
        plan.add("norm", "norm", (width,), Cost.norm(width), label="layer norm")
        plan.add("head", "linear", (io.outputs,), Cost.linear(width, io.outputs), label=f"linear, {io.outputs}")
        return plan

    def _plan_block(self, plan: Plan, name: str, shape: BlockShape, tokens: int) -> None:
        """Append one block; its two branches leave from, and return to, the residual stream."""
        geometry, stream = shape.geometry, plan.last
        width, inner = geometry.dim, geometry.heads * geometry.head_dim
        variant = core_class(self, shape.attention)
        core = variant.cost(geometry, tokens, tokens, self.options.attention_options.get(shape.attention))

        def linear(path: str, inputs: int, outputs: int) -> str:
            cost = Cost.linear(inputs, outputs, tokens=tokens)
            return plan.add(f"{name}.{path}", "linear", (tokens, outputs), cost, label=f"linear, {outputs}")

        plan.add(f"{name}.norm1", "norm", (tokens, width), Cost.norm(width), label="layer norm")
        linear("attn.qkv", width, 3 * inner)
        label = f"{shape.attention}, {geometry.heads} x {geometry.head_dim}"
        plan.add(f"{name}.attn.core", "attention", (tokens, inner), core, label=label)
        out = linear("attn.proj", inner, width)
        stream = plan.add(f"{name}.add1", "add", (tokens, width), after=(stream, out))
        plan.add(f"{name}.norm2", "norm", (tokens, width), Cost.norm(width), label="layer norm")
        linear("mlp.fc1", width, shape.hidden)
        plan.add(f"{name}.mlp.act", "gelu", (tokens, shape.hidden))
        out = linear("mlp.fc2", shape.hidden, width)
        plan.add(f"{name}.add2", "add", (tokens, width), after=(stream, out))

    def _require(self, arch: Architecture, io: IOSpec) -> None:
        self.check(arch)
        reason = self.accepts(io)
        if reason:
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")

    def _stem(self, arch: Architecture, io: IOSpec) -> list[StemLayer]:
        """Return the stem: at least two convolutions, the last with stride 2, channels doubling to the width."""
        channels, height, width = io.shape
        side = max(height, width)
        halvings = max(1, halvings_to(side, 8 if side <= 64 else 14)) + int(arch.params["reduction"])
        count = max(2, halvings)
        first, last = int(arch.params["stem_width"]), int(arch.params["width"])
        layers = []
        for index in range(count):
            stride = 2 if index >= count - halvings else 1
            outputs = last if index == count - 1 else min(first * 2**index, max(first, last))
            height, width = conv_output(height, 3, stride, 1), conv_output(width, 3, stride, 1)
            layers.append(StemLayer(channels, outputs, stride, height, width))
            channels = outputs
        return layers

    def _blocks(self, arch: Architecture, last: StemLayer) -> list[BlockShape]:
        """Return the sizes of the active blocks."""
        layout = TokenLayout(grid=(last.height, last.width))
        shapes = []
        for block in range(self.depth(arch)):
            heads = int(arch.params[f"block{block:02d}.heads"])
            geometry = AttentionGeometry(
                dim=last.outputs,
                heads=heads,
                head_dim=self.options.head_dim or last.outputs // heads,
                tokens=last.height * last.width,
                layout=layout,
            )
            hidden = max(1, round(last.outputs * float(arch.params[f"block{block:02d}.mlp_ratio"])))
            shapes.append(BlockShape(geometry, hidden, str(arch.params[f"block{block:02d}.attention"])))
        return shapes

    def _core(self, shape: BlockShape) -> AttentionCore:
        """Return a fresh core for one block."""
        return fresh_core(self, shape.attention, shape.geometry, self.options.attention_options)
