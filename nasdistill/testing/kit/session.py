"""A search session without a search: a landscape that is a formula, so that a strategy can be tried in milliseconds.

It behaves like the real one (:mod:`nasdistill.search.session`): what is dead stays dead, nothing is proposed beyond the
budget, repeats are told at once. Every rung computes a number from the architecture alone; a trial can be made to
fail, and time to run out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from nasdistill.distill.subnetworks import WHOLE, find_subspace, members, raw_count
from nasdistill.interfaces import INHERITED, Candidate, Evaluation, SearchSpace, SharedWeights
from nasdistill.search.pareto import non_dominated, rank_order
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.config import ObjectiveConfig
from nasdistill.spec.io import IOSpec
from nasdistill.spec.measurement import Budget, Latency, TargetReport
from nasdistill.testing.registry import CheckFailed

TARGET = "targets:simulated"
TEACHER_MS = 2.0
PATIENCE = 2_000


class PlannedSession:
    """A session over one space.

    Args:
        space: what is searched.
        io: what its networks are for.
        trials: the budget.
        seed: of proposals.
        fails: whether the trial of that number fails when it is distilled.
        proposals_until_timeout: how many may be proposed before the time is up; None for no limit.

    Attributes:
        operations: how many evaluations were asked for, over all rungs.
    """

    def __init__(
        self,
        space: SearchSpace,
        io: IOSpec,
        *,
        trials: int = 12,
        seed: int = 0,
        fails: Callable[[int], bool] = lambda number: False,
        proposals_until_timeout: int | None = None,
    ) -> None:
        self.space = space
        self.io = io
        self.seed = seed
        self.fails = fails
        self.operations = 0
        self._trials = trials
        self._timeout = proposals_until_timeout
        self._candidates: list[Candidate] = []
        self._seen: set[Architecture] = set()
        self._repeats = 0
        self._calls = 0

    # -- budget -------------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> int:
        """How many trials were asked for."""
        return self._trials

    @property
    def proxies(self) -> tuple[str, ...]:
        """The proxies: a size, and two views of what an architecture can reach."""
        return ("proxies:params", "local:planted", "local:moody")

    @property
    def remaining(self) -> int:
        """How many may still be proposed."""
        self._count()
        if self._timeout is not None and len(self._candidates) >= self._timeout:
            return 0
        return max(0, self._trials - (len(self._candidates) - self._repeats))

    @property
    def parallel(self) -> int:
        """One at a time."""
        return 1

    @property
    def primary_target(self) -> str:
        """The target of the second objective."""
        return TARGET

    def time_left(self) -> float | None:
        """Seconds until the time limit: plenty, or none."""
        if self._timeout is None:
            return None
        return 0.0 if len(self._candidates) >= self._timeout else 1e6

    # -- proposing ----------------------------------------------------------------------------------------------------

    def ask(self, n: int) -> list[Candidate]:
        """Propose up to `n` random new candidates."""
        rng = self._rng("ask")
        return self.propose(self._fresh(n, lambda: self.space.sample(rng)))

    def propose(self, architectures: Sequence[Architecture], *, defer: bool = False) -> list[Candidate]:
        """Propose given architectures; there is no database to defer anything for."""
        found = []
        for architecture in architectures:
            if self.remaining < 1:
                break
            candidate = Candidate(len(self._candidates), architecture)
            self._candidates.append(candidate)
            if architecture in self._seen:
                self._repeats += 1
                candidate.state, candidate.reason = "pruned", "same architecture as another trial"
            else:
                self._seen.add(architecture)
                found.append(candidate)
        return found

    def suggest(self, values: Mapping[int, Sequence[float]], n: int) -> list[Architecture]:
        """Return up to `n` new architectures: random ones, and neighbours of the best by the first value."""
        if not values:
            return self.spread(n)
        best = min(values, key=lambda number: (tuple(values[number]), number))
        return self.neighbours([self._candidates[best]], n) or self.spread(n)

    def spread(self, n: int, *, feasible: bool = False) -> list[Architecture]:
        """Return up to `n` new random architectures; there are no limits to keep."""
        rng = self._rng("spread")
        return self._fresh(n, lambda: self.space.sample(rng))

    def neighbours(
        self, candidates: Sequence[Candidate], n: int, *, changes: int = 1, feasible: bool = False
    ) -> list[Architecture]:
        """Return up to `n` new architectures, each one mutation away from one of `candidates` in turn."""
        parents = [c.architecture for c in candidates if c.architecture is not None]
        if not parents:
            return []
        rng = self._rng("neighbours")
        turns = iter(range(PATIENCE))
        return self._fresh(n, lambda: self.space.mutate(parents[next(turns) % len(parents)], rng, changes))

    def rng(self, purpose: str) -> random.Random:
        """Return randomness by seed, purpose and number of trials."""
        return self._rng(f"strategy-{purpose}")

    def series(self, *rungs: str, total: int) -> None:
        """There is no progress to show."""

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every architecture."""
        yield from self.space.enumerate()

    # -- rungs --------------------------------------------------------------------------------------------------------

    def check(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``static``."""

        def work(candidate: Candidate) -> None:
            candidate.cost = self.space.cost(_arch(candidate), self.io)

        return self._rung(candidates, "static", work)

    def score(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``proxies``: the size, a noisy view of the truth, and one that fails now and then."""

        def work(candidate: Candidate) -> None:
            arch = _arch(candidate)
            noise = random.Random(derive_seed(0, "proxy", arch.id)).gauss(0, 0.02)
            candidate.proxies |= {
                "proxies:params": float(self.space.cost(arch, self.io).params),
                "local:planted": self.quality(arch) + noise,
                "local:moody": None if candidate.number % 5 == 4 else self.quality(arch),
            }

        return self._rung(candidates, "proxies", work)

    def measure(
        self, candidates: Sequence[Candidate], *, budget: Budget | None = None, together: bool = False
    ) -> list[Candidate]:
        """Rung ``latency``: half a millisecond and a nanosecond per ten multiply-accumulates."""

        def work(candidate: Candidate) -> None:
            value = self._latency_ms(_arch(candidate))
            latency = Latency(value, value, value, value / TEACHER_MS, TEACHER_MS, 3, 0, "simulated")
            candidate.targets = {TARGET: TargetReport(TARGET, latency)}

        return self._rung(candidates, "latency", work)

    def distill(self, candidates: Sequence[Candidate], epochs: int, rung: str) -> list[Candidate]:
        """Rung `rung`: the longer, the closer to what the architecture can reach."""

        def work(candidate: Candidate) -> None:
            if self.fails(candidate.number):
                raise RuntimeError("this trial was meant to fail")
            candidate.epochs = max(candidate.epochs, epochs)
            score = self.quality(_arch(candidate)) * (1 - 0.5 / (1 + candidate.epochs))
            candidate.score, candidate.loss = score, 1 - score
            candidate.results[rung] = Evaluation(score, 1 - score, 100)
            if TARGET not in candidate.targets:
                self.measure([candidate])
                candidate.rung = rung

        return self._rung(candidates, rung, work)

    def quality(self, arch: Architecture) -> float:
        """Return the score that an architecture reaches in the end: grows with its size, and has a part of its own."""
        size = math.log(self.space.cost(arch, self.io).params)
        return 0.5 + 0.03 * size + 0.1 * random.Random(derive_seed(0, "quality", arch.id)).random()

    # -- shared weights -----------------------------------------------------------------------------------------------

    def supernets(self) -> tuple[SharedWeights, ...]:
        """Return one set for each sub-space, or one for the whole space."""
        return tuple(
            SharedWeights(f"planned-{subspace.name}", "planned", subspace.name, raw_count(self.space, subspace))
            for subspace in self.space.subspaces() or (WHOLE,)
        )

    def train_supernet(
        self,
        shared: SharedWeights,
        epochs: int,
        *,
        objective: ObjectiveConfig | None = None,
        lr: float | None = None,
        others: int = 2,
    ) -> SharedWeights:
        """Take a set as trained."""
        self._count()
        self.operations += 1
        return replace(shared, trained=True)

    def members(
        self, shared: SharedWeights, n: int, *, near: Sequence[Candidate] = (), changes: int = 1
    ) -> list[Architecture]:
        """Return up to `n` new architectures of the sub-space; there are no limits to keep."""
        subspace = find_subspace(self.space, shared.subspace)
        new = [arch for arch in members(self.space, subspace) if arch not in self._seen]
        return self._rng("members").sample(new, min(n, len(new)))

    def inherited(
        self,
        candidates: Sequence[Candidate],
        shared: SharedWeights,
        *,
        by: Literal["loss", "metric"] = "loss",
        samples: int = 256,
    ) -> list[Candidate]:
        """Rung ``inherited``: a noisy view of the truth.

        Raises:
            CheckFailed: the weights are not trained.
        """
        if not shared.trained:
            raise CheckFailed(f"it scores with the shared weights {shared.id}, which are not trained")

        def work(candidate: Candidate) -> None:
            arch = _arch(candidate)
            noise = random.Random(derive_seed(0, "inherited", arch.id)).gauss(0, 0.02)
            candidate.proxies[INHERITED], candidate.start = self.quality(arch) + noise, shared.id

        return self._rung(candidates, INHERITED, work)

    # -- ranking and telling ------------------------------------------------------------------------------------------

    def latency_ratio(self, candidate: Candidate) -> float:
        """Return the latency relative to the teacher's; infinity where unknown."""
        report = candidate.targets.get(TARGET)
        return math.inf if report is None else report.latency.value_ms / TEACHER_MS

    def orient(self, score: float) -> float:
        """Return a score so that lower is better."""
        return -score

    def objectives(self, candidate: Candidate) -> tuple[float, ...]:
        """Return (negated score, latency in ms), infinity where unknown."""
        report = candidate.targets.get(TARGET)
        score = math.inf if candidate.score is None else -candidate.score
        return score, math.inf if report is None else report.latency.value_ms

    def rank(self, candidates: Sequence[Candidate], values: Sequence[Sequence[float]]) -> list[Candidate]:
        """Return candidates by non-dominated rank, then crowding."""
        return [candidates[i] for i in rank_order(values)]

    def prune(self, candidates: Sequence[Candidate], reason: str) -> None:
        """Take candidates out of the race."""
        for candidate in candidates:
            if candidate.alive:
                candidate.state, candidate.reason = "pruned", reason

    def complete(self, candidates: Sequence[Candidate]) -> None:
        """Tell finished candidates.

        Raises:
            CheckFailed: one has no score yet.
        """
        for candidate in candidates:
            if candidate.alive:
                if math.inf in self.objectives(candidate):
                    raise CheckFailed(f"trial {candidate.number} is completed before it was distilled and measured")
                candidate.state = "complete"

    def history(self) -> list[Candidate]:
        """Return all candidates by trial number."""
        self._count()
        return list(self._candidates)

    def front(self) -> list[Candidate]:
        """Return the non-dominated candidates among the complete ones, fastest first."""
        done = [c for c in self._candidates if c.state == "complete" and c.feasible]
        keep = [done[i] for i in non_dominated([self.objectives(c) for c in done])]
        return sorted(keep, key=lambda c: self.objectives(c)[-1])

    # -- details ------------------------------------------------------------------------------------------------------

    def _rung(self, candidates: Sequence[Candidate], rung: str, work: Callable[[Candidate], None]) -> list[Candidate]:
        self._count()
        for candidate in candidates:
            if candidate.alive:
                self.operations += 1
                try:
                    work(candidate)
                    candidate.rung = rung
                except RuntimeError as error:
                    candidate.state, candidate.reason = "failed", str(error)
        return [candidate for candidate in candidates if candidate.alive]

    def _latency_ms(self, arch: Architecture) -> float:
        return 0.5 + self.space.cost(arch, self.io).macs * 1e-7

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(derive_seed(self.seed, purpose, len(self._candidates)))

    def _fresh(self, n: int, draw: Callable[[], Architecture]) -> list[Architecture]:
        found: list[Architecture] = []
        for _ in range(20 * max(0, n)):
            if len(found) == n:
                break
            architecture = draw()
            if architecture not in self._seen and architecture not in found:
                found.append(architecture)
        return found

    def _count(self) -> None:
        """Notice a strategy that goes round in circles."""
        self._calls += 1
        if self._calls > PATIENCE:
            raise CheckFailed(f"it does not end: {PATIENCE} calls, {len(self._candidates)} trials")


def _arch(candidate: Candidate) -> Architecture:
    assert candidate.architecture is not None
    return candidate.architecture
