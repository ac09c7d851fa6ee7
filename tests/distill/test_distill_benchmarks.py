"""The engine's benchmarks run, and what they print says what they measured."""

from __future__ import annotations

import pytest
from benchmark_runs import run_benchmark


@pytest.mark.slow
def test_step_overhead(tmp_path):
    found, printed = run_benchmark("step_overhead", tmp_path, "--seeds", "1")
    assert printed.startswith("| ")
    assert [row["student"] for row in found["rows"]] == ["small", "medium"]
    for row in found["rows"]:
        # The comparison is only fair while both loops do the same work, from a full cache.
        assert row["equal"] == "yes"
        assert row["cached"]
        assert row["steps"] > 50


@pytest.mark.slow
def test_kd_gain(tmp_path):
    found, printed = run_benchmark("kd_gain", tmp_path, "--setting", "digits")
    assert printed.startswith("| ")
    rows = {(row["setting"], row["arm"]): row for row in found["rows"]}
    assert {setting for setting, _ in rows} == {"digits, few labels", "digits, all labels"}
    for setting in ("digits, few labels", "digits, all labels"):
        steps = {row["steps"] for (where, arm), row in rows.items() if where == setting and arm != "teacher"}
        assert len(steps) == 1  # equal steps
    few = {arm: row["test"] for (setting, arm), row in rows.items() if setting == "digits, few labels"}
    assert few["KD"] > few["labels alone"]
    assert few["teacher"] > few["KD"]
