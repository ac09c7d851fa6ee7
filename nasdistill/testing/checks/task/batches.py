"""Gates: what a task says of itself, its batches, and what `forward` gives."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.testing.checks.task.cases import SPLITS, first, model_for, one_pass, shared, well_formed
from nasdistill.testing.registry import check, fail
from nasdistill.testing.subject import Subject


@check(Kind.TASK, gate=True, hint="Return an IOSpec whose shape is that of one sample, without the batch axis.")
def says_its_input_and_output(subject: Subject) -> None:
    """After `prepare`, `io` is an IOSpec with positive sizes, and token tasks name their vocabulary."""
    io = shared(subject).io
    if not isinstance(io, IOSpec):
        fail(f"io is {type(io).__name__}, not an IOSpec")
    # An embedding may leave its width to the model.
    if not io.shape or any(side < 1 for side in io.shape) or io.outputs < (io.head != "embedding"):
        fail(f"io is {io.shape} -> {io.outputs}; sizes must be positive")
    if io.kind == "image" and len(io.shape) != 3:
        fail(f"io.kind is 'image', and its shape {io.shape} is not (C, H, W)")
    if io.kind == "tokens" and not io.vocabulary:
        fail("io.kind is 'tokens', and io.vocabulary is not given")


@check(Kind.TASK, gate=True, hint="Yield Batch(inputs, labels, ids, labelled) with one row per sample in each.")
def gives_batches(subject: Subject) -> None:
    """Every split yields batches: named tensors, labels and ids with one row per sample, ids int64."""
    task = shared(subject)
    for split, train in itertools.product(SPLITS, (False, True)):
        where = f"batches({split!r}, train={train})"
        batches = one_pass(task, split, train=train)
        if not batches:
            fail(f"{where} yields nothing")
        for batch in batches:
            well_formed(batch, where)


@check(Kind.TASK, gate=True, hint="Return the model's raw outputs: for classification logits (B, K).")
def forward_gives_outputs(subject: Subject) -> None:
    """`forward` returns a tensor with a row per sample and io.outputs numbers (if any) on the last axis, finite."""
    task = shared(subject)
    batch = first(task)
    with torch.no_grad():
        found = task.forward(model_for(subject, task).eval(), batch)
    if not isinstance(found, Tensor):
        fail(f"forward returns {type(found).__name__}, not a tensor")
    outputs = task.io.outputs or found.shape[-1]
    if found.ndim < 2 or found.shape[0] != batch.size or found.shape[-1] != outputs:
        fail(f"forward returns {tuple(found.shape)} for {batch.size} samples and {task.io.outputs} outputs")
    if not bool(found.isfinite().all()):
        fail("forward returns numbers that are not finite, from a network with finite weights")
