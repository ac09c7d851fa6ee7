r"""Decoupled knowledge distillation: the target class and the others, each with a weight of its own.

With b = (p_t, 1 - p_t) the probability of the target class t against all others, and q the probabilities of the other
classes among themselves, both at temperature T,

    L = T^2 * mean over samples of  alpha KL(b_T || b_S) + beta KL(q_T || q_S)

Ordinary distillation is the case alpha = 1, beta = 1 - p_t of the teacher: the surer the teacher, the less its
knowledge of the other classes counts, which is what the paper undoes. Samples whose label may not be used are left out.
Computed in float32.

Cost: O(B K). Source: "Decoupled Knowledge Distillation", arXiv 2203.08679; its beta grows in a warm-up, which is left
to the schedule of the objective's weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nasdistill.errors import MismatchError
from nasdistill.interfaces import Batch, DistillationLoss, ModelGeometry, Site, SiteNeeds, StepInfo, Terms, Trace
from nasdistill.spec.options import ComponentOptions, searchable
from pydantic import Field
from torch import Tensor

LOGITS = Site("logits")


class DecoupledOptions(ComponentOptions):
    """Options of `dkd`."""

    alpha: float = Field(1.0, ge=0, description="Weight of the target class against all others.")
    beta: float = searchable(
        8.0, choices=(1.0, 2.0, 4.0, 8.0), ge=0, description="Weight of the other classes among themselves."
    )
    temperature: float = searchable(
        4.0, choices=(1.0, 2.0, 4.0, 8.0), gt=0, description="T: the higher, the softer the probabilities."
    )


def decoupled_terms(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0
) -> tuple[Tensor, Tensor]:
    """Return the two divergences of each sample, ``(B,)`` both, without weights and without T^2.

    Args:
        student: logits ``(B, K)``.
        teacher: logits ``(B, K)``; no gradient flows into them.
        labels: the target classes, ``(B,)`` int64 in [0, K).
        temperature: T > 0.
    """
    target = torch.nn.functional.one_hot(labels, student.shape[1]).bool()
    ours, ours_others = _log_probabilities(student.float() / temperature, target)
    theirs, theirs_others = _log_probabilities(teacher.detach().float() / temperature, target)
    binary = (theirs.exp() * (theirs - ours)).sum(-1)
    others = (theirs_others.exp() * (theirs_others - ours_others)).masked_fill(target, 0.0).sum(-1)
    return binary, others


def _log_probabilities(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of b ``(B, 2)`` and of q ``(B, K)``, the latter with 0 at the target."""
    # Not -inf: its differences are no numbers, and neither would be their gradients.
    lowest = torch.finfo(logits.dtype).min / 4
    total = logits.logsumexp(-1)
    rest = logits.masked_fill(target, lowest)
    sums = torch.stack([logits[target], rest.logsumexp(-1)], dim=-1)
    return sums - total[:, None], rest.log_softmax(-1).masked_fill(target, 0.0)


class DecoupledDistillation(DistillationLoss):
    """See the module's text."""

    options_model = DecoupledOptions
    options: DecoupledOptions

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Check that both models give one vector of the same classes.

        Raises:
            MismatchError: they do not; both shapes are named.
        """
        for model in (student, teacher):
            if LOGITS not in model:
                raise MismatchError(f"{self.id}: {model.label} has no logits to compare")
        ours, theirs = student[LOGITS].shape, teacher[LOGITS].shape
        if ours != theirs or len(ours) != 1 or ours[0] < 2:
            raise MismatchError(
                f"{self.id} needs one vector of the same classes, at least two: {student.label} (student) gives "
                f"{ours}, {teacher.label} (teacher) {theirs}",
                hint="Use a teacher of the same classes; for logits per token or pixel there is `kd`.",
            )

    def sites(self) -> SiteNeeds:
        """Both models' logits."""
        return SiteNeeds.of([LOGITS], [LOGITS])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return the terms ``target`` and ``others``, both weighted.

        Raises:
            MismatchError: the batch has no labels.
        """
        ours, theirs = student.logits, teacher.logits
        if batch.labels is None:
            raise MismatchError(f"{self.id} needs labels, which these batches do not have")
        known = torch.ones_like(batch.labels, dtype=torch.bool) if batch.labelled is None else batch.labelled
        if not bool(known.any()):
            nothing = ours.sum() * 0
            return {"target": nothing, "others": nothing}
        temperature = self.options.temperature
        binary, others = decoupled_terms(ours[known], theirs[known], batch.labels[known], temperature)
        return {
            "target": self.options.alpha * temperature**2 * binary.mean(),
            "others": self.options.beta * temperature**2 * others.mean(),
        }
