"""Torch eager on the CPU: the module as it is, in inference mode.

What is timed is one call of a copy of the module, Python overhead included: for small students that is most of it (a
network of 30 operators costs about 0.1 ms in calls alone), so eager timings rank families differently from a runtime
that executes a graph. It needs nothing beyond torch and is the right target for a student that will be served by torch.

Peak memory is the peak of torch's own allocator over one forward, read from the profiler's allocation record: what
activations and kernels' scratch space take, without weights and inputs; the same in every run.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.interfaces import Availability, Prepared, PrepareRequest, Target
from nasdistill.measure import flatten_outputs
from nasdistill.spec.options import ComponentOptions


class TorchCpuOptions(ComponentOptions):
    """Options of `torch_cpu`."""

    threads: int = Field(1, ge=1, le=1024, description="Intra-operator threads; more than one is timed by wall clock.")


class TorchCpu(Target):
    """The module as it is, on the CPU."""

    options_model = TorchCpuOptions
    options: TorchCpuOptions
    tolerance = 1e-6

    def probe(self) -> Availability:
        """Always available."""
        return Availability(True)

    def environment(self) -> dict[str, Any]:
        """Return version, threads, precision and the vector instructions that torch chose."""
        return {
            "runtime": f"torch {torch.__version__}",
            "threads": self.options.threads,
            "precision": "float32",
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        }

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Copy the module to the CPU; nothing is written."""
        return _EagerModule(request.model, request.example, self.options.threads)


class _EagerModule(Prepared):
    """A private copy of a module: buffers that it caches in inference mode must not reach the caller's."""

    def __init__(self, model: nn.Module, example: Sequence[Tensor], threads: int) -> None:
        super().__init__()
        self.clock = "cpu" if threads == 1 else "wall"
        self.info.update(threads=threads, runtime="torch eager")
        self._model: nn.Module | None = copy.deepcopy(model).to("cpu").eval()
        self._example = tuple(tensor.to("cpu") for tensor in example)

    def run(self) -> None:
        """Call the module once."""
        with torch.inference_mode():
            self._call(*self._example)

    def outputs(self) -> list[Tensor]:
        """Call the module once and return its outputs."""
        with torch.inference_mode():
            return [tensor.clone() for tensor in flatten_outputs(self._call(*self._example))]

    def peak_memory_bytes(self) -> int | None:
        """Return the peak of torch's allocator over one forward."""
        with torch.inference_mode():
            return allocator_peak(lambda: self._call(*self._example))

    def close(self) -> None:
        """Drop the copy."""
        self._model = None

    def _call(self, *inputs: Tensor) -> Any:
        assert self._model is not None, "closed"
        return self._model(*inputs)


def allocator_peak(run: Any) -> int | None:
    """Return the largest number of bytes that `run` has had allocated at a time, None when nothing was recorded.

    Freed memory that was allocated before counts as negative only after the peak it allowed, so the result is exact
    for what `run` allocates itself.
    """
    with _quiet_profiler(), tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = run()
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        del result
    steps = [(event["ts"], event["args"]) for event in events if event.get("name") == "[memory]"]
    now = peak = 0
    for _, args in sorted(steps, key=lambda step: step[0]):
        now += int(args["Bytes"])
        peak = max(peak, now)
    return peak or None


@contextlib.contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Keep the profiler's start and stop marks off standard error; it reads the level at its first use."""
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "6")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
