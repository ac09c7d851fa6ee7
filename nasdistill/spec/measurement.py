"""Measurements, as data: a latency with its interval, and everything needed to believe it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Summary of raw timings, in milliseconds."""

    n: int
    minimum: float
    p10: float
    p50: float
    p90: float
    p99: float
    cv: float


@dataclass(frozen=True, slots=True)
class Budget:
    """How long one measurement may take.

    Attributes:
        max_seconds: wall-clock limit of the timing loop (warm-up and export not counted).
        min_pairs, max_pairs: bounds on the number of interleaved rounds.
        relative_width: stop when the interval's half width falls below this share of the value.
        confidence: level of the interval.
    """

    max_seconds: float = 2.0
    min_pairs: int = 20
    max_pairs: int = 200
    relative_width: float = 0.05
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one artefact on one target: median of paired ratios to a reference, in the reference's milliseconds.

    Attributes:
        value_ms, low_ms, high_ms: milliseconds per call and the bootstrap interval.
        ratio: the underlying ratio to the reference (machine drift cancels in it).
        reference_ms: what the ratio was multiplied with.
        pairs, warmups: interleaved rounds measured, calls discarded before.
        clock: ``"cpu"`` (process CPU time, one thread), ``"wall"``, ``"device"`` or ``"simulated"``.
        cpu, wall: raw quantiles.
        quality: ``"ok"``, or why the number deserves care.
        flags: details, such as ``"wall/cpu=1.6"``.
    """

    value_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    reference_ms: float
    pairs: int
    warmups: int
    clock: Literal["cpu", "wall", "device", "simulated"]
    wall: Quantiles | None = None
    cpu: Quantiles | None = None
    quality: Literal["ok", "noisy", "contended", "drift"] = "ok"
    flags: tuple[str, ...] = ()

    def brief(self) -> dict[str, float]:
        """Return the three numbers that tables show: value, low, high (milliseconds)."""
        return {"value": self.value_ms, "low": self.low_ms, "high": self.high_ms}


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What one target said of one model.

    Attributes:
        target: canonical id.
        latency: the timing.
        artefact_bytes: size of the exported file, None when the module runs as it is.
        max_rel_error: largest deviation of the artefact's output from torch, relative to the largest output.
        peak_memory_bytes: as the target reports it, None when it cannot.
        prepare_seconds: export, load and check.
        info: anything else (exporter, opset ...).
    """

    target: str
    latency: Latency
    artefact_bytes: int | None = None
    max_rel_error: float | None = None
    peak_memory_bytes: int | None = None
    prepare_seconds: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TargetReport:
        """Read the JSON form."""
        raw = dict(value["latency"])
        for key in ("wall", "cpu"):
            raw[key] = Quantiles(**raw[key]) if raw.get(key) else None
        raw["flags"] = tuple(raw.get("flags", ()))
        return cls(**{**value, "latency": Latency(**raw)})
