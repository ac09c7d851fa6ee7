"""Small networks on real images of digits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.errors import UsageError, did_you_mean
from nasdistill.interfaces import Batch
from nasdistill.seeds import seeded
from nasdistill.spec.io import IOSpec

DIGITS = IOSpec("image", (1, 8, 8), 10)


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.short = nn.Identity() if cin == cout and stride == 1 else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, h, w)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.short(x))


class SmallResNet(nn.Module):
    """Stem, two stages, pooling by module, linear head."""

    def __init__(self, width: int = 8, depth: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(*[Block(width, width) for _ in range(depth)])
        self.stage2 = nn.Sequential(
            *[Block(width if i == 0 else 2 * width, 2 * width, 2 - (i > 0)) for i in range(depth)]
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, K)``."""
        x = self.stage2(self.stage1(self.stem(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


class TransformerBlock(nn.Module):
    """Pre-norm attention (fused) and a GELU MLP, both with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, N, C)``."""
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        out: Tensor = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return out


class SmallViT(nn.Module):
    """Patches of 2 x 2, class token, transformer blocks, head on the class token."""

    def __init__(self, width: int = 16, depth: int = 2, heads: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, K)``."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


class Mlp(nn.Module):
    """A chain without biases: the one network on which synaptic flow is conserved exactly."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        sizes = [64, *widths, 10]
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, K)``."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits


def built(kind: type[nn.Module], *args: int, seed: int = 0, **options: int) -> nn.Module:
    """Return a network with weights drawn from `seed`, whatever the global generator says."""
    with seeded(seed, "model"):
        return kind(*args, **options)


def small_bert() -> nn.Module:
    """Return a transformers BERT of 4 layers with 4 heads and random weights: 64 tokens of 57, two classes."""
    from nasdistill.bridge.random_models import random_model
    from nasdistill.bridge.transformers import TokenModel

    sizes = {"num_hidden_layers": 4, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
    model: Any = random_model("bert", "classes", **sizes, vocab_size=57, max_position_embeddings=64, num_labels=2)
    return TokenModel(model, "classes")


def maker(what: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return what makes a network that an example asks for.

    Args:
        what: a class of this module by its name (``"SmallViT"``), any callable as ``"package.module:callable"``, or
            the callable itself.

    Raises:
        UsageError: there is none of this name here.
    """
    if not isinstance(what, str):
        return what
    if ":" in what:
        module, _, attribute = what.partition(":")
        found: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
        return found
    known = {kind.__name__: kind for kind in (SmallResNet, SmallViT, Mlp)}
    if what not in known:
        raise UsageError(f"an example names the network {what!r}, which there is not. {did_you_mean(what, known)}")
    return known[what]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16.0
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def digits(size: int = 32, start: int = 0) -> Batch:
    """`size` real handwritten digits."""
    images, labels = _digits()
    index = torch.arange(start, start + size)
    return Batch({"image": images[index].clone()}, labels[index].clone(), index)


def call(model: nn.Module, batch: Batch) -> Tensor:
    """Return a model's logits for a batch."""
    logits: Tensor = model(batch.image)
    return logits


def digits_loss(output: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross entropy."""
    if batch.labels is None:
        raise ValueError("the batch has no labels")
    return F.cross_entropy(output, batch.labels)
