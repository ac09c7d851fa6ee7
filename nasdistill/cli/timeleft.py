"""How long a search may still take: the plan's estimate, corrected by what its rungs really take.

A row of the plan is a rung with a number of candidates and their seconds by the pilot. A candidate still to come costs
the median of the pilot's value and all durations measured on that rung so far, so the pilot decides at first and one
slow candidate (the one whose training fills the teacher's cache) does not count for all others.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nasdistill.search.events import FINAL_LATENCY


@dataclass(slots=True)
class _Rung:
    planned: int
    pilot: float
    pending: int = 0
    durations: list[float] = field(default_factory=list)

    @property
    def each(self) -> float:
        return statistics.median([self.pilot, *self.durations])

    @property
    def open(self) -> int:
        """Candidates still to come: by the plan, and at least those that the rung has now."""
        return max(self.planned - len(self.durations), self.pending)


class TimeLeft:
    """Estimates the seconds that a search still takes.

    Args:
        facts: of the event ``plan``: `rungs` and `timeout`.
        now: seconds on any clock that does not jump; so are all further times.
    """

    def __init__(self, facts: Mapping[str, Any], now: float) -> None:
        rows: Sequence[Mapping[str, Any]] = facts.get("rungs") or ()
        self._rungs = {
            row["rung"]: _Rung(row["candidates"], row.get("seconds", 0.0) / max(1, row["candidates"])) for row in rows
        }
        self._timeout: float | None = facts.get("timeout")
        self._start = self._since = now
        self._current = ""

    def begin(self, rung: str, total: int, now: float) -> None:
        """A rung starts on `total` candidates."""
        for other in self._rungs.values():
            other.pending = 0
        if rung == FINAL_LATENCY:
            for name, other in self._rungs.items():
                other.planned = other.planned if name == rung else 0  # the strategy has ended, whatever was planned
        self._current, self._since = rung, now
        if rung in self._rungs:
            self._rungs[rung].pending = total

    def step(self, rung: str, now: float) -> None:
        """One candidate of a rung is done."""
        row = self._rungs.get(rung)
        if row is not None:
            row.durations.append(now - self._since)
            row.pending = max(0, row.pending - 1)
        self._since = now

    def seconds(self, now: float) -> float | None:
        """Return the seconds left, never negative; None where nothing is known."""
        if not any(row.each > 0 for row in self._rungs.values()):
            return None
        left = {name: row.open * row.each for name, row in self._rungs.items()}
        if self._current in left:
            row = self._rungs[self._current]
            # Of the candidate at work, what it has had already; it may well take longer than the others.
            left[self._current] -= min(now - self._since, row.each) if row.open else 0.0
        *proposing, promoted, final = [0.0, 0.0, *left.values()]
        if self._timeout is not None:
            # The time limit ends the proposing; the last promotion and the final timing come after it.
            proposing = [min(sum(proposing), max(0.0, self._timeout - (now - self._start)))]
        return sum(proposing) + promoted + final
