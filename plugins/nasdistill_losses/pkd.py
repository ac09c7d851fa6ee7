"""Directions of the class token, layer by layer (Sun et al.: "Patient Knowledge Distillation for BERT Model
Compression", arXiv 1908.09355; one of the losses of "Distiller", arXiv 2109.11105).

    L = mean over pairs and samples of || h_S / |h_S| - h_T / |h_T| ||^2        (= 2 - 2 cos)

h is a layer's vector of the class token; of causal models, which have none, the last real token's, of stage maps the
mean over positions (option `position`). Lengths, grids and tokenisations of the two models may differ.

The paper's students are as wide as their teacher. Other widths get a learned linear map per pair, as in Distiller.

Cost: O(B Cs Ct) per pair.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nasdistill.interfaces import Example, ModelGeometry, Signal, Site
from nasdistill_losses._layerwise import LayerwiseLoss
from nasdistill_losses._mapping import LayerOptions
from nasdistill_losses._pairs import Pair
from nasdistill_losses._vectors import POSITION_HELP, Position, choose_position, sample_vectors


class PatientOptions(LayerOptions):
    """Options of `pkd`."""

    position: Position = Field("auto", description=POSITION_HELP)


def pkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance of normalised vectors ``(B, C)``, averaged over samples; none into the teacher."""
    ours, theirs = F.normalize(student.float(), dim=-1), F.normalize(teacher.detach().float(), dim=-1)
    return (ours - theirs).square().sum(-1).mean()


class PatientDistillation(LayerwiseLoss):
    """See the module's text.

    Attributes:
        projectors: one linear map per pair of different widths.
    """

    options_model = PatientOptions
    options: PatientOptions
    name = "pkd"
    examples = (
        Example(),
        Example({"mapping": "skip", "position": "mean"}, {"pairs": ("text",)}, "mean, uniform stride"),
        Example({"mapping": "emd"}, {"pairs": ("text_from_decoder",)}, "class token from last token, transport"),
    )

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Pair the layers and create the maps. Raises MismatchError where a model has no layers to compare."""
        self._at: dict[Pair, tuple[Position, Position]] = {}
        super().build(student, teacher, layer_map)

    def prepare(self, student: ModelGeometry, ours: Site, teacher: ModelGeometry, theirs: Site) -> None:
        """Note where the vectors are; any two layers can be compared."""
        at = self.options.position
        self._at[ours, theirs] = choose_position(at, student, ours), choose_position(at, teacher, theirs)

    def gather(self, pair: Pair, student: Signal, teacher: Signal) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return one vector per sample of each side."""
        ours, theirs = self._at[pair]
        return sample_vectors(student, ours), sample_vectors(teacher, theirs), None

    def compare(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Return the value of one pair."""
        return pkd_loss(student, teacher)
