"""From values to pixels: linear and logarithmic scales, and where their ticks go."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """A map from ``[low, high]`` to ``[start, end]`` pixels.

    Attributes:
        low, high: ends of the domain, low < high; both positive where `log`.
        start, end: their places; end < start turns the axis round.
        log: whether equal ratios have equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value, kept within the axis."""
        if self.log:
            # Nothing at or below zero has a place on a logarithmic axis: it sits at its lower end.
            low, high, at = math.log(self.low), math.log(self.high), math.log(max(value, self.low * 1e-9))
        else:
            low, high, at = self.low, self.high, value
        share = (at - low) / (high - low)
        return self.start + min(1.02, max(-0.02, share)) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Return round values inside the domain, about `count` of them."""
        return log_ticks(self.low, self.high, count) if self.log else nice_ticks(self.low, self.high, count)


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten in ``[low, high]``, about `count` of them, at least one.

    Raises:
        ValueError: not low < high, or not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"no ticks between {low} and {high}")
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    # From coarse to fine, until at least two fit in: one alone does not say how long the axis is.
    steps = [power * factor for factor in (10, 5, 2, 1, 0.5, 0.2) if power * factor >= raw * 0.199]
    wide = [step for step in steps if step >= raw * (1 - 1e-9)]
    for step in [wide[-1], *steps[len(wide) :]]:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            break
    digits = max(0, -math.floor(math.log10(step)))
    return [round(index * step, digits + 2) + 0.0 for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return values 1, 2, 5 (or 1 alone over many decades) times powers of ten in ``[low, high]``.

    A range too short to hold two of them has linear ticks.

    Raises:
        ValueError: not 0 < low < high.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"no logarithmic ticks between {low} and {high}")
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors if low * (1 - 1e-9) <= f * 10.0**d <= high * (1 + 1e-9)]
        if 2 <= len(found) <= count + 1:
            return found
    if len(found) > count:  # many decades: every n-th
        return found[:: math.ceil(len(found) / count)]
    return nice_ticks(low, high, count)


def fitted(
    values: Iterable[float], start: float, end: float, *, log: bool | None = None, pad: float = 0.06,
    least: float | None = None, most: float | None = None,
) -> Scale:  # fmt: skip
    """Return a scale on which all finite values have a place, with some room at both ends.

    Args:
        values: what will be drawn.
        start: place of the lower end.
        end: place of the upper end.
        log: None takes a logarithmic axis where all values are positive and the largest is over 6 times the smallest.
        pad: room at either end, as a share of the range.
        least: the axis does not go below this (a share of correct answers below 0).
        most: nor above this.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Scale(0.0, 1.0, start, end)
    low, high = min(finite), max(finite)
    if log is None:
        log = low > 0 and high / low > 6
    if log and low > 0:
        factor = max((high / low) ** pad, 1.02)
        return Scale(low / factor, high * factor, start, end, True)
    room = (high - low) * pad or abs(high) * pad or 1.0
    low = low - room if least is None else max(least, low - room)
    high = high + room if most is None else min(most, high + room)
    return Scale(low, high, start, end) if low < high else Scale(low - 0.5, low + 0.5, start, end)


def tick_label(value: float) -> str:
    """Return a tick's text: no exponent for what people read at a glance, thousands with a letter."""
    size = abs(value)
    if size >= 1e12 or 0 < size < 1e-4:
        return f"{value:.0e}"
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.6g}{letter}"
    return f"{value:.6g}"
