"""Hidden states and stage maps of paired layers (FitNets: "Hints for Thin Deep Nets", arXiv 1412.6550; TinyBERT,
arXiv 1909.10351).

For each pair (i, j) of layers, with a learned linear map W where the widths differ:

    mse:     mean over valid tokens and channels of (W h_S - h_T)^2
    cosine:  mean over valid tokens of 1 - cos(W h_S, h_T)

averaged over the pairs; which layers are paired is an option, as are transport over all of them and the embeddings
(`mapping`, `embedding`). A stage map ``(B, C, H, W)`` is read as one token per position, so W is a 1x1 convolution and
a convolutional student can learn from a transformer, or the other way round: where both sides lie on image grids of
different sizes, class tokens are dropped and the finer grid is reduced bilinearly to the coarser one. W is trained
with the student and thrown away.

Differences from the papers: FitNets trains the hint alone first and uses a convolutional regressor; here the term is
one of an objective, and W looks at one position.

Cost: O(B N Cs Ct) per pair.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nasdistill.interfaces import Example
from nasdistill_losses._layerwise import LayerwiseLoss
from nasdistill_losses._mapping import LayerOptions
from nasdistill_losses._tokens import sample_mean


class HiddenStatesOptions(LayerOptions):
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


class HiddenStates(LayerwiseLoss):
    """See the module's text.

    Attributes:
        projectors: one linear map per pair that needs one, named ``student_teacher``.
    """

    options_model = HiddenStatesOptions
    options: HiddenStatesOptions
    name = "hidden"
    examples = (
        Example(),
        Example({"metric": "cosine", "layers": "last"}, {"pairs": ("text",)}, "cosine"),
        Example({"normalise": True}, {"pairs": ("text",)}, "normalised"),
        Example({"layers": [[0, 0], [-1, -1]]}, {"pairs": ("text",)}, "chosen layers"),
        Example({}, {"pairs": ("vit_from_finer",)}, "other grids"),
        Example({"mapping": "emd", "embedding": True}, {"pairs": ("text",)}, "transport"),
    )

    def always_projected(self) -> bool:
        """Whether equal widths get a map, too."""
        return self.options.projector == "always"

    def compare(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Return the value of one pair."""
        return hidden_loss(student, teacher, valid, metric=self.options.metric, normalise=self.options.normalise)
