"""The benchmark of the bounds of mutual information runs from end to end and keeps what must hold of any run."""

from __future__ import annotations

import math

from benchmark_runs import run_benchmark


def test_quick_run(tmp_path):
    result, printed = run_benchmark("mi_alpha", tmp_path)
    estimates = [row for row in result["rows"] if row["part"] == "estimator"]
    assert {row["setting"] for row in estimates} == {"2 nats", "6 nats"}
    assert len(estimates) == 12
    assert all(row["sd"] > 0 for row in estimates)
    assert all(row["value"] <= math.log(63) for row in estimates if row["what"].startswith("infonce"))
    digits = {(row["setting"], row["what"]): row for row in result["rows"] if row["part"] == "digits"}
    assert len(digits) == 25
    assert digits["-", "teacher"]["won"] is None
    assert digits["all labels", "labels alone"]["won"] is None
    for row in digits.values():
        assert 0 <= row["worst"] <= row["value"] <= 100
        assert row["won"] is None or 0 <= row["won"] <= 1
    assert "beats mse" in printed
