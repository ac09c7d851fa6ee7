"""How the samples of a batch relate to each other.

similarity (Tung, Mori: "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682; the relation term of DisWOT,
arXiv 2303.15678): F is a signal with all positions and channels of a sample in one row, G = F F^T ``(B, B)``, each row
divided by its L2 norm;

    L = ||G_T - G_S||_F^2 / B

distance and angle (Park et al.: "Relational Knowledge Distillation", arXiv 1904.05068): f is the signal averaged over
positions, d_ij = |f_i - f_j| divided by the mean over all pairs, e_ij the unit vector from j to i, and with the Huber
function h

    L_D = mean over pairs of h(d_ij^S - d_ij^T)          L_A = mean over triples of h(<e_ij, e_kj>^S - <e_ij, e_kj>^T)

Nothing must agree between the models: neither widths nor resolutions nor families.

Differences: the first papers divide by B^2; as rows have norm 1 that makes the value fall with the batch size, so here
it is B. The means of the last one run over all ordered pairs and triples, equal members included (they are 0), which
makes a repeated batch worth the same.

Cost: O(B^2 N C); angle O(B^3 C).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    Batch,
    DistillationLoss,
    Example,
    ModelGeometry,
    Signal,
    Site,
    SiteNeeds,
    StepInfo,
    Terms,
    Trace,
)
from nasdistill.spec.options import ComponentOptions
from nasdistill_losses._pairs import resolve
from nasdistill_losses._tokens import as_tokens


class SampleRelationsOptions(ComponentOptions):
    """Options of `relation`."""

    form: Literal["similarity", "distance", "angle", "distance_angle"] = Field(
        "similarity", description="What is compared between samples; the last one is 1 x distance + 2 x angle."
    )
    student_site: str = Field(
        "auto", description="Site of the student, such as `features.-1`; `auto`: last block, else last stage map, "
        "else `pooled`, else `logits`.",
    )  # fmt: skip
    teacher_site: str = Field("auto", description="Site of the teacher, likewise.")


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of the row-normalised similarity matrices of ``(B, X)`` and ``(B, Y)``."""
    ours, theirs = _similarity(student), _similarity(teacher.detach())
    return (ours - theirs).square().sum() / ours.shape[0]


def _similarity(rows: Tensor) -> Tensor:
    with torch.autocast(device_type=rows.device.type, enabled=False):
        rows = rows.float()
        # The rows of G are normalised anyway, so a common factor is free: keep G far from overflow.
        rows = rows / rows.detach().abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        return F.normalize(rows @ rows.T, dim=1)


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber distance of the relative pairwise distances of ``(B, X)`` and ``(B, Y)``."""
    return F.smooth_l1_loss(_distances(student), _distances(teacher.detach()))


def _distances(rows: Tensor) -> Tensor:
    distances = torch.cdist(rows.float(), rows.float(), compute_mode="donot_use_mm_for_euclid_dist")
    return distances / distances.mean().clamp_min(1e-12)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber distance of the cosines of all angles among ``(B, X)`` and among ``(B, Y)``."""
    return F.smooth_l1_loss(_angles(student), _angles(teacher.detach()))


def _angles(rows: Tensor) -> Tensor:
    with torch.autocast(device_type=rows.device.type, enabled=False):
        rows = rows.float()
        unit = F.normalize(rows[None] - rows[:, None], dim=-1)  # [j, i] points from j to i
        return unit @ unit.transpose(1, 2)


class SampleRelations(DistillationLoss):
    """See the module's text."""

    options_model = SampleRelationsOptions
    options: SampleRelationsOptions
    examples = (
        Example(),
        Example({"form": "distance"}, {"pairs": ("text",)}, "distance"),
        Example({"form": "angle"}, {"pairs": ("text", "conv")}, "angle"),
        Example(
            {"form": "distance_angle", "student_site": "logits", "teacher_site": "pooled"},
            {"pairs": ("conv_from_vit",)},
            "chosen sites",
        ),
    )

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Choose the signals.

        Raises:
            MismatchError: a model has no such site.
        """
        self._student = _site(self.options.student_site, student, "student")
        self._teacher = _site(self.options.teacher_site, teacher, "teacher")

    def sites(self) -> SiteNeeds:
        """One site of each model."""
        return SiteNeeds.of([self._student], [self._teacher])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return ``{"similarity": L}``, or ``distance`` and ``angle``."""
        ours, theirs = student.signal(self._student), teacher.signal(self._teacher).detach()
        form = self.options.form
        if form == "similarity":
            return {"similarity": similarity_loss(_rows(ours), _rows(theirs))}
        pooled = _mean(ours), _mean(theirs)
        terms: Terms = {}
        if "distance" in form:
            terms["distance"] = distance_loss(*pooled)
        if "angle" in form:
            terms["angle"] = (2.0 if form == "distance_angle" else 1.0) * angle_loss(*pooled)
        return terms


def _rows(signal: Signal) -> Tensor:
    """One row per sample; padding becomes 0, which adds nothing to a product of rows."""
    tokens = as_tokens(signal)
    if signal.valid is not None:
        tokens = torch.where(signal.valid[..., None], tokens, torch.zeros_like(tokens))
    return tokens.flatten(1)


def _mean(signal: Signal) -> Tensor:
    """``(B, C)``: the mean over valid positions."""
    tokens = as_tokens(signal).float()
    if signal.valid is None:
        return tokens.mean(1)
    kept = torch.where(signal.valid[..., None], tokens, torch.zeros_like(tokens))
    return kept.sum(1) / signal.valid.sum(1, keepdim=True).clamp_min(1)


def _site(choice: str, geometry: ModelGeometry, side: str) -> Site:
    if choice == "auto":
        choice = next((s for s in ("hidden.-1", "features.-1", "pooled", "logits") if s in geometry), "logits")
    try:
        site = Site.parse(choice)
    except ValueError as error:
        raise MismatchError(f"relation: {error}") from None
    site = resolve(geometry, site, "relation", side)
    if geometry[site].layout in ("heads", "scores"):
        raise MismatchError(
            f"relation compares tokens, maps or vectors, not {geometry[site].layout} {geometry[site].shape} at {site} "
            f"of {geometry.label}",
            hint="Choose hidden.i, features.i, pooled or logits.",
        )
    return site
