"""What the checks of tasks work on: prepared tasks, passes over them, a network that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch, Split, Task
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.task import AnyNet
from nasdistill.testing.registry import exercise, fail
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject

SPLITS: tuple[Split, ...] = get_args(Split)


def fresh(subject: Subject, seed: int = 0, options: Any = None) -> Task:
    """Return a new task that has read its data, whatever the global random state is."""
    with seeded(seed, "prepare"):
        task: Task = subject.create(options)
        task.prepare()
    return task


def shared(subject: Subject) -> Task:
    """Return a prepared task for checks that only look."""
    return subject.once("task", lambda: fresh(subject))


def model_for(subject: Subject, task: Task, **changes: Any) -> nn.Module:
    """Return a network that fits the task; with `changes` one that does not."""
    make: Callable[..., nn.Module] = subject.context("model") or AnyNet
    with seeded(subject.seed, "model"):
        return AnyNet(task.io, **changes) if changes else make(task.io)


def one_pass(task: Task, split: Split, *, batch_size: int = 16, state: int = 0, **arguments: Any) -> list[Batch]:
    """Return the batches of one pass; `state` is the global random state, which must play no part."""
    with seeded(state, "pass"):
        return list(task.batches(split, batch_size=batch_size, **arguments))


def first(task: Task, split: Split = "train", size: int = 16) -> Batch:
    """Return the first plain batch of a split."""
    with seeded(0, "pass"):
        return next(iter(task.batches(split, batch_size=size)))


def ids_of(batches: list[Batch]) -> list[int]:
    """Return the ids in the order in which they came."""
    return [int(number) for batch in batches for number in batch.ids]


def output_for(subject: Subject, task: Task, batch: Batch, state: int = 0) -> Tensor:
    """Return made-up outputs in the form that `forward` gives, as a leaf with a gradient."""
    with torch.no_grad():
        form = task.forward(model_for(subject, task).eval(), batch)
    generator = torch.Generator().manual_seed(state)
    return torch.randn(form.shape, generator=generator, dtype=form.dtype).requires_grad_()


@exercise(Kind.TASK)
def use(subject: Subject) -> list[Any]:
    """Read the data; call a model on a batch of each kind and take the loss."""
    with subject.seeded():
        task: Task = subject.create()
        task.prepare()
        found: list[Any] = []
        model = model_for(subject, task).eval()
        for train in (False, True):
            batch = next(iter(task.batches("train", batch_size=8, train=train)))
            output = task.forward(model, batch)
            found += [dict(batch.inputs), batch.ids, output, task.loss(output, batch)]
        return found


def well_formed(batch: Any, where: str) -> None:
    """Fail unless a batch has the documented form."""
    if not isinstance(batch, Batch):
        fail(f"{where} yields {type(batch).__name__}, not a Batch")
    if batch.ids.dtype != torch.int64 or batch.ids.ndim != 1:
        fail(f"{where}: ids are {batch.ids.dtype} of shape {tuple(batch.ids.shape)}, not int64 of shape (B,)")
    rows: dict[str, Any] = {**batch.inputs, "labels": batch.labels, "labelled": batch.labelled}
    for name, tensor in rows.items():
        if tensor is None and name in ("labels", "labelled"):
            continue
        if not isinstance(tensor, Tensor):
            fail(f"{where}: {name} is {type(tensor).__name__}, not a tensor")
        if not tensor.ndim or len(tensor) != batch.size:
            fail(f"{where}: {name} has the shape {tuple(tensor.shape)} for {batch.size} ids")
    if not batch.inputs:
        fail(f"{where}: a batch without inputs")
    if batch.labelled is not None and batch.labelled.dtype != torch.bool:
        fail(f"{where}: labelled is {batch.labelled.dtype}, not bool")


def differ(one: Batch, other: Batch) -> str:
    """Return where two batches differ."""
    parts = [
        {"ids": batch.ids, **batch.inputs, "labels": batch.labels, "labelled": batch.labelled} for batch in (one, other)
    ]
    return same(parts[0], parts[1], "batch")


def samples(batches: list[Batch]) -> Iterator[dict[str, Tensor]]:
    """Yield the inputs sample by sample."""
    for batch in batches:
        for row in range(batch.size):
            yield {name: tensor[row] for name, tensor in batch.inputs.items()}
