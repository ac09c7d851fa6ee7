"""The network of `resnet_s0`: stem, stages of basic blocks, global average pool, linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class ConvShape:
    """One convolution with batch normalisation.

    Attributes:
        inputs, outputs: channels.
        kernel, stride: sizes; the padding keeps the centre.
        height, width: size of the output map.
    """

    inputs: int
    outputs: int
    kernel: int
    stride: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class BasicShape:
    """One block; `shortcut` is None where the input can be added as it is or needs no parameters."""

    conv1: ConvShape
    conv2: ConvShape
    shortcut: ConvShape | None


class ConvNorm(nn.Module):
    """Convolution and batch normalisation, which an exporter folds into one node; with ReLU still one."""

    def __init__(self, shape: ConvShape, *, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape.inputs, shape.outputs, shape.kernel, shape.stride, shape.kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(shape.outputs)
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class PadShortcut(nn.Module):
    """Option A of the ResNet paper: every second pixel, new channels zero; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = (outputs - inputs) // 2, outputs - inputs - (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', ceil(H / stride), ceil(W / stride))``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, shape: BasicShape) -> None:
        super().__init__()
        self.conv1 = ConvNorm(shape.conv1, relu=True)
        self.conv2 = ConvNorm(shape.conv2, relu=False)
        first, last = shape.conv1, shape.conv2
        self.shortcut: nn.Module
        if shape.shortcut is not None:
            self.shortcut = ConvNorm(shape.shortcut, relu=False)
        elif first.stride != 1 or first.inputs != last.outputs:
            self.shortcut = PadShortcut(first.inputs, last.outputs, first.stride)
        else:
            self.shortcut = nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return self.act(self.conv2(self.conv1(x)) + self.shortcut(x))  # type: ignore[no-any-return]


class ResNetS0Net(nn.Module):
    """Stem, stages, pool, classifier."""

    def __init__(self, stem: Sequence[ConvShape], stages: Sequence[Sequence[BasicShape]], outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(ConvNorm(shape, relu=True) for shape in stem))
        self.stages = nn.ModuleList(nn.Sequential(*(BasicBlock(shape) for shape in stage)) for stage in stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[-1][-1].conv2.outputs, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, outputs)``."""
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.pool(x).flatten(1))  # type: ignore[no-any-return]
