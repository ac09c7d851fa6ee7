"""The engine's benchmarks run, and what they print says what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(name: str, tmp_path: Path, *arguments: str) -> dict:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--quick", "--json", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| ")
    return json.loads(out.read_text())


@pytest.mark.slow
def test_step_overhead(tmp_path):
    found = benchmark("step_overhead.py", tmp_path, "--seeds", "1")
    assert [row["student"] for row in found["rows"]] == ["small", "medium", "large"]
    for row in found["rows"]:
        # The comparison is only fair while both loops do the same work, from a full cache.
        assert row["equal"] == "yes"
        assert row["cached"]
        assert row["steps"] > 50


@pytest.mark.slow
def test_kd_gain(tmp_path):
    found = benchmark("kd_gain.py", tmp_path, "--setting", "digits")
    rows = {(row["setting"], row["arm"]): row for row in found["rows"]}
    assert {setting for setting, _ in rows} == {"digits, few labels", "digits, all labels"}
    for setting in ("digits, few labels", "digits, all labels"):
        steps = {row["steps"] for (where, arm), row in rows.items() if where == setting and arm != "teacher"}
        assert len(steps) == 1  # equal steps
    few = {arm: row["test"] for (setting, arm), row in rows.items() if setting == "digits, few labels"}
    assert few["KD"] > few["labels alone"]
    assert few["teacher"] > few["KD"]
