"""A recipe's runner without data, teachers or files: every stage is a few real steps on digits, and is written down.

It behaves like the real one (:mod:`nasdistill.distill.recipes`): only the named parameters train, their flags come
back, stages are seeded by their names, names of teachers are taken once. It is more patient: what a stage asks for and
cannot have is recorded, not refused, so that each fault can be told by itself. A stage can be made to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.errors import UsageError
from nasdistill.interfaces import (
    Batch,
    Evaluation,
    SearchSpace,
    SingleTeacher,
    Site,
    Split,
    Stage,
    StageResult,
    StepInfo,
    TeacherSession,
    Transformed,
)
from nasdistill.interfaces.base import ComponentFactory
from nasdistill.interfaces.recipe import TEACHER, Origin
from nasdistill.seeds import seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.inputs import descend, forward, network, objective, outputs
from nasdistill.testing.registry import CheckFailed
from nasdistill.trace import make_tracer

SOURCES = ("task", "general", "reduced")
PATIENCE = 100
BATCH_SIZE = 16
LOGITS = Site("logits")


@dataclass(frozen=True)
class StageRun:
    """One stage that was asked for.

    Attributes:
        stage: as it was handed over.
        registered: the teachers that had a name then.
        unmatched: patterns of `trains` that fit no parameter.
    """

    stage: Stage
    registered: frozenset[str]
    unmatched: tuple[str, ...]


@dataclass
class _Known:
    model: nn.Module
    state: dict[str, Tensor]
    flags: dict[str, bool]


@dataclass
class RecordingRunner:
    """A runner that trains a little and writes everything down (:class:`nasdistill.interfaces.RecipeRunner`).

    Args:
        factory: makes the transforms.
        student: the network that the recipe gets; watched from the beginning.
        samples: returns a batch of `size` samples from position `start` on.
        teacher_model: makes the network behind every teacher that is opened by reference.
        seed: root of the stages' seeds.
        steps: optimiser steps of a stage, whatever it asks for.
        fails: what the stage of that number (from 0) raises, or None.
        score: what every evaluation gives; None evaluates.
        origin: what the student is, where a space made it.

    Attributes:
        stages: the stages in the order in which they were run.
        opened: the references of the teachers that were opened.
        foreign: what changed in a network outside `train` and `transform`, as sentences.
    """

    factory: ComponentFactory
    student: nn.Module
    samples: Callable[[int, int], Batch]
    teacher_model: Callable[[], nn.Module]
    seed: int = 0
    steps: int = 2
    fails: Callable[[int], BaseException | None] = lambda number: None
    score: float | None = None
    origin: Origin | None = None
    stages: list[StageRun] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    _teachers: dict[str, TeacherSession] = field(default_factory=dict)
    _known: dict[int, _Known] = field(default_factory=dict)
    _calls: int = 0

    def __post_init__(self) -> None:
        self._keep(self.student)
        self._teachers[TEACHER] = SingleTeacher(self.teacher_model(), label=TEACHER, fingerprint=TEACHER)

    # -- what a recipe calls ------------------------------------------------------------------------------------------

    def train(self, stage: Stage, student: nn.Module) -> StageResult:
        """Take a few steps on labels, and towards the teacher where there is one; the student is trained in place."""
        self._count()
        self._look(student, f"before stage {stage.name!r}", flags=True)
        names = [name for name, _ in student.named_parameters()]
        unmatched = tuple(p for p in stage.trains if not any(fnmatchcase(name, p) for name in names))
        self.stages.append(StageRun(stage, frozenset(self._teachers), unmatched))
        error = self.fails(len(self.stages) - 1)
        if error is not None:
            raise error
        flags = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
        modes = {module: module.training for module in student.modules()}
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and any(fnmatchcase(name, p) for p in stage.trains))
        try:
            with seeded(self.seed, "stage", stage.name), torch.enable_grad():
                history = self._steps(stage, student)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for module, mode in modes.items():
                module.training = mode
        self._keep(student)
        return StageResult(student, self._evaluation(student, "validation"), history)

    def transform(self, name: str, student: nn.Module, options: Any = None) -> Transformed:
        """Apply a transform component to a network, with two batches to calibrate on."""
        self._count()
        self._look(student, f"before transform {name!r}")
        transform = self.factory.create(Kind.TRANSFORM, name, options)
        with seeded(self.seed, "transform", name):
            made: Transformed = transform.apply(student, [self.samples(16, 0), self.samples(16, 100)], forward)
        self._keep(made.model)
        return made

    def candidate(
        self, architecture: Architecture, source: nn.Module | None = None, *, space: SearchSpace | None = None
    ) -> nn.Module:
        """Return the network of another point of the student's space, started from `source` or the teacher.

        Raises:
            UsageError: no space made the student.
        """
        self._count()
        if self.origin is None:
            raise UsageError("this student is no point of a search space, so there are no others beside it")
        space = space or self.origin.space
        with seeded(self.seed, "candidate", architecture.fingerprint):
            model = space.build(architecture, self.origin.io)
        space.inherit(model, architecture, self._teachers[TEACHER].model if source is None else source)
        self._keep(model)
        return model

    def note(self, text: str) -> None:
        """Nobody reads it."""
        self._count()

    def teacher(self, reference: str) -> TeacherSession:
        """Return a registered teacher, or a network in the place of the one that `reference` names.

        Raises:
            UnknownComponentError: no teacher has this name.
        """
        self._count()
        if reference not in self._teachers:
            self.factory.load(Kind.TEACHER, self.locate(reference))
            self._open(reference)
        return self._teachers[reference]

    def register_teacher(self, name: str, session: TeacherSession) -> None:
        """Give a teacher a name.

        Raises:
            UsageError: the name is taken.
        """
        self._count()
        if name in self._teachers:
            raise UsageError(f"there is a teacher named {name!r} already")
        self._teachers[name] = session

    def evaluate(self, student: nn.Module, split: Split = "validation") -> Evaluation:
        """Return accuracy and loss on digits of that split, or the score that was fixed."""
        self._count()
        self._look(student, "before an evaluation")
        return self._evaluation(student, split)

    # -- what a check asks --------------------------------------------------------------------------------------------

    def locate(self, reference: str) -> str:
        """Return the canonical id of the teacher that a reference ``NAME:LOCATOR`` names.

        Raises:
            UnknownComponentError, AmbiguousComponentError: there is none, or several.
        """
        locate: Callable[[Kind, str], tuple[str, str]] | None = getattr(self.factory, "locate", None)
        if locate is not None:
            return locate(Kind.TEACHER, reference)[0]
        return self.factory.canonical(Kind.TEACHER, reference.partition(":")[0])

    def finish(self) -> None:
        """Look at every network once more, when the recipe has returned."""
        for known in list(self._known.values()):
            self._look(known.model, "after the last call")

    # -- details ------------------------------------------------------------------------------------------------------

    def _steps(self, stage: Stage, student: nn.Module) -> Sequence[dict[str, float]]:
        session = None
        if stage.teacher is not None:
            session = self._teachers.get(stage.teacher) or self._open(stage.teacher)
            session.start(student)
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        tracer, history = make_tracer(forward), []
        start = 200 * SOURCES.index(stage.data) if stage.data in SOURCES else 0
        for number in range(self.steps):
            batch, step = (
                self.samples(BATCH_SIZE, start + BATCH_SIZE * number),
                StepInfo(step=number, total_steps=self.steps),
            )
            if session is not None:
                session.before_step(student, step)
            output = forward(student.train(), batch)
            loss = objective(output, batch)
            if session is not None:
                soft = session.trace(batch, frozenset({LOGITS}), step, tracer).logits
                if soft.shape == output.shape:
                    loss = loss + F.kl_div(output.log_softmax(-1), soft.softmax(-1), reduction="batchmean")
            if trained:
                descend(trained, loss)
            if session is not None:
                session.after_step(student, step)
            history.append({"epoch": float(number), "total": loss.item()})
        return history

    def _open(self, reference: str) -> TeacherSession:
        self.opened.append(reference)
        session = SingleTeacher(self.teacher_model(), label=reference, fingerprint=reference)
        self._teachers[reference] = session
        return session

    def _evaluation(self, model: nn.Module, split: Split) -> Evaluation:
        batch = self.samples(64, {"train": 0, "validation": 800, "test": 1000}[split])
        output = outputs(model, batch)
        score = self.score
        if score is None:
            score = 0.0
            if batch.labels is not None and output.ndim == 2 and batch.labels.ndim == 1:
                score = float((output.argmax(-1) == batch.labels).double().mean())
        return Evaluation(score, float(objective(output, batch)), batch.size)

    def _keep(self, model: nn.Module) -> None:
        """Remember a network as it is: what follows is a change from outside."""
        state = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._known[id(model)] = _Known(model, state, flags)  # holds the network, so that its id stays its own

    def _look(self, model: nn.Module, when: str, *, flags: bool = False) -> None:
        """Write down what changed in a network since it was last seen."""
        known = self._known.get(id(model))
        if known is None:
            return
        now = dict([*model.named_parameters(), *model.named_buffers()])
        if now.keys() != known.state.keys():
            self.foreign.append(f"{when}, the network's structure was changed outside the runner")
        elif moved := [name for name, tensor in now.items() if not torch.equal(tensor, known.state[name])]:
            self.foreign.append(f"{when}, {', '.join(moved[:3])} had been changed outside the runner")
        elif flags:
            frozen = [name for name, p in model.named_parameters() if p.requires_grad != known.flags[name]]
            if frozen:
                self.foreign.append(f"{when}, requires_grad of {', '.join(frozen[:3])} had been changed")
        self._keep(model)

    def _count(self) -> None:
        """Notice a recipe that goes round in circles."""
        self._calls += 1
        if self._calls > PATIENCE:
            raise CheckFailed(f"it does not end: {PATIENCE} calls, {len(self.stages)} stages")


def stand_in(like: Any, batch: Batch) -> Callable[[], nn.Module]:
    """Return what makes the network behind a teacher's name: the same kind as the student, with weights of its own."""
    return lambda: network(like, batch, seed=7)
