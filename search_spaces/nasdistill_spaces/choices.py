"""What spaces of layered networks share: choices scaled to a teacher, the layers taken from it, axes of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nasdistill.spec.architecture import Axis, Value


def half_up(value: float) -> int:
    """Round to the nearest integer, halves up, at least 1."""
    return max(1, math.floor(value + 0.5))


def granule(width: int) -> int:
    """Return what widths of students are multiples of: 8, or the largest power of two that fits 1/24 of `width`."""
    return int(min(8, 2 ** math.floor(math.log2(max(1.0, width / 24)))))


def to_width(value: float, width: int) -> int:
    """Round a student's width for a teacher of `width`, at most to the teacher's own."""
    if value >= width:
        return width
    step = granule(width)
    return min(width, half_up(value / step) * step)


def union(parts: Iterable[Mapping[str, tuple[Any, ...]]]) -> dict[str, tuple[Any, ...]]:
    """Return all choices of several sub-spaces, axis by axis, ascending."""
    found: dict[str, tuple[Any, ...]] = {}
    for part in parts:
        found = {axis: unique((*found.get(axis, ()), *choices)) for axis, choices in part.items()}
    return found


def unique(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return distinct values, ascending."""
    return tuple(sorted(set(values)))


def source_layers(depth: int, teacher_depth: int) -> tuple[int, ...]:
    """Return for each of `depth` layers the teacher layer it starts from: floor(i * teacher_depth / depth).

    >>> source_layers(7, 12)
    (0, 1, 3, 5, 6, 8, 10)
    """
    return tuple(index * teacher_depth // depth for index in range(depth))


def present(layer: int, fewest: int, depth: str = "layers") -> Callable[[Mapping[str, Value]], bool] | None:
    """Return when layer `layer` is there, as the axis `depth` says; None means always."""
    return None if layer < fewest else lambda params: int(params[depth]) > layer


def layer_axis(
    layer: int,
    fewest: int,
    name: str,
    choices: Sequence[Value],
    default: Value,
    *,
    stem: str = "layer",
    depth: str = "layers",
    **more: Any,
) -> Axis:
    """Return an axis of one layer, inactive where the layer is not there.

    Args:
        layer: its number.
        fewest: layers that are always there.
        name: of the axis within the layer.
        choices: of the axis.
        default: among them.
        stem: what a layer is called.
        depth: axis that says how many there are.
        **more: further arguments of :class:`Axis`.
    """
    return Axis(f"{stem}{layer:02d}.{name}", tuple(choices), default, present(layer, fewest, depth), **more)
