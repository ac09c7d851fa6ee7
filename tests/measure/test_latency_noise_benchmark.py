"""The benchmark of repeatability runs from end to end; its figures are the machine's and are not judged."""

from __future__ import annotations

import pytest
from benchmark_runs import run_benchmark


@pytest.mark.slow
def test_quick_run(tmp_path):
    result, printed = run_benchmark("latency_noise", tmp_path, "--passes", 2, "--pairs", 5, "--load", 1)
    assert {row["target"] for row in result["rows"]} == {"targets:onnxruntime_cpu", "targets:torch_cpu"}
    assert len(result["rows"]) == 6
    assert len(result["meta"]["raw"]) == 12
    for row in result["rows"]:
        assert 0 < row["spread"] <= row["worst"]
        assert len(row["spreads"]) == 6
        assert (row["covered"] is None) == (not row["estimator"].endswith("(ours)"))
    assert "paired ratio (ours)" in printed
