"""The network of `metaformer`: patches, blocks of token mixer and MLP, mean pool, linear head.

It is built from plain data and knows neither the space nor nasdistill's host, so an exporter can copy it into code that
stands alone (:func:`metaformer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionGeometry, TokenLayout
from torch import Tensor, nn

POOL, CONV = "pool", "conv"
"""The mixers that are no attention."""


class Pool(nn.Module):
    """Each position becomes the mean of its 3 x 3 neighbours, less itself (the block adds it again)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, H, W)``."""
        out: Tensor = self.mean(x) - x
        return out


class Attention(nn.Module):
    """Multi-head self-attention over the positions of a map, around an exchangeable core."""

    def __init__(self, geometry: AttentionGeometry, core: AttentionCore, layer: int) -> None:
        super().__init__()
        self.heads, self.head_dim = geometry.heads, geometry.head_dim
        self.layout, self.layer = geometry.layout, layer
        self.qkv = nn.Conv2d(geometry.dim, 3 * self.heads * self.head_dim, 1)
        self.core = core
        self.proj = nn.Conv2d(self.heads * self.head_dim, geometry.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, H, W)``."""
        height, width = x.shape[-2:]
        split = self.qkv(x).reshape(-1, 3 * self.heads, self.head_dim, height * width).transpose(2, 3)
        q, k, v = split.split(self.heads, dim=1)
        out = self.core(q, k, v, AttentionContext(layer=self.layer, layout=self.layout)).out
        mixed: Tensor = self.proj(out.transpose(2, 3).reshape(-1, self.heads * self.head_dim, height, width))
        return mixed


class Block(nn.Module):
    """x + mix(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, mixer: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, width)
        self.mixer = mixer
        self.norm2 = nn.GroupNorm(1, width)
        self.mlp = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, C, H, W)``."""
        x = x + self.mixer(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class MetaFormerNet(nn.Module):
    """Patches, blocks, mean over positions, norm, head."""

    def __init__(
        self, channels: int, patch: int, width: int, hidden: int, mixers: Sequence[nn.Module], outputs: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.blocks = nn.Sequential(*(Block(mixer, width, hidden) for mixer in mixers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, outputs)``."""
        x = self.blocks(self.patches(image))
        logits: Tensor = self.head(self.norm(x.mean(dim=(2, 3))))
        return logits


def metaformer(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network.

    Args:
        config: ``channels patch width hidden outputs``, ``grid`` (height and width of the map), ``heads``,
            ``head_dim``, and one entry per block in ``mixers`` (``pool``, ``conv`` or a name in `parts`) and in
            ``attention_options``.
        parts: name -> class of an attention core.
    """
    width, (height, wide) = config["width"], config["grid"]
    geometry = AttentionGeometry(
        dim=width,
        heads=config["heads"],
        head_dim=config["head_dim"],
        tokens=height * wide,
        layout=TokenLayout(grid=(height, wide)),
    )
    mixers: list[nn.Module] = []
    for layer, (name, options) in enumerate(zip(config["mixers"], config["attention_options"], strict=True)):
        if name == POOL:
            mixers.append(Pool())
        elif name == CONV:
            mixers.append(nn.Conv2d(width, width, 3, 1, 1, groups=width))
        else:
            mixers.append(Attention(geometry, parts[name](options, geometry=geometry), layer))
    return MetaFormerNet(config["channels"], config["patch"], width, config["hidden"], mixers, config["outputs"])
