"""Relations among queries, keys and values of the last layer, with as many relation heads as the teacher has heads (Xu
et al.: "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models", arXiv
2201.12507).

Q of the last layer, heads joined to the full width d, is split anew into A relation heads of d_r = floor(d / A); the
d - A d_r columns at the end are dropped. Likewise K and V, and likewise the teacher's, with d_r of its own.

    R_X = X X^T / sqrt(d_r)          (B, A, N, N), X = Q, K, V
    kl:          sum over X of the mean over heads and rows of KL( softmax(R_X of the teacher) || softmax(R_X) )
    mse_logits:  sum over X of the mean over heads and pairs of tokens of (R_X - R_X of the teacher)^2

averaged within each sample over its real tokens, then over samples. A is the same for all students of a search space,
whatever their heads and widths; any student that is at least A wide fits. `minilmv2` chooses a common divisor instead
and averages over Q, K and V.

Differences: the paper prints `kl`, its code computes `mse_logits`; both are here. That code adds the same mask to both
sides, where it cancels in the squared difference: padding is compared like words. Here keys at padding are neither in
a softmax nor in a mean, and neither are rows of padding; causal models are compared causally. q and k are taken as the
attention kernel gets them, which for models with rotary positions is after those.

Cost: O(B N^2 d) per relation, memory O(B A N^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    Batch,
    DistillationLoss,
    Example,
    ModelGeometry,
    Site,
    SiteNeeds,
    StepInfo,
    Terms,
    Trace,
)
from nasdistill.spec.options import ComponentOptions, searchable
from nasdistill_losses._pairs import resolve, shapes_text
from nasdistill_losses._relations import allowed_pairs, pick_layer, relation_kl, valid_rows

RELATED = ("q", "k", "v")


class QKVRelationOptions(ComponentOptions):
    """Options of `qkv_relation`."""

    mode: Literal["kl", "mse_logits"] = searchable(
        "kl", choices=("kl", "mse_logits"), description="Compare distributions over tokens, or the scores themselves."
    )
    relation_heads: int | None = Field(None, ge=1, description="A; empty = the teacher's number of heads.")
    student_layer: int = Field(-1, description="Layer of the student; layers after it receive no gradient.")
    teacher_layer: int | Literal["auto", "last", "upper_middle"] = Field("last", description="Layer of the teacher.")


def relation_scores(tensor: Tensor, heads: int) -> Tensor:
    """Return ``(B, A, N, N)`` scores of heads ``(B, H, N, D)``, split anew into A = `heads`; the tail is dropped."""
    with torch.autocast(device_type=tensor.device.type, enabled=False):
        joined = tensor.float().transpose(1, 2).flatten(2)
        width = joined.shape[-1] // heads
        kept = joined[..., : heads * width]
        parts = kept.reshape(*kept.shape[:2], heads, width).transpose(1, 2)
        return parts @ parts.transpose(-1, -2) / math.sqrt(width)


def relation_mse(student: Tensor, teacher: Tensor, allowed: Tensor | None, valid: Tensor | None) -> Tensor:
    """Return the mean squared difference of scores ``(B, A, N, N)``, over heads and allowed pairs, then over samples.

    Args:
        student: scores.
        teacher: scores; no gradient flows into them.
        allowed: bool, broadcastable to the scores: which pairs count.
        valid: ``(B, N)`` bool: which rows count.
    """
    square = (student - teacher.detach()).square()
    counts = torch.ones(square.shape[0], 1, *square.shape[2:], dtype=torch.bool, device=square.device)
    if allowed is not None:
        counts = counts & allowed
    if valid is not None:
        counts = counts & valid[:, None, :, None]
    total = torch.where(counts, square, torch.zeros_like(square)).sum((1, 2, 3))
    return (total / (square.shape[1] * counts.sum((1, 2, 3))).clamp_min(1)).mean()


class QKVRelation(DistillationLoss):
    """See the module's text.

    Attributes:
        heads: A, once built.
    """

    options_model = QKVRelationOptions
    options: QKVRelationOptions
    examples = (Example(), Example({"mode": "mse_logits"}, {"pairs": ("text", "decoder")}, "scores"))

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Choose the layers and A.

        Raises:
            MismatchError: a model without attention, different tokens, or a width below A.
        """
        name = "qkv_relation"
        self._student = resolve(student, pick_layer(self.options.student_layer, student, "q"), name, "student")
        self._teacher = resolve(teacher, pick_layer(self.options.teacher_layer, teacher, "q"), name, "teacher")
        text = shapes_text(student, self._student, teacher, self._teacher)
        if student[self._student].shape[1] != teacher[self._teacher].shape[1]:
            raise MismatchError(f"{name} needs the same tokens: {text}", hint="Choose `kd`, `hidden` or `relation`.")
        self.heads = self.options.relation_heads or teacher[self._teacher].shape[0]
        for geometry, site in ((student, self._student), (teacher, self._teacher)):
            for part in RELATED:
                if geometry[Site(part, site.layer)].width < self.heads:
                    raise MismatchError(
                        f"{name}: {part} of {geometry.label} is narrower than {self.heads} relation heads: {text}",
                        hint="Set relation_heads to a smaller number.",
                    )

    def sites(self) -> SiteNeeds:
        """Queries, keys and values of one layer of each model."""
        return SiteNeeds(
            frozenset(Site(part, self._student.layer) for part in RELATED),
            frozenset(Site(part, self._teacher.layer) for part in RELATED),
        )

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return one term for each of q, k and v."""
        terms: Terms = {}
        for part in RELATED:
            ours = student.signal(Site(part, self._student.layer))
            theirs = teacher.signal(Site(part, self._teacher.layer)).detach()
            valid = valid_rows(ours, theirs)
            compare = relation_kl if self.options.mode == "kl" else relation_mse
            terms[part] = compare(
                relation_scores(ours.tensor, self.heads),
                relation_scores(theirs.tensor, self.heads),
                allowed_pairs(ours, theirs, valid),
                valid,
            )
        return terms
