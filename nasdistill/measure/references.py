"""The three fixed networks that every measurement is paired with, in the same runtime as the candidate.

A candidate's time over the mean of theirs, taken in the same moment, is what a machine's clock changes and neighbours
leave alone: they slow all of them. Three, because a short network that is mostly calls, convolutions and attention
react differently. Their weights come from a fixed seed; changing anything here means a new `REFERENCE_ID`, which is
part of every record.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasdistill.seeds import seeded, torch_generator

REFERENCE_ID = "reference-1"


class ReferenceConv(nn.Module):
    """Three 3x3 convolutions on ``(1, 8, 16, 16)``: 5.3 million MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 8, 16, 16) -> (B, 10)``."""
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


class ReferenceSmall(nn.Module):
    """One 3x3 convolution on ``(1, 8, 4, 4)``: 9 thousand MACs, so mostly the cost of calling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 8, 4, 4) -> (B, 10)``."""
        logits: Tensor = self.head(F.relu(self.body(x)).mean((2, 3)))
        return logits


class ReferenceAttention(nn.Module):
    """Two pre-norm transformer blocks on ``(1, 16, 64)``, 4 heads: 1.6 million MACs."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.norm2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, 64) -> (B, 10)``."""
        b, n, width = x.shape
        for norm1, norm2, qkv, out, up, down in zip(
            self.norm1, self.norm2, self.qkv, self.out, self.up, self.down, strict=True
        ):
            q, k, v = qkv(norm1(x)).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))
            x = x + down(F.gelu(up(norm2(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


def reference_models() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """Return name -> (network in eval mode, example input); the same numbers in every process."""
    with seeded(1, REFERENCE_ID):
        models: tuple[nn.Module, ...] = (ReferenceSmall(), ReferenceConv(), ReferenceAttention())
    shapes = ((1, 8, 4, 4), (1, 8, 16, 16), (1, 16, 64))
    names = ("reference_small", "reference_conv", "reference_attention")
    return {
        name: (model.eval(), (torch.randn(shape, generator=torch_generator(1, REFERENCE_ID, name)),))
        for name, model, shape in zip(names, models, shapes, strict=True)
    }
