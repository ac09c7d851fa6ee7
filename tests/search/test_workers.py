"""Worker processes: the same results, and whatever happens to one costs its trial only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from toys_search import outcome, resumable, write_digits

from nasdistill.host import Host
from nasdistill.search.run import run_search
from nasdistill.search.work import Job, Outcome, StopSearch, Workbench
from nasdistill.search.workers import Orders, Workers, _death, _share_no_locks
from nasdistill.spec.architecture import Architecture
from nasdistill.store import RunDirectory

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits.npz")


@pytest.mark.slow
def test_workers_give_what_one_process_gives(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))
    host = Host.load(third_party=False)
    alone = run_search(resumable(digits), tmp_path / "alone", host=host)
    events = []
    helped = run_search(resumable(digits, workers__count=2), tmp_path / "helped", host=host, listener=events.append)
    assert outcome(helped, tmp_path / "helped") == outcome(alone, tmp_path / "alone")
    assert list((tmp_path / "helped" / "logs").glob("worker-*.log"))
    assert helped["front"]
    assert sum(event.kind == "message" and event.text.startswith("starting 2 workers") for event in events) == 1


@pytest.mark.slow
def test_a_broken_student_costs_its_trial_only(tmp_path):
    """Runs the campaign's short form in a process of its own, because it puts a plugin on the path."""
    table = tmp_path / "table.json"
    command = [sys.executable, str(BENCHMARKS / "fault_campaign.py"), "--quick", "--timeout", "8", "--json", str(table)]
    env = {**os.environ, "NASDISTILL_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    from nasdistill.files import read_json

    found = read_json(table)
    assert found["meta"]["complete"] == found["meta"]["good"] == 6
    reasons = {row["fault"]: row["reason"] for row in found["rows"] if row["fault"] != "none"}
    assert all(row["state"] == "failed" for row in found["rows"][:-1])
    assert reasons["exception"] == "RuntimeError: this student raises"
    assert "EXIT(3)" in reasons["exit"]
    assert "SIGSEGV" in reasons["segfault"]
    assert reasons["hang"] == "worker: no answer within 8 s"
    assert "more than its limit of 2.00 GiB" in reasons["leak"]
    assert reasons["nan"].startswith("nan_loss")
    assert "Traceback" not in ended.stderr


def test_a_worker_that_cannot_open_the_run_ends_the_search_in_words(tmp_path):
    from nasdistill.errors import NasdistillError

    RunDirectory.create(tmp_path / "run")
    said = []
    workers = Workers(Orders(tmp_path / "run"), 1, message=said.append)
    job = Job("static", "static", 0, Architecture.of("spaces:none", {}, 1))
    with pytest.raises(NasdistillError, match=r"cannot open the run.*config\.json"):
        list(workers.map([job], progress=lambda *_: None, should_stop=lambda: False))
    assert workers.pids() == []
    assert said == ["starting 1 worker: a process of its own, which opens the data and the teacher first"]


@pytest.mark.slow
def test_being_asked_to_stop_ends_the_workers(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    host = Host.load(third_party=False)
    run_search(resumable(digits, search__trials=1), run, host=host)
    arch = next(iter(RunDirectory.open(run).outcomes()))["architecture"]
    workers = Workers(Orders(run, host.arguments), 1)
    arch = Architecture.from_json(arch)
    quick = Job("static", "static", 0, arch)
    for pause in (1.0, 0.0):
        done = list(workers.map([quick], progress=lambda *_: None, should_stop=lambda: False))
        assert [outcome.failure for _, outcome in done] == [None]
        if pause:
            os.kill(workers.pids()[0], signal.SIGKILL)  # dies with nothing to do: nobody's fault, and no harm
            time.sleep(pause)
    job = Job("distill", "long", 0, arch, epochs=10_000)
    checkpoint = run / "trials" / "0000" / "checkpoint-10000.safetensors"
    with pytest.raises(StopSearch):
        list(workers.map([job], progress=lambda *_: None, should_stop=checkpoint.exists))
    assert workers.pids() == []


def test_leaving_the_program_costs_the_job_and_an_interrupt_goes_through(monkeypatch):
    bench = Workbench.__new__(Workbench)
    job = Job("static", "static", 0, Architecture.of("spaces:none", {}, 1))

    def leave(job):
        raise raised

    monkeypatch.setattr(bench, "_static", leave, raising=False)
    raised = SystemExit(3)
    outcome = bench.do(job)
    assert outcome.failure == "it called sys.exit(3)"
    assert not outcome.fatal
    raised = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench.do(job)


def test_an_outcome_says_how_a_process_ended():
    assert _death(RuntimeError("The exit codes of the workers are {SIGKILL(-9)}")) == "process killed by SIGKILL(-9)"
    assert _death(RuntimeError("The exit codes of the workers are {EXIT(3)}")) == "process ended by itself: EXIT(3)"
    assert _death(ValueError("odd")).startswith("process lost: ValueError")
    assert Outcome().failure is None


def test_progress_bars_of_a_worker_take_no_semaphore_that_its_end_would_leak(tmp_path, monkeypatch):
    bars = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr(bars, "_lock", None, raising=False)  # as it was, afterwards

    def refuse(*_args, **_kwargs):
        raise AssertionError("a named semaphore")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    _share_no_locks()
    with (tmp_path / "bar.txt").open("w") as file:
        assert list(bars(range(2), file=file)) == [0, 1]
    assert isinstance(bars.get_lock(), type(threading.RLock()))
