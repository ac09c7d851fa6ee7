"""Checks of data reducers: so many samples and no more, from the training split alone, by the given generator.

They are tried on 60 digits, unless an example names another task.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import NasdistillError
from nasdistill.interfaces import Batch, DataReducer, ReducedData, Task
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded, torch_generator
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.models import maker
from nasdistill.testing.kit.task import AnyNet, example_task
from nasdistill.testing.kit.watched import WatchedTask
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import few, same
from nasdistill.testing.subject import Subject

CONTEXT = {
    "task": "name of the task; a small one on digits, of the kit, unless given",
    "task_options": "its options",
    "model": "what makes a network for the task's `IOSpec`: a callable, or `package.module:callable`",
}
"""What an example's context may name."""

BUDGET = 10


def task_of(subject: Subject) -> WatchedTask:
    """Return a prepared task that watches what is read."""
    return WatchedTask(example_task(subject, samples=100))


def networks(subject: Subject, task: Task) -> Callable[[], nn.Module]:
    """Return what makes networks for the task, each with other weights, the same ones each time."""
    make, numbers = maker(subject.context("model") or AnyNet), itertools.count()

    def build() -> nn.Module:
        with seeded(subject.seed, "network", next(numbers)):
            return make(task.io)

    return build


def reduce(
    subject: Subject, *, task: Task | None = None, budget: int = BUDGET, queried: Sequence[int] = (), **changes: Any
) -> ReducedData:
    """Reduce with a fresh component; `changes` are arguments of `reduce`. The caller seeds the global generators."""
    task = task_of(subject) if task is None else task
    build = networks(subject, task)
    values: dict[str, Any] = {
        "student": build().eval(), "build": build, "generator": torch_generator(subject.seed, "reduce"), **changes
    }  # fmt: skip
    reducer: DataReducer = subject.create()
    return reducer.reduce(task, budget=budget, queried=queried, **values)


def plain(subject: Subject) -> ReducedData:
    """Return the result for the usual budget, for checks that only look."""

    def make() -> ReducedData:
        with subject.seeded():
            return reduce(subject)

    return subject.once("reduced", make)


def told(found: ReducedData) -> list[Any]:
    """Return a result in a form that compares."""
    batch = None if found.batch is None else [dict(found.batch.inputs), found.batch.labels]
    return [batch, found.indices, found.weights, found.report]


@exercise(Kind.DATA_REDUCER)
def use(subject: Subject) -> list[Any]:
    """Reduce 60 digits to ten."""
    with subject.seeded():
        return told(reduce(subject))


# -- gates ------------------------------------------------------------------------------------------------------------


@check(Kind.DATA_REDUCER, gate=True, hint="Return ReducedData(batch=...) or ReducedData(indices=...).")
def gives_samples_or_positions(subject: Subject) -> None:
    """It returns synthesised samples or positions in the training split, one of the two."""
    found = plain(subject)
    if not isinstance(found, ReducedData):
        fail(f"it returns {type(found).__name__}, not ReducedData")
    if (found.batch is None) == (found.indices is None):
        fail("it returns " + ("neither a batch nor indices" if found.batch is None else "a batch and indices"))
    if found.indices is not None and not isinstance(found.indices, Tensor):
        fail(f"indices are {type(found.indices).__name__}, not a tensor")
    if found.batch is not None and not isinstance(found.batch, Batch):
        fail(f"batch is {type(found.batch).__name__}, not a Batch")


@check(Kind.DATA_REDUCER, gate=True, hint="Stop at the budget; round shares per class down.")
def budget_is_kept(subject: Subject) -> None:
    """At least one sample comes back, and no more than the budget."""
    for budget in (BUDGET, 2 * BUDGET + 5):
        with subject.seeded():
            count = _count(reduce(subject, budget=budget))
        if not 1 <= count <= budget:
            fail(f"with a budget of {budget} it returns {count} samples")


# -- what comes back --------------------------------------------------------------------------------------------------


@check(Kind.DATA_REDUCER, hint="Return torch.tensor(positions, dtype=torch.int64), each position once.")
def indices_are_positions(subject: Subject) -> None:
    """`indices` are different positions in the training split, as int64 of one axis."""
    if plain(subject).indices is None:
        skip("it synthesises samples")
    _legal(plain(subject), task_of(subject), "it")


