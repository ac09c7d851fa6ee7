"""The flat search: every proposal that fits the constraints is measured and distilled in full.

What a strategy with rungs must beat at the same number of distillation steps. With the `random` sampler it is random
search; with another it is that sampler alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from nasdistill.interfaces import SearchSession, Strategy
from nasdistill.spec.options import ComponentOptions


class FlatOptions(ComponentOptions):
    """Options of `random`."""

    epochs: int = Field(60, ge=1, description="Epochs of every distillation.")
    students: int | None = Field(
        None, ge=1, description="Stop after so many distillations, however many trials remain."
    )
    max_latency_ratio: float = Field(1e9, gt=0, description="Slowest student that is trained, relative to the teacher.")


class Flat(Strategy):
    """One rung: everything is distilled in full."""

    options_model: ClassVar[type[ComponentOptions]] = FlatOptions
    options: FlatOptions

    def run(self, session: SearchSession) -> None:
        """Spend the budget, as many proposals at a time as are worked on at a time."""
        trained = 0
        while session.remaining > 0 and (self.options.students is None or trained < self.options.students):
            asked = session.ask(session.parallel)
            alive = session.measure(session.score(session.check(asked)))
            slow = [c for c in alive if session.latency_ratio(c) > self.options.max_latency_ratio]
            session.prune(slow, f"slower than {self.options.max_latency_ratio:g} times the teacher (max_latency_ratio)")
            alive = [c for c in alive if c.alive]
            trained += len(alive)
            session.complete(session.distill(alive, self.options.epochs, "full"))
            if not asked:
                break

    def plan(self, trials: int) -> list[dict[str, Any]]:
        """Return the expected number of candidates per rung."""
        return [
            {"rung": "proxies", "candidates": trials},
            {"rung": "latency", "candidates": trials},
            {"rung": "full", "candidates": trials, "epochs": self.options.epochs},
        ]
