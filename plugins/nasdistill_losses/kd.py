"""Knowledge distillation on softened probabilities (Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural
Network", arXiv 1503.02531).

    L = T^2 * mean over samples of KL( softmax(z_T / T) || softmax(z_S / T) )

The factor T^2 keeps the gradient's size when T changes. Per-token outputs ``(B, N, V)`` are averaged over each
sample's valid tokens first, dense outputs ``(B, K, H, W)`` over positions. Computed in float32: half-precision logits
lose the small probabilities that carry the teacher's knowledge.

Cost: O(B K).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nasdistill.interfaces import Batch, DistillationLoss, Example, ModelGeometry, SiteNeeds, StepInfo, Terms, Trace
from nasdistill.spec.options import ComponentOptions, searchable
from nasdistill_losses._logits import LOGITS, check_outputs, classes_last
from nasdistill_losses._tokens import both_valid, sample_mean


class KnowledgeDistillationOptions(ComponentOptions):
    """Options of `kd`."""

    temperature: float = searchable(
        4.0, choices=(1.0, 2.0, 4.0, 8.0), gt=0, description="T: the higher, the more the wrong classes count."
    )


def kd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0, valid: Tensor | None = None) -> Tensor:
    """Return the loss of logits ``(B, K)`` or ``(B, N, K)``, classes last.

    Args:
        student: logits of the student.
        teacher: logits of the teacher; no gradient flows into them.
        temperature: T > 0.
        valid: ``(B, N)`` bool for per-token logits.
    """
    ours = torch.log_softmax(student.float() / temperature, dim=-1)
    theirs = torch.log_softmax(teacher.detach().float() / temperature, dim=-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    return temperature**2 * sample_mean(divergence.reshape(divergence.shape[0], -1), valid)


class KnowledgeDistillation(DistillationLoss):
    """See the module's text."""

    options_model = KnowledgeDistillationOptions
    options: KnowledgeDistillationOptions
    examples = (Example(), Example({"temperature": 1.0}, {"pairs": ("conv_from_vit",)}, "cold"))

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Check that both models name the same classes.

        Raises:
            MismatchError: different numbers of classes or positions.
        """
        check_outputs(student, teacher, "kd")

    def sites(self) -> SiteNeeds:
        """Both models' logits."""
        return SiteNeeds.of([LOGITS], [LOGITS])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return ``{"kd": loss}``."""
        ours, theirs = student.signal(LOGITS), teacher.signal(LOGITS)
        valid = both_valid(ours.valid, theirs.valid)
        return {"kd": kd_loss(classes_last(ours), classes_last(theirs), self.options.temperature, valid)}