@check(Kind.DATA_REDUCER, hint="Make samples as the task's batches hold them: names, shapes, dtypes, labels, ids.")
def batch_fits_the_task(subject: Subject) -> None:
    """Synthesised samples look like the task's: the same inputs with labels in range, on which a network can train."""
    batch, task = plain(subject).batch, task_of(subject)
    if batch is None:
        skip("it chooses samples")
    like = next(iter(task.batches("train", batch_size=2)))
    if set(batch.inputs) != set(like.inputs):
        fail(f"its inputs are {', '.join(batch.inputs)}, the task's {', '.join(like.inputs)}")
    for name, tensor in batch.inputs.items():
        expected = like.inputs[name]
        if tensor.shape[1:] != expected.shape[1:] or tensor.dtype != expected.dtype or len(tensor) != batch.size:
            fail(f"{name} is {tensor.dtype} {tuple(tensor.shape)} for {batch.size} samples; the task's has "
                 f"{expected.dtype} {tuple(expected.shape[1:])} for each")  # fmt: skip
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            fail(f"{name} has values that are not finite")
        if tensor.requires_grad:
            fail(f"{name} is not detached")
    if batch.ids.dtype != torch.int64 or batch.ids.ndim != 1:
        fail(f"ids are {batch.ids.dtype} {tuple(batch.ids.shape)}, not int64 of one axis")
    if batch.labels is None:
        fail("its samples have no labels")
    if batch.labels.requires_grad or len(batch.labels) != batch.size:
        fail(
            f"there are {len(batch.labels)} labels for {batch.size} samples, detached: {not batch.labels.requires_grad}"
        )
    if not batch.labels.is_floating_point():
        low, high = int(batch.labels.min()), int(batch.labels.max())
        if low < 0 or high >= task.io.outputs:
            fail(f"its labels go from {low} to {high}, and there are {task.io.outputs} classes")
        loss = task.loss(task.forward(networks(subject, task)().eval(), batch), batch)
        if not bool(loss.isfinite()):
            fail(f"the task's loss on it is {float(loss.detach())}")


@check(Kind.DATA_REDUCER, hint="Return one weight per sample, relative to each other; or None.")
def weights_fit(subject: Subject) -> None:
    """`weights`, where they are given, are one finite number for each sample, none negative and not all 0."""
    weights, count = plain(subject).weights, _count(plain(subject))
    if weights is None:
        skip("it gives no weights")
    if not isinstance(weights, Tensor) or weights.shape != (count,) or not weights.is_floating_point():
        form = f"{weights.dtype} {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
        fail(f"weights are {form} for {count} samples")
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        fail(f"weights go from {float(weights.min()):.3g} to {float(weights.max()):.3g}, and sum up to "
             f"{float(weights.sum()):.3g}")  # fmt: skip


@check(Kind.DATA_REDUCER, hint="Return numbers, texts and lists of them.")
def report_is_json(subject: Subject) -> None:
    """`report` is JSON."""
    try:
        json.dumps(plain(subject).report, allow_nan=False)
    except (TypeError, ValueError) as error:
        fail(f"report is not JSON: {error}")


# -- what it looks at -------------------------------------------------------------------------------------------------


@check(Kind.DATA_REDUCER, hint='Read task.batches("train", ...) and nothing else.')
def reads_the_training_split_only(subject: Subject) -> None:
    """No split but the training split is read: results on the others would mean nothing."""
    task = task_of(subject)
    with subject.seeded():
        reduce(subject, task=task)
    others = [split for split in task.read if split != "train"]
    if others:
        fail(f"it reads {' and '.join(others)}")


@check(Kind.DATA_REDUCER, hint="Clone what you change of a batch.")
def task_is_left_alone(subject: Subject) -> None:
    """The batches that the task gives are not changed."""
    task = task_of(subject)
    with subject.seeded():
        reduce(subject, task=task)
    changed = task.disturbed()
    if changed:
        fail(f"it changes {', '.join(changed)} of the batches that it is given; a task may give views of its data")


@check(Kind.DATA_REDUCER, hint="Work on copy.deepcopy(student), or in eval mode without gradients, modes put back.")
def student_is_left_alone(subject: Subject) -> None:
    """The student is as before: weights, gradients, statistics, modes, hooks."""
    task = task_of(subject)
    student = networks(subject, task)().train()
    guard = Guard({"student": student})
    with subject.seeded():
        reduce(subject, task=task, student=student)
    changed = guard.settle()
    if changed:
        fail(f"it changes {few(changed)}")


