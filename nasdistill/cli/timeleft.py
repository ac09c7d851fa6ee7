"""How long a search may still take: the plan's estimate, corrected by what its rungs really take.

A row of the plan is a rung with a number of candidates and their seconds by the pilot.

*Cost.* A candidate still to come costs the median of the pilot's value and all durations measured on that rung so far,
so the pilot decides at first and one slow candidate (the one whose training fills the teacher's cache) does not count
for all others.

*Number.* A plan says how many candidates a rung gets at most; constraints thin them out. With a share s of proposals
made when the rung last began, and n candidates in it so far, it gets about n + planned (1 - s) r in all, where r = (n +
w) / (planned s + w) is how far it is below the plan, drawn towards 1 by w = 0.15 planned. The last rung of a strategy
also promotes what waited, so it counts as planned; but no rung gets more than the one before it. Rows that are counted
per supernet stand apart from all this.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nasdistill.search.events import FINAL_LATENCY


@dataclass(slots=True)
class _Rung:
    planned: int
    pilot: float
    apart: bool = False
    started: int = 0
    share: float = 0.0
    pending: int = 0
    durations: list[float] = field(default_factory=list)

    @property
    def each(self) -> float:
        """Seconds of one candidate to come; 0 while nothing is known, because its pilot failed."""
        known = [self.pilot, *self.durations] if self.pilot > 0 else self.durations
        return statistics.median(known) if known else 0.0

    @property
    def total(self) -> float:
        """Candidates that the rung gets in all, by the plan and by what it got so far."""
        if not self.share:
            return self.planned
        drawn = 0.15 * self.planned
        below = (self.started + drawn) / (self.planned * self.share + drawn)
        return self.started + self.planned * max(0.0, 1 - self.share) * below


class TimeLeft:
    """Estimates the seconds that a search still takes.

    Args:
        facts: of the event ``plan``: `rungs` and `timeout`.
        now: seconds on any clock that does not jump; so are all further times.
    """

    def __init__(self, facts: Mapping[str, Any], now: float) -> None:
        rows: Sequence[Mapping[str, Any]] = facts.get("rungs") or ()
        self._rungs = {
            row["rung"]: _Rung(
                row["candidates"], row.get("seconds", 0.0) / max(1, row["candidates"]), row.get("per") == "supernet"
            )
            for row in rows
        }
        self._timeout: float | None = facts.get("timeout")
        self._start = self._since = now
        self._current = ""
        self._ended = False

    def begin(self, rung: str, total: int, now: float) -> None:
        """A rung starts on `total` candidates."""
        for other in self._rungs.values():
            other.pending = 0
        self._ended = rung == FINAL_LATENCY
        self._current, self._since = rung, now
        if rung in self._rungs:
            row, first = self._rungs[rung], next((row for row in self._rungs.values() if not row.apart), None)
            row.pending = total
            row.started += total
            row.share = 0.0 if first is None or row.apart else first.started / max(1, first.planned)

    def step(self, rung: str, now: float) -> None:
        """One candidate of a rung is done."""
        row = self._rungs.get(rung)
        if row is not None:
            row.durations.append(now - self._since)
            row.pending = max(0, row.pending - 1)
        self._since = now

    def seconds(self, now: float) -> float | None:
        """Return the seconds left, never negative; None while a rung to come has neither pilot nor durations."""
        to_come = self._to_come()
        if not to_come or any(count > 0 and self._rungs[name].each <= 0 for name, count in to_come.items()):
            return None
        left = {name: count * self._rungs[name].each for name, count in to_come.items()}
        if self._current in left:
            row = self._rungs[self._current]
            # Of the candidate at work, what it has had already; it may well take longer than the others.
            left[self._current] -= min(now - self._since, row.each, left[self._current])
        *proposing, promoted, final = [0.0, 0.0, *left.values()]
        if self._timeout is not None:
            # The time limit ends the proposing; the last promotion and the final timing come after it.
            proposing = [min(sum(proposing), max(0.0, self._timeout - (now - self._start)))]
        return sum(proposing) + promoted + final

    def _to_come(self) -> dict[str, float]:
        """Return how many candidates each rung still gets, at least those that it has now."""
        found: dict[str, float] = {}
        most = math.inf
        names = [name for name, row in self._rungs.items() if not row.apart]
        for name, row in self._rungs.items():
            if name == FINAL_LATENCY:
                found[name] = 1.0
                continue
            if row.apart:  # sets of shared weights are trained, no candidates are narrowed down
                found[name] = max(0.0 if self._ended else row.planned - len(row.durations), row.pending, 0.0)
                continue
            last = name == names[0] or names[names.index(name) + 1 :] in ([], [FINAL_LATENCY])
            most = min(most, row.planned if last else row.total)
            expected = 0.0 if self._ended else most - len(row.durations)
            found[name] = max(expected, row.pending, 0.0)
        return found
