"""The benchmark of proxies runs from end to end and reports every proxy beside size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmark_runs import run_benchmark

from nasdistill_proxies import nasdistill_proxies

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quick_run(tmp_path, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))
    data = Path(os.environ.get("NASDISTILL_DATA", ROOT.parent / "shared" / "data"))
    pools = ["width", "published"] if (data / "diswot_s0").is_dir() else ["width"]
    words = [word for pool in pools for word in ("--pool", pool)]
    result, printed = run_benchmark("proxy_rank", tmp_path, "--data", data, *words)
    assert set(result["meta"]["pools"]) == set(pools)
    for pool in pools:
        rows = {row["proxy"]: row for row in result["rows"] if row["pool"] == pool}
        assert {spec.name for spec in nasdistill_proxies()} <= set(rows)
        for name, row in rows.items():
            assert row["n"] == len(result["meta"]["pools"][pool]["truth"]) == 6
            assert row["failed"] == 0, row
            assert row["regret"] >= 0.0
            if name != "guessing":
                assert -1.0 <= row["spearman"] <= 1.0
                assert -1.0 <= row["kendall"] <= 1.0
        assert "params" in printed
    if "published" in pools:
        # Size is known exactly, so its row does not depend on seeds, batch or machine.
        rows = {row["proxy"]: row for row in result["rows"] if row["pool"] == "published"}
        assert rows["params"]["seed_sd"] is None
        assert rows["params"]["spearman"] > 0.9
