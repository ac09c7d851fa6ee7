"""Batches of similar lengths, padded to their longest text.

The order of a training pass is a function of (seed, epoch) and the lengths alone, not of the batch size. All samples
are shuffled, windows of them are sorted by length and cut into grains of 64, the grains are shuffled, and inside a
grain the halves, quarters and eighths change places at random. So batches of 8, 16, 32 or 64 hold texts of similar
lengths, and short and long ones come in no order. Samples left over after the last full grain come last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nasdistill.seeds import torch_generator

SIDE: Final = "right"
"""Where batches are filled up, whatever a tokenizer is declared to do: students count positions from the first column,
and the mask hides what stands behind."""

GRAIN = 64
"""Samples of similar length that stay together."""

WINDOW = 32 * GRAIN
"""Samples that are sorted together: the larger, the less padding, and the less is left to chance."""


def bucketed(lengths: NDArray[Any], seed: int, *names: str | int) -> NDArray[np.int64]:
    """Return the order ``(n,)`` of one pass.

    Args:
        lengths: ``(n,)`` of the samples, by id.
        seed: root seed.
        names: what else names the pass (split, epoch).
    """
    generator = torch_generator(seed, "order", *names)
    order = torch.randperm(len(lengths), generator=generator).numpy()
    whole = len(order) // GRAIN * GRAIN
    grains = []
    for begin in range(0, whole, WINDOW):
        window = order[begin : min(begin + WINDOW, whole)]
        # Stable: samples of one length keep their random order.
        window = window[np.argsort(np.asarray(lengths)[window], kind="stable")]
        grains.append(window.reshape(-1, GRAIN))
    if not grains:
        return order
    table = np.concatenate(grains)
    table = table[torch.randperm(len(table), generator=generator).numpy()]
    for parts in (2, 4, 8):  # inside a grain: which half, which quarter of it ... comes first
        swap = torch.rand((len(table), parts // 2), generator=generator).numpy() < 0.5
        halves = table.reshape(len(table), parts // 2, 2, GRAIN // parts)
        table = np.where(swap[:, :, None, None], halves[:, :, ::-1], halves).reshape(len(table), GRAIN)
    return np.concatenate([table.reshape(-1), order[whole:]])


def padded(rows: Sequence[NDArray[Any]], fill: int, *, multiple: int = 1, least: int = 1) -> Tensor:
    """Return ``(B, N)`` int64: rows of ids, filled up on the right to the longest one.

    Args:
        rows: the ids.
        fill: what stands behind a row's end.
        multiple: N is one of its multiples.
        least: N is at least this.
    """
    width = max(least, max(map(len, rows), default=1))
    width = -(-width // multiple) * multiple
    table = np.full((len(rows), width), fill, dtype=np.int64)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(table)


def mask_of(rows: Sequence[NDArray[Any]], width: int) -> Tensor:
    """Return ``(B, N)`` int64: 1 at tokens, 0 at what fills up."""
    ends = torch.tensor([len(row) for row in rows])
    return (torch.arange(width) < ends[:, None]).long()


def uniform(key: int, ids: NDArray[np.int64], width: int) -> NDArray[np.float64]:
    """Return ``(B, N)`` random numbers in [0, 1), each a function of `key`, the sample's id and the position alone.

    The finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) over
    a counter: no state, so neither batch nor order nor padding plays a part.
    """
    with np.errstate(over="ignore"):
        rows = _mixed(np.uint64(key & 0xFFFFFFFFFFFFFFFF) + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        cells = rows[:, None] + (np.arange(width, dtype=np.uint64) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        return (_mixed(cells) >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
