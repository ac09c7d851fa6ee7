"""Embeddings of whole samples, such as sentences: the vectors themselves, and how they lie to each other.

    vector:      mean over samples of 1 - cos(W e_S, e_T)      (`metric = "cosine"`)
                 mean over samples and channels of (W e_S - e_T)^2          (`"mse"`: Reimers, Gurevych: "Making
                 Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", arXiv 2004.09813)
    similarity:  mean over all ordered pairs i, j of the batch of (cos(e_S,i, e_S,j) - cos(e_T,i, e_T,j))^2
    L = vector_weight * vector + similarity_weight * similarity

e is the model's answer, ``logits`` ``(B, D)``. W is a linear map where the widths differ, trained with the student and
thrown away: then the first term alone does not make the student's own cosines right, and the second one, which needs
no map, does. Pairs i = i agree and are counted, so that a batch that is repeated is worth the same.

`relation` compares similarities too, of any site and with each row of the matrix normalised, so it says nothing about
their level; `kd` and other losses on distributions make no sense of an embedding.

Cost: O(B Ds Dt + B^2 D).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Batch, DistillationLoss, Example, ModelGeometry, SiteNeeds, StepInfo, Terms, Trace
from nasdistill.spec.options import ComponentOptions, searchable
from nasdistill_losses._logits import LOGITS
from nasdistill_losses._pairs import resolve, shapes_text


class EmbeddingOptions(ComponentOptions):
    """Options of `embedding`."""

    metric: Literal["cosine", "mse"] = searchable(
        "cosine", choices=("cosine", "mse"), description="How two vectors are compared."
    )
    vector_weight: float = Field(1.0, ge=0, description="Weight of the vectors.")
    similarity_weight: float = Field(1.0, ge=0, description="Weight of the similarities within the batch.")

    @model_validator(mode="after")
    def _something(self) -> EmbeddingOptions:
        if not self.vector_weight + self.similarity_weight:
            raise ValueError("both weights are 0")
        return self


def vector_loss(student: Tensor, teacher: Tensor, metric: str = "cosine") -> Tensor:
    """Return the distance of ``(B, D)`` embeddings of equal width, averaged over samples; none into the teacher."""
    ours, theirs = student.float(), teacher.detach().float()
    if metric == "mse":
        return F.mse_loss(ours, theirs)
    return (1 - F.cosine_similarity(ours, theirs, dim=-1)).mean()


def in_batch_similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines among rows of ``(B, Ds)`` and among those of ``(B, Dt)``."""
    return (_cosines(student) - _cosines(teacher.detach())).square().mean()


def _cosines(rows: Tensor) -> Tensor:
    with torch.autocast(device_type=rows.device.type, enabled=False):
        unit = F.normalize(rows.float(), dim=-1)
        return unit @ unit.T


class Embedding(DistillationLoss):
    """See the module's text.

    Attributes:
        projector: W, or None where the widths agree.
    """

    options_model = EmbeddingOptions
    options: EmbeddingOptions
    examples = (
        Example({}, {"pairs": ("embedding", "text")}),
        Example({"metric": "mse", "similarity_weight": 0.0}, {"pairs": ("embedding",)}, "squared error"),
        Example({"vector_weight": 0.0}, {"pairs": ("embedding",)}, "similarities alone"),
    )

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Check that both models answer with one vector per sample.

        Raises:
            MismatchError: they do not.
        """
        ours, theirs = (
            resolve(student, LOGITS, "embedding", "student"),
            resolve(teacher, LOGITS, "embedding", "teacher"),
        )
        if {student[ours].layout, teacher[theirs].layout} != {"vector"}:
            raise MismatchError(
                f"embedding needs one vector per sample: {shapes_text(student, ours, teacher, theirs)}",
                hint="Choose `kd` for answers per token, `hidden_cos` or `relation` for hidden states.",
            )
        widths = student[ours].width, teacher[theirs].width
        self.projector = nn.Linear(*widths) if widths[0] != widths[1] and self.options.vector_weight else None

    def sites(self) -> SiteNeeds:
        """Both models' answers."""
        return SiteNeeds.of([LOGITS], [LOGITS])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return the weighted terms ``vector`` and ``similarity``, without one of weight 0."""
        o, terms = self.options, Terms()
        ours, theirs = student.logits, teacher.logits.detach()
        if o.vector_weight:
            mapped = ours if self.projector is None else self.projector(ours.to(self.projector.weight.dtype))
            terms["vector"] = o.vector_weight * vector_loss(mapped, theirs, o.metric)
        if o.similarity_weight:
            terms["similarity"] = o.similarity_weight * in_batch_similarity_loss(ours, theirs)
        return terms
