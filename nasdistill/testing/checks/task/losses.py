"""Checks of loss and metric: they mean what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nasdistill.interfaces import Batch, Metric, Task
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.task.cases import SPLITS, first, one_pass, output_for, shared
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.subject import Subject


@check(Kind.TASK, hint="Return the mean over the samples as a 0-dimensional tensor that autograd knows.")
def loss_is_a_mean(subject: Subject) -> None:
    """The loss is a finite scalar with a finite gradient, and the same for a batch that is there twice."""
    task = shared(subject)
    batch = _labelled(first(task))
    output = output_for(subject, task, batch)
    value = task.loss(output, batch)
    if not isinstance(value, Tensor) or value.ndim:
        fail(f"loss returns {tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__}, not a scalar")
    number = float(value.detach())
    if not math.isfinite(number):
        fail(f"the loss of ordinary outputs is {number}")
    if not value.requires_grad:
        fail("the loss has no gradient")
    (gradient,) = torch.autograd.grad(value, output)
    if not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        fail("the gradient of the loss with respect to the outputs is zero, or not finite")
    twice = torch.arange(batch.size).repeat(2)
    doubled = float(task.loss(output[twice], batch.select(twice)).detach())
    if not math.isclose(doubled, number, rel_tol=1e-4, abs_tol=1e-6):
        fail(f"the loss is {number:.6g}, and {doubled:.6g} when each sample is there twice")


@check(Kind.TASK, hint="Leave out the samples where batch.labelled is False.")
def unlabelled_samples_do_not_count(subject: Subject) -> None:
    """Samples whose label may not be used have no influence on the loss, and no gradient."""
    task = shared(subject)
    batch = _labelled(first(task))
    if batch.size < 2:
        skip("too few labelled samples")
    usable = torch.arange(batch.size) % 2 == 0
    some = replace(batch, labelled=usable)
    output = output_for(subject, task, batch)
    value = task.loss(output, some)
    (gradient,) = torch.autograd.grad(value, output)
    if bool(gradient[~usable].any()):
        fail("outputs of unlabelled samples have a gradient")
    index = torch.nonzero(usable).squeeze(1)
    half = replace(batch.select(index), labelled=torch.ones(len(index), dtype=torch.bool))
    alone = float(task.loss(output.detach()[index], half))
    number = float(value.detach())
    if not math.isclose(alone, number, rel_tol=1e-4, abs_tol=1e-6):
        fail(f"with half of the labels the loss is {number:.6g}, over that half alone {alone:.6g}")


@check(Kind.TASK, hint="Return output.sum() * 0 when no label may be used.")
def loss_without_labels_is_zero(subject: Subject) -> None:
    """When no label may be used the loss is 0, with a gradient of zeros."""
    task = shared(subject)
    batch = first(task)
    nothing = replace(batch, labelled=torch.zeros(batch.size, dtype=torch.bool))
    for empty, what in ((nothing, "no usable label"), (replace(batch, labels=None, labelled=None), "labels=None")):
        output = output_for(subject, task, batch)
        value = task.loss(output, empty)
        if not isinstance(value, Tensor) or value.ndim or float(value.detach()) != 0:
            fail(f"with {what} the loss is {value!r}, not 0")
        if not value.requires_grad:
            fail(f"with {what} the loss has no gradient, so a step on it fails")
        (gradient,) = torch.autograd.grad(value, output, allow_unused=True)
        if gradient is not None and bool(gradient.any()):
            fail(f"with {what} the gradient is not zero")


@check(Kind.TASK, hint="Set the class attribute `metric`, with the direction in which the score is better.")
def metric_is_declared(subject: Subject) -> None:
    """`metric` is a Metric with a name."""
    found = getattr(subject.load(), "metric", None)
    if not isinstance(found, Metric) or not found.name.strip():
        fail(f"the class attribute metric is {found!r}")


@check(Kind.TASK, hint="Return a float that grows (or falls) with quality as Metric.higher_is_better says.")
def score_follows_its_direction(subject: Subject) -> None:
    """Right outputs score better than wrong ones in the metric's direction; a share lies in 0 .. 1."""
    task = shared(subject)
    if not isinstance(getattr(task, "metric", None), Metric):
        skip("it declares no metric")
    split = next((split for split in reversed(SPLITS) if task.has_labels(split)), None)
    if split is None:
        skip("no split has labels")
    batches = [_labelled(batch) for batch in one_pass(task, split)]
    forms = [tuple(output_for(subject, task, batch).shape[1:]) for batch in batches]
    good, bad = (_score(task, batches, forms, off) for off in (0, 1))
    for value in (good, bad):
        if not isinstance(value, float) or not math.isfinite(value):
            fail(f"score returned {value!r}, not a finite float")
    if task.metric.unit == "share" and not (0 <= good <= 1 and 0 <= bad <= 1):
        fail(f"the unit is a share, and the scores are {good:g} and {bad:g}")
    if (good > bad) is not task.metric.higher_is_better or good == bad:
        fail(f"right outputs score {good:g}, wrong ones {bad:g}; higher is better: {task.metric.higher_is_better}")


