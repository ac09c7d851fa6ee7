"""The loop that every training runs: seeded epochs of optimiser steps, watched, checkpointed, resumed and stopped.

:class:`Loop` knows nothing of what a step computes. A kind of training (:mod:`nasdistill.distill.engine`: one student;
:mod:`nasdistill.distill.supernet`: shared weights of many) subclasses it with its step and with the modules whose state
it keeps.
"""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from nasdistill.distill.checkpoint import read_checkpoint, restore, save_checkpoint
from nasdistill.distill.evaluation import kept_modes
from nasdistill.distill.optim import learning_rate
from nasdistill.distill.placement import available_precision, placed, shard
from nasdistill.distill.stepping import EpochReport, Means, Progress, batch_groups
from nasdistill.distill.teaching import Teaching, train_batches
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.loss import Terms
from nasdistill.interfaces.task import Evaluation, Task
from nasdistill.interfaces.teacher import TeacherSession
from nasdistill.seeds import seeded, torch_generator, torch_threads
from nasdistill.spec.config import TrainingConfig


@dataclass(frozen=True, slots=True)
class Course:
    """How long a training is, which seeds its random numbers derive from, and which training it is.

    Attributes:
        epochs: passes over the training data.
        total: optimiser steps, which schedules span.
        seed: of dropout, the losses' own draws and parts.
        data_seed: of the order and augmentation of the data.
        plan: hash of everything that decides the outcome; a checkpoint with another one is not continued.
        start_epoch: passes before this training.
    """

    epochs: int
    total: int
    seed: int
    data_seed: int
    plan: str
    start_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks on, and where the training is kept; see :func:`nasdistill.distill.train`."""

    on_epoch: Callable[[EpochReport], None] | None = None
    on_step: Callable[[StepInfo, Terms], None] | None = None
    should_stop: Callable[[], bool] | None = None
    checkpoint: Path | None = None
    checkpoint_seconds: float = 0.0
    evaluate_every: int | None = None


def total_steps(task: Task, training: TrainingConfig, epochs: int, steps: int | None) -> int:
    """Return the number of optimiser steps of so many epochs, at most `steps`."""
    per_epoch = math.ceil(math.ceil(task.size("train") / training.batch_size) / training.accumulate)
    return epochs * per_epoch if steps is None else min(steps, epochs * per_epoch)


@contextlib.contextmanager
def training_room(model: nn.Module, training: TrainingConfig, device: str) -> Iterator[tuple[Accelerator, str | None]]:
    """Yield an Accelerator for one training, and a note where its precision is not the one asked for.

    Threads, grad mode, train/eval modes, the model's device and Accelerate's state are put back afterwards.

    Raises:
        UsageError: no such device.
    """
    precision, note = available_precision(device, training.precision)
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with (
        torch_threads(training.threads),
        placed(device, precision) as accelerator,
        kept_modes(model),
        torch.enable_grad(),
    ):
        try:
            yield accelerator, note
        finally:
            model.to(home)


class Loop(ABC):
    """One training: what it trains with, and :meth:`run`.

    A subclass sets the attributes while it is created.

    Attributes:
        label: how messages name the model.
        task: a prepared task.
        training: batch size, schedule ...
        accelerator: where it runs.
        teacher: an opened teacher, or None.
        teaching: its answers, or None.
        optimizer: of `parameters`.
        parameters: all that is trained.
    """

    label: str
    task: Task
    training: TrainingConfig
    accelerator: Accelerator
    teacher: TeacherSession | None
    teaching: Teaching | None
    optimizer: Any
    parameters: list[nn.Parameter]

    @abstractmethod
    def step(self, batches: Sequence[Batch], info: StepInfo) -> Terms:
        """Make one optimiser step from one batch, or from several whose gradients add up; return the mean terms."""

    @abstractmethod
    def train_mode(self) -> None:
        """Put everything into train mode, at the begin of an epoch."""

    @abstractmethod
    def kept(self) -> dict[str, nn.Module]:
        """Return the trained modules whose state a checkpoint holds."""

    def evaluate(self, step: int) -> Evaluation | None:
        """Return the validation result after so many steps, where there is one."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return what else a checkpoint holds, as JSON."""
        return {}

    def prepare(self, facts: dict[str, Any]) -> None:
        """Bring about the modules and parameters of a checkpoint that is to be restored."""

    def run(self, progress: Progress, course: Course, watch: Watch) -> bool:
        """Train from where `progress` is; return whether it was stopped before its last step."""
        sure = self.accelerator.device.type == "cpu"
        saved = time.perf_counter()
        while progress.step < course.total:
            epoch = course.start_epoch + len(progress.history)
            started, sums, lr = time.perf_counter(), Means(), 0.0
            with seeded(course.seed, "train", epoch), self._teaching_epoch(epoch):
                generator = torch_generator(course.seed, "losses", epoch, device=str(self.accelerator.device))
                self.train_mode()
                batches = train_batches(self.task, self.training, epoch, course.data_seed)
                for group in batch_groups(batches, self.training.accumulate):
                    if watch.should_stop is not None and watch.should_stop():
                        return True
                    epochs = course.start_epoch + course.epochs
                    info = StepInfo(progress.step, course.total, epoch, epochs, generator)
                    lr = learning_rate(self.training, progress.step, course.total)
                    for settings in self.optimizer.param_groups:
                        settings["lr"] = lr
                    terms = self.step([shard(batch, self.accelerator) for batch in group], info)
                    sums.add(terms, sum(batch.size for batch in group))
                    progress.watch(terms["total"], sure=sure, label=self.label)
                    progress.step += 1
                    if watch.on_step is not None:
                        watch.on_step(info, terms)
                    if progress.step == course.total:
                        break
            means = sums.values()
            progress.judge(means["total"], label=self.label)
            seconds = time.perf_counter() - started
            last, every = progress.step == course.total, watch.evaluate_every
            due = last or (every is not None and (len(progress.history) + 1) % every == 0)
            found = self.evaluate(progress.step) if due else None
            progress.history.append(EpochReport(epoch, means, lr, seconds, found))
            old = time.perf_counter() - saved >= watch.checkpoint_seconds
            if watch.checkpoint is not None and old and self.accelerator.is_main_process:
                self._save(watch.checkpoint, progress, course.plan)
                saved = time.perf_counter()
            if watch.on_epoch is not None:
                watch.on_epoch(progress.history[-1])
        return False

    def resumed(self, path: Path | None, plan: str) -> Progress:
        """Restore a checkpoint of the same training, where there is one, and return how far it is."""
        if path is None:
            return Progress()
        found = read_checkpoint(path)
        if found is None:
            return Progress(note=f"checkpoint {path.name} cannot be read; started anew" if path.exists() else None)
        tensors, facts = found
        if facts["plan"] != plan:
            return Progress(note=f"checkpoint {path.name} belongs to another training; started anew")
        self.prepare(facts)
        restore(tensors, self._modules(), self.optimizer)
        if self.accelerator.scaler is not None and facts["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        history = [
            EpochReport(**{**row, "evaluation": row["evaluation"] and Evaluation(**row["evaluation"])})
            for row in facts["history"]
        ]
        return Progress(step=facts["step"], reference=facts["reference"], history=history)

    def descend(self) -> None:
        """Clip the gradients, make the optimiser's step and forget them."""
        if self.training.grad_clip is not None:
            if self.accelerator.scaler is not None:  # it knows how to take the scale out first
                self.accelerator.clip_grad_norm_(self.parameters, self.training.grad_clip)
            else:
                nn.utils.clip_grad_norm_(self.parameters, self.training.grad_clip)
        self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _teaching_epoch(self, epoch: int) -> contextlib.AbstractContextManager[Any]:
        """Open the teacher's answers of an epoch."""
        return contextlib.nullcontext() if self.teaching is None else self.teaching.epoch(epoch)

    def _save(self, path: Path, progress: Progress, plan: str) -> None:
        """Write a checkpoint."""
        scaler = self.accelerator.scaler
        facts = {
            **self.facts(),
            "plan": plan,
            "step": progress.step,
            "reference": progress.reference,
            "history": [asdict(report) for report in progress.history],
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        save_checkpoint(path, self._modules(), self.optimizer, facts)

    def _modules(self) -> dict[str, nn.Module]:
        """Return the modules whose state a checkpoint holds; a teacher only when it may change on the way."""
        modules = self.kept()
        if self.teacher is not None and not self.teacher.cacheable:
            modules |= {f"teacher{index}": member for index, member in enumerate(self.teacher.members)}
        return modules
