"""Targets: a runtime on a device. A target prepares and runs; warm-up, interleaving and statistics are the host's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from nasdistill.interfaces.base import Component


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a target can be used here.

    Attributes:
        ok: yes or no.
        reason: why not, in one sentence with what to install or change.
    """

    ok: bool
    reason: str = ""


class Prepared(ABC):
    """A model made ready to run on a target, weights included.

    Attributes:
        artefact: the exported file, None when the module runs as it is.
        info: exporter, opset and the like, for the record.
        clock: which clock timings of `run` come from.
    """

    artefact: Path | None = None
    clock: Literal["cpu", "wall", "device", "simulated"] = "cpu"

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}

    @abstractmethod
    def run(self) -> None:
        """Run once on the example inputs; this is what is timed, so it does nothing else. Synchronous."""

    @abstractmethod
    def outputs(self) -> list[Tensor]:
        """Run once and return the outputs as CPU tensors, for the numerical check against torch."""

    def elapsed_ns(self) -> int | None:
        """Run once and return the nanoseconds by the target's own clock, or None to let the host time `run`."""
        return None

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of one run, None when it is not known. Never an estimate."""
        return None

    def close(self) -> None:
        """Release the runtime's resources."""


@dataclass(frozen=True, slots=True)
class PrepareRequest:
    """What to prepare.

    Attributes:
        model: the extracted student, in eval mode.
        example: positional inputs.
        folder: where to write artefacts; it exists.
        name: stem of file names.
    """

    model: nn.Module
    example: Sequence[Tensor]
    folder: Path
    name: str = "model"
    extra: dict[str, Any] = field(default_factory=dict)


class Target(Component, ABC):
    """A runtime on a device.

    Contract (checked for every target): `probe` never raises and imports nothing heavy; `prepare` either returns
    something whose outputs equal torch's within the stated tolerance or raises; threads and device state are as
    before after `close`.

    Attributes:
        tolerance: largest accepted deviation from torch, relative to the largest output.
    """

    tolerance: float = 1e-4

    @abstractmethod
    def probe(self) -> Availability:
        """Say whether this target works here, and if not, why."""

    @abstractmethod
    def environment(self) -> dict[str, Any]:
        """Return what timings depend on: runtime version, threads, device, precision."""

    @abstractmethod
    def prepare(self, request: PrepareRequest) -> Prepared:
        """Export or compile a model and load it.

        Raises:
            TrialFailure: reason ``"export_failed"``: this model cannot be exported; the search records it and goes on.
            TargetUnavailableError: the runtime is not here.
        """
