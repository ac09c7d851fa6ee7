"""Multiply-accumulates, the second baseline: those of the matrix products and convolutions of one sample's forward.

Cost: nothing is run when the space gives an analytic cost, else one forward of one sample. Initialisation and mode
do not matter, labels are not read; only the *shape* of the batch is. Orientation: more is better, as a predictor of
accuracy (as a cost it is a constraint of the search instead). On NAS-Bench-201 (9,445 cells, CIFAR-10) it ranks
validation accuracy with Spearman .714; every other proxy is to be read beside this one and beside the parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch, Proxy, ProxyInput, ProxyScore
from nasdistill.measure.counting import count_macs


class Macs(Proxy):
    """Multiply-accumulates of one sample: the space's analytic count where it is given, else counted."""

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the count.

        Raises:
            Exception: whatever the model raises on a sample of the batch's shape.
        """
        if candidate.cost is not None:
            return ProxyScore(float(candidate.cost.macs))
        one = candidate.batch.select(torch.zeros(1, dtype=torch.int64, device=candidate.batch.ids.device))
        # Evaluation mode: batch statistics of a single sample are undefined on 1 x 1 maps.
        model = _Bound(candidate.model.eval(), candidate, one)
        return ProxyScore(float(count_macs(model, ())))


class _Bound(nn.Module):
    """The model called the task's way on a fixed batch, so that counting needs no knowledge of its arguments."""

    def __init__(self, model: nn.Module, candidate: ProxyInput, batch: Batch) -> None:
        super().__init__()
        self.model = model
        self.forward_of_task = candidate.forward
        self.batch = batch

    def forward(self) -> Tensor:
        """Return the output."""
        return self.forward_of_task(self.model, self.batch)
