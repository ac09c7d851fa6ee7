"""Made-up data of a run, in the form of the report's own, and a teacher made of blocks."""

from __future__ import annotations

from typing import Any

from torch import nn

from nasdistill.host import Host
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

TARGET = "targets:simulated"


def blocks() -> nn.Module:
    """A transformer with three blocks of random weights, for 8x8 digits."""
    choices = {"stem_width": [8], "width": [32], "depth": [3], "reduction": [0], "heads": [1], "mlp_ratio": [1],
               "attention": ["softmax"]}  # fmt: skip
    space = Host.load(third_party=False).create(Kind.SEARCH_SPACE, "conv_vit", choices)
    return space.build(space.default(), IOSpec("image", (1, 8, 8), 10))


def latency(value: float) -> dict[str, Any]:
    return {
        "target": TARGET, "artefact_bytes": 1000, "info": {},
        "latency": {"value_ms": value, "low_ms": 0.9 * value, "high_ms": 1.2 * value},
    }  # fmt: skip


def brief(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.9 * value, "high": 1.2 * value}


def student(number: int, score: float, milliseconds: float, name: str = "spaces:toy") -> dict[str, Any]:
    return {
        "id": f"{number:04d}-abcdef", "score": score, "test_score": score - 0.01,
        "latency_ms": {TARGET: brief(milliseconds)}, "latency_ratio": {TARGET: brief(milliseconds / 4)},
        "params": 1000 * (number + 1), "macs": 5000, "architecture": {"space": name, "params": {"depth": number}},
    }  # fmt: skip


def outcome(number: int, state: str, score: float | None, milliseconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "number": number, "state": state, "rung": "full", "reason": "", "score": score, "constraints": {},
        "architecture": {"space": "spaces:toy", "params": {"depth": number % 3 + 1, "width": 8 * (number % 2 + 1)}},
        "targets": {TARGET: latency(milliseconds)}, "results": {"short": {"score": score or 0.1, "loss": 1.0, "n": 9}},
        "seconds": {"short": 1.0}, "rungs": {"short": {"epochs": 1}},
        "history": [{"rung": "short", "epoch": e, "total": 2.0 / (e + 1)} for e in range(3)], **changes,
    }  # fmt: skip


def run_data(**changes: Any) -> dict[str, Any]:
    """Two students on the front, one beaten, one pruned, one failed."""
    front = [student(1, 0.90, 1.0), student(3, 0.97, 2.0)]
    outcomes = [
        outcome(0, "complete", 0.80, 1.5, origin="spread"),
        outcome(1, "complete", 0.90, 1.0, origin="spread"),
        outcome(2, "pruned", None, 3.0, reason="slower than 0.5 of the teacher (max_latency_ratio)"),
        outcome(3, "complete", 0.97, 2.0, origin="sampler"),
        outcome(4, "failed", None, 9.0, reason="nan_loss: the loss is nan at step 7"),
    ]
    events = [{"event": "started", "time": 100.0}]
    events += [
        {"event": "trial", "number": o["number"], "state": o["state"], "time": 101.0 + o["number"]} for o in outcomes
    ]
    quality = {"spearman": 0.5, "spearman_interval": [0.1, 0.8], "kendall": 0.4, "kendall_interval": [0.0, 0.7],
               "n": 5, "rung": "short", "top3_regret": 0.01}  # fmt: skip
    return {
        "run": "runs/toy", "name": "toy", "state": "finished", "written": 200.0, "status": {}, "config": {},
        "environment": {},
        "metric": {"name": "accuracy", "higher_is_better": True, "unit": "share"}, "gaps": [], "reasons": [],
        "teacher": {"name": "toy:teacher", "score": 0.98, "test_score": 0.97, "latency_ms": {TARGET: brief(4.0)},
                    "params": 90_000, "macs": 10**6},
        "front": front, "outcomes": outcomes, "events": events, "baselines": [], "graphs": {}, "axes": {}, "disk": {},
        "teacher_record": {}, "final": {}, "seconds": {"short": 4.0, "full": 9.0},
        "trials": {"complete": 3, "pruned": 1, "failed": 1, "running": 0, "repeated": 0},
        "proxies": {"params": {**quality, "spearman": 0.7}, "macs": quality, "nwot": {**quality, "spearman": 0.2}},
        **changes,
    }  # fmt: skip
