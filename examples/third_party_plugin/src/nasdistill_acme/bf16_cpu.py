"""Torch eager on the CPU in bfloat16: half the memory traffic of float32, and much faster where the CPU has the
instructions.

``cast`` turns weights and inputs into bfloat16; ``autocast`` keeps the weights and lets torch choose per operator, as
in training. bfloat16 has 8 bits of precision, so outputs differ from float32 by some parts in a hundred: a student that
cannot bear that fails the comparison with torch, and the search records it. CPUs without bfloat16 instructions emulate
them and are slower than in float32; ``environment`` tells which kind this is.

Source: "A Study of BFLOAT16 for Deep Learning Training", arXiv 1905.12322, for the format.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from nasdistill.interfaces import Availability, Prepared, PrepareRequest, Target
from nasdistill.measure import flatten_outputs
from nasdistill.spec.options import ComponentOptions
from pydantic import Field
from torch import Tensor, nn


class Bf16Options(ComponentOptions):
    """Options of `bf16_cpu`."""

    mode: Literal["cast", "autocast"] = Field("cast", description="Everything in bfloat16, or what torch chooses.")


class Bf16Cpu(Target):
    """Torch eager on the CPU in bfloat16."""

    options_model = Bf16Options
    options: Bf16Options
    tolerance = 0.05

    def probe(self) -> Availability:
        """Always available: torch emulates what the CPU lacks."""
        return Availability(True)

    def environment(self) -> dict[str, Any]:
        """Return what timings depend on."""
        return {
            "runtime": f"torch {torch.__version__}",
            "threads": 1,
            "precision": "bfloat16",
            "mode": self.options.mode,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        }

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Copy the module; nothing is written."""
        return _Narrow(request.model, request.example, self.options.mode)


class _Narrow(Prepared):
    """A private copy of a module, with inputs to run it on."""

    def __init__(self, model: nn.Module, example: Sequence[Tensor], mode: str) -> None:
        super().__init__()
        self.info.update(runtime="torch eager", threads=1, precision="bfloat16", mode=mode)
        twin = copy.deepcopy(model).to("cpu").eval()
        inputs = [tensor.to("cpu") for tensor in example]
        if mode == "cast":
            twin = twin.to(torch.bfloat16)  # floating point only; token ids stay what they are
            inputs = [tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor for tensor in inputs]
        self._model: nn.Module | None = twin
        self._example = tuple(inputs)
        self._autocast = mode == "autocast"

    def run(self) -> None:
        """Call the module once."""
        self._call()

    def outputs(self) -> list[Tensor]:
        """Call the module once and return its outputs, floating point ones in float32."""
        found = [tensor.clone() for tensor in flatten_outputs(self._call())]
        return [tensor.float() if tensor.is_floating_point() else tensor for tensor in found]

    def close(self) -> None:
        """Drop the copy."""
        self._model = None

    def _call(self) -> Any:
        assert self._model is not None, "closed"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            return self._model(*self._example)
