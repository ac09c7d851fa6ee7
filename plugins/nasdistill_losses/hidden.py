"""Hidden states and stage maps of paired layers (FitNets: "Hints for Thin Deep Nets", arXiv 1412.6550; TinyBERT,
arXiv 1909.10351).

For each pair (i, j) of layers, with a learned linear map W where the widths differ:

    mse:     mean over valid tokens and channels of (W h_S - h_T)^2
    cosine:  mean over valid tokens of 1 - cos(W h_S, h_T)

averaged over the pairs. A stage map ``(B, C, H, W)`` is read as one token per position, so W is a 1x1 convolution and
a convolutional student can learn from a transformer, or the other way round: where both sides lie on image grids of
different sizes, class tokens are dropped and the finer grid is reduced bilinearly to the coarser one. W is trained
with the student and thrown away.

Differences from the papers: FitNets trains the hint alone first and uses a convolutional regressor; here the term is
one of an objective, and W looks at one position.

Cost: O(B N Cs Ct) per pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Batch, DistillationLoss, Example, ModelGeometry, SiteNeeds, StepInfo, Terms, Trace
from nasdistill_losses._pairs import Pair, PairOptions, choose_pairs, shapes_text
from nasdistill_losses._tokens import align, comparable, sample_mean


class HiddenStatesOptions(PairOptions):
    """Options of `hidden`."""

    metric: Literal["mse", "cosine"] = Field("mse", description="How two vectors are compared.")
    projector: Literal["auto", "always"] = Field(
        "auto", description="`auto`: a learned linear map only where widths differ; `always`: for every pair."
    )
    normalise: bool = Field(
        False, description="Standardise each vector over its channels first (layer norm without weights; mse only)."
    )


def hidden_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None = None, *, metric: str = "mse", normalise: bool = False
) -> Tensor:
    """Return the distance of ``(B, N, C)`` vectors, averaged over valid tokens and samples; see the module's text."""
    ours, theirs = student.float(), teacher.detach().float()
    if metric == "cosine":
        return sample_mean(1 - F.cosine_similarity(ours, theirs, dim=-1), valid)
    if normalise:
        ours, theirs = F.layer_norm(ours, ours.shape[-1:]), F.layer_norm(theirs, theirs.shape[-1:])
    return sample_mean((ours - theirs).square().mean(-1), valid)


class HiddenStates(DistillationLoss):
    """See the module's text.

    Attributes:
        projectors: one linear map per pair that needs one, named ``student_teacher``.
    """

    options_model = HiddenStatesOptions
    options: HiddenStatesOptions
    examples = (
        Example(),
        Example({"metric": "cosine", "layers": "last"}, {"pairs": ("text",)}, "cosine"),
        Example({"normalise": True}, {"pairs": ("text",)}, "normalised"),
        Example({"layers": [[0, 0], [-1, -1]]}, {"pairs": ("text",)}, "chosen layers"),
        Example({}, {"pairs": ("vit_from_finer",)}, "other grids"),
    )

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Pair the layers and create the projectors.

        Raises:
            MismatchError: no such layers, or different tokens without image grids.
        """
        self.pairs = choose_pairs(self.options, student, teacher, layer_map, "hidden")
        self.projectors = nn.ModuleDict()
        for ours, theirs in self.pairs:
            if not comparable(student[ours], teacher[theirs]):
                raise MismatchError(
                    f"hidden cannot compare different tokens: {shapes_text(student, ours, teacher, theirs)}",
                    hint="Only image models of known grids can be resized; choose `kd` or `relation`.",
                )
            widths = student[ours].width, teacher[theirs].width
            if widths[0] != widths[1] or self.options.projector == "always":
                self.projectors[_name((ours, theirs))] = nn.Linear(*widths)

    def sites(self) -> SiteNeeds:
        """The paired layers."""
        return SiteNeeds.of([ours for ours, _ in self.pairs], [theirs for _, theirs in self.pairs])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return one term per pair, each divided by the number of pairs."""
        terms: Terms = {}
        for pair in self.pairs:
            ours, theirs, valid = align(student.signal(pair[0]), teacher.signal(pair[1]).detach())
            name = _name(pair)
            if name in self.projectors:
                ours = self.projectors[name](ours.to(self._dtype()))
            value = hidden_loss(ours, theirs, valid, metric=self.options.metric, normalise=self.options.normalise)
            terms[name] = value / len(self.pairs)
        return terms

    def _dtype(self) -> torch.dtype:
        return next(self.projectors.parameters()).dtype


def _name(pair: Pair) -> str:
    return f"{pair[0]}-{pair[1]}".replace(".", "_")
