r"""SNIP: "Single-shot Network Pruning based on Connection Sensitivity" (arXiv:1810.02340), summed over the network.

The paper multiplies every weight by a mask entry m = 1 and takes |dL/dm|, the first-order change of the loss when
the connection is removed. By the chain rule dL/dm = w * dL/dw, so no forward has to be patched:

    score = sum_l sum_i | w_li * dL/dw_li |      l over convolution, linear and attention-projection weights

- Cost: one forward and one backward of one labelled batch (64 is usual).
- Initialisation: the network's own. Mode: train (batch statistics).
- Orientation: higher is better. Used as an architecture score by "Zero-Cost Proxies for Lightweight NAS"
  (arXiv:2101.08134). On the 9,445 live NAS-Bench-201 cells with the scores of NAS-Bench-Suite-Zero (arXiv:2210.03230)
  it ranks CIFAR-10 validation accuracy with Spearman .55, well behind the parameter count (.75).
- Departure: the pruning paper normalises the sensitivities to sum to one; a sum of those would always be 1, so the
  architecture score uses them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nasdistill.interfaces import Proxy, ProxyInput, ProxyScore
from nasdistill_proxies._weights import loss_gradients


def snip_saliency(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Return name -> sum |w * g| of each layer, accumulated in float64."""
    return {
        name: float((weight.detach() * gradients[name]).abs().sum(dtype=torch.float64))
        for name, weight in weights.items()
    }


class Snip(Proxy):
    """Sum of the connection sensitivities |w * dL/dw|."""

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the sum, and the sum of each layer as parts.

        Raises:
            TrialFailure: the network has no convolution or linear weight.
        """
        weights, gradients = loss_gradients(candidate.model, candidate.batch, candidate.forward, candidate.loss)
        saliency = snip_saliency(weights, gradients)
        return ProxyScore(sum(saliency.values()), saliency)
