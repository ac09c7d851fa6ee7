"""A small transformer whose attention stands in modules of its own, and the canonical view of those modules."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import AttentionGeometry, AttentionMask, AttentionView


class SelfAttention(nn.Module):
    """Softmax attention with separate projections; fewer key/value heads than heads and causality on request."""

    def __init__(self, dim: int = 16, heads: int = 2, kv_heads: int = 0, causal: bool = False) -> None:
        super().__init__()
        self.geometry = AttentionGeometry(dim, heads, dim // heads, kv_heads=kv_heads, causal=causal)
        inner = self.geometry.kv_heads * self.geometry.head_dim
        self.q, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k, self.v = nn.Linear(dim, inner), nn.Linear(dim, inner)

    def forward(self, x: Tensor, mask: AttentionMask | None = None) -> Tensor:
        """Return ``(B, N, C)`` for ``(B, N, C)``."""
        n, size = x.shape[1], self.geometry.head_dim
        mask = AttentionMask(causal=True) if mask is None and self.geometry.causal else mask
        q, k, v = (part(x).unflatten(-1, (-1, size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
        allowed = None if mask is None else mask.dense(n, n, x.device)
        out: Tensor = self.o(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))
        return out


class EncoderBlock(nn.Module):
    """Pre-norm attention and a GELU MLP, both with a residual."""

    def __init__(self, dim: int, heads: int, kv_heads: int = 0, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, heads, kv_heads, causal)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, N, C)``."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class SmallEncoder(nn.Module):
    """Patches of 2 x 2 of images of any size, blocks, mean, head; its attention modules are ``blocks.i.attn``."""

    def __init__(
        self, dim: int = 16, depth: int = 3, heads: int = 2, classes: int = 10, kv_heads: int = 0, causal: bool = False
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 2, 2)
        self.blocks = nn.ModuleList([EncoderBlock(dim, heads, kv_heads, causal) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(B, K)``."""
        x = self.patch(image).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def view_of(layer: SelfAttention, path: str = "") -> AttentionView:
    """Return a layer in canonical form."""
    return AttentionView(
        layer.q.weight.detach(), layer.k.weight.detach(), layer.v.weight.detach(), layer.o.weight.detach(),
        layer.geometry, layer.q.bias.detach(), layer.k.bias.detach(), layer.v.bias.detach(), layer.o.bias.detach(),
        scale=layer.geometry.head_dim**-0.5, path=path,
    )  # fmt: skip


def views_of(model: nn.Module) -> dict[int, AttentionView]:
    """Return layer index -> canonical view of a model's attention modules, in order."""
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, SelfAttention)]
    return {index: view_of(module, path) for index, (path, module) in enumerate(found)}
