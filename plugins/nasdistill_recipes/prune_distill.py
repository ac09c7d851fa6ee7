"""Rank, enumerate, retrain briefly, choose, distil long: how a family of models is cut from one.

For each size (the student's number of parameters; before it any in `through`, largest first):

1. *candidates*: the points of the student's space with this size within `tolerance`, none larger in any axis than what
   it is cut from; the student's own point, and of the others those nearest to the size, `candidates` in all;
2. each starts from the most important parts of the network it is cut from: the teacher, then the last size's winner
   (the space ranks and slices);
3. each is distilled for `short_epochs`. The order right after cutting says little: it settles while they learn again;
4. the one with the lowest validation loss is distilled for `epochs`.

The teacher is the same for all sizes: a large one teaches better than the size between. The losses are the KL of the
logits alone, without labels, as the paper recommends where depth is not cut much; add losses of hidden states where it
is. The network that comes back may be another point than the student's.

Cost: sizes * (candidates * short_epochs + epochs) passes over the data.

Source: "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), arXiv 2407.14679. We depart from it
in the candidates: those nearest to the size where the grid has more than `candidates`. Spaces of more than 20,000
points are drawn from, not enumerated.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator
from torch import nn

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Example, Recipe, RecipeRunner, Stage
from nasdistill.interfaces.recipe import Origin
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Architecture
from nasdistill_recipes._stages import StageOptions, origin_of

MANY = 20_000
"""Up to so many points a space is enumerated; from a larger one a quarter as many are drawn."""


class PruneDistillOptions(StageOptions):
    """Options of `prune_distill`."""

    losses: dict[str, Any] = Field({"logit_kl": 1.0}, min_length=1, description="Losses: name -> weight or options.")
    candidates: int = Field(8, ge=1, le=64, description="Shapes to try for each size.")
    tolerance: float = Field(0.05, gt=0, lt=1, description="How far from the size a candidate may be, as a share.")
    short_epochs: float = Field(1.0, gt=0, description="Passes over the data before candidates are compared.")
    through: tuple[Annotated[float, Field(gt=1)], ...] = Field(
        (), max_length=8, description="Sizes between, as multiples of the student's parameters, largest first."
    )
    seed: int = Field(0, ge=0, description="For drawing from large spaces.")

    @model_validator(mode="after")
    def _falling(self) -> PruneDistillOptions:
        if list(self.through) != sorted(set(self.through), reverse=True):
            raise ValueError("the sizes in `through` must fall")
        return self


class PruneDistill(Recipe):
    """See the module's text."""

    options_model = PruneDistillOptions
    options: PruneDistillOptions
    examples = (
        Example(
            {"candidates": 3, "tolerance": 0.6, "through": [2.0]},
            {"space": "nasdistill.testing.kit.space:TinySpace", "architecture": {"width": 4}},
        ),
    )

    def plan(self) -> Sequence[Stage]:
        """Return the long trainings; which candidates there are is known when the space is."""
        return [self._stage(f"size_{number}", self.options.epochs) for number in range(len(self.options.through) + 1)]

    def run(self, student: nn.Module, runner: RecipeRunner) -> nn.Module:
        """Return the best network of the student's size, trained.

        Raises:
            UsageError: no space made the student.
            TrialFailure: no candidate could be trained, or the long training failed.
        """
        origin, source, cut_from = origin_of(runner, self.id), None, None
        target = origin.space.cost(origin.architecture, origin.io).params
        for number, multiple in enumerate((*self.options.through, 1.0)):
            points = self.choose(origin, target * multiple, cut_from)
            own = {origin.architecture: student} if source is None else {}
            best: tuple[float, Architecture, nn.Module] | None = None
            failure: TrialFailure | None = None
            for place, point in enumerate(points):
                model = own.get(point) or runner.candidate(point, source)
                try:
                    found = runner.train(self._stage(f"size_{number}_try_{place}", self.options.short_epochs), model)
                except TrialFailure as error:  # one shape that cannot be trained is no reason to lose the others
                    failure = error
                    continue
                loss = math.inf if found.evaluation is None else found.evaluation.loss
                if best is None or loss < best[0]:
                    best = (loss, point, found.student)
            if best is None:
                assert failure is not None
                raise failure
            _, cut_from, model = best
            source = runner.train(self._stage(f"size_{number}", self.options.epochs), model).student
        assert source is not None
        return source

    def choose(self, origin: Origin, target: float, cut_from: Architecture | None) -> list[Architecture]:
        """Return the points to try for a size; without a point of that size the nearest one.

        Args:
            origin: the student's space and point.
            target: parameters.
            cut_from: what they are cut from; None = the teacher, which may be larger than any point.
        """
        sizes: dict[Architecture, float] = {}
        for point in self._points(origin):
            if cut_from is None or _inside(origin, point, cut_from):
                away = abs(origin.space.cost(point, origin.io).params - target)
                sizes[point] = away
        ranked = sorted(sizes, key=lambda point: (sizes[point], point.fingerprint))
        near = [point for point in ranked if sizes[point] <= self.options.tolerance * target] or ranked[:1]
        first = [origin.architecture] if origin.architecture in near else []
        return [*first, *(point for point in near if point not in first)][: self.options.candidates]

    def _points(self, origin: Origin) -> Iterator[Architecture]:
        yield origin.architecture
        if origin.space.raw_size() <= MANY:
            yield from origin.space.enumerate()
            return
        rng = random.Random(derive_seed(self.options.seed, "candidates"))
        for _ in range(MANY // 4):
            yield origin.space.sample(rng)

    def _stage(self, name: str, epochs: float) -> Stage:
        o = self.options
        return Stage(name, teacher=o.teacher, losses=o.losses, epochs=epochs, optimizer=o.optimizer)


def _inside(origin: Origin, point: Architecture, other: Architecture) -> bool:
    """Return whether a point is at most as large as another in every ordered axis that matters for it."""
    return all(
        _number(point.params[axis.name]) <= _number(other.params[axis.name])
        for axis in origin.space.axes()
        if axis.ordered and axis.is_active(point.params) and axis.is_active(other.params)
    )


def _number(value: Any) -> float:
    """Return a size as a number; ordered choices that are words are all alike."""
    return 0.0 if isinstance(value, str) else float(value)
