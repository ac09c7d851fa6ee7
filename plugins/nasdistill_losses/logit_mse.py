"""Squared distance of logits (Ba, Caruana: "Do Deep Nets Really Need to be Deep?", arXiv 1312.6184; the MSE loss on
logits of "Distiller: A Systematic Study of Model Distillation Methods in NLP", arXiv 2109.11105).

    L = mean over the real positions and the classes of (z_S / T - z_T / T)^2

Other than the losses on probabilities it asks for the same level of the logits, not only for the same differences.
Padding is left out; every position of the batch weighs the same. No T^2.

Cost: O(B N K).
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from nasdistill.interfaces import Batch, DistillationLoss, ModelGeometry, SiteNeeds, StepInfo, Terms, Trace
from nasdistill.spec.options import ComponentOptions
from nasdistill_losses._logits import LOGITS, answer_rows, check_outputs, row_mean


class LogitMSEOptions(ComponentOptions):
    """Options of `logit_mse`."""

    temperature: float = Field(1.0, gt=0, description="T: divides the logits, the loss by its square.")


def logit_mse_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the loss of logits ``(M, K)``, a row for each position that counts; none into the teacher."""
    difference = (student.float() - teacher.detach().float()) / temperature
    return row_mean(difference.square().mean(-1))


class LogitMSE(DistillationLoss):
    """See the module's text."""

    options_model = LogitMSEOptions
    options: LogitMSEOptions

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Check that both models give the same outputs. Raises MismatchError."""
        check_outputs(student, teacher, "logit_mse")

    def sites(self) -> SiteNeeds:
        """Both models' logits."""
        return SiteNeeds.of([LOGITS], [LOGITS])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return ``{"mse": loss}``."""
        rows = answer_rows(student.signal(LOGITS), teacher.signal(LOGITS))
        return {"mse": logit_mse_loss(*rows, self.options.temperature)}