@check(Kind.TASK, hint="Score each class as the answer for all samples, and return the best; None where unknown.")
def chance_is_what_a_constant_scores(subject: Subject) -> None:
    """Where `chance` states a level, no answer that is the same for every sample beats it, and a class scores it."""
    task, stated = shared(subject), False
    if not isinstance(getattr(task, "metric", None), Metric):
        skip("it declares no metric")
    for split in SPLITS:
        chance = task.chance(split)
        if chance is None or not task.has_labels(split):
            continue
        stated = True
        if not isinstance(chance, float) or not math.isfinite(chance):
            fail(f"chance({split!r}) is {chance!r}, neither a finite float nor None")
        batches = [_labelled(batch) for batch in one_pass(task, split)]
        forms = [tuple(output_for(subject, task, batch).shape[1:]) for batch in batches]
        scores = [_scored(task, batches, [_constant(one, form) for form in forms]) for one in _constants(task)]
        best = max(scores) if task.metric.higher_is_better else min(scores)
        beyond = best - chance if task.metric.higher_is_better else chance - best
        slack = 1e-4 * max(1.0, abs(chance))
        if beyond > slack:
            fail(f"chance({split!r}) is {chance:g}, and the same answer for every sample scores {best:g}")
        if task.io.head == "classes" and beyond < -slack:
            fail(f"chance({split!r}) is {chance:g}, and the best class for every sample scores {best:g} only")
    if not stated:
        skip("it states no level of chance for a split with labels")


def _constants(task: Task) -> list[int | None]:
    """Return the answers to give to every sample: each class, or None for the same number throughout."""
    return [*range(task.io.outputs)] if task.io.head == "classes" else [None]


def _constant(one: int | None, form: tuple[int, ...]) -> Tensor:
    """Return an output of shape `form`: a class, or the same number throughout (equal logits, or one vector)."""
    output = torch.ones(form)
    if one is not None:
        output = output * 0
        output[..., one] = 10.0
    return output


def _scored(task: Task, batches: list[Batch], answers: list[Tensor]) -> float:
    """Return the score of one answer for all samples of each batch."""
    pairs = [
        task.evidence(answer.expand(batch.size, *answer.shape), batch)
        for batch, answer in zip(batches, answers, strict=True)
    ]
    return task.score(torch.cat([output for output, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def _score(task: Task, batches: list[Batch], forms: list[tuple[int, ...]], off: int) -> float:
    """Return the score of outputs that are right, or wrong by `off`."""
    pairs = []
    for batch, form in zip(batches, forms, strict=True):
        assert batch.labels is not None
        pairs.append(task.evidence(_answers(batch.labels, form, off), batch))
    return task.score(torch.cat([output for output, _ in pairs]), torch.cat([labels for _, labels in pairs]))


def _labelled(batch: Batch) -> Batch:
    """Return the samples whose label may be used."""
    if batch.labels is None:
        skip("the split has no labels")
    if batch.labelled is None:
        return batch
    return replace(batch.select(torch.nonzero(batch.labelled).squeeze(1)), labelled=None)


def _answers(labels: Tensor, form: tuple[int, ...], off: int) -> Tensor:
    """Return outputs ``(n, *form)`` that are right, or wrong by `off`."""
    if labels.is_floating_point():
        if labels[0].numel() != math.prod(form):
            skip(f"nothing is known of right outputs of shape {form} for labels of shape {tuple(labels.shape[1:])}")
        return labels.reshape(-1, *form) + 10.0 * off
    if (*labels.shape[1:], form[-1]) != form or form[-1] < 2:
        skip(f"nothing is known of right outputs of shape {form} for labels of shape {tuple(labels.shape[1:])}")
    return 10.0 * F.one_hot((labels.clamp(min=0) + off) % form[-1], form[-1]).float()
