"""What a search tells whoever is watching: small records, sent as things happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened.

    Attributes:
        kind: ``message`` (a sentence), ``phase`` (what goes on outside the rungs), ``plan`` (before the run), ``rung``
            (a rung starts on `total` candidates), ``step`` (one of them is done), ``epoch`` (within a training),
            ``front`` (the best so far changed), ``done``.
        text: one line for people.
        rung: which rung, where that applies; ``teacher`` while the teacher itself is trained.
        done: candidates of the rung that are done; epochs of the teacher's training.
        total: candidates of the rung; epochs of the teacher's training.
        trial: number of the trial concerned.
        facts: anything else, JSON-able.
    """

    kind: Literal["message", "phase", "plan", "rung", "step", "epoch", "front", "done"]
    text: str = ""
    rung: str = ""
    done: int = 0
    total: int = 0
    trial: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


FINAL_LATENCY = "final latency"
"""The rung in which the front is timed on every target, head to head with the teacher."""

SUPERNET = "supernet"
"""The rung in which shared weights are trained, one set after the other."""

Listener = Callable[[Event], None]


def many(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 student``, ``3 students``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def silent(event: Event) -> None:
    """Ignore an event."""
