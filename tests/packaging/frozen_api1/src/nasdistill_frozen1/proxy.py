"""Spread of an untrained network's outputs over a batch."""

from __future__ import annotations

import torch
from pydantic import Field

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Proxy, ProxyInput, ProxyScore
from nasdistill.spec.options import ComponentOptions


class MarginOptions(ComponentOptions):
    """Options of `margin`."""

    power: float = Field(1.0, gt=0, le=4, description="Exponent of the spread.")


class Margin(Proxy):
    """Spread of the outputs."""

    options_model = MarginOptions

    def score(self, candidate: ProxyInput) -> ProxyScore:
        with torch.no_grad():
            output = candidate.forward(candidate.model, candidate.batch).double()
        spread = float((output - output.mean(0)).square().mean().sqrt())
        if spread == 0:
            raise TrialFailure("degenerate", "all outputs are the same")
        return ProxyScore(spread**self.options.power, {"spread": spread})
