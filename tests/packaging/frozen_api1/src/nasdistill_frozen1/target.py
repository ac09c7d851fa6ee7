"""A simulated target: a nanosecond per parameter, and a thousand for the call."""

from __future__ import annotations

import torch

from nasdistill.interfaces import Availability, Prepared, Target
from nasdistill.measure import flatten_outputs


class Counted(Target):
    """A nanosecond per parameter."""

    def probe(self):
        return Availability(True)

    def environment(self):
        return {"runtime": "counted"}

    def prepare(self, request):
        return Copy(request.model, request.example)


class Copy(Prepared):
    clock = "simulated"

    def __init__(self, model, example):
        super().__init__()
        self.info["runtime"] = "counted"
        self._model, self._example = model, tuple(example)
        self._nanoseconds = 1000 + sum(p.numel() for p in model.parameters())

    def run(self):
        self.outputs()

    def outputs(self):
        with torch.no_grad():
            return flatten_outputs(self._model(*self._example))

    def elapsed_ns(self):
        return self._nanoseconds
