"""Networks and the batches that they take, as an example of a component may choose them, and how to call and compare.

A component of another domain names in its example's context what it wants to be tried on: ``model`` (``"SmallViT"`` of
:mod:`nasdistill.testing.kit.models`, or ``"package.module:callable"``) and ``batch`` (``"package.module:callable"``,
which returns a :class:`~nasdistill.interfaces.Batch`). Everything else is tried on digits.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch
from nasdistill.seeds import seeded
from nasdistill.testing.kit.models import digits, digits_loss, maker


def label_of(what: Any) -> str:
    """Return how messages call a network that was asked for."""
    return what if isinstance(what, str) else getattr(what, "__name__", "the network")


def samples(named: str | Callable[[], Batch] | None = None, size: int = 16, start: int = 0) -> Batch:
    """Return a new batch of up to `size` samples: digits from `start` on, or what `named` makes."""
    if named is None:
        return digits(size, start)
    if isinstance(named, str):
        module, _, attribute = named.partition(":")
        named = getattr(importlib.import_module(module), attribute)
    assert callable(named)
    batch = named()
    return batch.select(torch.arange(min(size, batch.size)))


def network(what: Any, batch: Batch | None = None, *, seed: int = 0) -> nn.Module:
    """Return a network in eval mode whose normalisation statistics are not the initial ones.

    Args:
        what: as :func:`nasdistill.testing.kit.models.maker` takes it.
        batch: what it takes; digits unless given.
        seed: of its weights.
    """
    with seeded(seed, "model"), torch.no_grad():
        model = maker(what)().train()
        forward(model, digits(16, start=200) if batch is None else batch)
    return model.eval()


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """Call a model on a batch, as a task does: images by position, other inputs by name."""
    output: Tensor = model(batch.image) if "image" in batch.inputs else model(**batch.inputs)
    return output


def outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return a model's outputs in eval mode, without gradients; its mode is as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return forward(model.eval(), batch).clone()
    finally:
        for module, mode in modes.items():
            module.training = mode


def objective(output: Tensor, batch: Batch) -> Tensor:
    """Return the cross entropy of the labels, or the mean square where there are no classes."""
    labels = batch.labels
    if labels is None or labels.ndim != 1 or labels.is_floating_point() or output.ndim != 2:
        return output.float().square().mean()
    return digits_loss(output, batch)


def descend(parameters: Iterable[nn.Parameter], loss: Tensor, length: float = 0.02) -> None:
    """Take one step of that length down the gradient; gradients are left in the parameters.

    torch's own optimisers import its compiler first, which takes longer than everything else here.
    """
    trained = list(parameters)
    for parameter in trained:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if gradients:
        scale = length / float(torch.stack([gradient.norm() for gradient in gradients]).norm().clamp_min(1e-12))
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=scale)


def gap(first: Tensor, second: Tensor) -> float:
    """Return the largest difference, relative to the largest value where that is above 1; NaN counts as infinite."""
    found = float((first - second).abs().max() / first.abs().max().clamp_min(1.0))
    return found if math.isfinite(found) else math.inf
