"""Evaluating a model on one split of a task."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from nasdistill.errors import DataError
from nasdistill.interfaces.task import Evaluation, Split, Task

_LOGITS = 2**26
"""Numbers that a forward may give at once where a vocabulary stands behind every token: 256 MiB."""


def evaluate(model: nn.Module, task: Task, split: Split = "validation", batch_size: int = 256) -> Evaluation:
    """Return a model's score and mean loss on a whole split: in order, plain, in eval mode, without gradients.

    The model runs on the device where its parameters are; train/eval modes are put back module by module. Not in
    inference mode: tables that a model computes once and keeps would be unusable in a later training.

    Args:
        model: any model that `task` can call.
        task: a prepared task.
        split: which samples.
        batch_size: samples per forward, fewer where every token has logits over a vocabulary; the result does not
            depend on it beyond rounding.

    Raises:
        DataError: the split is empty or has no labels.
    """
    if not task.has_labels(split) or task.size(split) == 0:
        raise DataError(f"{task.id}: split {split!r} has no labelled samples to evaluate on")
    if task.io.head in ("masked_lm", "causal_lm"):
        batch_size = max(1, min(batch_size, _LOGITS // (task.io.shape[0] * task.io.outputs)))
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    outputs, labels, loss, count = [], [], 0.0, 0
    with kept_modes(model), torch.no_grad():
        model.eval()
        for batch in task.batches(split, batch_size=batch_size):
            batch = batch.to(device)
            output = task.forward(model, batch).float()
            loss += float(task.loss(output, batch)) * batch.size
            count += batch.size
            kept, label = task.evidence(output, batch)
            outputs.append(kept.cpu())
            labels.append(label.cpu())
        score = task.score(torch.cat(outputs), torch.cat(labels))
    return Evaluation(score=float(score), loss=loss / count, n=count)


def evaluate_test(model: nn.Module, task: Task) -> float | None:
    """Return a model's score on the test split, or None where that is empty or has no labels.

    Public test splits often keep their labels to themselves: what else was found out is worth no less for that.
    """
    if not task.size("test") or not task.has_labels("test"):
        return None
    return evaluate(model, task, "test").score


def no_better_than_chance(label: str, task: Task, result: Evaluation, split: Split = "validation") -> str | None:
    """Return a warning where a teacher scores as the same answer for every sample does, up to noise; else None.

    Noise is, for a metric named ``accuracy``, two standard errors of the chance level p on n samples,
    sqrt(p (1 - p) / n); for ``perplexity`` and ``bits_per_byte``, an information per token (log perplexity) or byte
    within 5 % of the chance level's, since random weights are off equal probabilities by a little in either direction.
    Of other metrics the scale is not known: there the score itself must be no better.

    Args:
        label: of the teacher.
        task: a prepared task.
        result: what the teacher got on the split.
        split: which samples.
    """
    chance, metric = task.chance(split), task.metric
    if chance is None:
        return None
    if result.score <= chance if metric.higher_is_better else result.score >= chance:
        words = "no"
    elif _within_noise(metric.name, result, chance):
        words = "hardly"
    else:
        return None
    return (
        f"teacher {label} is {words} better than chance: its {split} {metric.name} is {result.score:.4f}, and the same "
        f"answer for every sample has {chance:.4f}. Students cannot learn the task from it. Likely causes: labels in "
        "another order than the teacher's, other preprocessing than it was trained with, or a head that was never "
        "fine-tuned."
    )


def _within_noise(metric: str, result: Evaluation, chance: float) -> bool:
    """Return whether a score that is better than chance is so by noise alone."""
    if metric == "accuracy":
        return result.score - chance <= 2 * math.sqrt(max(0.0, chance * (1 - chance)) / result.n)
    if metric == "perplexity":
        return chance > 1 and math.log(max(result.score, 1.0)) > 0.95 * math.log(chance)
    return metric == "bits_per_byte" and result.score > 0.95 * chance


@contextlib.contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put every module's train/eval flag back afterwards (a model may keep some of its norms in eval mode)."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
