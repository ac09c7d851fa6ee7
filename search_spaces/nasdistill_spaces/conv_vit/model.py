"""The network of `conv_vit`: convolution stem, pre-norm transformer blocks, mean pool, linear head."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionGeometry


@dataclass(frozen=True, slots=True)
class StemLayer:
    """One 3x3 convolution of the stem.

    Attributes:
        inputs, outputs: channels.
        stride: 1 or 2.
        height, width: size of the output map.
    """

    inputs: int
    outputs: int
    stride: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class BlockShape:
    """Sizes of one transformer block: attention with `geometry`, MLP with `hidden` neurons."""

    geometry: AttentionGeometry
    hidden: int
    attention: str


class ConvUnit(nn.Module):
    """3x3 convolution, batch normalisation, ReLU: one fused node after export."""

    def __init__(self, layer: StemLayer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(layer.inputs, layer.outputs, 3, layer.stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(layer.outputs)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention around an exchangeable core.

    Attributes:
        heads, head_dim, tokens: fixed sizes H, D, N.
        core: the variant; called as ``core(q, k, v, ctx)`` on ``(B, H, N, D)``.
    """

    def __init__(self, geometry: AttentionGeometry, core: AttentionCore, layer: int) -> None:
        super().__init__()
        self.heads, self.head_dim = geometry.heads, geometry.head_dim
        self.tokens = geometry.tokens or -1
        self.layout, self.layer = geometry.layout, layer
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(geometry.dim, 3 * inner)
        self.core = core
        self.proj = nn.Linear(inner, geometry.dim)

    def forward(self, x: Tensor, store: MutableMapping[str, Any]) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        # Fixed sizes, so that the exported graph computes no shapes (only the batch stays open), and one split of one
        # axis, which leaves no axis of length 1 to be squeezed out of three tensors.
        split = self.qkv(x).reshape(-1, self.tokens, 3 * self.heads, self.head_dim).transpose(1, 2)
        q, k, v = split.split(self.heads, dim=1)
        context = self.attention_context(x, store)
        out = self.core(q, k, v, context).out
        return self.proj(out.transpose(1, 2).reshape(-1, self.tokens, self.heads * self.head_dim))  # type: ignore[no-any-return]

    def attention_context(self, x: Tensor, store: MutableMapping[str, Any]) -> AttentionContext:
        """Return what attention is told beside q, k and v; the arguments are those of `forward`."""
        return AttentionContext(layer=self.layer, layout=self.layout, layer_input=x, store=store)


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: BlockShape, core: AttentionCore, layer: int) -> None:
        super().__init__()
        width = shape.geometry.dim
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(shape.geometry, core, layer)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, shape.hidden)

    def forward(self, x: Tensor, store: MutableMapping[str, Any]) -> Tensor:
        """Map ``(B, N, C)`` to ``(B, N, C)``."""
        x = x + self.attn(self.norm1(x), store)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ConvVitNet(nn.Module):
    """Stem, position embedding, blocks, mean over tokens, norm, head.

    Attributes:
        grid: ``(h, w)`` of the tokens, row by row.
        width: channels C of the residual stream.
        position: ``(1, N, C)``, learned, or a fixed buffer that is not saved.
    """

    position: Tensor

    def __init__(
        self,
        stem: Sequence[StemLayer],
        blocks: Sequence[BlockShape],
        cores: Sequence[AttentionCore],
        outputs: int,
        position: str,
    ) -> None:
        super().__init__()
        last = stem[-1]
        self.grid, self.width = (last.height, last.width), last.outputs
        self.stem = nn.Sequential(*(ConvUnit(layer) for layer in stem))
        if position == "learned":
            self.position = nn.Parameter(torch.empty(1, last.height * last.width, last.outputs))
        else:
            self.register_buffer("position", sincos_2d(*self.grid, last.outputs)[None], persistent=False)
        self.blocks = nn.ModuleList(Block(s, c, i) for i, (s, c) in enumerate(zip(blocks, cores, strict=True)))
        self.norm = nn.LayerNorm(last.outputs)
        self.head = nn.Linear(last.outputs, outputs)
        self._initialise()

    def _initialise(self) -> None:
        """Draw fresh weights; cores keep what they set themselves."""
        for name, module in self.named_modules():
            if ".core" in name:
                continue
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.position, nn.Parameter):
            nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, outputs)``."""
        height, width = self.grid
        x = self.stem(image).reshape(-1, self.width, height * width).transpose(1, 2) + self.position
        store: dict[str, Any] = {}  # what the cores of one forward share
        for block in self.blocks:
            x = block(x, store)
        return self.head(self.norm(x.mean(1)))  # type: ignore[no-any-return]


def sincos_2d(height: int, width: int, channels: int) -> Tensor:
    """Return fixed 2-D sine-cosine positions ``(height * width, channels)``, row by row.

    A quarter of the channels each for sine and cosine of the row and of the column, at geometrically falling
    frequencies; up to three channels that are left over stay 0.
    """
    quarter = channels // 4
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / max(1, quarter))
    rows = torch.arange(height)[:, None, None] * frequency
    columns = torch.arange(width)[None, :, None] * frequency
    parts = [part.expand(height, width, quarter) for part in (rows.sin(), rows.cos(), columns.sin(), columns.cos())]
    table = torch.zeros(height, width, channels)
    table[..., : 4 * quarter] = torch.cat(parts, dim=-1)
    return table.reshape(height * width, channels)
