"""The benchmark of repeatability runs from end to end; its figures are the machine's and are not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "latency_noise.py"


@pytest.mark.slow
def test_quick_run(tmp_path):
    found = subprocess.run(
        [sys.executable, SCRIPT, "--quick", "--passes", "2", "--pairs", "5", "--load", "1", "--json", "out.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert {row["target"] for row in result["rows"]} == {"targets:onnxruntime_cpu", "targets:torch_cpu"}
    assert len(result["rows"]) == 6
    assert len(result["meta"]["raw"]) == 12
    for row in result["rows"]:
        assert 0 < row["spread"] <= row["worst"]
        assert len(row["spreads"]) == 6
        assert (row["covered"] is None) == (not row["estimator"].endswith("(ours)"))
    assert "paired ratio (ours)" in found.stdout
