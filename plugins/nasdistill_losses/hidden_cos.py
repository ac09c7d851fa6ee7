"""Direction of hidden states, token by token, with one linear map for all layers (the intermediate loss of
Muralidharan et al.: "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679; the Cos loss of
He et al.: "Distiller", arXiv 2109.11105).

    L = mean over pairs, samples and valid tokens of 1 - cos(W h_S, h_T)

W is a linear map from the student's width to the teacher's, shared by all pairs and trained with the student; there is
none where the widths agree. Stage maps of several widths have one map per pair of widths.

The first paper compares what comes after a norm, of one pair of blocks, the third from the end of each, and, when many
layers are gone, the embeddings too:

    {"student_signal": "norm", "teacher_signal": "norm", "layers": [[-2, -2]], "embedding": true}

In a model that normalises before its layers, the output of a block's first norm is the block before it, normalised;
`norm` of the last but one is therefore the third block from the end. `balance = "dynamic"` of the objective weighs
this against the logits as that paper does.

Cost: O(B N Cs Ct) per pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nasdistill.interfaces import Example
from nasdistill_losses._layerwise import LayerwiseLoss
from nasdistill_losses._mapping import LayerOptions
from nasdistill_losses._tokens import sample_mean


class HiddenCosineOptions(LayerOptions):
    """Options of `hidden_cos`."""


def hidden_cos_loss(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return 1 - cosine of ``(B, N, C)`` tokens, averaged over each sample's valid ones, then over samples.

    A vector of the teacher that is all 0, as behind a ReLU, has no direction: such a token counts 0.

    Args:
        student: of the student, in the teacher's width.
        teacher: of the teacher; no gradient flows into it.
        valid: ``(B, N)`` bool; None = all.
    """
    ours, theirs = student.float(), teacher.detach().float()
    distance = 1 - F.cosine_similarity(ours, theirs, dim=-1)
    return sample_mean(torch.where(theirs.any(-1), distance, torch.zeros_like(distance)), valid)


class HiddenCosine(LayerwiseLoss):
    """See the module's text.

    Attributes:
        projectors: the shared map, named by its widths; empty where they agree.
    """

    options_model = HiddenCosineOptions
    options: HiddenCosineOptions
    name = "hidden_cos"
    shared_map = True
    examples = (
        Example(),
        Example({"mapping": "skip", "embedding": True}, {"pairs": ("text",)}, "uniform stride and embeddings"),
        Example(
            {"student_signal": "norm", "teacher_signal": "norm", "layers": [[-1, -1]]},
            {"pairs": ("decoder",)},
            "behind a norm",
        ),
    )

    def compare(self, student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
        """Return the value of one pair."""
        return hidden_cos_loss(student, teacher, valid)
