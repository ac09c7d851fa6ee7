"""The benchmarks that run whole searches work; what they find is for people to read."""

from __future__ import annotations

import pytest
from benchmark_runs import run_benchmark


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peers_digits", "search_vs_random", "teacher_cache"])
def test_quick_run_prints_a_table_and_writes_json(name, tmp_path):
    written, printed = run_benchmark(name, tmp_path)
    assert printed.startswith("| ")
    assert written["benchmark"] == name
    assert written["quick"] is True
    assert written["rows"]
    if name == "teacher_cache":
        assert all(row["identical"] == "yes" for row in written["rows"])
        assert all(row["students"] >= 2 for row in written["rows"])
