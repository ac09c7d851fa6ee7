r"""ZiCo: "Zero-shot NAS via Inverse Coefficient of Variation on Gradients" (arXiv:2301.11300).

For T batches, g_t the loss gradient of one weight on batch t:

    s_l = sum_i  mean_t |g_ti| / std_t(g_ti)      over the weights of layer l with std > 0,  std with 1/T
    score = sum_l log s_l

A large gradient that keeps its value from batch to batch promises fast convergence and good generalisation.

- Cost: T forwards and backwards of labelled batches (T = 2 in the paper; 64 to 128 samples each).
- Initialisation: the network's own. Mode: train (batch statistics).
- Orientation: higher is better.
- With T = 2 each weight contributes (|g1| + |g2|) / |g1 - g2| >= 1, exactly 1 where the signs differ. So
  s_l >= number of live weights in l, and the score contains sum_l log(size of l): read it beside the parameter count.
- A layer whose gradients do not vary at all is skipped, as in the released code; when that is every layer (identical
  batches) there is no score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Proxy, ProxyInput, ProxyScore
from nasdistill.spec.options import ComponentOptions
from nasdistill_proxies._weights import loss_gradients


class ZiCoOptions(ComponentOptions):
    """Options of ZiCo."""

    batches: int = Field(2, ge=2, le=64, description="T, the number of labelled batches.")


def inverse_variation(gradients: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return name -> s_l for the layers whose gradients vary.

    Args:
        gradients: for each batch, layer name -> gradient.

    Raises:
        ValueError: fewer than two batches have no deviation.
    """
    if len(gradients) < 2:
        raise ValueError(f"ZiCo needs the gradients of at least two batches, got {len(gradients)}")
    found = {}
    for name in gradients[0]:
        stacked = torch.stack([batch[name] for batch in gradients]).double()
        deviation = stacked.std(dim=0, correction=0)
        live = deviation > 0
        value = float((stacked.abs().mean(dim=0)[live] / deviation[live]).sum())
        # NaN is kept: a network with NaN gradients must fail, not lose its layers.
        if value != 0.0 or bool(deviation.isnan().any()):
            found[name] = math.nan if bool(deviation.isnan().any()) else value
    return found


class ZiCo(Proxy):
    """Sum over layers of the log inverse coefficient of variation of the gradients."""

    options_model = ZiCoOptions
    options: ZiCoOptions

    def batches_needed(self) -> int:
        """Return T."""
        return self.options.batches

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the score, and log s_l of each layer as parts.

        Raises:
            TrialFailure: fewer batches than T, or the gradients are the same on all of them.
        """
        if len(candidate.batches) < self.options.batches:
            raise TrialFailure(
                "too_few_batches", f"{self.options.batches} batches are needed, {len(candidate.batches)} were given"
            )
        gradients = [
            loss_gradients(candidate.model, batch, candidate.forward, candidate.loss)[1]
            for batch in candidate.batches[: self.options.batches]
        ]
        parts = {name: math.log(value) for name, value in inverse_variation(gradients).items()}
        if not parts:
            raise TrialFailure("degenerate", "the gradients are the same on every batch; are the batches identical?")
        return ProxyScore(sum(parts.values()), parts)
