"""Exhaustive search of a small space: the truth that other strategies are compared with."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

from pydantic import Field

from nasdistill.interfaces import SearchSession, Strategy
from nasdistill.spec.options import ComponentOptions


class ExhaustiveOptions(ComponentOptions):
    """Options of `exhaustive`."""

    epochs: int = Field(60, ge=1, description="Epochs of every distillation.")


class Exhaustive(Strategy):
    """Every architecture of the space, in its own order, up to the number of trials."""

    options_model: ClassVar[type[ComponentOptions]] = ExhaustiveOptions
    options: ExhaustiveOptions

    def run(self, session: SearchSession) -> None:
        """Measure and distil all architectures."""
        architectures = session.enumerate()
        while session.remaining > 0 and (batch := list(islice(architectures, 4 * session.parallel))):
            alive = session.measure(session.score(session.check(session.propose(batch))))
            session.complete(session.distill(alive, self.options.epochs, "full"))

    def plan(self, trials: int) -> list[dict[str, Any]]:
        """Return the expected number of candidates per rung."""
        return [
            {"rung": "proxies", "candidates": trials},
            {"rung": "latency", "candidates": trials},
            {"rung": "full", "candidates": trials, "epochs": self.options.epochs},
        ]
