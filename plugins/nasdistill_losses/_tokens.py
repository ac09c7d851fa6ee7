"""Tokens and maps side by side: padding-aware means, and one grid for two models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Signal, SiteShape


def sample_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the valid tokens of each sample, then over samples.

    Args:
        values: ``(B, N)``.
        valid: ``(B, N)`` bool or None; what stands at False has no influence.
    """
    if valid is None:
        return values.mean()
    total = torch.where(valid, values, torch.zeros_like(values)).sum(1)
    return (total / valid.sum(1).clamp_min(1)).mean()


def as_tokens(signal: Signal) -> Tensor:
    """Return ``(B, N, C)`` whatever the layout: positions of a map become tokens, a vector becomes one token."""
    if signal.layout == "map":
        return signal.tensor.flatten(2).transpose(1, 2)
    if signal.layout == "vector":
        return signal.tensor[:, None]
    return signal.tensor


def grid_of(signal: Signal | SiteShape) -> tuple[int, int] | None:
    """Return ``(h, w)`` of a map or of image tokens, None for anything else."""
    if signal.layout == "map":
        shape = signal.tensor.shape[1:] if isinstance(signal, Signal) else signal.shape
        return int(shape[1]), int(shape[2])
    return signal.grid


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(B, C, H, W)`` bilinearly in float32; shrinking averages over all the pixels that are left out."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False, antialias=True)


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Fold the last h * w of ``(B, N, C)`` tokens to ``(B, C, h, w)``; class tokens before them are dropped."""
    cells = tokens[:, tokens.shape[1] - grid[0] * grid[1] :].transpose(1, 2)
    return cells.reshape(*cells.shape[:2], *grid)


def coarser(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """Return the grid on which both are compared: nothing is invented, the finer one is reduced."""
    return min(first[0], second[0]), min(first[1], second[1])


def comparable(student: SiteShape, teacher: SiteShape) -> bool:
    """Return whether `align` can bring two signals of these shapes together."""
    grids = grid_of(student), grid_of(teacher)
    return _count(student) == _count(teacher) or None not in grids


def _count(shape: SiteShape) -> int:
    if shape.layout == "map":
        return shape.shape[1] * shape.shape[2]
    return shape.shape[0] if shape.layout == "tokens" else 1


def align(student: Signal, teacher: Signal) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring two signals to the same tokens.

    Equal token counts are compared one by one. Otherwise both must lie on image grids: class tokens are dropped and
    the finer grid is reduced to the coarser one.

    Returns:
        ``(B, N, Cs)``, ``(B, N, Ct)`` and the common ``(B, N)`` validity or None.

    Raises:
        MismatchError: different token counts without grids.
    """
    ours, theirs = as_tokens(student), as_tokens(teacher)
    grids = grid_of(student), grid_of(teacher)
    if ours.shape[1] == theirs.shape[1] and (None in grids or grids[0] == grids[1]):
        return ours, theirs, both_valid(student.valid, teacher.valid)
    if grids[0] is None or grids[1] is None:
        raise MismatchError(
            f"student {tuple(ours.shape)} and teacher {tuple(theirs.shape)} have different tokens and no image grids"
        )
    size = coarser(grids[0], grids[1])
    ours, theirs = (
        resize(to_map(tokens, grid), size).flatten(2).transpose(1, 2)
        for tokens, grid in ((ours, grids[0]), (theirs, grids[1]))
    )
    return ours, theirs, None


def both_valid(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the tokens that are valid on both sides; None when nothing is known."""
    if first is None or second is None:
        return second if first is None else first
    return first & second
