"""Asking the teacher: live or from the cache, with the same bits either way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from accelerate import Accelerator

from nasdistill.distill.augment import augmented, settings
from nasdistill.distill.cache import EpochCache, TeacherCache, settled
from nasdistill.distill.placement import available_precision, placed, shard, shard_rows
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.signals import ModelGeometry, Site, Trace
from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import TeacherSession
from nasdistill.seeds import seeded, torch_threads
from nasdistill.spec.config import TrainingConfig
from nasdistill.trace import ModelTracer, make_tracer

_TRACERS: WeakKeyDictionary[TeacherSession, tuple[Task, ModelTracer]] = WeakKeyDictionary()


class Teaching:
    """A teacher that answers for the batches of a training.

    Args:
        teacher: the opened teacher.
        task: the task whose batches it hears.
        training: batch size and whether to use the cache.
        accelerator: device and precision.
        cache: the cache; None asks the teacher every time, as do teachers that are not cacheable.
        data_seed: order and augmentation of the data.
    """

    def __init__(
        self,
        teacher: TeacherSession,
        task: Task,
        training: TrainingConfig,
        accelerator: Accelerator,
        cache: TeacherCache | None,
        data_seed: int,
    ) -> None:
        self.teacher = teacher
        self.sites: frozenset[Site] = frozenset()
        self._accelerator = accelerator
        self._training = training
        self.tracer_of = tracer_of(teacher, task)
        self._cache = cache if training.teacher_cache and teacher.cacheable else None
        self._rows = shard_rows(task.size("train"), training.batch_size, accelerator)
        self._entry: EpochCache | None = None
        # The same numbers come out of the same weights, inputs and kernels. Which kernels run depends on the rest.
        self._key = {
            "teacher": teacher.fingerprint,
            "task": task.fingerprint,
            "split": "train",
            "seed": data_seed,
            "batch_size": training.batch_size,
            "process": [accelerator.process_index, accelerator.num_processes],
            "device": _device_name(accelerator.device),
            "precision": accelerator.mixed_precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **settings(training),
        }

    def geometry(self, batch: Batch) -> ModelGeometry:
        """Return the geometry of the teacher's (main) model; after ``teacher.start``."""
        geometry = self.tracer_of.geometry(self.teacher.model, batch)
        return replace(geometry, label=f"teacher {self.teacher.label}")

    @contextlib.contextmanager
    def epoch(self, epoch: int) -> Iterator[bool]:
        """Open one pass; yields whether all of its answers are in the cache already."""
        if self._cache is None or not self.sites:
            yield False
            return
        pass_number = data_epoch(self._training, epoch)
        with self._cache.epoch(self._key, pass_number, self._rows, self.sites) as self._entry:
            try:
                yield self._entry.complete
            finally:
                self._entry = None

    def ask(self, batch: Batch, step: StepInfo) -> Trace:
        """Return the teacher's signals at `sites` for the next batch of the pass; detached and contiguous."""
        if not self.sites:
            return Trace()

        def compute() -> Trace:
            with torch.no_grad(), self._accelerator.autocast():
                return self.teacher.trace(batch, self.sites, step, self.tracer_of)

        return settled(compute()) if self._entry is None else self._entry.trace(batch, compute)


def fill_cache(
    cache: TeacherCache,
    task: Task,
    teacher: TeacherSession,
    sites: frozenset[Site],
    training: TrainingConfig,
    *,
    epochs: int,
    start_epoch: int = 0,
    data_seed: int,
    device: str = "cpu",
) -> int:
    """Put a teacher's answers for some epochs into the cache before any student needs them.

    Trainings do this themselves as they go; it is worth doing first when several processes are about to start.

    Args:
        cache: where to.
        task: a prepared task.
        teacher: a cacheable teacher.
        sites: what the objective will ask of the teacher (``Objective.needs().teacher``).
        training: the trainings' configuration: batch size, precision, threads.
        epochs: how many passes.
        start_epoch: number of the first one.
        data_seed: as for :func:`nasdistill.distill.train`.
        device: as for :func:`nasdistill.distill.train`.

    Returns:
        How many epochs had to be computed.
    """
    precision, _ = available_precision(device, training.precision)
    done = 0
    with torch_threads(training.threads), placed(device, precision) as accelerator:
        teaching = Teaching(teacher, task, training, accelerator, cache, data_seed)
        teaching.sites = sites
        for epoch in range(start_epoch, start_epoch + epochs):
            with seeded(data_seed, "teacher", epoch), teaching.epoch(epoch) as complete:
                if complete:
                    continue
                for batch in train_batches(task, training, epoch, data_seed):
                    teaching.ask(shard(batch, accelerator), StepInfo(epoch=epoch))
                done += 1
    return done


def train_batches(task: Task, training: TrainingConfig, epoch: int, data_seed: int) -> Iterator[Batch]:
    """Yield the training batches of an epoch: the one place that says how, because the cache depends on it."""
    number = data_epoch(training, epoch)
    batches = task.batches("train", batch_size=training.batch_size, epoch=number, seed=data_seed, train=True)
    return augmented(batches, training, task, epoch=number, seed=data_seed)


def data_epoch(training: TrainingConfig, epoch: int) -> int:
    """Return which pass over the data an epoch is: they repeat after ``distinct_epochs``."""
    return epoch if training.distinct_epochs is None else epoch % training.distinct_epochs


def tracer_of(teacher: TeacherSession, task: Task) -> ModelTracer:
    """Return the tracer of this pair; it keeps the plan of the teacher's model, which a search needs many times."""
    known = _TRACERS.get(teacher)
    if known is None or known[0] is not task:
        known = _TRACERS[teacher] = (task, make_tracer(task.forward))
    return known[1]


def _device_name(device: torch.device) -> str:
    """Return what decides about kernels: the GPU's name, or the CPU's instruction set."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
