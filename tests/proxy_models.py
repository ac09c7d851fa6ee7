"""Small networks, real digit batches and a caller for the tests of proxies."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import Batch, ProxyInput
from nasdistill.seeds import seeded, torch_generator
from nasdistill.spec.io import IOSpec

IO = IOSpec("image", (1, 8, 8), 10)


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.short = nn.Identity() if cin == cout and stride == 1 else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
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
        x = self.stage2(self.stage1(self.stem(x)))
        return self.fc(self.pool(x).flatten(1))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.act, self.fc2 = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


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
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Mlp(nn.Module):
    """A chain without biases: the one network on which synaptic flow is conserved exactly."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        sizes = [64, *widths, 10]
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:], strict=False)])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def built(kind: type[nn.Module], *args: int, seed: int = 0, **options: int) -> nn.Module:
    with seeded(seed, "model"):
        return kind(*args, **options)


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


def forward(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch.image)


def loss(output: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(output, batch.labels)


def candidate(model: nn.Module, *batches: Batch, teacher: nn.Module | None = None, **changes: object) -> ProxyInput:
    """What a proxy sees, with the model itself (not a copy): for looking into a proxy's work."""
    values = {
        "model": model,
        "teacher": teacher,
        "batches": batches or (digits(), digits(start=100)),
        "forward": forward,
        "loss": loss,
        "io": IO,
        "cost": None,
        "generator": torch_generator(0, "test"),
    }
    return ProxyInput(**{**values, **changes})
