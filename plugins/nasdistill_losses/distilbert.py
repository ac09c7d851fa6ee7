"""Soft targets, hard targets and the direction of the last hidden states, together (Sanh et al.: "DistilBERT, a
distilled version of BERT", arXiv 1910.01108; used for students with efficient attention by Brown et al.: "Efficient
Transformer Knowledge Distillation: A Performance Review", arXiv 2311.13657).

    soft:    tau^2 * mean over tokens of KL( softmax(z_T / tau) || softmax(z_S / tau) ), summed over the vocabulary
    hard:    mean over the labelled positions of the cross-entropy with their labels
    cosine:  mean over tokens of 1 - cos(W h_S, h_T), of the last block's outputs
    L = 5 soft + 2 hard + 1 cosine

Tokens are all real ones; `restrict_ce_to_mask` takes the labelled positions alone for the soft term. A masked language
model has labels (other than -100) at its masked positions, a causal one at every token but the last, a classifier one
per sample, which then is its one position. All means run over the positions of the whole batch. W is there where the
widths differ, trained with the student and thrown away; the paper has equal widths.

The hard term is the task's own loss once more: `task_weight = 0` in the objective, or weight 0 here, keeps it from
counting twice. The value is not 0 when the models agree, because the labels are not the teacher's answers.

Difference from the two papers: none in the terms. That the second one kept the weights of the first is an assumption.

Cost: O(B N V); distributions are formed at real tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

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
from nasdistill_losses._logits import LOGITS, answer_rows, check_outputs, classes_last, divergence, labelled, row_mean
from nasdistill_losses._pairs import resolve, shapes_text
from nasdistill_losses._tokens import align, comparable


class DistilBERTOptions(ComponentOptions):
    """Options of `distilbert`."""

    temperature: float = searchable(2.0, choices=(1.0, 2.0, 4.0), gt=0, description="tau of the soft targets.")
    soft_weight: float = Field(5.0, ge=0, description="Weight of the soft targets.")
    hard_weight: float = Field(2.0, ge=0, description="Weight of the labels.")
    cosine_weight: float = Field(1.0, ge=0, description="Weight of the last hidden states.")
    restrict_ce_to_mask: bool = Field(False, description="Soft targets at the labelled positions alone.")

    @model_validator(mode="after")
    def _something(self) -> DistilBERTOptions:
        if not self.soft_weight + self.hard_weight + self.cosine_weight:
            raise ValueError("all three weights are 0")
        return self


def soft_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Return tau^2 KL of logits ``(M, K)``, a row for each position that counts; none into the teacher."""
    return temperature**2 * row_mean(divergence(student.float(), teacher.detach().float(), temperature))


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of ``(M, K)`` with ``(M,)``, averaged over the labels other than -100; 0 of none."""
    summed = F.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
    return summed / (labels != -100).sum().clamp_min(1)


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cosine of ``(M, C)``, a row for each token that counts; none into the teacher."""
    return row_mean(1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1))


class DistilBERT(DistillationLoss):
    """See the module's text.

    Attributes:
        projector: W, or None where the widths agree.
    """

    options_model = DistilBERTOptions
    options: DistilBERTOptions
    examples = (
        Example(),
        Example({"restrict_ce_to_mask": True}, {"pairs": ("decoder",)}, "labelled positions"),
        Example({"soft_weight": 0, "cosine_weight": 0}, {"pairs": ("text", "decoder")}, "labels alone"),
    )

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Check outputs and hidden states.

        Raises:
            MismatchError: different outputs or tokens, or a model without blocks.
        """
        name = "distilbert"
        check_outputs(student, teacher, name)
        last = Site("hidden", -1)
        self._student, self._teacher = (
            resolve(geometry, last, name, side) for geometry, side in ((student, "student"), (teacher, "teacher"))
        )
        ours, theirs = student[self._student], teacher[self._teacher]
        if not comparable(ours, theirs):
            text = shapes_text(student, self._student, teacher, self._teacher)
            raise MismatchError(
                f"{name} cannot compare different tokens: {text}",
                hint="Choose `kd`, `pkd` or `relation`.",
            )
        maps = ours.width != theirs.width and self.options.cosine_weight > 0
        self.projector = nn.Linear(ours.width, theirs.width) if maps else None

    def sites(self) -> SiteNeeds:
        """Logits and the last hidden states, without what has weight 0."""
        o = self.options
        logits, hidden = [LOGITS], bool(o.cosine_weight)
        return SiteNeeds.of(
            logits * bool(o.soft_weight or o.hard_weight) + [self._student] * hidden,
            logits * bool(o.soft_weight) + [self._teacher] * hidden,
        )

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return the weighted terms ``soft``, ``hard`` and ``cosine``, without those of weight 0."""
        o, terms = self.options, Terms()
        if o.soft_weight:
            chosen = labelled(batch) if o.restrict_ce_to_mask else None
            rows = answer_rows(student.signal(LOGITS), teacher.signal(LOGITS), chosen)
            terms["soft"] = o.soft_weight * soft_loss(*rows, o.temperature)
        if o.hard_weight:
            terms["hard"] = o.hard_weight * self._hard(student, batch)
        if o.cosine_weight:
            ours, theirs, valid = align(student.signal(self._student), teacher.signal(self._teacher).detach())
            if valid is not None:
                ours, theirs = ours[valid], theirs[valid]
            if self.projector is not None:
                ours = self.projector(ours.to(self.projector.weight.dtype))
            terms["cosine"] = o.cosine_weight * cosine_loss(ours.flatten(0, -2), theirs.flatten(0, -2))
        return terms

    def _hard(self, student: Trace, batch: Batch) -> Tensor:
        logits, there = classes_last(student.signal(LOGITS)), labelled(batch)
        if batch.labels is None or there is None:
            return (logits.float() * 0.0).sum()
        if batch.labels.numel() != logits.shape[:-1].numel():
            raise MismatchError(
                f"distilbert: labels {tuple(batch.labels.shape)} for answers {tuple(logits.shape)}",
                hint="It needs a label per answer (-100 = none); set hard_weight = 0 for other labels.",
            )
        return hard_loss(logits.flatten(0, -2), batch.labels.masked_fill(~there, -100).flatten())
