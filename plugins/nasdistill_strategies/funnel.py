"""The funnel: rungs of rising cost, each passing on the non-dominated part of what came in.

The first round spreads its `round_size` proposals evenly over the spaces; in later ones the sampler proposes a part and
the rest are single mutations of the best short results so far (a Parzen estimator with few trials in many dimensions
explores; the neighbours exploit). Every round goes down the same rungs:

1. *static*: analytic cost; size constraints.
2. *proxies*: every configured proxy; keep the best `keep_proxies` by Pareto rank on (proxy consensus, MACs). The
   consensus is a sum of log ranks over the proxies, so no single scale decides; MACs as a second axis keep the small
   ones alive, because most proxies grow with size.
3. *latency*: measured on the exported student; drop those slower than `max_latency_ratio` times the teacher or over
   the limit; keep the best `keep_latency` by Pareto rank on (proxy consensus, latency).
4. *short*: `short_epochs` epochs of distillation.

After each round, candidates whose short results are non-dominated among all short results so far go on to *full*
(`full_epochs` in all), at most `full_per_round` of them; only these are told to the study as complete, so it learns
from final values alone. When the proposals are spent, a last promotion fills the front from all rounds, and the rest is
told as pruned.

The scheme is successive halving (Li et al. 2018, arXiv:1810.05934) with Pareto rank and crowding (NSGA-II, Deb et al.
2002) in place of a single loss: Optuna has no pruning for several objectives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from nasdistill.interfaces import Candidate, SearchSession, Strategy
from nasdistill.measure.proxies import consensus
from nasdistill.spec.options import ComponentOptions


class FunnelOptions(ComponentOptions):
    """Options of `funnel`."""

    round_size: int = Field(12, ge=1, description="Proposals per round.")
    neighbours: float = Field(0.5, ge=0, le=1, description="Share of later rounds proposed next to the best so far.")
    keep_proxies: float = Field(0.75, gt=0, le=1, description="Share kept after the proxies.")
    keep_latency: float = Field(0.6, gt=0, le=1, description="Share kept after the latency measurement.")
    short_epochs: int = Field(10, ge=1, description="Epochs of the short distillation.")
    full_epochs: int = Field(60, ge=1, description="Epochs of the full distillation, the short ones included.")
    full_per_round: int = Field(2, ge=0, description="Full distillations per round, at most.")
    full_final: int = Field(6, ge=1, description="Full distillations after the last round, at most.")
    max_latency_ratio: float = Field(1.0, gt=0, description="Slowest student that is trained, relative to the teacher.")


class Funnel(Strategy):
    """Successive halving by Pareto rank over rungs of rising cost."""

    options_model: ClassVar[type[ComponentOptions]] = FunnelOptions
    options: FunnelOptions

    def run(self, session: SearchSession) -> None:
        """Spend the budget."""
        waiting: list[Candidate] = []
        while session.remaining > 0:
            asked = self._propose(session, min(self.options.round_size, session.remaining))
            if not asked:
                break  # a small space is exhausted
            waiting += self._screen(session, asked)
            waiting = self._promote(session, waiting, self.options.full_per_round)
        self._promote(session, waiting, self.options.full_final, beaten_too=True)
        rest = [c for c in session.history() if c.alive]
        session.prune(rest, "dominated after the short distillation")

    def _propose(self, session: SearchSession, n: int) -> list[Candidate]:
        """Return new candidates: first a spread over the spaces, later neighbours and the sampler's own."""
        results = [c for c in session.history() if "short" in c.results and c.feasible and c.state != "failed"]
        if not results:
            found = session.propose(session.spread(n))
        else:
            order = session.rank(results, [self._values(session, c) for c in results])
            share = round(self.options.neighbours * n)
            found = session.propose(session.neighbours(order[: max(1, share)], share))
        return found + session.ask(n - len(found)) if len(found) < n else found

    def _screen(self, session: SearchSession, asked: list[Candidate]) -> list[Candidate]:
        """Take new proposals through the cheap rungs and the short distillation."""
        alive = session.score(session.check(asked))
        macs = [float(c.cost.macs) if c.cost else math.inf for c in alive]
        alive = self._gate(session, alive, macs, self.options.keep_proxies, "dominated at the proxies")
        alive = session.measure(alive)
        limit = self.options.max_latency_ratio
        slow = [c for c in alive if session.latency_ratio(c) > limit]
        session.prune(slow, f"slower than {limit:g} times the teacher (max_latency_ratio)")
        alive = [c for c in alive if c.alive]
        latency = [session.latency_ratio(c) for c in alive]
        alive = self._gate(session, alive, latency, self.options.keep_latency, "dominated at the latency rung")
        return session.distill(alive, self.options.short_epochs, "short")

    def _gate(
        self, session: SearchSession, candidates: list[Candidate], costs: list[float], share: float, reason: str
    ) -> list[Candidate]:
        """Keep the best share by Pareto rank on (proxy consensus, cost) and prune the rest."""
        if not candidates:
            return []
        worth = consensus({c.number: c.proxies for c in candidates})
        rows = [(-worth[c.number], cost) for c, cost in zip(candidates, costs, strict=True)]
        order = session.rank(candidates, rows)
        keep = max(1, math.ceil(share * len(order)))
        session.prune(order[keep:], reason)
        return order[:keep]

    def _promote(
        self, session: SearchSession, waiting: Sequence[Candidate], limit: int, *, beaten_too: bool = False
    ) -> list[Candidate]:
        """Distil the best of `waiting` in full and tell them; return those that still wait.

        During the rounds a candidate that a finished one beats is passed over. At the end it may use what is left of
        the budget: short results are noisy, and a rank among them is not a verdict.
        """
        alive = [c for c in waiting if c.alive]
        if not alive or limit < 1:
            return alive
        # Everyone is compared by the short result: final scores of finished students are not on the same scale.
        done = [c for c in session.history() if c.state == "complete"]
        finished = [self._values(session, c) for c in done]
        pool = [*alive, *done]
        chosen: list[Candidate] = []
        for candidate in session.rank(pool, [self._values(session, c) for c in pool]):
            mine = self._values(session, candidate)
            # A finished student at least as good in everything leaves nothing to gain from this one.
            beaten = any(all(a <= b for a, b in zip(theirs, mine, strict=True)) for theirs in finished)
            if candidate.alive and (beaten_too or not beaten) and len(chosen) < limit:
                chosen.append(candidate)
        session.complete(session.distill(chosen, self.options.full_epochs, "full"))
        return [c for c in alive if c.alive]

    def _values(self, session: SearchSession, candidate: Candidate) -> tuple[float, ...]:
        """Return (short result, latency), lower is better; the loss breaks ties without reordering other scores."""
        result = candidate.results.get("short")
        latency = session.objectives(candidate)[-1]
        if result is None:
            return (math.inf, latency)
        return (session.orient(result.score) + 1e-6 * min(result.loss, 100.0), latency)

    def deciding(self, proxies: Sequence[str]) -> tuple[str, ...]:
        """Return all of them: who goes on is decided by their consensus."""
        return tuple(proxies)

    def plan(self, trials: int) -> list[dict[str, Any]]:
        """Return the expected number of candidates per rung."""
        o = self.options
        proxied = math.ceil(trials * o.keep_proxies)
        short = math.ceil(proxied * o.keep_latency)
        rounds = math.ceil(trials / o.round_size)
        full = min(short, rounds * o.full_per_round + o.full_final)
        return [
            {"rung": "proxies", "candidates": trials},
            {"rung": "latency", "candidates": proxied},
            {"rung": "short", "candidates": short, "epochs": o.short_epochs},
            {"rung": "full", "candidates": full, "epochs": max(0, o.full_epochs - o.short_epochs)},
        ]
