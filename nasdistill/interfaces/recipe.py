"""Recipes: a training as a program over stages, each of which may change teacher, data, objective and what trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.task import Evaluation, Split
from nasdistill.interfaces.teacher import TeacherSession
from nasdistill.interfaces.transform import Transformed


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: unique within the recipe; the stage's seed derives from it, so leaving another stage out changes nothing
            here.
        teacher: reference of a teacher (``NAME:LOCATOR`` or a name the recipe registered); None = no teacher.
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
class StageResult:
    """What a stage left behind: the student, its evaluation, the history of terms."""

    student: nn.Module
    evaluation: Evaluation | None
    history: Sequence[Mapping[str, float]] = ()


class RecipeRunner(Protocol):
    """What a recipe may do; the distillation engine implements it. Every call is recorded and resumable."""

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
