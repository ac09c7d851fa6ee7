"""The supernet strategy: train the weights of all students at once, pick by their inherited score, distil the few best.

1. *supernet*: for each named sub-space of each space (tiny, small, base), or for the whole of a space without any, one
   set of shared weights is started from the teacher and trained by the sandwich step: largest, smallest and two random
   sub-networks, gradients added up, one optimiser step (:mod:`nasdistill.distill.supernet`).
2. *inherited*: the architectures of the sub-space that keep the limits on size are scored with their part of these
   weights on held-out data, by the objective the weights were trained on (nothing but inputs and the teacher is needed)
   or by the task's metric. All of them, where the sub-space's share of `evaluations` allows that: half of the
   share at random and the other half as mutations of the best so far, where it does not.
3. *latency*: the best by non-dominated rank on (inherited score, cost) are measured; what is over a limit or slower
   than `max_latency_ratio` times the teacher is out.
4. *full*: the first `finalists` by rank on (inherited score, latency) are cut out and distilled further with the run's
   objective, from the shared weights. The front is made of their validation scores.

With the defaults this is AutoDistil ("Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language
Models", arXiv:2201.12507), its agnostic search: three sub-spaces of 256 students, scored by the last layer's relation
loss; ``score = "metric"`` looks at the task instead, without the paper's fine-tuning of every student. The paper picks
one student under a limit; here the front is searched.

Cost: per sub-space `supernet_epochs` epochs of four students each; one forward over `samples` inputs per evaluation;
`finalists` trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from nasdistill.errors import NasdistillError, UsageError
from nasdistill.interfaces import INHERITED, Candidate, SearchSession, SearchSetting, SharedWeights, Strategy
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig
from nasdistill.spec.options import ComponentOptions

OBJECTIVE = "objective"
"""What the option `loss` says for the losses of the run; TOML has no null."""

_PER_TRIAL = 24
"""Evaluations for every trial asked for: with 32 of them the paper's three times 256."""

_MEASURED = 3
"""Candidates measured, per finalist."""


class SupernetOptions(ComponentOptions):
    """Options of `supernet`."""

    subspaces: tuple[str, ...] = Field((), description="Sub-spaces to train; all if not given.")
    supernet_epochs: int = Field(10, ge=1, description="Epochs of every set of shared weights.")
    others: int = Field(2, ge=0, description="Random sub-networks of a step beside the largest and the smallest.")
    loss: str | None = Field(
        "qkv_relation", description='Loss that shared weights are trained on; "objective" takes those of the run.'
    )
    loss_options: dict[str, Any] = Field(default_factory=dict, description="Its options.")
    lr: float | None = Field(None, gt=0, description="Peak learning rate of shared weights; the run's if not given.")
    score: Literal["loss", "metric"] = Field(
        "loss", description="What ranks students with inherited weights: that loss, or the task's metric."
    )
    samples: int = Field(256, ge=1, description="Held-out samples for the loss.")
    evaluations: int | None = Field(
        None, ge=1, description="Architectures scored, all sub-spaces together; 24 times `search.trials` if not given."
    )
    cost: Literal["params", "macs"] = Field("params", description="The cost beside the score before latency is known.")
    finalists: int = Field(8, ge=1, description="Students that are cut out and distilled.")
    epochs: int = Field(60, ge=1, description="Epochs of every distillation.")
    max_latency_ratio: float = Field(1.0, gt=0, description="Slowest student that is trained, relative to the teacher.")

    @field_validator("loss")
    @classmethod
    def _none_for_the_runs(cls, value: str | None) -> str | None:
        return None if value == OBJECTIVE else value


