"""Augmentation of training batches by the engine, for any task: mixed images, exchanged tokens.

Both teacher and student see the changed inputs, and what is changed is a function of (seed, epoch, batch), so that the
teacher's cached answers fit all students of a search.

*mixup* ("mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412): ``x = s x_i + (1 - s) x_j`` with one
``s ~ Beta(a, a)`` for a batch; the loss on labels is mixed by the same share. For floating-point inputs.
*token noise* (the random replacement of "A Systematic Study of Model Distillation Methods in NLP", arXiv 2109.11105):
each real token but the first and the last of a text becomes a token drawn uniformly from the vocabulary with
probability p. For token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.task import Task
from nasdistill.seeds import torch_generator
from nasdistill.spec.config import TrainingConfig

LABELS, LABELLED, SHARE = "mixup_labels", "mixup_labelled", "mixup_share"
"""Names in ``Batch.extra``: what was mixed in, and ``(B,)`` the share of the batch's own sample."""


def settings(training: TrainingConfig) -> dict[str, float]:
    """Return what changes the batches, by name; empty when nothing does."""
    found = {"mixup": training.mixup, "token_noise": training.token_noise}
    return {name: value for name, value in found.items() if value}


def augmented(
    batches: Iterable[Batch], training: TrainingConfig, task: Task, *, epoch: int, seed: int
) -> Iterator[Batch]:
    """Yield the batches of an epoch, changed as the training says."""
    if not settings(training):
        yield from batches
        return
    for index, batch in enumerate(batches):
        generator = torch_generator(seed, "augmentation", epoch, index)
        if training.token_noise and task.io.vocabulary:
            batch = exchange_tokens(batch, training.token_noise, task.io.vocabulary, generator)
        if training.mixup:
            batch = mix(batch, training.mixup, generator)
        yield batch


def exchange_tokens(batch: Batch, share: float, vocabulary: int, generator: torch.Generator) -> Batch:
    """Return the batch with some tokens exchanged; one without ``input_ids`` as it is.

    Args:
        batch: ``input_ids (B, N)`` and, where texts are padded, ``attention_mask``.
        share: probability of each token.
        vocabulary: number of token ids.
        generator: randomness.
    """
    ids = batch.inputs.get("input_ids")
    if ids is None:
        return batch
    mask = batch.inputs.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    before = real.cumsum(1)
    inner = real & (before > 1) & (before < real.sum(1, keepdim=True))  # the ends are special tokens
    chosen = inner & (torch.rand(ids.shape, generator=generator) < share)
    drawn = torch.randint(vocabulary, ids.shape, generator=generator)
    return replace(batch, inputs={**batch.inputs, "input_ids": torch.where(chosen, drawn, ids)})


def mix(batch: Batch, concentration: float, generator: torch.Generator) -> Batch:
    """Return the batch with every sample mixed with another one; inputs that are no floating point stay.

    Args:
        batch: its samples.
        concentration: a of Beta(a, a).
        generator: randomness.
    """
    if not all(value.is_floating_point() for value in batch.inputs.values()):
        return batch
    # Two Gamma draws make a Beta draw, and torch's own Beta takes no generator.
    first, second = torch._standard_gamma(torch.full((2,), concentration), generator=generator).tolist()
    share = first / (first + second) if first + second > 0 else 0.5
    order = torch.randperm(batch.size, generator=generator)
    inputs = {name: share * value + (1 - share) * value[order] for name, value in batch.inputs.items()}
    extra = {**batch.extra, SHARE: torch.full((batch.size,), share)}
    if batch.labels is not None:
        extra[LABELS] = batch.labels[order]
    if batch.labelled is not None:
        extra[LABELLED] = batch.labelled[order]
    return replace(batch, inputs=inputs, extra=extra)


def task_loss(task: Task, output: Tensor, batch: Batch) -> Tensor:
    """Return the task's loss, for a mixed batch that of both samples' labels by their shares."""
    own = task.loss(output, batch)
    if SHARE not in batch.extra or LABELS not in batch.extra:
        return own
    share = batch.extra[SHARE][0]
    other = replace(batch, labels=batch.extra[LABELS], labelled=batch.extra.get(LABELLED))
    return share * own + (1 - share) * task.loss(output, other)
