"""What the image spaces have in common: which inputs they take, and how lists of choices are written."""

from __future__ import annotations

from typing import Any

from nasdistill.spec.io import IOSpec

SMALLEST_SIDE = 4


def image_problem(io: IOSpec) -> str | None:
    """Return why `io` is not an image classification that these spaces can serve, or None."""
    if io.kind != "image" or len(io.shape) != 3:
        return f"it needs images of shape (C, H, W), not {io.kind} of shape {io.shape}"
    if min(io.shape[1:]) < SMALLEST_SIDE or io.shape[0] < 1:
        return f"images need at least one channel and {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, not {io.shape}"
    if io.outputs < 1:
        return "it needs at least one class"
    return None


def unique_sorted(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return choices in ascending order.

    Raises:
        ValueError: a choice is given twice.
    """
    if len(set(values)) != len(values):
        raise ValueError("the same choice twice")
    return tuple(sorted(values))
