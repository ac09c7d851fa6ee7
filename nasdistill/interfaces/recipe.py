"""Recipes: a training as a program over stages, each of which may change teacher, data, objective and what trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.space import SearchSpace
from nasdistill.interfaces.task import Evaluation, Split
from nasdistill.interfaces.teacher import TeacherSession
from nasdistill.interfaces.transform import Transformed
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import IOSpec

TEACHER = "teacher"
"""What stages call the teacher of the training that the recipe is part of."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: unique within the recipe; the stage's seed derives from it, so leaving another stage out changes nothing
            here.
        teacher: ``"teacher"`` for the one that the user named, another ``NAME:LOCATOR``, or a name that the recipe
            registered; None = no teacher.
        data: name of a data source of the runner (``"task"``, ``"general"``, ``"reduced"``).
        losses: loss name -> weight or table of options; ``task`` stands for the loss on labels.
        trains: patterns of parameter names that train; everything else is frozen. ``("*",)`` = all.
        epochs, steps: budget; one of the two.
        optimizer: overrides of the training options (lr, schedule, weight decay).
        carry: what the next stage starts from besides the student (which the recipe hands over itself): ``"losses"``,
            the trained parameters that losses own (projectors, critics), where the next stage has a loss of the same
            name and shapes. Nothing else passes between stages; each has an optimiser of its own.
        alternate: name of a second stage whose step follows each step of this one (adversarial or two-model trainings).
    """

    name: str
    teacher: str | None = None
    data: str = "task"
    losses: Mapping[str, Any] = field(default_factory=dict)
    trains: Sequence[str] = ("*",)
    epochs: float | None = None
    steps: int | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    carry: Sequence[str] = ()
    alternate: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a recipe's student is: a point of a search space.

    Attributes:
        space: the space.
        architecture: the student's point.
        io: input and output of its networks.
    """

    space: SearchSpace
    architecture: Architecture
    io: IOSpec


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage left behind: the student, its evaluation, the history of terms."""

    student: nn.Module
    evaluation: Evaluation | None
    history: Sequence[Mapping[str, float]] = ()


class RecipeRunner(Protocol):
    """What a recipe may do; the distillation engine implements it. Every call is recorded and resumable.

    A student that is a point of a search space has an `origin`. A recipe may then ask for networks of other points, and
    return one of them instead of the student.
    """

    @property
    def origin(self) -> Origin | None:
        """What the student is; None for a network that no space made."""

    def candidate(
        self, architecture: Architecture, source: nn.Module | None = None, *, space: SearchSpace | None = None
    ) -> nn.Module:
        """Return the network of another point of the student's space.

        Args:
            architecture: the point.
            source: the network whose weights it starts from; the teacher ``"teacher"`` unless given. Where the space
                cannot inherit from it, the weights are fresh.
            space: the student's space with other options, where the point is of that. Such a network serves on the way,
                as an assistant; a student is saved with the options of its own space, so it cannot be one.

        Raises:
            UsageError: the student has no origin.
            ArchitectureError: not a point of the space.
        """

    def note(self, text: str) -> None:
        """Tell the user what the recipe decided, in one line; it is kept in the record."""

    def train(self, stage: Stage, student: nn.Module) -> StageResult:
        """Run one stage."""

    def transform(self, name: str, student: nn.Module, options: Any = None) -> Transformed:
        """Apply a transform component."""

    def teacher(self, reference: str) -> TeacherSession:
        """Open (or return the opened) teacher."""

    def register_teacher(self, name: str, session: TeacherSession) -> None:
        """Give a model made on the way (an assistant, a finetuned copy) a name for later stages."""

    def evaluate(self, student: nn.Module, split: Split = "validation") -> Evaluation:
        """Evaluate a model on the task."""


class Recipe(Component, ABC):
    """A staged training plan: ordinary Python over a small vocabulary."""

    @abstractmethod
    def run(self, student: nn.Module, runner: RecipeRunner) -> nn.Module:
        """Train `student` and return the final model (another object where a transform was applied)."""

    def plan(self) -> Sequence[Stage]:
        """Return the stages that `run` will go through, as far as they are known before (shown to the user)."""
        return ()
