r"""Jacobian covariance (jacov): how differently the untrained network treats the samples of a batch.

J is the gradient of the sum of all outputs with respect to the input, one row per sample, R [B, B] the correlation
matrix of its rows, v its eigenvalues:

    score = - sum_b ( log(v_b + k) + 1 / (v_b + k) ),    k = 1e-5

log v + 1/v has its minimum 1 at v = 1, so the score is at most -B, reached when the rows are uncorrelated: B fixes
the scale, and values at different batch sizes are not comparable.

- Source: "Neural Architecture Search without Training" (arXiv:2006.04647, first version); as a baseline in
  "Zero-Cost Proxies for Lightweight NAS" (arXiv:2101.08134). On the 9,445 live NAS-Bench-201 cells with the scores of
  NAS-Bench-Suite-Zero (arXiv:2210.03230) it ranks CIFAR-10 validation accuracy with Spearman .82 (parameters .75),
  but only .18 within the best fifth of the cells.
- Cost: one forward and one backward of one batch of floating-point inputs; no labels.
- Initialisation: the network's own. Mode: train (batch statistics).
- Orientation: higher is better.
- Departures: the released code uses a general eigenvalue solver, which may return complex numbers; R is symmetric, so
  the symmetric solver is used, in double precision. A constant row (a dead network) has no correlation and is a
  failure. R of B rows of D numbers is singular for B >= D, and every zero eigenvalue weighs 1/k: on small inputs (the
  8 x 8 digits) only D / 2 samples of the batch are used, those with the smallest ids, so that the order of the batch
  does not matter.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Proxy, ProxyInput, ProxyScore
from nasdistill.spec.options import ComponentOptions


class JacovOptions(ComponentOptions):
    """Options of the Jacobian covariance."""

    epsilon: float = Field(1e-5, gt=0, le=1e-2, description="k of the formula: keeps zero eigenvalues finite.")


def jacobian_covariance(jacobian: Tensor, epsilon: float = 1e-5) -> float:
    """Return the score of `jacobian` (B, D), one row per sample.

    Raises:
        TrialFailure: a row is constant or not finite, so that it has no correlation.
    """
    rows = jacobian.double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all()) or bool((norms == 0).any()):
        raise TrialFailure("degenerate", "the output does not depend on some inputs: their Jacobian is constant")
    rows = rows / norms
    # Rounding may leave an eigenvalue a little below zero, where the logarithm is undefined.
    values = torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0.0) + epsilon
    return -float((values.log() + values.reciprocal()).sum())


class Jacov(Proxy):
    """Spectrum of the correlation of the input Jacobians."""

    options_model = JacovOptions
    options: JacovOptions

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the score.

        Raises:
            TrialFailure: no floating-point input, or a constant Jacobian.
        """
        batch = candidate.batch
        numbers = sum(value[0].numel() for value in batch.inputs.values() if value.is_floating_point())
        if numbers < 2 * batch.size:
            batch = batch.select(batch.ids.argsort()[: max(1, numbers // 2)])
        inputs = {
            name: value.clone().requires_grad_(True) if value.is_floating_point() else value
            for name, value in batch.inputs.items()
        }
        leaves = [value for value in inputs.values() if value.requires_grad]
        if not leaves:
            raise TrialFailure("unsupported", f"no floating-point input to differentiate among {', '.join(inputs)}")
        output = candidate.forward(candidate.model, replace(batch, inputs=inputs))
        gradients = torch.autograd.grad(output.sum(), leaves, allow_unused=True, materialize_grads=True)
        rows = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1)
        return ProxyScore(jacobian_covariance(rows, self.options.epsilon))
