"""KL of the output distributions, averaged over all positions alike (the logit loss of Muralidharan et al.: "Compact
Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679).

    L = mean over the real positions of KL( softmax(z_T / tau) || softmax(z_S / tau) )

A position is a token of a sequence, a place of a dense output, or the one answer of a classifier. Padding is left out,
and every position of the batch weighs the same; `kd` averages within each sample first and multiplies by tau^2. tau
= 1 was the best in that paper. Its gradient is that of the cross-entropy -sum p_T log p_S of "Distiller", arXiv
2109.11105, which differs from it by the teacher's entropy.

`positions = "labelled"` takes those alone that have a label (of a masked language model the masked ones): not -100.

Cost: O(B N V); the distributions of padding are never formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from nasdistill.interfaces import Batch, DistillationLoss, Example, ModelGeometry, SiteNeeds, StepInfo, Terms, Trace
from nasdistill.spec.options import ComponentOptions, searchable
from nasdistill_losses._logits import LOGITS, answer_rows, check_outputs, divergence, labelled, row_mean


class LogitKLOptions(ComponentOptions):
    """Options of `logit_kl`."""

    temperature: float = searchable(1.0, choices=(0.5, 1.0, 2.0, 4.0), gt=0, description="tau: divides the logits.")
    positions: Literal["all", "labelled"] = Field(
        "all", description="All real positions, or those that have a label, where the batch has any."
    )


def logit_kl_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the loss of logits ``(M, K)``, a row for each position that counts; none into the teacher, no tau^2."""
    return row_mean(divergence(student.float(), teacher.detach().float(), temperature))


class LogitKL(DistillationLoss):
    """See the module's text."""

    options_model = LogitKLOptions
    options: LogitKLOptions
    examples = (Example(), Example({"temperature": 2.0}, {"pairs": ("decoder",)}, "soft"))

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Check that both models give the same outputs. Raises MismatchError."""
        check_outputs(student, teacher, "logit_kl")

    def sites(self) -> SiteNeeds:
        """Both models' logits."""
        return SiteNeeds.of([LOGITS], [LOGITS])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return ``{"kl": loss}``."""
        chosen = labelled(batch) if self.options.positions == "labelled" else None
        rows = answer_rows(student.signal(LOGITS), teacher.signal(LOGITS), chosen)
        return {"kl": logit_kl_loss(*rows, self.options.temperature)}