@check(Kind.DATA_REDUCER, hint="Draw from the given generator only.")
def draws_from_the_generator(subject: Subject) -> None:
    """The same generator gives the same samples, whatever the global random state is."""
    results = []
    for seed in (subject.seed + 1, subject.seed + 2):
        with seeded(seed):
            results.append(told(reduce(subject)))
    difference = same(results[0], results[1])
    if difference:
        fail(f"with other global seeds: {difference}")


@check(Kind.DATA_REDUCER, hint="Do without, or raise a UsageError that says what you need.")
def what_is_missing_is_named(subject: Subject) -> None:
    """Without a student, without networks to build and without a generator it works, or says what it needs."""
    for name, word in (("student", "student"), ("build", "network"), ("generator", "generator")):
        _works_or_refuses(subject, f"without a {name}", (name, word), **{name: None})


# -- budgets ----------------------------------------------------------------------------------------------------------


@check(Kind.DATA_REDUCER, hint="Give a class no sample where the budget does not reach, or raise a UsageError.")
def smallest_budget(subject: Subject) -> None:
    """A budget of one sample gives one, or is refused with an error of nasdistill that says so."""
    _works_or_refuses(subject, "with a budget of 1", ("budget",), budget=1)


@check(Kind.DATA_REDUCER, hint="Take what there is.")
def largest_budget(subject: Subject) -> None:
    """A budget larger than the training split gives what there is, or is refused with an error that says so."""
    budget = task_of(subject).size("train") + 5
    _works_or_refuses(subject, f"with a budget of {budget} for 5 samples less", ("budget",), budget=budget)


@check(Kind.DATA_REDUCER, hint="Leave the positions in `queried` out before you choose.")
def second_round_brings_others(subject: Subject) -> None:
    """Positions that were queried before are not chosen again, down to the last ones."""
    first = plain(subject).indices
    if first is None:
        skip("it synthesises samples")
    task = task_of(subject)
    all_but_three = list(range(3, task.size("train")))
    legal = [int(index) for index in first if 0 <= index < task.size("train")]  # others are another check's business
    for queried in (legal, all_but_three):
        given = list(queried)
        found = _works_or_refuses(subject, f"with {len(queried)} queried", ("quer", "left"), queried=given)
        if given != queried:
            fail("it changes the list of queried positions")
        if found is None:
            continue
        again = sorted(set(found.indices.tolist()) & set(queried)) if found.indices is not None else []
        if again:
            fail(f"with {len(queried)} queried, {len(again)} of them are chosen again: {again[:5]}")


# -- details ----------------------------------------------------------------------------------------------------------


def _count(found: ReducedData) -> int:
    if found.indices is not None:
        return len(found.indices)
    return 0 if found.batch is None else found.batch.size


def _legal(found: ReducedData, task: Task, who: str) -> None:
    """Fail unless the indices are different positions in the training split."""
    indices = found.indices
    if indices is None:
        return
    if indices.dtype != torch.int64 or indices.ndim != 1:
        fail(f"{who} returns indices of {indices.dtype} {tuple(indices.shape)}, not int64 of one axis")
    values = indices.tolist()
    if len(set(values)) != len(values):
        fail(f"{who} returns {len(values)} indices, {len(set(values))} of them different")
    if values and (min(values) < 0 or max(values) >= task.size("train")):
        fail(f"{who} returns indices from {min(values)} to {max(values)}, of {task.size('train')} samples")


def _works_or_refuses(subject: Subject, situation: str, words: Sequence[str], **changes: Any) -> ReducedData | None:
    """Reduce in an unusual situation: the result keeps the budget, or the error is one of ours with a word of ours."""
    try:
        with subject.seeded():
            found = reduce(subject, **changes)
    except NasdistillError as error:
        if not any(word in str(error).lower() for word in words):
            fail(f"{situation} it is refused, and the error does not say so: {error}")
        return None
    except Exception as error:
        fail(f"{situation} it raises {type(error).__name__}: {error}")
    if _count(found) > changes.get("budget", BUDGET):
        fail(f"{situation} it returns {_count(found)} samples")
    if found.indices is not None and len(set(found.indices.tolist())) != len(found.indices):
        fail(f"{situation} it returns the same index twice")
    return found
