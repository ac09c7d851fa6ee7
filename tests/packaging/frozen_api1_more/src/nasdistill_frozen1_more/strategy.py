"""Proposals in pairs, of which the faster is distilled."""

from __future__ import annotations

from pydantic import Field

from nasdistill.interfaces import Strategy
from nasdistill.spec.options import ComponentOptions


class PairsOptions(ComponentOptions):
    """Options of `pairs`."""

    epochs: int = Field(2, ge=1, description="Epochs of a distillation.")


class Pairs(Strategy):
    """See the module's text."""

    options_model = PairsOptions

    def run(self, session):
        while session.remaining > 0:
            asked = session.ask(min(2, session.remaining))
            if not asked:
                return
            alive = session.measure(session.score(session.check(asked)))
            alive = session.rank(alive, [(session.latency_ratio(c),) for c in alive])
            session.prune(alive[1:], "the other one is faster")
            session.complete(session.distill(alive[:1], self.options.epochs, "full"))

    def plan(self, trials):
        return [
            {"rung": "latency", "candidates": trials},
            {"rung": "full", "candidates": (trials + 1) // 2, "epochs": self.options.epochs},
        ]
