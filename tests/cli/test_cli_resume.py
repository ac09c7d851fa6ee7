"""``nasdistill resume``, and a search in worker processes, from the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

TINY = Path(__file__).parents[1] / "smoke" / "tiny.toml"
CHANGES = ["--teacher", "timm:test_resnet", "--target", "simulated", "--space", "resnet_s0"]


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "nasdistill", *map(str, arguments)],
        capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def test_a_search_on_a_worker_is_interrupted_and_resumed(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "nasdistill", "search", str(TINY), "--out", str(run), "--workers", "1", *CHANGES],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if "short:" in line:
            os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: the whole group hears it
    assert process.wait() == 130, "".join(said)
    assert f"nasdistill resume {run} goes on" in said[-1]
    shown = command("show", run)
    assert f"State: interrupted; nasdistill resume {run} goes on." in shown.stdout
    moved = shutil.move(run, tmp_path / "moved")
    resumed = command("resume", moved, "--workers", "0", "--json")
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout.splitlines()[-1])
    assert result["state"] == "finished"
    assert result["front"]
    again = command("resume", moved, "--json")
    assert again.returncode == 0
    assert "there is nothing to go on with" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == result


def test_nothing_to_resume_is_one_message(tmp_path):
    missing = command("resume", tmp_path / "nowhere")
    assert missing.returncode == 2
    assert "is not a run directory" in missing.stderr
    assert "Traceback" not in missing.stderr
    wrong = command("resume", tmp_path, "--workers", "-1")
    assert wrong.returncode == 2
    assert "--workers -1" in wrong.stderr