class SupernetSearch(Strategy):
    """Shared weights per sub-space, search by inherited score, the best distilled."""

    options_model: ClassVar[type[ComponentOptions]] = SupernetOptions
    options: SupernetOptions

    def run(self, session: SearchSession) -> None:
        """Spend the budget."""
        o = self.options
        session.series("static", INHERITED, total=session.trials)
        sets = self._chosen(session.supernets())
        trained = [
            session.train_supernet(shared, o.supernet_epochs, objective=self._objective(), lr=o.lr, others=o.others)
            for shared in sets
        ]
        ready = [shared for shared in trained if shared.trained]
        if not ready:
            raise NasdistillError("no supernet could be trained: " + "; ".join(f"{s.id}: {s.failure}" for s in trained))
        scored: list[Candidate] = []
        # The small ones first: what they leave of their shares goes to the others.
        order = sorted(ready, key=lambda shared: shared.size)
        for place, shared in enumerate(order):
            scored += self._search(session, shared, session.remaining // (len(order) - place))
        self._distill(session, scored)

    def _search(self, session: SearchSession, shared: SharedWeights, share: int) -> list[Candidate]:
        """Score all of a sub-space, or a share of it by random draws and mutations; return those that are alive."""
        scored: list[Candidate] = []
        first = share if shared.size <= share else (share + 1) // 2
        rounds = [first] + [max(1, (share - first) // 4)] * 4 if first < share else [first]
        for n in rounds:
            near = self._ranked(session, scored)[: max(1, n)] if scored else []
            n = min(n, session.remaining)
            found = session.members(shared, n, near=near) if n > 0 else []
            if not found:
                continue
            alive = session.check(session.propose(found, defer=True))
            scored += session.inherited(alive, shared, by=self.options.score, samples=self.options.samples)
        return scored

    def _ranked(self, session: SearchSession, scored: Sequence[Candidate]) -> list[Candidate]:
        """Return candidates by rank on (inherited score, analytic cost)."""
        alive = [c for c in scored if c.alive]
        costs = [float(getattr(c.cost, self.options.cost)) for c in alive]
        return session.rank(alive, [(-_score(c), cost) for c, cost in zip(alive, costs, strict=True)])

    def _distill(self, session: SearchSession, scored: Sequence[Candidate]) -> None:
        """Measure the best, distil the finalists among them, prune the rest."""
        o = self.options
        order, limit = self._ranked(session, scored), o.max_latency_ratio
        measured: list[Candidate] = []
        while order and (missing := _MEASURED * o.finalists - len(measured)) > 0:
            timed, order = session.measure(order[:missing]), order[missing:]
            slow = [c for c in timed if session.latency_ratio(c) > limit]
            session.prune(slow, f"slower than {limit:g} times the teacher (max_latency_ratio)")
            measured += [c for c in timed if c.alive]
        rows = [(-_score(c), session.latency_ratio(c)) for c in measured]
        finalists = session.score(session.rank(measured, rows)[: o.finalists])
        chosen = {c.number for c in finalists}
        session.prune([c for c in session.history() if c.alive and c.number not in chosen], "not among the finalists")
        session.complete(session.distill(finalists, o.epochs, "full"))

    def check(self, setting: SearchSetting) -> None:
        """Refuse spaces without shared weights, unknown sub-spaces, and a loss that is not there or cannot score.

        Raises:
            UsageError: says which spaces have a supernet, which sub-spaces there are, or what is wrong with the loss.
        """
        without = [name for name in setting.spaces if name not in setting.supernets]
        if without:
            able = ", ".join(setting.elastic) or "none that is installed"
            raise UsageError(
                f"the strategy supernet needs spaces with a supernet; {', '.join(without)} "
                f"{'has' if len(without) == 1 else 'have'} none",
                hint=f"Spaces with one: {able}.",
            )
        if setting.subspaces is not None:
            self._known(set(setting.subspaces))
        for loss in setting.losses if self.options.loss is None else (self.options.loss,):
            tags = self.host.tags(Kind.LOSS, loss)
            if tags.owns_parameters and self.options.score == "loss":
                raise UsageError(
                    f"loss {loss!r} trains parts of its own, which every student would need: it cannot score inherited "
                    "weights",
                    hint='Set score = "metric", or choose a loss without parameters.',
                )

    def _objective(self) -> ObjectiveConfig | None:
        """Return the objective of shared weights, None for the run's."""
        if self.options.loss is None:
            return None
        loss = LossConfig(name=self.options.loss, options=self.options.loss_options)
        return ObjectiveConfig(task_weight=0.0, losses=(loss,))

    def _chosen(self, sets: Sequence[SharedWeights]) -> list[SharedWeights]:
        """Return the sets of the sub-spaces that the options name.

        Raises:
            UsageError: a name is unknown.
        """
        names = self.options.subspaces
        self._known({shared.subspace for shared in sets})
        return [shared for shared in sets if not names or shared.subspace in names]

    def _known(self, known: set[str]) -> None:
        """Refuse names of sub-spaces that are not among the known ones."""
        unknown = [name for name in self.options.subspaces if name not in known]
        if unknown:
            raise UsageError(
                f"no space has a sub-space {', '.join(map(repr, unknown))}",
                hint=f"There are {', '.join(sorted(known - {''})) or 'none'}.",
            )

    def trials(self, asked: int) -> int:
        """Return the number of evaluations, each of which is a trial."""
        return self.options.evaluations or _PER_TRIAL * asked

    def plan(self, trials: int) -> list[dict[str, Any]]:
        """Return the expected number of candidates per rung."""
        o = self.options
        finalists = min(o.finalists, trials)
        return [
            {
                "rung": "supernet", "candidates": 1, "epochs": o.supernet_epochs, "per": "supernet",
                "passes": 2 + o.others, "only": list(o.subspaces),
                "note": f"shared weights, {2 + o.others} sub-networks in each step",
            },
            {"rung": INHERITED, "candidates": trials, "note": "scored with their part of them"},
            {"rung": "latency", "candidates": min(trials, _MEASURED * finalists)},
            {"rung": "full", "candidates": finalists, "epochs": o.epochs, "note": "the finalists, from shared weights"},
        ]  # fmt: skip


def _score(candidate: Candidate) -> float:
    value = candidate.proxies.get(INHERITED)
    return float("-inf") if value is None else value
