"""Pooling-based vision transformers: stages of blocks, fewer patches and more heads from stage to stage.

    base_dim D, mlp_ratio r; per stage: blocks L_s, heads A_s (width A_s D), attention variant

Overlapping patches become tokens; a class token goes along. Between stages a convolution with stride 2 halves the grid,
each channel making its own channels of the next stage. Patches are 16 pixels wide and 8 apart for images of 224 pixels;
smaller images get smaller ones (`patch_for`). The choices are those of Auto-Prox: 4 * 4 * 27 * 27 = 11,664 points with
one attention variant.

Cost of a block at N tokens and width C: N (4 C^2 + 2 r C^2) multiply-accumulates plus the core (softmax: 2 N^2 C).

Sources: "Rethinking Spatial Dimensions of Vision Transformers" (PiT), arXiv 2103.16302; the choices from "Auto-Prox:
Training-Free Vision Transformer Architecture Search via Automatic Proxy Discovery", arXiv 2312.09059. We depart from
the former where a stage has fewer heads than the one before, which its pooling does not know: the channels then share
as many groups as divide both widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from torch import nn

from nasdistill.errors import ArchitectureError, MismatchError
from nasdistill.interfaces import (
    AttentionCore,
    Batch,
    Example,
    InheritReport,
    ModelingSource,
    TeacherInfo,
)
from nasdistill.spec.architecture import Architecture, Axis
from nasdistill.spec.io import Cost, IOSpec
from nasdistill_spaces.choices import half_up, unique
from nasdistill_spaces.cores import VariantOptions, Variants, core_class, fresh_core
from nasdistill_spaces.images import image_problem, unique_sorted
from nasdistill_spaces.plan import Plan, PlannedSpace, halvings_to
from nasdistill_spaces.vit.pit_model import PitNet, PitShape, StageShape
from nasdistill_spaces.vit.pit_standalone import pit
from nasdistill_spaces.vit.pit_weights import inherit_pit, read_pit
from nasdistill_spaces.vit.planning import add_layer, add_patches

Counts = Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)]
BASE_DIM = (16, 24, 32, 40)
MLP_RATIO = (2.0, 4.0, 6.0, 8.0)
DEPTH = ((1, 2, 3), (4, 6, 8), (2, 4, 6))
HEADS = ((2, 4, 8),) * 3


class PitOptions(VariantOptions):
    """The choices of every axis, and what all points share."""

    base_dim: Counts = Field(BASE_DIM, description="Size of every head.")
    mlp_ratio: tuple[Annotated[float, Field(gt=0, le=64)], ...] = Field(
        MLP_RATIO, min_length=1, description="MLP neurons / width."
    )
    depth: tuple[Counts, ...] = Field(DEPTH, min_length=1, max_length=5, description="Blocks, for each stage.")
    heads: tuple[Counts, ...] = Field(HEADS, min_length=1, max_length=5, description="Heads, for each stage.")
    attention: Variants = Field(("softmax",), min_length=1, description="Attention variants, for each stage.")
    patch: int | None = Field(None, ge=1, le=256, description="Side of a patch; chosen for the images if not given.")
    stride: int | None = Field(None, ge=1, le=256, description="Pixels from patch to patch, given with `patch`.")

    @field_validator("base_dim", "mlp_ratio")
    @classmethod
    def _sorted(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return unique_sorted(value)

    @field_validator("depth", "heads")
    @classmethod
    def _each_sorted(cls, value: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(unique_sorted(part) for part in value)

    @model_validator(mode="after")
    def _consistent(self) -> PitOptions:
        if len(self.depth) != len(self.heads):
            raise ValueError(f"depth has {len(self.depth)} stages, heads {len(self.heads)}")
        if (self.patch is None) != (self.stride is None):
            raise ValueError("patch and stride must be given together")
        return self

    def patch_for(self, height: int, width: int) -> tuple[int, int]:
        """Return side and stride of the patches for images of some size.

        Unless they are given: the stride is the smallest power of two that leaves at most 16 patches a side, for images
        above 64 pixels at most 28, and the side is twice that: 2 / 1 for 8 pixels, 4 / 2 for 32, 16 / 8 for 224.
        """
        if self.patch is not None and self.stride is not None:
            return self.patch, self.stride
        side = max(height, width)
        stride = 2 ** halvings_to(side, 16 if side <= 64 else 28)
        return 2 * stride, stride


class Pit(PlannedSpace):
    """Head size and MLP ratio of a PiT; blocks, heads and attention variant of each stage."""

    options_model = PitOptions
    options: PitOptions
    examples = (
        Example(
            {"base_dim": [4, 6], "mlp_ratio": [1.0, 2.0], "depth": [[1], [1, 2]], "heads": [[1, 2], [1, 2, 4]],
             "attention": ["softmax", "linear"]},
            {"io": IOSpec("image", (1, 8, 8), 3)},
            "two stages",
        ),
    )  # fmt: skip

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return patches and choices up to a teacher's that is one of timm's ``pit_*``; nothing for others.

        Raises:
            MismatchError: its stages have heads of different sizes.
        """
        own = teacher.model
        if teacher.library != "timm" or own.get("class") != "PoolingVisionTransformer" or "base_dims" not in own:
            return {}
        sizes = set(own["base_dims"])
        if len(sizes) > 1:
            raise MismatchError(f"space pit has one size of heads for all stages, this teacher {sorted(sizes)}")

        def up_to(choices: Sequence[Any], most: Any) -> list[Any]:
            return [*(choice for choice in choices if choice < most), most]

        stages = range(len(own["depth"]))
        found = {
            "base_dim": up_to(BASE_DIM, *sizes),
            "mlp_ratio": up_to(MLP_RATIO, float(own["mlp_ratio"])),
            "depth": [up_to(DEPTH[min(i, 2)], own["depth"][i]) for i in stages],
            "heads": [up_to(HEADS[min(i, 2)], own["heads"][i]) for i in stages],
            "patch": own["patch_size"][0],
            "stride": own["stride"],
        }
        return {name: value for name, value in found.items() if name not in options}

    # ---- points ---------------------------------------------------------------------------------------------------

    def axes(self) -> tuple[Axis, ...]:
        """Return ``base_dim mlp_ratio``, then ``depth heads attention`` of ``stage0`` on."""
        o = self.options
        axes = [
            Axis("base_dim", o.base_dim, o.base_dim[-1], ordered=True, help="size of a head"),
            Axis("mlp_ratio", o.mlp_ratio, o.mlp_ratio[-1], ordered=True, help="MLP neurons / width"),
        ]
        for index, (depth, heads) in enumerate(zip(o.depth, o.heads, strict=True)):
            axes += [
                Axis(f"stage{index}.depth", depth, depth[-1], ordered=True, help="blocks"),
                Axis(f"stage{index}.heads", heads, heads[-1], ordered=True, help="attention heads"),
                Axis(f"stage{index}.attention", o.attention, o.attention[0], help="attention variant"),
            ]
        return tuple(axes)

    def size(self) -> int:
        """Return the number of points: the product of all axes."""
        return self.raw_size()

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is no image classification that these networks can serve, or None."""
        if io.head != "classes":
            return f"its networks answer with classes, not {io.head}"
        problem = image_problem(io)
        if problem:
            return problem
        patch = self.options.patch_for(*io.shape[1:])[0]
        if min(io.shape[1:]) < patch:
            return f"images of {io.shape[1]} x {io.shape[2]} hold no patch of {patch} x {patch}"
        return None

    def reference(self) -> Architecture:
        """Return the largest point with the first variant: a teacher for the others."""
        return self.default()

    def depth(self, arch: Architecture) -> int:
        """Return the number of blocks, all stages together."""
        return sum(int(arch.params[f"stage{index}.depth"]) for index in range(len(self.options.depth)))

    # ---- networks -------------------------------------------------------------------------------------------------

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a :class:`PitNet`; see :class:`SearchSpace`."""
        shape = self._shape(arch, io)
        return PitNet(shape, [[self._core(shape, stage) for _ in range(stage.depth)] for stage in shape.stages])

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`pit` of :mod:`nasdistill_spaces.vit.pit_standalone` with its arguments."""
        shape = self._shape(arch, io)
        config = {name: getattr(shape, name) for name in ("channels", "patch", "stride", "base_dim", "outputs")}
        config |= {
            name: [getattr(stage, name) for stage in shape.stages] for name in ("heads", "depth", "mlp", "attention")
        }
        config["grid"] = [list(stage.grid) for stage in shape.stages]
        config["attention_options"] = [self._core(shape, s).options.model_dump(mode="json") for s in shape.stages]
        parts: dict[str, type] = {name: core_class(self, name) for name in unique(s.attention for s in shape.stages)}
        blocks = [(shape.geometry(stage), stage.mlp) for stage in shape.stages for _ in range(stage.depth)]
        width = blocks[-1][0].dim  # as transformers' Swin says it: after the last stage
        sizes = {"hidden_size": width, "num_hidden_layers": len(blocks), "head_dim": shape.base_dim}
        per_layer = {
            index: {"hidden_size": block.dim, "num_attention_heads": block.heads, "intermediate_size": neurons}
            for index, (block, neurons) in enumerate(blocks)
        }
        return ModelingSource(pit, config, parts, sizes, per_layer)

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Slice the weights of a `pit` of ours or of timm into `student`; see
        :mod:`nasdistill_spaces.vit.pit_weights`.

        Args:
            student: a network of this space.
            arch: its architecture.
            teacher: the larger network, or something that holds it.
            calibration: not used; ranked by weights.

        Returns:
            None when the teacher has another structure.
        """
        source = read_pit(teacher) if isinstance(student, PitNet) else None
        return None if source is None else inherit_pit(student, source)  # type: ignore[arg-type]

    def _shape(self, arch: Architecture, io: IOSpec) -> PitShape:
        """Return all sizes; raises ArchitectureError as :meth:`build` says."""
        self.check(arch)
        reason = self.accepts(io)
        if reason:
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")
        p, (channels, height, width) = arch.params, io.shape
        patch, stride = self.options.patch_for(height, width)
        grid, stages = ((height - patch) // stride + 1, (width - patch) // stride + 1), []
        base, ratio = int(p["base_dim"]), float(p["mlp_ratio"])
        for index in range(len(self.options.depth)):
            name = f"stage{index}"
            grid = (-(-grid[0] // 2), -(-grid[1] // 2)) if index else grid
            heads = int(p[f"{name}.heads"])
            neurons = half_up(heads * base * ratio)
            stages.append(StageShape(heads, int(p[f"{name}.depth"]), neurons, str(p[f"{name}.attention"]), grid))
        return PitShape(channels, patch, stride, base, tuple(stages), io.outputs)

    def _core(self, shape: PitShape, stage: StageShape) -> AttentionCore:
        return fresh_core(self, stage.attention, shape.geometry(stage), self.options.attention_options)

    # ---- cost -----------------------------------------------------------------------------------------------------

    def plan(self, arch: Architecture, io: IOSpec) -> Plan:
        """Return the network layer by layer.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        shape = self._shape(arch, io)
        plan, first = Plan(io.shape), shape.stages[0]
        width, patches = first.heads * shape.base_dim, first.grid[0] * first.grid[1]
        add_patches(plan, "projection", shape.channels, width, (shape.patch, shape.patch), first.grid)
        plan.add("cls_token", "concat", (patches + 1, width), Cost(width, 0), label="class token in front")
        label = f"position, {patches}"
        plan.add("position_embeddings", "add", (patches + 1, width), Cost(patches * width, 0), label=label)
        for index, stage in enumerate(shape.stages):
            geometry = shape.geometry(stage)
            if index:
                self._plan_pool(plan, f"stages.{index}.pool", width, geometry.dim, stage)
            width, n = geometry.dim, geometry.tokens or 1
            core = core_class(self, stage.attention)
            cost = core.cost(geometry, n, n, self.options.attention_options.get(stage.attention))
            for place in range(stage.depth):
                add_layer(plan, f"stages.{index}.layers.{place}", geometry, stage.mlp, stage.attention, cost)
        plan.add("first", "slice", (width,), label="first token")
        plan.add("layernorm", "norm", (width,), Cost.norm(width), label="layer norm")
        label = f"linear, {shape.outputs}"
        plan.add("classifier", "linear", (shape.outputs,), Cost.linear(width, shape.outputs), label=label)
        return plan

    def _plan_pool(self, plan: Plan, name: str, inputs: int, outputs: int, stage: StageShape) -> None:
        """Append a pooling: patches and class token apart, then together."""
        (height, width), before = stage.grid, plan.last
        groups = math.gcd(inputs, outputs)
        cost = Cost.conv2d(inputs, outputs, 3, height=height, width=width, groups=groups, bias=True)
        label = f"conv 3x3 / 2, {outputs}"
        grid = plan.add(f"{name}.conv", "conv", (outputs, height, width), cost, after=before, label=label)
        label = f"linear, {outputs}"
        token = plan.add(f"{name}.fc", "linear", (1, outputs), Cost.linear(inputs, outputs), after=before, label=label)
        plan.add(f"{name}.concat", "concat", (height * width + 1, outputs), after=(token, grid))
