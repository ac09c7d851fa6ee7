"""The training-free search: proxies and analytic cost alone decide; only the final few are measured and distilled.

*Aging evolution* (regularised evolution; Real et al., "Regularized Evolution for Image Classifier Architecture Search",
arXiv:1802.01548, which DisWOT, arXiv:2303.15678, searches with):

1. `population` random architectures, the same number from every space, are scored.
2. `tournament` of the population are drawn without replacement; a child is a mutation (`mutations` axes) of the best
   of them. It is scored and joins the population, whose *oldest* member leaves, however good it is: nobody lives on a
   lucky score, and the population moves on.
3. Until `evaluations` architectures have been scored. None is scored twice, and none counts twice.

*Sampler*: the configured Optuna sampler proposes instead, its objectives being the score below and the cost.

The score of a candidate joins its proxies within the pool of everything scored so far: the sum of log ranks (`rank`)
or the sum of z-scores (`zscore`); with `proxy` one of them decides alone. In each of them a failure (an exception,
NaN) comes behind every value.

At the end everything scored is sorted by non-dominated rank and crowding on (score, cost). The first `finalists` that
are fast enough once measured are distilled in full, the rest is told as pruned. The front is made of validation
scores.

Cost: `evaluations` times the proxies and a few milliseconds, then `finalists` trainings.

Where the published code for DisWOT differs, we follow the text: there, parents come from the five *lowest* scores of a
tournament (a sort in the wrong direction); only the first population has to keep the limit on FLOPs, here every child
has to; and the final architecture is the best of five by *test* accuracy, here nothing sees the test split. Its
evolution scores with one proxy of its own (`diswot`, a proxy like others here), one child at a time as here by default.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from nasdistill.errors import UsageError, did_you_mean
from nasdistill.interfaces import Candidate, SearchSession, SearchSetting, Strategy
from nasdistill.measure.proxies import consensus
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.options import ComponentOptions

_PER_TRIAL = 8
"""Evaluations for every trial asked for: scoring a candidate costs about as much less than going on with it."""

_MEASURED = 3
"""Candidates measured at most, per finalist."""


class TrainingFreeOptions(ComponentOptions):
    """Options of `training_free`."""

    search: Literal["aging_evolution", "sampler"] = Field(
        "aging_evolution", description="Who proposes: aging evolution, or the configured sampler."
    )
    evaluations: int | None = Field(
        None, ge=1, description="Architectures scored; 8 times `search.trials` if not given (the paper's: 1000)."
    )
    population: int = Field(36, ge=2, description="Members of the population.")
    tournament: int = Field(8, ge=1, description="Members drawn, the best of which becomes a parent.")
    mutations: int = Field(1, ge=1, le=16, description="Axes that change from parent to child, at most.")
    children: int = Field(
        1, ge=1, description="Proposals per step, scored side by side when there are worker processes."
    )
    aim: Literal["score", "front"] = Field(
        "score", description="Best of a tournament: by score, or by Pareto rank on score and cost."
    )
    combine: Literal["rank", "zscore"] = Field(
        "rank", description="How proxies join: sum of log ranks, or of z-scores."
    )
    proxy: str | None = Field(None, description="The one proxy that decides; all configured ones if not given.")
    cost: Literal["macs", "params"] = Field("macs", description="The cost beside the score.")
    finalists: int = Field(8, ge=1, description="Architectures that are distilled.")
    epochs: int = Field(60, ge=1, description="Epochs of every distillation.")
    max_latency_ratio: float = Field(1.0, gt=0, description="Slowest student that is trained, relative to the teacher.")

    @model_validator(mode="after")
    def _tournament_fits(self) -> TrainingFreeOptions:
        if self.tournament > self.population:
            raise ValueError(f"tournament = {self.tournament} is larger than population = {self.population}")
        return self


class TrainingFree(Strategy):
    """Evolution or a sampler on proxies and cost; the final few are distilled."""

    options_model: ClassVar[type[ComponentOptions]] = TrainingFreeOptions
    options: TrainingFreeOptions

    def run(self, session: SearchSession) -> None:
        """Spend the budget."""
        names = self.deciding(session.proxies)
        session.series("static", "proxies", total=session.trials)
        scored: list[Candidate] = []
        population: deque[Candidate] = deque(maxlen=self.options.population)
        while session.remaining > 0:
            n = min(self.options.children, session.remaining)
            if self.options.search == "sampler":
                found = session.suggest(self._values(scored, names), n)
            elif len(population) < self.options.population:
                n = min(self.options.population - len(population), session.remaining)
                found = []
            else:
                parents = self._parents(session, population, scored, names, n)
                found = session.neighbours(parents, n, changes=self.options.mutations, feasible=True)
            found = found or session.spread(n, feasible=True)  # the first ones, and where nothing new is near
            if not found:
                break  # a small space is exhausted
            new = self._evaluate(session, found)
            scored += new
            population.extend(new)  # the oldest leave on the other side
        self._distill(session, scored, names)

    def check(self, setting: SearchSetting) -> None:
        """Refuse a search without the proxies that are to decide.

        Raises:
            UsageError: none is configured, or not the one that is to decide.
        """
        wanted, known = self.options.proxy, setting.proxies
        if not known:
            raise UsageError("the strategy training_free needs a proxy", hint="Name one: --proxy nwot.")
        if wanted is not None and wanted not in known:
            raise UsageError(
                f"proxy {wanted!r}, which is to decide, is not configured. {did_you_mean(wanted, known)}",
                hint=f"Add it (--proxy {wanted}), or choose one of {', '.join(known)}.",
            )

    def _evaluate(self, session: SearchSession, architectures: Sequence[Architecture]) -> list[Candidate]:
        """Score architectures as trials; return those that are alive."""
        return session.score(session.check(session.propose(architectures, defer=True)))

    def _parents(
        self,
        session: SearchSession,
        population: Sequence[Candidate],
        scored: Sequence[Candidate],
        names: Sequence[str],
        n: int,
    ) -> list[Candidate]:
        """Return the winners of `n` tournaments."""
        values = self._values(scored, names)
        if self.options.aim == "front":
            best_first = session.rank(population, [values[c.number] for c in population])
        else:
            best_first = sorted(population, key=lambda c: values[c.number][0])  # of equal scores, the older one
        place = {c.number: i for i, c in enumerate(best_first)}
        rng = session.rng("tournament")
        drawn = [rng.sample(list(population), self.options.tournament) for _ in range(n)]
        return [min(group, key=lambda c: place[c.number]) for group in drawn]

    def _values(self, scored: Sequence[Candidate], names: Sequence[str]) -> dict[int, tuple[float, float]]:
        """Return (negated score, cost) by number, lower is better, within the pool of all that were scored."""
        rows = {c.number: {name: c.proxies.get(name) for name in names} for c in scored}
        worth = consensus(rows) if self.options.combine == "rank" else z_scores(rows)
        return {c.number: (-worth[c.number], float(getattr(c.cost, self.options.cost))) for c in scored}

    def _distill(self, session: SearchSession, scored: Sequence[Candidate], names: Sequence[str]) -> None:
        """Measure the best until there are enough that are fast enough, prune the rest, and distil those."""
        values = self._values(scored, names)
        judged = [c for c in scored if c.alive and any(c.proxies.get(name) is not None for name in names)]
        order = session.rank(judged, [values[c.number] for c in judged])[: _MEASURED * self.options.finalists]
        limit = self.options.max_latency_ratio
        finalists: list[Candidate] = []
        while order and (missing := self.options.finalists - len(finalists)) > 0:
            measured, order = session.measure(order[:missing]), order[missing:]
            slow = [c for c in measured if session.latency_ratio(c) > limit]
            session.prune(slow, f"slower than {limit:g} times the teacher (max_latency_ratio)")
            finalists += [c for c in measured if c.alive]
        chosen = {c.number for c in finalists}
        session.prune([c for c in session.history() if c.alive and c.number not in chosen], "not among the finalists")
        session.complete(session.distill(finalists, self.options.epochs, "full"))

    def deciding(self, proxies: Sequence[str]) -> tuple[str, ...]:
        """Return the proxies that the score is made of."""
        return tuple(proxies) if self.options.proxy is None else (self.options.proxy,)

    def trials(self, asked: int) -> int:
        """Return the number of evaluations, each of which is a trial."""
        return self.options.evaluations or _PER_TRIAL * asked

    def plan(self, trials: int) -> list[dict[str, Any]]:
        """Return the expected number of candidates per rung."""
        finalists = min(self.options.finalists, trials)
        who = "aging evolution" if self.options.search == "aging_evolution" else "the sampler"
        return [
            {"rung": "proxies", "candidates": trials, "note": f"evaluations proposed by {who}"},
            {"rung": "latency", "candidates": finalists},
            {"rung": "full", "candidates": finalists, "epochs": self.options.epochs, "note": "the finalists"},
        ]


def z_scores(rows: dict[int, dict[str, float | None]]) -> dict[int, float]:
    """Return, per candidate, the sum over proxies of (value - mean) / standard deviation within the pool.

    A proxy that says the same of all adds nothing. A failure is one standard deviation below the worst value.

    Args:
        rows: candidate -> proxy -> score (None: failed).
    """
    total = dict.fromkeys(rows, 0.0)
    for name in sorted(next(iter(rows.values()), {})):
        values = [row[name] for row in rows.values()]
        found = [value for value in values if value is not None]
        mean, spread = (statistics.fmean(found), statistics.pstdev(found)) if found else (0.0, 0.0)
        z = [None if value is None else (value - mean) / spread if spread > 0 else 0.0 for value in values]
        worst = min((value for value in z if value is not None), default=0.0)
        for key, value in zip(rows, z, strict=True):
            total[key] += worst - 1.0 if value is None else value
    return total
