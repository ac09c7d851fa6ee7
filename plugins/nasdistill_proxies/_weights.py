"""The weights that gradient proxies look at: those of matrix products (convolutions, linear layers, attention)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Batch

_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def product_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> weight of every matrix product of `model`, each parameter once (tied weights share a name).

    These are the weights of convolutions and linear layers, and the packed input projection of
    ``nn.MultiheadAttention`` (its output projection is a linear layer already). Biases, normalisation scales and
    embeddings are left out, as the published implementations do.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            labels: tuple[str, ...] = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            labels = _ATTENTION_WEIGHTS
        else:
            continue
        for label in labels:
            weight = getattr(module, label, None)
            if isinstance(weight, nn.Parameter) and id(weight) not in seen:
                seen.add(id(weight))
                found[f"{name}.{label}" if name else label] = weight
    return found


def weight_gradients(
    model: nn.Module, weights: Mapping[str, nn.Parameter], objective: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """Return name -> d objective / d weight, detached; zeros for a weight that the objective does not reach.

    Args:
        model: named in the error only.
        weights: of :func:`product_weights`; made to require a gradient (a frozen network has one too).
        objective: computes the scalar.

    Raises:
        TrialFailure: reason ``"no_weights"``: nothing to differentiate, or the objective depends on no weight.
    """
    for weight in weights.values():
        weight.requires_grad_(True)
    value = objective()
    if not weights or not value.requires_grad:
        raise TrialFailure("no_weights", f"{type(model).__name__} has no convolution or linear weight in its forward")
    found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient.detach()
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }


def loss_gradients(
    model: nn.Module,
    batch: Batch,
    forward: Callable[[nn.Module, Batch], Tensor],
    loss: Callable[[Tensor, Batch], Tensor],
) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Return the product weights of `model` and the gradients of the task's loss on one batch."""
    weights = product_weights(model)
    return weights, weight_gradients(model, weights, lambda: loss(forward(model, batch), batch))
