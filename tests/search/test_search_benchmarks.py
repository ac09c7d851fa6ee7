"""The benchmarks that run whole searches work; what they find is for people to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peers_digits", "search_vs_random", "teacher_cache"])
def test_quick_run_prints_a_table_and_writes_json(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--json", tmp_path / "out.json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| ")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["benchmark"] == name
    assert written["quick"] is True
    assert written["rows"]
    if name == "teacher_cache":
        assert all(row["identical"] == "yes" for row in written["rows"])
        assert all(row["students"] >= 2 for row in written["rows"])
