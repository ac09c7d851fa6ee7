"""Teachers: providers of supervision, not only networks (ensembles, moving averages, budgets, random networks)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from torch import nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.signals import Site, Trace
from nasdistill.interfaces.task import Task


class Tracer(Protocol):
    """Runs a model on a batch and captures the named sites, without gradients and in the model's current mode."""

    def __call__(self, model: nn.Module, batch: Batch, sites: frozenset[Site]) -> Trace:
        """Return the trace."""


class TeacherSession(ABC):
    """An opened teacher.

    Attributes:
        label: how messages and reports name it (``"timm:resnet18"``).
        cacheable: the same batch always gives the same trace.
        queries: samples answered so far (a budgeted teacher stops here).
    """

    label: str
    cacheable: bool = True
    queries: int = 0

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The network, or the main one of several; in eval mode, parameters frozen."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything the answers depend on: weights, architecture, options."""

    @property
    def members(self) -> tuple[nn.Module, ...]:
        """All networks; those of an ensemble one by one."""
        return (self.model,)

    def trace(self, batch: Batch, sites: frozenset[Site], step: StepInfo, tracer: Tracer) -> Trace:
        """Return this teacher's signals for a batch.

        The default runs the one network. An ensemble fills ``Trace.members`` and says in its own documentation whether
        ``logits`` are averaged logits or the log of averaged probabilities.
        """
        self.queries += batch.size
        return tracer(self.model, batch, sites)

    def start(self, student: nn.Module) -> None:
        """Called once before a student's first step (an EMA teacher copies it here)."""

    def before_step(self, student: nn.Module, step: StepInfo) -> None:
        """Called before each step's teacher forward."""

    def after_step(self, student: nn.Module, step: StepInfo) -> None:
        """Called after each optimiser step."""


class SingleTeacher(TeacherSession):
    """The ordinary case: one frozen network.

    Args:
        model: the network; set to eval mode and frozen here.
        label: its name in messages.
        fingerprint: hash of its weights and architecture.
    """

    def __init__(self, model: nn.Module, *, label: str, fingerprint: str) -> None:
        self._model = model.eval().requires_grad_(False)
        self._fingerprint = fingerprint
        self.label = label
        self.queries = 0

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self._model

    @property
    def fingerprint(self) -> str:
        """Hash of its weights and architecture."""
        return self._fingerprint


class Teacher(Component, ABC):
    """Opens teachers; users write ``NAME:LOCATOR`` (``timm:resnet18``, ``torch:package.module:callable``)."""

    @classmethod
    def locators(cls) -> Sequence[str]:
        """Return the locators that are known, to suggest one to a user who left the name out; empty without a list."""
        return ()

    def describe(self, locator: str) -> TeacherInfo:
        """Return what tasks and spaces may adapt to, without reading weights; nothing by default.

        Raises:
            UsageError: there is nothing at this locator.
        """
        return TeacherInfo()

    @abstractmethod
    def open(
        self,
        locator: str,
        task: Task,
        *,
        cache_dir: Path,
        device: str = "cpu",
        progress: Callable[[str], None] | None = None,
    ) -> TeacherSession:
        """Load (or train, on first use) the teacher and check that it fits the task.

        Args:
            locator: what stands behind the first colon.
            task: a prepared task.
            cache_dir: where anything trained or converted is kept, by content.
            device: where to put it.
            progress: told what is going on, one line at a time; a training says ``epoch N of M`` in a line each epoch,
                which is then shown as progress.

        Raises:
            UsageError: nothing by this name, with close matches.
            MismatchError: it does not fit the task; both shapes are named.
        """
