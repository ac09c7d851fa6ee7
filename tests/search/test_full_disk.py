"""A disk that really fills up: a search on a small tmpfs, and its resumption once there is room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from toys_search import outcome, resumable, write_digits

from nasdistill.host import Host
from nasdistill.search.run import run_search

SCRIPT = textwrap.dedent("""
    import json, subprocess, sys
    from pathlib import Path
    from nasdistill.errors import NasdistillError
    from nasdistill.host import Host
    from nasdistill.search.result import build_result
    from nasdistill.search.run import resume_search, run_search
    from nasdistill.store import RunDirectory
    from toys_search import outcome, resumable
    run, host = Path(sys.argv[1]), Host.load(third_party=False)
    try:
        run_search(resumable(Path(sys.argv[2])), run, host=host)
    except NasdistillError as error:
        print(json.dumps(["full", str(error), build_result(RunDirectory.open(run))["trials"]]))
    subprocess.run(["mount", "-o", "remount,size=64m", str(run.parent)], check=True)
    result = resume_search(run, host=host)
    print(json.dumps(["resumed", outcome(result, run)]))
""")


def may_mount() -> bool:
    """Return whether an ordinary user may mount a tmpfs in a namespace of their own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="no tmpfs can be mounted here (unshare -rm)")
@pytest.mark.parametrize("kilobytes", [1000])
def test_a_full_disk_loses_nothing_that_was_finished(tmp_path, monkeypatch, kilobytes):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))
    digits = write_digits(tmp_path / "digits.npz")
    expected = outcome(
        run_search(resumable(digits), tmp_path / "whole", host=Host.load(third_party=False)), tmp_path / "whole"
    )
    small = tmp_path / "small"
    small.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    steps = f"""
        mount -t tmpfs -o size={kilobytes}k tmpfs '{small}' || exit 9
        '{sys.executable}' '{script}' '{small}/run' '{digits}'
    """
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = ["unshare", "-rm", "sh", "-c", steps]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full, resumed = [json.loads(line) for line in done.stdout.splitlines()]
    assert "cannot be written any further" in full[1]
    assert "nasdistill resume" in full[1]
    assert full[2]["complete"] + full[2]["pruned"] + full[2]["running"] > 0
    assert resumed[1] == json.loads(json.dumps(expected))
