"""What teacher-aware proxies read from a network of any family: the last feature map and the classifier.

Found by behaviour during one forward, never by module names: the classifier is the last linear layer (or 1 x 1
convolution) that writes as many outputs as the task has; the features are the last map (B, C, H, W) or token tensor
(B, N, C) that any module returned before it, poolings not counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Batch


@dataclass(slots=True)
class HeadTrace:
    """What one forward showed.

    Attributes:
        features: last map or tokens before pooling, with their graph; the classifier's input where the network has
            neither (a multi-layer perceptron).
        classifier: weight of the classifier, (K, c) or (K, c, 1, 1), the parameter itself.
        output: the network's output, with its graph.
    """

    features: Tensor
    classifier: Tensor
    output: Tensor

    @property
    def width(self) -> int:
        """Number c of features the classifier reads."""
        return int(self.classifier[0].numel())


@dataclass(slots=True)
class _Seen:
    """What the hooks have met so far."""

    features: Tensor | None = None
    classifier: nn.Linear | nn.Conv2d | None = None
    before_classifier: Tensor | None = None
    inputs: Tensor | None = None
    handles: list[Any] = field(default_factory=list)


def use_batch_statistics(model: nn.Module) -> nn.Module:
    """Put batch normalisation into train mode and everything else (dropout, drop path) into eval mode; returns `model`.

    A fresh network's running statistics are meaningless, so features are taken with those of the batch; what is
    random in train mode would only add noise to a comparison.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return model


@contextlib.contextmanager
def _watch(model: nn.Module, size: int, outputs: int) -> Iterator[_Seen]:
    """Record features and classifier while the block runs `model`; leaves no hook behind."""
    seen = _Seen()

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            return
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == outputs:
            # Each match replaces the one before: an inner layer may happen to be K wide as well.
            seen.classifier, seen.before_classifier, seen.inputs = module, seen.features, source
        if output.dim() in (3, 4) and output.shape[0] == size:
            # A module without parameters whose output is smaller than its input pools; its output is no feature map.
            shrinks = source is not None and output.numel() < source.numel()
            if not (shrinks and next(module.parameters(), None) is None):
                seen.features = output

    try:
        for module in model.modules():
            seen.handles.append(module.register_forward_hook(hook))
        yield seen
    finally:
        for handle in seen.handles:
            handle.remove()


def trace_head(
    model: nn.Module, batch: Batch, forward: Callable[[nn.Module, Batch], Tensor], outputs: int, *, label: str
) -> HeadTrace:
    """Run `model` once and return its features, classifier and output.

    Args:
        model: the network; its parameters are made to require gradients by the caller where needed.
        batch: B samples.
        forward: how the task calls the model.
        outputs: number K of classes.
        label: how to name the model in messages.

    Raises:
        TrialFailure: reason ``"no_classifier"``: nothing writes K outputs.
    """
    with _watch(model, batch.size, outputs) as seen:
        output = forward(model, batch)
    if seen.classifier is None:
        raise TrialFailure("no_classifier", f"the {label} has no linear layer with {outputs} outputs")
    features = seen.before_classifier if seen.before_classifier is not None else seen.inputs
    if features is None:
        raise TrialFailure("no_features", f"the {label} shows no feature map, tokens or vector before its classifier")
    return HeadTrace(features, seen.classifier.weight, output)
