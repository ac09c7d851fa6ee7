"""Shifts and flips whose random numbers belong to the sample, not to the batch.

For each (seed, epoch, split) one table of random numbers is drawn, a row per sample; a batch reads the rows of its ids.
So an augmented image is a function of (seed, epoch, id) alone: neither batch size nor order changes it, and a teacher's
answer to it can be kept. All images of a batch move in one gather.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 3
"""Random numbers per sample: vertical shift, horizontal shift, flip."""


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Return the table ``(count, DRAWS)`` of uniform numbers in [0, 1)."""
    return torch.rand((count, DRAWS), generator=generator)


def all_shifts(shift: int) -> list[Tensor]:
    """Return one row of numbers ``(1, DRAWS)`` for each of the ``(2 * shift + 1) ** 2`` shifts of `shift_flip`."""
    span = 2 * shift + 1
    middle = [(move + 0.5) / span for move in range(span)]
    return [torch.tensor([[row, column, 1.0]]) for row in middle for column in middle]


def shift_flip(pixels: Tensor, numbers: Tensor, *, shift: int, flip: bool) -> Tensor:
    """Return moved images.

    Args:
        pixels: ``(B, C, H, W)``, any dtype, as stored (0 is black).
        numbers: ``(B, DRAWS)`` rows of the table.
        shift: largest shift in pixels along each axis; what comes in from outside is 0.
        flip: mirror half of the images left to right.
    """
    if shift == 0 and not flip:
        return pixels
    size, _, high, wide = pixels.shape
    span = 2 * shift + 1
    moves = (numbers[:, :2] * span).long().clamp(max=span - 1)  # 0 ... 2 * shift: where the window begins
    rows = moves[:, :1] + torch.arange(high)
    columns = moves[:, 1:] + torch.arange(wide)
    if flip:
        columns = torch.where(numbers[:, 2:] < 0.5, columns.flip(1), columns)
    if shift:
        pixels = F.pad(pixels, (shift, shift, shift, shift))
    # Advanced indices on axes 0, 2, 3 with a slice between them put C last: (B, H, W, C).
    moved = pixels[torch.arange(size)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
