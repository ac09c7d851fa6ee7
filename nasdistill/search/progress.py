"""How far the rungs are, and what came of a candidate, in one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nasdistill.interfaces import INHERITED, Candidate, Metric
from nasdistill.search.events import Event, Listener, many
from nasdistill.search.summary import abbreviated


@dataclass(slots=True)
class _Series:
    """Candidates that pass a rung, in one call or in many."""

    total: int
    done: int = 0
    announced: bool = False


class Progress:
    """Tells the listener.

    Args:
        listener: of the search.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._series: dict[str, _Series | None] = {}

    def series(self, *rungs: str, total: int) -> None:
        """Show `total` candidates that pass these rungs in many calls as one, with the progress of the last rung."""
        self._series |= dict.fromkeys(rungs[:-1]) | {rungs[-1]: _Series(total)}

    def begin(self, rung: str, todo: int, replayed: int) -> RungProgress:
        """Begin a rung with so many candidates to work on and so many that are done from the journal."""
        if rung not in self._series:
            return RungProgress(self._listener, rung, _Series(todo))
        series = self._series[rung]
        if series is not None:
            series.done += replayed
        return RungProgress(self._listener, rung, series)


class RungProgress:
    """One call of a rung."""

    def __init__(self, listener: Listener, rung: str, series: _Series | None) -> None:
        self._listener, self._rung, self._series = listener, rung, series

    def announce(self) -> None:
        """Say that the rung begins, once per series."""
        series = self._series
        if series is not None and not series.announced:
            series.announced = True
            text = f"{self._rung}: {many(series.total, 'candidate')}"
            self._listener(Event("rung", text, self._rung, total=series.total))

    def step(self, number: int, line: str) -> None:
        """Say that a candidate is done."""
        series = self._series
        if series is not None:
            series.done += 1
            text = f"{self._rung} {series.done}/{series.total}: {line}"
            self._listener(Event("step", text, self._rung, series.done, series.total, number))


def trial_line(candidate: Candidate, target: str, metric: Metric) -> str:
    """Return what is known of a candidate; latency is that on `target`."""
    if not candidate.alive and candidate.state != "complete":
        return f"trial {candidate.number}: {candidate.state} ({candidate.reason})"
    parts = [f"trial {candidate.number}"]
    if candidate.architecture is not None:
        parts.append(candidate.architecture.space.split(":", 1)[-1])
    if candidate.cost is not None:
        parts.append(f"{abbreviated(candidate.cost.params)} params")
    report, inherited = candidate.targets.get(target), candidate.proxies.get(INHERITED)
    if inherited is not None and report is None:
        parts.append(f"inherited score {inherited:.4g}")
    if report is not None:
        parts.append(f"{report.latency.value_ms:.3f} ms")
    if candidate.score is not None:
        parts.append(f"{metric.name} {candidate.score:.4f}")
    return ", ".join(parts)


def front_line(front: Sequence[Candidate], target: str, metric: Metric) -> str:
    """Return how large the front is and which member has the best score."""
    if not front:
        return "no complete student yet"

    def error(candidate: Candidate) -> float:
        assert candidate.score is not None
        return -candidate.score if metric.higher_is_better else candidate.score

    best = min(front, key=error)
    return (
        f"front of {len(front)}; best {metric.name} {best.score:.4f} at {best.targets[target].latency.value_ms:.3f} ms"
    )
