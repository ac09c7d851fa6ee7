"""A search small enough for tests: 200 real digits, a random teacher, tiny spaces, the simulated target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from nasdistill.files import read_json
from nasdistill.spec.config import RunConfig, parse_config
from nasdistill.store import RunDirectory


def write_digits(path: Path, n: int = 200) -> Path:
    """Write the first `n` digits as an .npz."""
    images, labels = load_digits(return_X_y=True)
    np.savez(path, x=(images[:n].reshape(n, 8, 8, 1) * 15).astype(np.uint8), y=labels[:n])
    return path


def tiny(data: Path, **changes: Any) -> RunConfig:
    """Return a configuration; `changes` are dotted keys with ``__`` for the dot."""
    values: dict[str, Any] = {
        "task": {"name": "image_classification", "options": {"data": str(data)}},
        "teacher": {"name": "timm:test_resnet"},
        "space": [
            {"name": "resnet_s0", "options": {"blocks": [1], "width": [8, 16], "stages": [2, 3]}},
            {"name": "conv_vit", "options": {"width": [32, 64], "depth": [1, 2], "attention": ["softmax", "linear"]}},
        ],
        "target": [{"name": "simulated"}],
        "proxy": [{"name": "params"}, {"name": "nwot"}],
        "objective": {"task_weight": 1.0, "losses": [{"name": "kd", "weight": 0.1}]},
        "training": {"batch_size": 40},
        "search": {
            "trials": 6,
            "strategy_options": {
                "round_size": 3, "short_epochs": 1, "full_epochs": 2, "full_final": 2, "max_latency_ratio": 100.0,
            },
        },
        "latency": {"min_pairs": 3, "max_pairs": 3, "final_pairs": 3},
    }  # fmt: skip
    for key, value in changes.items():
        table = values
        *parents, leaf = key.split("__")
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
    return parse_config(values, where="test")


def resumable(data: Path, **changes: Any) -> RunConfig:
    """Return a configuration whose trainings write a checkpoint after every epoch."""
    return tiny(data, training__checkpoint_seconds=0.0, search__strategy_options__full_epochs=3, **changes)


def outcome(result: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return what a repeated run must share: everything but durations and dates."""
    front = [{k: v for k, v in student.items()} for student in result["front"]]
    weights = {p.parent.name: read_json(p)["state_sha256"] for p in sorted(run.glob("students/*/provenance.json"))}
    trials = [
        {k: o[k] for k in ("number", "state", "reason", "architecture", "proxies", "score", "loss", "epochs", "rungs")}
        for o in RunDirectory.open(run).outcomes()
    ]
    histories = [o.get("history") for o in RunDirectory.open(run).outcomes()]
    teacher = {k: result["teacher"][k] for k in ("score", "test_score", "latency_ms")}
    return {
        "front": front, "weights": weights, "trials": trials, "histories": histories, "teacher": teacher,
        "proxies": result["proxies"], "counts": result["trials"],
    }  # fmt: skip
