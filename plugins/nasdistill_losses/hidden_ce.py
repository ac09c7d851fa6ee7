"""Hidden states as distributions over channels (the CE loss of He et al.: "Distiller: A Systematic Study of Model
Distillation Methods in NLP", arXiv 2109.11105).

    L = mean over pairs, samples and valid tokens of - sum_c softmax(h_T)_c log softmax(W h_S)_c

with a learned linear map W per pair where the widths differ. That paper reads it as a bound of the mutual information
of two layers under a categorical critic, as it reads the squared error (`hidden`) under a Gaussian one and the cosine
(`hidden_cos`, `pkd`) under a von Mises one.

The minimum is the entropy of the teacher's distributions, not 0. It does not depend on the student and, because every
teacher layer has the same share of the transport, not on the plan of `mapping = "emd"` either.

Cost: O(B N Cs Ct) per pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nasdistill.interfaces import Example
from nasdistill_losses._layerwise import LayerwiseLoss
from nasdistill_losses._mapping import LayerOptions
from nasdistill_losses._tokens import sample_mean


class HiddenCrossEntropyOptions(LayerOptions):
    """Options of `hidden_ce`."""


def hidden_ce_loss(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the cross-entropy over the channels of ``(B, N, C)`` tokens, averaged over valid tokens and samples.

    Args:
        student: of the student, in the teacher's width.
        teacher: of the teacher; no gradient flows into it.
        valid: ``(B, N)`` bool; None = all.
    """
    target = torch.softmax(teacher.detach().float(), dim=-1)
    return sample_mean(-(target * torch.log_softmax(student.float(), dim=-1)).sum(-1), valid)


class HiddenCrossEntropy(LayerwiseLoss):
    """See the module's text.

    Attributes:
        projectors: one linear map per pair of different widths.
    """

    options_model = HiddenCrossEntropyOptions
    options: HiddenCrossEntropyOptions
    name = "hidden_ce"
    examples = (
        Example(),
        Example({"mapping": "last"}, {"pairs": ("text",)}, "the teacher's last layers"),
        Example({"mapping": "emd"}, {"pairs": ("text",)}, "transport"),
    )

    def compare(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Return the value of one pair."""
        return hidden_ce_loss(student, teacher, valid)
