r"""GradSign: do the samples agree on where each weight should go?

    score = sum_k | sum_i sign( dL(x_i, y_i) / dw_k ) |        k over all weights, i over the samples

Under the paper's assumptions, the more the samples' gradients agree in sign at a random starting point, the closer
their own optima lie to each other and the lower the loss that one network reaches on all of them.

- Cost: one forward and one backward per sample; memory for one count per weight. Labels are read.
- Initialisation: the network's own. Mode: eval, since a batch of one has no batch statistics.
- Orientation: higher is better. It is at most samples x weights, so it grows with the network: a size measure too.
- The result is a whole number and does not depend on the order of the samples.

Source: "GradSign: Model Performance Inference with Theoretical Insights", arXiv 2110.08616.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Batch, Proxy, ProxyInput, ProxyScore
from torch import Tensor, nn


def gradient_signs(model: nn.Module, batch: Batch, loss: Callable[[nn.Module, Batch], Tensor]) -> dict[str, Tensor]:
    """Return name -> sum over the samples of the sign of the gradient, one whole number per weight.

    Args:
        model: the network.
        batch: B samples.
        loss: the loss of some of them.

    Raises:
        TrialFailure: a gradient is not finite.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    counts = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for index in range(batch.size):
        value = loss(model, batch.select(torch.tensor([index], device=batch.ids.device)))
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if not bool(gradient.isfinite().all()):  # the sign of what is no number would be 0
                raise TrialFailure("degenerate", f"the gradient of {name} is not finite")
            counts[name] += gradient.sign()
    return counts


class GradSign(Proxy):
    """Agreement of the samples' gradients in sign."""

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the score, and as a part its share of the largest possible one.

        Raises:
            TrialFailure: a gradient is not finite, or there is no weight to look at.
        """

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return candidate.loss(candidate.forward(model, batch), batch)

        counts = gradient_signs(candidate.model, candidate.batch, loss)
        if not counts:
            raise TrialFailure("unsupported", "the network has no trainable weight")
        value = sum(float(count.abs().sum(dtype=torch.float64)) for count in counts.values())
        largest = candidate.batch.size * sum(count.numel() for count in counts.values())
        return ProxyScore(value, {"agreement": value / largest})
