"""The scaling benchmark runs, as a script of its own, and its table holds what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attention_scaling.py"


@pytest.mark.slow
@pytest.mark.paper("2202.06258", "attention:flow")
def test_quick_run(tmp_path):
    target = tmp_path / "scaling.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--tokens", "256", "--json", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(target.read_text())
    assert result["meta"]["tokens"] == [256, 512]
    rows = {(row["variant"], row["direction"]): row for row in result["rows"]}
    assert rows["attention:softmax", "bidirectional"]["macs_ratio"] == 4
    assert rows["attention:flow", "causal"]["macs_ratio"] == 2
    for row in rows.values():
        assert row["short_ms"] > 0
        assert row["variant"] in done.stdout
