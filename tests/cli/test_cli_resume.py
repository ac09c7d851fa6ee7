"""``nasdistill resume``, and a search in worker processes, from the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from toys_search import resumable, write_digits

from nasdistill.cli.config import to_toml

SMALL = [{"name": "resnet_s0", "options": {"blocks": [1], "width": [8, 16], "stages": [2]}}]


@pytest.mark.slow
def test_a_search_on_a_worker_is_interrupted_and_resumed(cli_here, tmp_path):
    """The search has a process group of its own, as in a terminal; what comes after runs here."""
    config = resumable(write_digits(tmp_path / "digits.npz"), space=SMALL, search__trials=4)
    (tmp_path / "mine.toml").write_text(to_toml(config.to_json()))
    process = subprocess.Popen(
        [sys.executable, "-m", "nasdistill", "search", "mine.toml", "--out", "run", "--workers", "1"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True, cwd=tmp_path,
    )  # fmt: skip
    said = []
    with process:
        for line in process.stderr:
            said.append(line)
            if "short:" in line:
                os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does: the whole group hears it
    assert process.returncode == 130, "".join(said)
    assert "nasdistill resume run goes on" in said[-1]
    assert "leaked" not in "".join(said)  # resource_tracker's complaint, after the last word
    shown = cli_here("show", "run")
    assert "State: interrupted; nasdistill resume run goes on." in shown.stdout
    shutil.move(tmp_path / "run", tmp_path / "moved")
    resumed = cli_here("resume", "moved", "--workers", "0", "--json")
    assert resumed.returncode == 0, resumed.stderr
    result = json.loads(resumed.stdout.splitlines()[-1])
    assert result["state"] == "finished"
    assert result["front"]
    again = cli_here("resume", "moved", "--json")
    assert again.returncode == 0
    assert "there is nothing to go on with" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == result


def test_nothing_to_resume_is_one_message(cli_here, tmp_path):
    missing = cli_here("resume", str(tmp_path / "nowhere"))
    assert missing.returncode == 2
    assert "is not a run directory" in missing.stderr
    assert "Traceback" not in missing.stderr
    wrong = cli_here("resume", str(tmp_path), "--workers", "-1")
    assert wrong.returncode == 2
    assert "--workers -1" in wrong.stderr
