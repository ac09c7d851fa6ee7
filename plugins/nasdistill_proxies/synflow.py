r"""SynFlow: "Pruning neural networks without any data by iteratively conserving synaptic flow" (arXiv:2006.05467).

With every parameter and buffer replaced by its absolute value, batch normalisation bypassed and an input of ones,

    R = sum of the outputs,    score = log sum_l sum_i | w_li * dR/dw_li |

On a chain without biases each layer's inner sum equals R: what flows in flows out ("conservation").

- Cost: one forward and one backward of a single input; no data, no labels.
- Initialisation: the network's own. Mode: eval, so that dropout is off (batch normalisation is bypassed anyway).
- Orientation: higher is better. Used as an architecture score by "Zero-Cost Proxies for Lightweight NAS"
  (arXiv:2101.08134). On the 9,445 live NAS-Bench-201 cells with the scores of NAS-Bench-Suite-Zero (arXiv:2210.03230)
  it ranks CIFAR-10 validation accuracy with Spearman .73, level with the parameter count (.75).
- Float64: positive weights make activations grow geometrically with depth; float32 overflows in deep networks. The
  logarithm keeps the value readable and does not change the order; the parts are each layer's raw sum.
- Departures: buffers of batch normalisation are irrelevant once it is bypassed. Layer and group normalisation,
  softmax and GELU stay as they are: no conservation law holds for transformers, and the score of one is a finite
  number, not a flow. Every tensor of the input is replaced by ones, token ids included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Batch, Proxy, ProxyInput, ProxyScore
from nasdistill.spec.options import ComponentOptions
from nasdistill_proxies._weights import product_weights, weight_gradients


class SynFlowOptions(ComponentOptions):
    """Options of SynFlow."""

    log: bool = Field(True, description="Report the logarithm of the flow (False: the flow itself).")


def _identity(input: Tensor) -> Tensor:
    """What batch normalisation becomes."""
    return input


def linearise(model: nn.Module) -> nn.Module:
    """Make `model` positive, double precision and free of batch normalisation, in place; returns it."""
    model.double()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.abs_()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            # An instance attribute wins over the class's method, so the module keeps its place and its weights.
            module.forward = _identity  # type: ignore[method-assign]
    return model


def synaptic_flow(model: nn.Module, output: Callable[[], Tensor]) -> dict[str, float]:
    """Return name -> sum |w * dR/dw| of each layer, R being the sum of ``output()`` on a linearised model."""
    weights = product_weights(model)
    gradients = weight_gradients(model, weights, lambda: output().sum())
    return {name: float((weight.detach() * gradients[name]).abs().sum()) for name, weight in weights.items()}


def ones_like_batch(batch: Batch) -> Batch:
    """Return a batch of one sample whose inputs are all ones, floating ones in float64."""
    inputs = {
        name: torch.ones_like(value[:1], dtype=torch.float64 if value.is_floating_point() else value.dtype)
        for name, value in batch.inputs.items()
    }
    return replace(batch, inputs=inputs, labels=None, ids=batch.ids[:1], labelled=None, extra={})


class SynFlow(Proxy):
    """Logarithm of the synaptic flow."""

    options_model = SynFlowOptions
    options: SynFlowOptions

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the score, and each layer's raw flow as parts.

        Raises:
            TrialFailure: no flow reaches the output, or it overflows double precision.
        """
        batch = ones_like_batch(candidate.batch)
        model = linearise(candidate.model)
        parts = synaptic_flow(model, lambda: candidate.forward(model, batch))
        flow = sum(parts.values())
        if not (0.0 < flow < math.inf):
            raise TrialFailure("degenerate", f"the synaptic flow is {flow}: it vanishes or leaves double precision")
        return ProxyScore(math.log(flow) if self.options.log else flow, parts)
