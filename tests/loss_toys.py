"""Small models and traces for the tests of distillation losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch, Site, Trace
from nasdistill.trace import SitePlan, trace_model

CLASSES = 5


class Text(nn.Module):
    """Token ids -> transformer encoder -> class logits of the first token."""

    def __init__(self, dim: int = 24, heads: int = 2, depth: int = 3, causal: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, CLASSES)
        self.causal = causal

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        padding = None if attention_mask is None else attention_mask == 0
        n = input_ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1) if self.causal else None
        x = self.encoder(self.embed(input_ids), mask=mask, src_key_padding_mask=padding)
        return self.head(x[:, 0])


class Vision(nn.Module):
    """Image -> convolution stem -> transformer encoder -> class logits."""

    def __init__(self, dim: int = 24, heads: int = 2, depth: int = 3, stride: int = 2, prefix: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, dim, 3, stride, 1))
        self.token = nn.Parameter(torch.randn(1, 1, dim)) if prefix else None
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.head(self.encoder(x).mean(1))


class Conv(nn.Module):
    """Image -> stages of residual-free convolutions -> class logits."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16)) -> None:
        super().__init__()
        stages, before = [], 1
        for i, width in enumerate(widths):
            stages.append(nn.Sequential(nn.Conv2d(before, width, 3, 1 if i == 0 else 2, 1), nn.ReLU()))
            before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stages(image).mean((2, 3)))


def forward(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch.inputs)


def text_batch(size: int = 4, tokens: int = 7, padded: bool = True, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    inputs = {"input_ids": torch.randint(0, 40, (size, tokens), generator=g)}
    if padded:
        lengths = torch.tensor([tokens, 5, 3, 4, 6, 2])[:size]
        inputs["attention_mask"] = (torch.arange(tokens)[None] < lengths[:, None]).long()
    return Batch(inputs, torch.randint(0, CLASSES, (size,), generator=g), torch.arange(size))


def image_batch(size: int = 4, pixels: int = 8, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        {"image": torch.randn(size, 1, pixels, pixels, generator=g)},
        torch.randint(0, CLASSES, (size,), generator=g),
        torch.arange(size),
    )


def plan_of(model: nn.Module, batch: Batch, label: str) -> SitePlan:
    return SitePlan(model, lambda m: forward(m, batch), label)


def trace_of(model: nn.Module, batch: Batch, sites, plan: SitePlan) -> Trace:
    return trace_model(model, batch, sites, forward, plan)[0]


class Strict(Trace):
    """A trace that raises on any site but the ones asked for, and remembers what was read."""

    __slots__ = ("allowed", "read")

    def __init__(self, trace: Trace, allowed: frozenset[Site]) -> None:
        super().__init__(trace.signals)
        self.allowed, self.read = allowed, set()

    def signal(self, site):
        key = Site.parse(site) if isinstance(site, str) else site
        if key not in self.allowed:
            raise AssertionError(f"{key} was read but not asked for")
        self.read.add(key)
        return Trace.signal(self, key)


def mapped(trace: Trace, change) -> Trace:
    """Return a trace with every tensor changed by ``change(site, signal) -> tensor``."""
    return Trace({site: replace(signal, tensor=change(site, signal)) for site, signal in trace.signals.items()})


def repeated(trace: Trace) -> Trace:
    """Return a trace with every sample twice."""

    def twice(tensor, batch):
        return torch.cat([tensor, tensor]) if tensor is not None and tensor.shape[0] == batch else tensor

    return Trace(
        {
            site: replace(
                s,
                tensor=torch.cat([s.tensor, s.tensor]),
                mask=twice(s.mask, s.tensor.shape[0]) if s.mask is not None and s.mask.ndim == 4 else s.mask,
                bias=twice(s.bias, s.tensor.shape[0]) if s.bias is not None and s.bias.ndim == 4 else s.bias,
                valid=twice(s.valid, s.tensor.shape[0]),
            )
            for site, s in trace.signals.items()
        }
    )
