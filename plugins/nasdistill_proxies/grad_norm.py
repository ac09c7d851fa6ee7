r"""Gradient norm at initialisation.

    score = sum_l || dL / dw_l ||_2        l over convolution, linear and attention-projection weights

the sum of the layers' norms, not the norm of the whole gradient. L is the task's loss, mean over the batch, so values
at different batch sizes are not comparable.

- Cost: one forward and one backward of one labelled batch (64 is usual).
- Initialisation: the network's own. Mode: train (batch statistics; with the running statistics of a fresh network,
  activations explode or vanish with depth).
- Orientation: higher is better. Published as a baseline in "Zero-Cost Proxies for Lightweight NAS"
  (arXiv:2101.08134). On the 9,445 live NAS-Bench-201 cells with the scores of NAS-Bench-Suite-Zero (arXiv:2210.03230)
  it ranks CIFAR-10 validation accuracy with Spearman .55, well behind the parameter count (.75).
- It grows with depth and with the number of layers: a sum over layers is a size measure too.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nasdistill.interfaces import Proxy, ProxyInput, ProxyScore
from nasdistill_proxies._weights import loss_gradients


def gradient_norms(gradients: Mapping[str, Tensor]) -> dict[str, float]:
    """Return name -> Euclidean norm of each gradient, accumulated in float64."""
    return {name: float(gradient.double().norm()) for name, gradient in gradients.items()}


class GradNorm(Proxy):
    """Sum over layers of the norm of the loss gradient."""

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the sum, and the norm of each layer as parts.

        Raises:
            TrialFailure: the network has no convolution or linear weight.
        """
        _, gradients = loss_gradients(candidate.model, candidate.batch, candidate.forward, candidate.loss)
        norms = gradient_norms(gradients)
        return ProxyScore(sum(norms.values()), norms)
