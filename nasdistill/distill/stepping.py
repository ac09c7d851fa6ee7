"""What every loop of training is made of: a model with its objective as one module, how far it is, means of terms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nasdistill.distill.augment import task_loss
from nasdistill.distill.objective import Objective
from nasdistill.errors import TrialFailure
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.loss import Terms
from nasdistill.interfaces.signals import Signal, Trace
from nasdistill.interfaces.task import Evaluation, Task
from nasdistill.trace import SitePlan, trace_model

_DIVERGED = 1e4


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One finished epoch.

    Attributes:
        epoch: its number, counted from 0 over all trainings of the student.
        terms: means over the samples: ``task``, one per loss, ``total`` (their weighted sum before balancing).
        lr: learning rate of the last step.
        seconds: wall time, without the evaluation.
        evaluation: on the validation split, where one was asked for.
    """

    epoch: int
    terms: dict[str, float]
    lr: float
    seconds: float
    evaluation: Evaluation | None = None


class Supervised(nn.Module):
    """Student and objective as one module, so that distributed training sees every parameter that has a gradient."""

    def __init__(self, student: nn.Module, objective: Objective, task: Task, plan: SitePlan) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.task = task
        self.plan = plan
        self.sites = objective.needs().student

    def forward(self, batch: Batch, teacher: Trace, step: StepInfo) -> tuple[Tensor, Terms]:
        """Return total and terms; under mixed precision the losses are computed in float32."""
        trace, output = trace_model(self.student, batch, self.sites, self.task.forward, self.plan)
        device = output.device.type
        if not torch.is_autocast_enabled(device):
            return self.objective(trace, teacher, batch, step, task_loss(self.task, output, batch))  # type: ignore[no-any-return]
        with torch.autocast(device, enabled=False):
            trace, teacher = in_float(trace), in_float(teacher)
            return self.objective(trace, teacher, batch, step, task_loss(self.task, trace.logits, batch))  # type: ignore[no-any-return]


@dataclass(slots=True)
class Progress:
    """How far a training is, and whether it is going well."""

    step: int = 0
    reference: float | None = None
    history: list[EpochReport] = field(default_factory=list)
    note: str | None = None

    def watch(self, total: Tensor, *, sure: bool, label: str) -> None:
        """Look at a step's total; on a GPU, where looking means waiting, only now and then."""
        if not sure and self.step % 32:
            return
        value = float(total)
        if not math.isfinite(value):
            raise not_finite(label, self.step)
        if self.reference is None:
            self.reference = max(abs(value), 1e-2)

    def judge(self, mean: float, *, label: str) -> None:
        """Look at an epoch's mean total."""
        if not math.isfinite(mean):
            raise not_finite(label, self.step)
        if self.reference is not None and abs(mean) > _DIVERGED * self.reference:
            raise TrialFailure(
                "diverged",
                f"the loss of {label} grew from {self.reference:.3g} to {mean:.3g}",
                hint="Lower training.lr, or set training.grad_clip.",
            )


class Means:
    """Means of terms over samples. On a GPU they are added up there: reading every one would stop it every time."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._samples = 0

    def add(self, terms: Terms, samples: int) -> None:
        """Take in the mean terms of so many samples."""
        for name, value in terms.items():
            number = value.item() if value.device.type == "cpu" else value
            self._sums[name] = self._sums.get(name, 0.0) + number * samples
        self._samples += samples

    def values(self) -> dict[str, float]:
        """Return the means; a term that is not finite is left out (its weight was 0, or the total says so too)."""
        means = {name: float(value) / self._samples for name, value in self._sums.items()}
        return {name: mean for name, mean in means.items() if name == "total" or math.isfinite(mean)}


def not_finite(label: str, step: int) -> TrialFailure:
    """Return the failure of a training whose loss is no finite number."""
    return TrialFailure(
        "nan_loss",
        f"the loss of {label} is not a finite number at step {step}",
        hint="Lower training.lr, or set training.grad_clip.",
    )


def in_float(trace: Trace) -> Trace:
    """Return a trace in float32."""
    signals = {
        site: Signal(
            signal.tensor.float(), signal.layout, signal.mask, signal.bias, signal.scale, signal.causal, signal.valid,
            signal.grid,
        )
        for site, signal in trace.signals.items()
    }  # fmt: skip
    return Trace(signals, tuple(in_float(member) for member in trace.members), trace.weights)


def batch_groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of `size` batches; the last one may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
