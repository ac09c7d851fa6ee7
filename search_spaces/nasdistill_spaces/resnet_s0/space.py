"""CIFAR ResNets: S0 of DisWOT, opened to other widths, image sizes and to very small networks.

    x = relu(bn(conv3x3(image)));  per stage k, per block: x = relu(bn(conv3x3(relu(bn(conv3x3(x))))) + shortcut(x))
    logits = fc(mean(x))           stage k has width * 2**k channels and, from the second on, halves the map

Source: "DisWOT: Student Architecture Search for Distillation WithOut Training", arXiv 2303.15678, whose S0 is the
skeleton of ResNet-20 ("Deep Residual Learning for Image Recognition", arXiv 1512.03385) with 16, 32, 64 channels and
{1, 3, 5, 7} blocks in each of three stages: 64 networks. They are the sub-space ``s0`` of this space (stages 3, width
16, stem_stride 1). We add three axes, because on small images nearly all of a network's time goes into starting its
layers: `width`, `stem_stride` (2 quarters the work), and `stages` (one or two are enough for small images, and have
fewer layers). Images above 32 pixels are halved by stride-2 convolutions in the stem until they are at most 32.

Shortcuts that change shape are 1x1 convolutions, as in the code of S0's authors; ``shortcut = "pad"`` gives the
parameter-free ones of the ResNet paper. The latter cost more, not less, in onnxruntime (1.3 to 1.6 times the whole
network's time, measured at 8x8): slicing and padding leave its blocked memory layout, a 1x1 convolution does not. That
layout holds 8 or 16 channels per block, depending on the CPU, so widths should be multiples of 16, at least of 8.

Cost: 9 C_in C_out H W multiply-accumulates per convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator
from torch import nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import Batch, Example, InheritReport, ModelingSource, SubSpace
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.io import Cost, IOSpec, conv_output
from nasdistill.spec.options import ComponentOptions
from nasdistill_spaces.images import image_problem, unique_sorted
from nasdistill_spaces.plan import Plan, PlannedSpace, halvings_to
from nasdistill_spaces.resnet_s0.inherit import inherit_weights
from nasdistill_spaces.resnet_s0.model import BasicShape, ConvShape, ResNetS0Net
from nasdistill_spaces.resnet_s0.standalone import resnet_s0

if TYPE_CHECKING:
    from nasdistill.interfaces import ModelGeometry

LARGEST_MAP = 32


class ResNetS0Options(ComponentOptions):
    """The choices of every axis, and the kind of shortcut."""

    width: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (8, 16, 32, 48), min_length=1, description="Channels of the first stage; multiples of 16 run fastest."
    )
    stem_stride: tuple[Literal[1, 2], ...] = Field((1, 2), min_length=1, description="Stride of the stem.")
    stages: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
        (1, 2, 3), min_length=1, description="Number of stages."
    )
    blocks: tuple[Annotated[int, Field(ge=1, le=99)], ...] = Field(
        (1, 3, 5, 7), min_length=1, description="Blocks, for each stage."
    )
    shortcut: Literal["projection", "pad"] = Field("projection", description="Shortcut where the shape changes.")

    @field_validator("width", "stem_stride", "stages", "blocks")
    @classmethod
    def _sorted(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return unique_sorted(value)


class ResNetS0(PlannedSpace):
    """CIFAR ResNets; students start from a deeper or wider member's weights."""

    options_model = ResNetS0Options
    options: ResNetS0Options
    examples = (
        Example(name="default"),
        Example(
            {"width": [8, 12], "stages": [1, 3], "blocks": [1, 2], "shortcut": "pad"},
            {"io": (IOSpec("image", (2, 11, 6), 3), IOSpec("image", (3, 64, 64), 5))},
            "padded shortcuts",
        ),
    )

    def axes(self) -> tuple[Axis, ...]:
        """Return ``width stem_stride stages``, then ``stage0.blocks`` on; the defaults are ResNet-20's."""
        o = self.options

        def present(stage: int) -> Callable[[Mapping[str, Value]], bool] | None:
            """Return when a stage is there; None means always."""
            return None if stage < o.stages[0] else lambda params: int(params["stages"]) > stage

        return (
            Axis("width", o.width, _near(o.width, 16), ordered=True, help="channels of the first stage"),
            Axis("stem_stride", o.stem_stride, o.stem_stride[0], ordered=True, help="stride of the stem"),
            Axis("stages", o.stages, _near(o.stages, 3), ordered=True, help="number of stages"),
            *(
                Axis(f"stage{stage}.blocks", o.blocks, _near(o.blocks, 3), present(stage), ordered=True,
                     help="basic blocks of this stage")
                for stage in range(o.stages[-1])
            ),
        )  # fmt: skip

    def subspaces(self) -> tuple[SubSpace, ...]:
        """Return ``s0``, the 64 networks of the paper, where the options contain them."""
        choices: dict[str, tuple[Value, ...]] = {"width": (16,), "stem_stride": (1,), "stages": (3,)}
        choices |= {f"stage{stage}.blocks": (1, 3, 5, 7) for stage in range(3)}
        have = {axis.name: axis.choices for axis in self.axes()}
        if any(choice not in have.get(name, ()) for name, wanted in choices.items() for choice in wanted):
            return ()
        return (SubSpace("s0", choices, "S0 of DisWOT: ResNet-20 with {1, 3, 5, 7} blocks in each of three stages"),)

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is no image classification, or None."""
        return image_problem(io)

    def size(self) -> int:
        """Return widths * strides * sum over stages s of blocks ** s."""
        o = self.options
        per_width: int = sum(len(o.blocks) ** stages for stages in o.stages)
        return len(o.width) * len(o.stem_stride) * per_width

    def depth(self, arch: Architecture) -> int:
        """Return the number of basic blocks."""
        counts = self._blocks(arch)
        return sum(counts)

    def layer_map(self, arch: Architecture, teacher: ModelGeometry) -> dict[int, int]:
        """Return nothing: these networks have stage maps (``features.i``), no layers of tokens."""
        return {}

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a :class:`ResNetS0Net`; see :class:`SearchSpace`."""
        stem, stages = self._shapes(arch, io)
        return ResNetS0Net(stem, stages, io.outputs)

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`resnet_s0` of :mod:`nasdistill_spaces.resnet_s0.standalone` with its arguments."""
        stem, stages = self._shapes(arch, io)
        config = {
            "stem": [asdict(layer) for layer in stem],
            "stages": [[asdict(block) for block in stage] for stage in stages],
            "outputs": io.outputs,
        }
        return ModelingSource(resnet_s0, config)

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Slice the weights of a teacher of this family; see :mod:`nasdistill_spaces.resnet_s0.inherit`.

        Returns:
            None when the teacher has another structure.
        """
        return inherit_weights(student, teacher) if isinstance(student, ResNetS0Net) else None

    def plan(self, arch: Architecture, io: IOSpec) -> Plan:
        """Return the network layer by layer.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        stem, stages = self._shapes(arch, io)
        plan = Plan(io.shape)
        for index, shape in enumerate(stem):
            _plan_conv(plan, f"stem.{index}", shape)
        for number, stage in enumerate(stages):
            for index, block in enumerate(stage):
                name, entry = f"stages.{number}.{index}", plan.last
                _plan_conv(plan, f"{name}.conv1", block.conv1)
                main = _plan_conv(plan, f"{name}.conv2", block.conv2)
                out = (block.conv2.outputs, block.conv2.height, block.conv2.width)
                if block.shortcut is not None:
                    entry = _plan_conv(plan, f"{name}.shortcut", block.shortcut, after=entry)
                elif block.conv1.stride != 1 or block.conv1.inputs != block.conv2.outputs:
                    entry = plan.add(f"{name}.shortcut", "pad", out, after=entry, label="subsample, pad channels")
                plan.add(f"{name}.add", "add", out, after=(main, entry))
        channels = stages[-1][-1].conv2.outputs
        plan.add("pool", "mean", (channels,), label="global average")
        plan.add("fc", "linear", (io.outputs,), Cost.linear(channels, io.outputs), label=f"linear, {io.outputs}")
        return plan

    def _blocks(self, arch: Architecture) -> list[int]:
        """Return the number of blocks of each stage that is there."""
        return [int(arch.params[f"stage{stage}.blocks"]) for stage in range(int(arch.params["stages"]))]

    def _shapes(self, arch: Architecture, io: IOSpec) -> tuple[list[ConvShape], list[list[BasicShape]]]:
        """Return the sizes of all convolutions.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        self.check(arch)
        reason = self.accepts(io)
        if reason:
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")
        width = int(arch.params["width"])
        channels, *size = io.shape
        last = ConvShape(0, channels, 0, 1, size[0], size[1])  # the image, as if a convolution had made it
        halvings = halvings_to(max(io.shape[1:]), LARGEST_MAP) + (int(arch.params["stem_stride"]) - 1)
        stem = []
        for _ in range(max(1, halvings)):
            last = _conv(last, width, 3, 2 if halvings else 1)
            stem.append(last)
        stages = []
        for number, count in enumerate(self._blocks(arch)):
            stage = []
            for index in range(count):
                stride = 2 if number and not index else 1
                conv1 = _conv(last, width << number, 3, stride)
                reshaped = stride != 1 or last.outputs != conv1.outputs
                projected = reshaped and self.options.shortcut == "projection"
                shortcut = _conv(last, conv1.outputs, 1, stride) if projected else None
                last = _conv(conv1, conv1.outputs, 3, 1)
                stage.append(BasicShape(conv1, last, shortcut))
            stages.append(stage)
        return stem, stages


def _conv(before: ConvShape, outputs: int, kernel: int, stride: int) -> ConvShape:
    """Return the convolution that follows `before`."""
    height, width = (conv_output(size, kernel, stride, kernel // 2) for size in (before.height, before.width))
    return ConvShape(before.outputs, outputs, kernel, stride, height, width)


def _plan_conv(plan: Plan, name: str, shape: ConvShape, after: str | None = None) -> str:
    """Append a convolution with its batch normalisation."""
    cost = Cost.conv2d(shape.inputs, shape.outputs, shape.kernel, height=shape.height, width=shape.width)
    label = f"conv {shape.kernel}x{shape.kernel} / {shape.stride}, {shape.outputs}"
    size = (shape.outputs, shape.height, shape.width)
    return plan.add(name, "conv", size, cost + Cost.norm(shape.outputs), after=after, label=label)


def _near(choices: Sequence[int], wanted: int) -> int:
    """Return the choice closest to `wanted`."""
    return min(choices, key=lambda choice: (abs(choice - wanted), choice))
