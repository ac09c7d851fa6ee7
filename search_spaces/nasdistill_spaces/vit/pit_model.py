"""The network of `pit`: stages of transformer blocks with a pooling of the patches between them.

    x = conv(image) + positions;   stage: x = blocks([class token; x]);   x = pool(x), class token = linear(class token)
    logits = classifier(norm(class token))

The pooling is a convolution of 3 x 3 with stride 2 in which every channel makes its own wider group of channels, so a
grid of h x w becomes one of ceil(h / 2) x ceil(w / 2). With the same weights it computes the same as timm's
PoolingVisionTransformer, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import AttentionCore, AttentionGeometry, TokenLayout
from nasdistill_spaces.vit.model import Layer, initialise


@dataclass(frozen=True, slots=True)
class StageShape:
    """Sizes of one stage.

    Attributes:
        heads: of every block; the width is heads * base_dim.
        depth: blocks.
        mlp: neurons of every MLP.
        attention: variant.
        grid: patches (h, w).
    """

    heads: int
    depth: int
    mlp: int
    attention: str
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PitShape:
    """Everything that the network is built from, but its attention cores.

    Attributes:
        channels: of the images.
        patch: side of a patch in pixels.
        stride: pixels from patch to patch.
        base_dim: size of every head.
        stages: from the first to the last.
        outputs: classes K.
    """

    channels: int
    patch: int
    stride: int
    base_dim: int
    stages: tuple[StageShape, ...]
    outputs: int

    def geometry(self, stage: StageShape) -> AttentionGeometry:
        """Return what the cores of a stage are made for."""
        return AttentionGeometry(
            dim=stage.heads * self.base_dim, heads=stage.heads, head_dim=self.base_dim,
            tokens=1 + stage.grid[0] * stage.grid[1], layout=TokenLayout(grid=stage.grid, prefix=1),
        )  # fmt: skip


class Pool(nn.Module):
    """From one stage to the next: patches by a grouped convolution, the class token by a linear layer."""

    def __init__(self, inputs: int, outputs: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.inputs, self.grid = inputs, grid
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, groups=gcd(inputs, outputs))
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 1 + h * w, inputs)`` to ``(B, 1 + ceil(h / 2) * ceil(w / 2), outputs)``."""
        grid = x[:, 1:].transpose(1, 2).reshape(-1, self.inputs, *self.grid)
        return torch.cat([self.fc(x[:, :1]), self.conv(grid).flatten(2).transpose(1, 2)], dim=1)


class Stage(nn.Module):
    """The pooling that leads to it, and blocks of one width."""

    def __init__(self, shape: PitShape, index: int, cores: Sequence[AttentionCore], first: int) -> None:
        super().__init__()
        own = shape.stages[index]
        geometry = shape.geometry(own)
        before = shape.stages[index - 1] if index else None
        self.pool = Pool(before.heads * shape.base_dim, geometry.dim, before.grid) if before else None
        self.layers = nn.ModuleList(Layer(geometry, own.mlp, core, first + place) for place, core in enumerate(cores))

    def forward(self, x: Tensor) -> Tensor:
        """Map the tokens of the stage before to those of this one."""
        if self.pool is not None:
            x = self.pool(x)
        store: dict[str, Any] = {}  # what the cores of one stage, which see the same tokens, share
        for layer in self.layers:
            x = layer(x, store)
        return x


class PitNet(nn.Module):
    """Patches, stages, norm, classifier.

    Attributes:
        shape: all its sizes.
        position_embeddings: ``(1, h * w, C)``, of the first stage.
    """

    def __init__(self, shape: PitShape, cores: Sequence[Sequence[AttentionCore]]) -> None:
        super().__init__()
        self.shape = shape
        first, last = shape.stages[0], shape.stages[-1]
        width = first.heads * shape.base_dim
        self.projection = nn.Conv2d(shape.channels, width, shape.patch, stride=shape.stride)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, first.grid[0] * first.grid[1], width))
        starts = [sum(stage.depth for stage in shape.stages[:index]) for index in range(len(shape.stages))]
        self.stages = nn.ModuleList(
            Stage(shape, index, own, start) for index, (own, start) in enumerate(zip(cores, starts, strict=True))
        )
        self.layernorm = nn.LayerNorm(last.heads * shape.base_dim, eps=1e-6)
        self.classifier = nn.Linear(last.heads * shape.base_dim, shape.outputs)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(B, channels, H, W)`` to logits ``(B, K)``."""
        x = self.projection(image).flatten(2).transpose(1, 2)
        x = F.pad(x, (0, 0, 1, 0)) + torch.cat([self.cls_token, self.position_embeddings], dim=1)
        for stage in self.stages:
            x = stage(x)
        return self.classifier(self.layernorm(x[:, 0]))  # type: ignore[no-any-return]
