"""Outputs side by side: whether two models can be compared there, and the rows that count."""

from __future__ import annotations

import torch
from torch import Tensor

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Batch, ModelGeometry, Signal, Site
from nasdistill_losses._pairs import resolve, shapes_text
from nasdistill_losses._tokens import both_valid

LOGITS = Site("logits")


def check_outputs(student: ModelGeometry, teacher: ModelGeometry, name: str) -> None:
    """Raise MismatchError unless both models have the same outputs."""
    ours, theirs = resolve(student, LOGITS, name, "student"), resolve(teacher, LOGITS, name, "teacher")
    if student[ours].shape != teacher[theirs].shape:
        raise MismatchError(
            f"{name} needs the same outputs: {shapes_text(student, ours, teacher, theirs)}",
            hint="Use a teacher of the same classes, or a loss on features (`hidden`, `relation`).",
        )


def classes_last(signal: Signal) -> Tensor:
    """Return ``(B, K)`` or ``(B, N, K)``; the positions of a dense output become N."""
    return signal.tensor.movedim(1, -1).flatten(1, 2) if signal.layout == "map" else signal.tensor


def answer_rows(student: Signal, teacher: Signal, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the logits ``(M, K)`` of both models at all M real positions of the batch, in float32.

    Args:
        student: its logits.
        teacher: its logits; cut from autograd.
        chosen: ``(B,)`` or ``(B, N)`` bool: the samples or positions to take; None = all.
    """
    ours, theirs = classes_last(student), classes_last(teacher.detach())
    keep = both_valid(student.valid, teacher.valid) if ours.ndim == 3 else None
    if chosen is not None:
        chosen = chosen.flatten(1) if chosen.ndim > 2 else chosen
        if chosen.ndim < ours.ndim - 1:  # one label for a whole sequence
            chosen = chosen[:, None].expand(ours.shape[:2])
        keep = both_valid(keep, chosen if chosen.ndim == ours.ndim - 1 else chosen.any(1))
    if keep is None:
        return ours.reshape(-1, ours.shape[-1]).float(), theirs.reshape(-1, theirs.shape[-1]).float()
    return ours[keep].float(), theirs[keep].float()


def labelled(batch: Batch) -> Tensor | None:
    """Return which labels count, in their own shape ``(B,)`` or ``(B, N)``; None where the batch has none.

    A label of -100 says that there is none, as at the positions that a masked language model need not fill.
    """
    if batch.labels is None:
        return None
    there = batch.labels != -100
    if batch.labelled is not None:
        there = there & batch.labelled.reshape(-1, *(1,) * (there.ndim - 1))
    return there


def row_mean(rows: Tensor) -> Tensor:
    """Return the mean of ``(M,)``, 0 of none."""
    return rows.sum() / max(1, rows.shape[0])


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL( softmax(teacher / T) || softmax(student / T) ) of each row of ``(M, K)``."""
    ours = torch.log_softmax(student / temperature, dim=-1)
    theirs = torch.log_softmax(teacher / temperature, dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)
