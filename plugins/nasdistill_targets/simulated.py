"""A simulator, not a device: latency as a fixed linear function of counted work.

    latency = overhead + macs * per_mac + written elements * per_element + operators * per_operator

The counts come from one forward of the network (:func:`nasdistill.measure.count_work`). The same network gives the same
nanoseconds on every machine and in every process, so a search against this target can be repeated and resumed to the
last digit. The default coefficients were chosen round, of the order of one slow core (10 GMAC/s, 1 microsecond per
operator); they describe no machine, and no conclusion about a machine follows from them. That written elements cost
time beside multiply-accumulates: the "activations" of "Designing Network Design Spaces", arXiv 2003.13678.

Cost: one forward per prepared network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import TrialFailure, one_line
from nasdistill.interfaces import Availability, Prepared, PrepareRequest, Target
from nasdistill.measure import Work, count_work, flatten_outputs
from nasdistill.spec.options import ComponentOptions


class SimulatedOptions(ComponentOptions):
    """Coefficients of `simulated`, in nanoseconds."""

    overhead_ns: float = Field(5_000.0, ge=0, description="Per call.")
    mac_ns: float = Field(0.1, ge=0, description="Per multiply-accumulate.")
    element_ns: float = Field(0.5, ge=0, description="Per element written by a matrix product or convolution.")
    operator_ns: float = Field(1_000.0, ge=0, description="Per operator.")

    def nanoseconds(self, work: Work) -> int:
        """Return the latency of `work`, at least 1 ns."""
        total = self.overhead_ns + work.macs * self.mac_ns
        total += work.activations * self.element_ns + work.operators * self.operator_ns
        return max(1, round(total))


class Simulated(Target):
    """A deterministic simulator."""

    options_model = SimulatedOptions
    options: SimulatedOptions

    def probe(self) -> Availability:
        """Always available."""
        return Availability(True)

    def environment(self) -> dict[str, Any]:
        """Return the coefficients: nothing else matters."""
        return {"runtime": "simulated", **self.options.model_dump()}

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Count the network's work; nothing is written."""
        try:
            work = count_work(request.model, request.example)
        except Exception as error:
            raise TrialFailure("export_failed", f"{request.name} does not run: {one_line(error)}") from error
        return _Counted(request.model, request.example, work, self.options.nanoseconds(work))


class _Counted(Prepared):
    """A network with its computed time."""

    clock = "simulated"

    def __init__(self, model: nn.Module, example: Sequence[Tensor], work: Work, nanoseconds: int) -> None:
        super().__init__()
        self.info.update(runtime="simulated", macs=work.macs, activations=work.activations, operators=work.operators)
        self._model = model
        self._example = tuple(example)
        self._nanoseconds = nanoseconds

    def run(self) -> None:
        """Run the network; nobody looks at the time it takes."""
        self.outputs()

    def outputs(self) -> list[Tensor]:
        """Run the network and return its outputs."""
        with torch.no_grad():
            return flatten_outputs(self._model(*self._example))

    def elapsed_ns(self) -> int | None:
        """Return the computed nanoseconds."""
        return self._nanoseconds
