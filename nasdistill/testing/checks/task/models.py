"""Checks of models on a task: its example is an input, and misfits are refused."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from nasdistill.errors import MismatchError
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.task.cases import first, model_for, shared
from nasdistill.testing.registry import check, fail
from nasdistill.testing.state import few
from nasdistill.testing.subject import Subject


@check(Kind.TASK, hint="Return the model's positional inputs as a tuple, with as many rows as asked for.")
def example_is_an_input(subject: Subject) -> None:
    """`example(n)` is a tuple of tensors with n rows, in the form of io and the batches, and a model runs on it."""
    task = shared(subject)
    for size in (1, 3):
        found = task.example(size)
        if not isinstance(found, tuple) or not found or not all(isinstance(item, Tensor) for item in found):
            fail(f"example({size}) is {type(found).__name__}, not a tuple of tensors")
        if any(not item.ndim or len(item) != size for item in found):
            fail(f"example({size}) has the shapes {[tuple(item.shape) for item in found]}")
        if task.io.kind == "image" and tuple(found[0].shape[1:]) != task.io.shape:
            fail(f"example({size}) has the shape {tuple(found[0].shape)}, and io says {task.io.shape} per sample")
        dtypes = {tensor.dtype for tensor in first(task).inputs.values()}
        if found[0].dtype not in dtypes:
            fail(f"example({size}) is {found[0].dtype}, the batches' inputs are {', '.join(map(str, dtypes))}")
        model = model_for(subject, task).eval()
        try:
            with torch.no_grad():
                model(*found)
        except Exception as error:
            fail(f"a model that fits the task does not run on example({size}): {error}")


@check(Kind.TASK, hint="Run a trial forward (the base class's `check` does) and raise MismatchError with both shapes.")
def refuses_models_that_do_not_fit(subject: Subject) -> None:
    """`check` lets a model pass that fits, and refuses others with a MismatchError that names both shapes."""
    task = shared(subject)
    try:
        task.check(model_for(subject, task), "the student")
    except MismatchError as error:
        fail(f"check refuses a model that fits: {error}")
    more, less = task.io.outputs + 3, max(2, math.prod(task.io.shape) // 2)
    if task.io.outputs:
        misfits = {f"{more} outputs": (model_for(subject, task, outputs=more), str(more))}
    else:  # a width is as good as another
        misfits = {"a vector per token": (model_for(subject, task, per_token=True), "vector")}
    if task.io.kind != "tokens" and math.prod(task.io.shape) != less:
        misfits["another input"] = (model_for(subject, task, kept=less), str(less))
    for what, (model, number) in misfits.items():
        try:
            task.check(model, "the student")
        except MismatchError as error:
            wanted = str(task.io.outputs or task.io.head)
            lacking = [text for text in ("the student", number, wanted) if text not in str(error)]
            if lacking:
                fail(f"the error for a model with {what} does not name {', '.join(lacking)}: {error}")
        except Exception as error:
            fail(f"check of a model with {what} raised {type(error).__name__}: {error}")
        else:
            fail(f"check accepts a model with {what}; the task has {task.io}")


@check(Kind.TASK, hint="Put the model into eval mode and every module's mode back in a `finally`; use no_grad.")
def check_leaves_the_model_alone(subject: Subject) -> None:
    """`check` changes nothing of the model: each module's mode, weights, statistics."""
    task = shared(subject)
    model = model_for(subject, task).train()
    for part in itertools.islice(model.children(), 1):
        part.eval()  # frozen statistics are no exception: one mode for the whole model will not do
    guard = Guard({"model": model})
    with seeded(subject.seed, "check"):
        task.check(model, "the student")
    changed = guard.settle()
    if changed:
        fail(f"check changes {few(changed)}")
