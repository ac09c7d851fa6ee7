"""Small text and image models, batches for them, and what can be done to their traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch, Signal, Site, Trace
from nasdistill.trace import SitePlan, trace_model

CLASSES = 5
VOCABULARY = 40


class Text(nn.Module):
    """Token ids -> transformer encoder -> class logits of the first token, or of every token.

    Args:
        dim: width.
        heads: of every block.
        depth: number of blocks.
        causal: whether a token sees earlier ones only.
        classes: number of outputs.
        per_token: logits for every token, as a language model has them.
    """

    def __init__(
        self, dim: int = 24, heads: int = 2, depth: int = 3, causal: bool = False, classes: int = CLASSES,
        per_token: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)
        self.causal, self.per_token = causal, per_token

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return ``(B, K)`` or ``(B, N, K)``."""
        padding = None if attention_mask is None else attention_mask == 0
        n = input_ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1) if self.causal else None
        x = self.encoder(self.embed(input_ids), mask=mask, src_key_padding_mask=padding)
        logits: Tensor = self.head(x if self.per_token else x[:, 0])
        return logits


class Vision(nn.Module):
    """Image -> convolution stem -> transformer encoder -> class logits.

    Args:
        dim: width.
        heads: of every block.
        depth: number of blocks.
        stride: of the stem: an 8 x 8 image has 16 tokens at 2 and 64 at 1.
        prefix: whether a class token comes before the image's.
        classes: number of outputs.
    """

    def __init__(
        self, dim: int = 24, heads: int = 2, depth: int = 3, stride: int = 2, prefix: bool = False,
        classes: int = CLASSES,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, dim, 3, stride, 1))
        self.token = nn.Parameter(torch.randn(1, 1, dim)) if prefix else None
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(B, K)``."""
        x = self.stem(image).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        logits: Tensor = self.head(self.encoder(x).mean(1))
        return logits


class Conv(nn.Module):
    """Image -> stages of residual-free convolutions, each half as fine as the one before -> class logits."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16), classes: int = CLASSES) -> None:
        super().__init__()
        stages, before = [], 1
        for i, width in enumerate(widths):
            stages.append(nn.Sequential(nn.Conv2d(before, width, 3, 1 if i == 0 else 2, 1), nn.ReLU()))
            before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(B, K)``."""
        logits: Tensor = self.head(self.stages(image).mean((2, 3)))
        return logits


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """Return a model's output for a batch."""
    output: Tensor = model(**batch.inputs)
    return output


def text_batch(
    size: int = 4, tokens: int = 7, padded: bool = True, seed: int = 0, classes: int = CLASSES, per_token: bool = False
) -> Batch:
    """Return up to 6 samples of random tokens, of different lengths where `padded`.

    Labels are ``(B,)`` classes, or, `per_token`, the next token ``(B, N)`` and -100 where there is none.
    """
    g = torch.Generator().manual_seed(seed)
    inputs = {"input_ids": torch.randint(0, VOCABULARY, (size, tokens), generator=g)}
    lengths = torch.tensor([tokens, 5, 3, 4, 6, 2])[:size] if padded else torch.full((size,), tokens)
    if padded:
        inputs["attention_mask"] = (torch.arange(tokens)[None] < lengths[:, None]).long()
    labels = torch.randint(0, classes, (size,), generator=g)
    if per_token:
        there = torch.arange(tokens)[None] < lengths[:, None] - 1
        labels = inputs["input_ids"].roll(-1, 1).masked_fill(~there, -100)
    return Batch(inputs, labels, torch.arange(size))


def image_batch(size: int = 4, pixels: int = 8, seed: int = 0, classes: int = CLASSES) -> Batch:
    """Return random images ``(B, 1, pixels, pixels)`` with random classes."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        {"image": torch.randn(size, 1, pixels, pixels, generator=g)},
        torch.randint(0, classes, (size,), generator=g),
        torch.arange(size),
    )


def longer(batch: Batch, tokens: int = 4) -> Batch:
    """Return the same sentences with more padding behind them."""
    inputs = {name: torch.nn.functional.pad(value, (0, tokens)) for name, value in batch.inputs.items()}
    labels = batch.labels
    if labels is not None and labels.ndim == 2:
        labels = torch.nn.functional.pad(labels, (0, tokens), value=-100)
    return replace(batch, inputs=inputs, labels=labels)


def plan_of(model: nn.Module, batch: Batch, label: str) -> SitePlan:
    """Return where a model's sites are."""
    return SitePlan(model, lambda m: forward(m, batch), label)


def trace_of(model: nn.Module, batch: Batch, sites: Iterable[Site | str], plan: SitePlan) -> Trace:
    """Return the signals of one forward."""
    return trace_model(model, batch, sites, forward, plan)[0]


class Watched(dict[Site, Signal]):
    """A trace's signals that remember which of them were read: ``Trace(Watched(trace.signals)).signals.read``.

    Attributes:
        read: the sites read; a map or scores recomputed from q and k count as these two.
    """

    def __init__(self, signals: Mapping[Site, Signal]) -> None:
        super().__init__(signals)
        self.read: set[Site] = set()

    def __getitem__(self, site: Site) -> Signal:
        self.read.add(site)
        return super().__getitem__(site)

    def get(self, site: Site, default: Any = None) -> Any:
        """Return a signal, or the default."""
        if site in self:
            self.read.add(site)
        return super().get(site, default)

    def items(self) -> Any:
        """Return all, which reads all."""
        self.read.update(self)
        return super().items()

    def values(self) -> Any:
        """Return all, which reads all."""
        self.read.update(self)
        return super().values()


def mapped(trace: Trace, change: Callable[[Site, Signal], Tensor]) -> Trace:
    """Return a trace with every tensor changed by ``change(site, signal) -> tensor``."""

    def changed(site: Site, s: Signal) -> Signal:
        return Signal(change(site, s), s.layout, s.mask, s.bias, s.scale, s.causal, s.valid, s.grid)

    return Trace({site: changed(site, signal) for site, signal in trace.signals.items()})


def repeated(trace: Trace) -> Trace:
    """Return a trace with every sample twice."""

    def twice(signal: Signal) -> Signal:
        size = signal.tensor.shape[0]

        def double(tensor: Tensor | None, dims: int) -> Tensor | None:
            if tensor is None or tensor.ndim != dims or tensor.shape[0] != size:
                return tensor  # shared by all samples
            return torch.cat([tensor, tensor])

        return replace(
            signal, tensor=torch.cat([signal.tensor, signal.tensor]), mask=double(signal.mask, 4),
            bias=double(signal.bias, 4), valid=double(signal.valid, 2),
        )  # fmt: skip

    return Trace({site: twice(signal) for site, signal in trace.signals.items()})


def spoiled(trace: Trace, seed: int = 5) -> Trace:
    """Return a trace with large noise at its padding."""
    noise = torch.Generator().manual_seed(seed)

    def spoil(site: Site, signal: Signal) -> Tensor:
        if signal.valid is None:
            return signal.tensor
        keep = signal.valid[:, None, :, None] if signal.layout == "heads" else signal.valid[:, :, None]
        return torch.where(keep, signal.tensor, 50 * torch.randn(signal.tensor.shape, generator=noise))

    return mapped(trace, spoil)
