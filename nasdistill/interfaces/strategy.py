"""Strategies: how a search spends its budget. All run on one Optuna study through one session."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.task import Evaluation
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.config import ObjectiveConfig
from nasdistill.spec.io import Cost
from nasdistill.spec.measurement import Budget, TargetReport

State = Literal["running", "complete", "pruned", "failed"]

INHERITED = "inherited"
"""Name of the rung in which candidates are scored with shared weights, and of the score among their proxies."""


@dataclass(slots=True)
class Candidate:
    """One trial's candidate and everything learned about it so far.

    Attributes:
        number: trial number.
        architecture: what is tried; None when the proposal violated its space's constraints.
        state: ``running`` until told.
        rung: last rung that was finished.
        cost: analytic cost.
        proxies: proxy -> score; None is a recorded failure.
        targets: target -> report.
        score: validation metric after the latest distillation rung.
        loss: validation loss after it.
        epochs: distillation epochs done.
        results: rung -> evaluation on validation after it; only results of one rung are comparable.
        reason: why it was pruned or failed.
        constraints: name -> violation as a share of the limit (<= 0 is feasible).
        start: id of the shared weights that its training starts from; empty: as the run says, from the teacher's.
    """

    number: int
    architecture: Architecture | None
    state: State = "running"
    rung: str = "proposed"
    cost: Cost | None = None
    proxies: dict[str, float | None] = field(default_factory=dict)
    targets: dict[str, TargetReport] = field(default_factory=dict)
    score: float | None = None
    loss: float | None = None
    epochs: int = 0
    results: dict[str, Evaluation] = field(default_factory=dict)
    reason: str = ""
    constraints: dict[str, float] = field(default_factory=dict)
    start: str = ""

    @property
    def feasible(self) -> bool:
        """Whether every constraint known so far holds."""
        return all(value <= 0 for value in self.constraints.values())

    @property
    def alive(self) -> bool:
        """Whether the candidate is still in the race."""
        return self.state == "running"


@dataclass(frozen=True, slots=True)
class SearchSetting:
    """What a search is configured with, as far as a strategy may depend on it.

    Attributes:
        spaces: the spaces' names.
        targets: the targets' canonical ids, the primary one first.
        proxies: the proxies' names, as :attr:`SearchSession.proxies` has them.
        trials: how many trials the user asked for.
        supernets: those of `spaces` that can train shared weights.
        elastic: all installed spaces that can, to choose from.
        losses: canonical ids of the objective's losses.
        subspaces: names of the sub-spaces of `supernets`; None where the teacher they depend on cannot be asked.
    """

    spaces: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    trials: int = 1
    supernets: tuple[str, ...] = ()
    elastic: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    subspaces: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """One set of weights for all architectures of a sub-space, trained or still to be.

    Attributes:
        id: names it within the run (``"encoder-tiny"``).
        space: the space's name in the run.
        subspace: the sub-space's name; empty for the whole space.
        size: how many architectures it has at most.
        trained: whether it is.
        failure: why its training ended without weights.
    """

    id: str
    space: str
    subspace: str = ""
    size: int = 1
    trained: bool = False
    failure: str = ""


class SearchSession(Protocol):
    """What a strategy may do. Every method records before it returns, so that a killed run can go on from there.

    The evaluating methods take candidates, do one rung for each, and return those still alive. A candidate that
    raises is told as failed with its reason; the others are not affected. Redoing a finished rung costs nothing.
    """

    @property
    def trials(self) -> int:
        """How many trials there are to be: what the user asked for, or what :meth:`Strategy.trials` made of it."""

    @property
    def proxies(self) -> tuple[str, ...]:
        """The names of the configured proxies, as candidates carry them."""

    @property
    def remaining(self) -> int:
        """How many may still be proposed (0 when the time is up)."""

    @property
    def parallel(self) -> int:
        """How many candidates are worked on at the same time: what a strategy without rounds asks for at a time."""

    @property
    def primary_target(self) -> str:
        """The target whose latency is the second objective."""

    def time_left(self) -> float | None:
        """Seconds until the time limit, None without one."""

    def ask(self, n: int) -> list[Candidate]:
        """Propose up to `n` new candidates through the study's sampler; duplicates are told at once and left out."""

    def propose(self, architectures: Sequence[Architecture], *, defer: bool = False) -> list[Candidate]:
        """Propose given architectures (evolution, enumeration) as trials of the study.

        With `defer` the study's database learns of them once they are measured, distilled or told; the records have
        them at once. A strategy that keeps hundreds of candidates open needs it: every open trial slows Optuna down.
        """

    def suggest(self, values: Mapping[int, Sequence[float]], n: int) -> list[Architecture]:
        """Return up to `n` new architectures within the size limits that the configured sampler would try next.

        Args:
            values: number of each candidate so far -> what the sampler is to take for its objectives, lower is better
                and finite (such as proxy score and cost); always equally many.
            n: how many.
        """

    def spread(self, n: int, *, feasible: bool = False) -> list[Architecture]:
        """Return up to `n` new random architectures, the same number from every space in turn.

        With `feasible` only such as keep the limits on parameters and MACs.
        """

    def neighbours(
        self, candidates: Sequence[Candidate], n: int, *, changes: int = 1, feasible: bool = False
    ) -> list[Architecture]:
        """Return up to `n` new architectures, each one mutation away from one of `candidates` in turn.

        A mutation changes up to `changes` axes; `feasible` as for :meth:`spread`.
        """

    def rng(self, purpose: str) -> random.Random:
        """Return randomness for a strategy's own draws: by the run's seed, the purpose, and how many trials there are.

        A resumed run draws the same.
        """

    def series(self, *rungs: str, total: int) -> None:
        """Announce that `total` candidates pass these rungs in many calls: progress is shown as one, of the last."""

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every architecture of every space, in a fixed order."""

    def latency_ratio(self, candidate: Candidate) -> float:
        """Return the candidate's latency on the primary target relative to the teacher's; infinity where unknown."""

    def check(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``static``: analytic cost, size constraints."""

    def score(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``proxies``: every configured proxy."""

    def measure(
        self, candidates: Sequence[Candidate], *, budget: Budget | None = None, together: bool = False
    ) -> list[Candidate]:
        """Rung ``latency``: time candidates, on the primary target alone, which is what decides who goes on.

        With `together` they are timed on every target, in the same rounds as the teacher and each other.
        """

    def distill(self, candidates: Sequence[Candidate], epochs: int, rung: str) -> list[Candidate]:
        """Rung `rung`: train up to `epochs` epochs in all (going on from an earlier rung) and evaluate on
        validation.
        """

    def supernets(self) -> tuple[SharedWeights, ...]:
        """Return every set of shared weights that can be trained: one for each named sub-space of each space with a
        supernet, one for the whole of a space without sub-spaces.
        """

    def train_supernet(
        self,
        shared: SharedWeights,
        epochs: int,
        *,
        objective: ObjectiveConfig | None = None,
        lr: float | None = None,
        others: int = 2,
    ) -> SharedWeights:
        """Train shared weights, started from the teacher's, by the sandwich step, and return them as trained or failed.

        A training that was killed goes on from its checkpoint; one that is finished is not done again.

        Args:
            shared: one of :meth:`supernets`.
            epochs: passes over the training data.
            objective: the losses; None takes the run's.
            lr: peak learning rate; None takes the run's.
            others: random sub-networks of a step beside the largest and the smallest.
        """

    def members(
        self, shared: SharedWeights, n: int, *, near: Sequence[Candidate] = (), changes: int = 1
    ) -> list[Architecture]:
        """Return up to `n` new architectures of a sub-space that keep the limits on parameters and MACs.

        Where it has no more than `n` points, all that are new, in their order; else random ones, or each one mutation
        (of up to `changes` axes) away from one of `near` in turn.
        """

    def inherited(
        self,
        candidates: Sequence[Candidate],
        shared: SharedWeights,
        *,
        by: Literal["loss", "metric"] = "loss",
        samples: int = 256,
    ) -> list[Candidate]:
        """Rung ``inherited``: score each candidate with its part of trained shared weights, on the validation split.

        The score stands among the candidate's proxies as ``inherited``, higher is better. From here on the candidate
        starts from these weights: so it is measured, and so its distillation begins.

        Args:
            candidates: members of the sub-space.
            shared: trained weights.
            by: the objective that they were trained on, negated, or the task's metric.
            samples: held-out samples for the objective; the metric takes all.
        """

    def orient(self, score: float) -> float:
        """Return a score of the task's metric so that lower is better."""

    def objectives(self, candidate: Candidate) -> tuple[float, ...]:
        """Return the study's objective values, all oriented so that lower is better; infinity where unknown."""

    def rank(self, candidates: Sequence[Candidate], values: Sequence[Sequence[float]]) -> list[Candidate]:
        """Return candidates ordered by non-dominated rank, then by crowding; `values` are lower-is-better rows."""

    def prune(self, candidates: Sequence[Candidate], reason: str) -> None:
        """Take candidates out of the race and tell the study."""

    def complete(self, candidates: Sequence[Candidate]) -> None:
        """Tell the study the objective values of finished candidates."""

    def history(self) -> list[Candidate]:
        """Return all candidates of the run so far, by trial number."""

    def front(self) -> list[Candidate]:
        """Return the feasible non-dominated candidates among those with all objectives known."""


class Strategy(Component, ABC):
    """How trials are proposed and promoted."""

    @abstractmethod
    def run(self, session: SearchSession) -> None:
        """Spend the budget; returns when nothing is left to do."""

    def check(self, setting: SearchSetting) -> None:
        """Refuse a configuration that this strategy cannot work with, before anything is trained or written.

        Raises:
            UsageError: says what is missing; ``nasdistill config validate`` shows it as well.
        """

    def deciding(self, proxies: Sequence[str]) -> tuple[str, ...]:
        """Return those of the configured proxies whose scores decide what comes of a candidate; none by default.

        Where all of them fail on every candidate, a search ends early and says why.
        """
        return ()

    def trials(self, asked: int) -> int:
        """Return how many trials the study gets when the user asked for `asked`."""
        return asked

    def plan(self, trials: int) -> list[dict[str, Any]]:
        """Return the rungs with their expected number of candidates and epochs, for the plan shown before the run.

        Each row has ``rung``, ``candidates`` and, for distillation rungs, ``epochs`` per candidate; a ``note`` is
        shown beside them. A row with ``"per": "supernet"`` is meant for each of :meth:`SearchSession.supernets`
        (of the sub-spaces that ``only`` names, where it names any); ``passes`` says how many students' work one of its
        epochs is.
        """
        return []
