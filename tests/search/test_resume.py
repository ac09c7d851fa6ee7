"""A run that was cut short anywhere and resumed is the run that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from toys_search import outcome, resumable, tiny, write_digits

from nasdistill.errors import NasdistillError, UsageError
from nasdistill.files import read_json, write_json
from nasdistill.host import Host
from nasdistill.search.run import resume_search, run_search
from nasdistill.store import RunDirectory


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def host():
    return Host.load(third_party=False)


class Cut(BaseException):
    """The process ended here."""


def cut_after(monkeypatch, n):
    """End the process, as far as a test can, at the n-th atomic write."""
    from nasdistill import files

    real, count = files.os.replace, [0]

    def replace(old, new):
        count[0] += "run" in Path(new).parts  # the cache's do not count
        if count[0] == n:
            raise Cut
        real(old, new)

    monkeypatch.setattr(files.os, "replace", replace)
    return count


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """An unbroken run and the number of atomic writes in it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    patch = pytest.MonkeyPatch()
    patch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    count = cut_after(patch, -1)
    result = run_search(resumable(digits), run, host=host())
    patch.undo()
    found = outcome(result, run)
    assert found["front"]
    assert len(found["weights"]) == len(found["front"])
    return found, count[0]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_resumed_equals_unbroken(digits, tmp_path, monkeypatch, whole, share):
    expected, writes = whole
    run = tmp_path / "run"
    cut_after(monkeypatch, round(share * writes))
    with pytest.raises(Cut):
        run_search(resumable(digits), run, host=host())
    monkeypatch.undo()
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))  # not even the teacher's answers are left
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    finished = {o["number"] for o in RunDirectory.open(moved).outcomes() if o["state"] != "running"}
    steps = []
    result = resume_search(moved, host=host(), listener=lambda event: steps.append(event))
    assert outcome(result, moved) == expected
    redone = {event.trial for event in steps if event.kind == "step"}
    assert not redone & finished, "nothing that was finished is done again"


@pytest.mark.parametrize("rung", ["static", "proxies", "latency", "short", "full", "final latency"])
def test_cut_at_a_random_moment_of_each_rung(digits, tmp_path, whole, rung):
    """The moments differ from run to run of the test; what comes out may not."""
    seen = []

    def note(event):
        if event.rung == rung:
            seen.append(event)
            if len(seen) == moment:
                raise Cut

    moment = 1 if rung == "final latency" else random.SystemRandom().randint(1, 6)
    with pytest.raises(Cut):
        run_search(resumable(digits), tmp_path / "run", host=host(), listener=note)
    result = resume_search(tmp_path / "run", host=host())
    assert outcome(result, tmp_path / "run") == whole[0], f"cut at event {moment} of {rung}"


def test_a_clock_that_jumps_changes_nothing(digits, tmp_path, monkeypatch, whole):
    from nasdistill.report import write_report
    from nasdistill.store import rundir

    jumps = random.Random(0)
    monkeypatch.setattr(rundir.time, "time", lambda: jumps.choice([0.0, 1e9, 4e9, -1e6]))
    run = tmp_path / "run"
    assert outcome(run_search(resumable(digits), run, host=host()), run) == whole[0]
    monkeypatch.undo()
    report = write_report(RunDirectory.open(run), host())
    assert [s["title"] for s in report.sections if s["problem"]] == []


@pytest.mark.slow
def test_decisions_do_not_hang_on_the_order_in_which_records_come_back(digits, tmp_path):
    """JSON sorts its keys: a sum over a trial's proxies must not notice."""
    config = tiny(
        digits, space=[{"name": "resnet_s0"}], proxy=[{"name": "macs"}, {"name": "nwot"}, {"name": "cka"}],
        search__trials=8, search__strategy_options={"short_epochs": 1, "full_epochs": 2, "max_latency_ratio": 100.0},
    )  # fmt: skip

    def cut(event):
        if event.kind == "step" and event.rung == "short":
            raise Cut

    expected = outcome(run_search(config, tmp_path / "whole", host=host()), tmp_path / "whole")
    with pytest.raises(Cut):
        run_search(config, tmp_path / "run", host=host(), listener=cut)
    result = resume_search(tmp_path / "run", host=host())
    assert outcome(result, tmp_path / "run") == expected
    assert result["trials"]["running"] == 0


def test_a_disk_that_is_full_while_a_student_is_exported_fails_no_trial(digits, tmp_path, monkeypatch, whole):
    from nasdistill_targets.simulated import Simulated

    real = Simulated.prepare

    def prepare(self, request):
        if request.name == "trial0001":
            raise OSError(28, "No space left on device")
        return real(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(Simulated, "prepare", prepare)
        with pytest.raises(NasdistillError, match="cannot be written any further"):
            run_search(resumable(digits), tmp_path / "run", host=host())
    assert outcome(resume_search(tmp_path / "run", host=host()), tmp_path / "run") == whole[0]


@pytest.mark.parametrize(
    ("name", "text"), [("trials/0001/outcome.json", "{}"), ("seconds.json", ""), ("seconds.json", "[]")]
)
def test_records_of_the_wrong_shape_end_nothing(torn, whole, name, text):
    run = torn
    (run.path / name).write_text(text)
    assert outcome(resume_search(run.path, host=host()), run.path) == whole[0]


def broken_off(digits, run, writes, share=0.8, **changes):
    """Leave a run that ended somewhere in the middle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NASDISTILL_CACHE", str(run.parent / "cache"))
        cut_after(patch, round(share * writes))
        with pytest.raises(Cut):
            run_search(resumable(digits, **changes), run, host=host())
    return RunDirectory.open(run)


@pytest.fixture(scope="module")
def broken(digits, tmp_path_factory, whole):
    """A run that ended in the middle; nobody changes it."""
    return broken_off(digits, tmp_path_factory.mktemp("broken") / "run", whole[1])


@pytest.fixture
def torn(broken, tmp_path):
    """The same somewhere else, to be damaged and resumed."""
    return RunDirectory.open(Path(shutil.copytree(broken.path, tmp_path / "run")))


def trained(run):
    return [o["number"] for o in run.outcomes() if o["epochs"] > 0]


def truncate_outcome(run):
    path = run.trial(trained(run)[0]) / "outcome.json"
    path.write_text(path.read_text()[:100])


def flip_weights(run):
    path = next(run.trial(trained(run)[0]).glob("weights-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(data)


def truncate_weights(run):
    path = next(run.trial(trained(run)[0]).glob("weights-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def remove_weights(run):
    next(run.trial(trained(run)[0]).glob("weights-*.safetensors")).unlink()


def garble_study(run):
    (run.path / "study.db").write_bytes(b"no database" * 1000)


def truncate_study(run):
    data = (run.path / "study.db").read_bytes()
    for name in ("study.db-wal", "study.db-shm"):
        (run.path / name).unlink(missing_ok=True)
    (run.path / "study.db").write_bytes(data[: len(data) // 2])


def remove_study(run):
    for path in run.path.glob("study.db*"):
        path.unlink()


def tear_events(run):
    with (run.path / "events.jsonl").open("a") as stream:
        stream.write('{"event": "tri')


DAMAGES = [
    truncate_outcome, flip_weights, truncate_weights, remove_weights, garble_study, truncate_study, remove_study,
    tear_events,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(torn, whole, damage):
    expected, run = whole[0], torn
    damage(run)
    result = resume_search(run.path, host=host())
    found = outcome(result, run.path)
    if damage in (truncate_study, garble_study, remove_study):
        # The sampler's history is rebuilt from the records; what was proposed before is not proposed otherwise.
        assert [t["architecture"] for t in found["trials"]] == [t["architecture"] for t in expected["trials"]]
    assert found == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_how_to_go_on_and_can_be_resumed(digits, tmp_path, whole, number, code):
    """The first signal ends the search where nothing is half done."""

    def listener(event):
        if event.kind == "epoch" and event.rung == "full":
            os.kill(os.getpid(), number)

    run = tmp_path / "run"
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(number, lambda *_: pytest.fail("the search does not listen to the signal"))  # nor does it end here
    try:
        with pytest.raises(KeyboardInterrupt, match=f"nasdistill resume {run}") as stop:
            run_search(resumable(digits), run, host=host(), listener=listener)
        assert stop.value.exit_code == code
    finally:
        for n, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(n, handler)
    assert RunDirectory.open(run).state() == "interrupted"
    assert outcome(resume_search(run, host=host()), run) == whole[0]


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_says_so_and_resumes(digits, tmp_path, whole):
    script = textwrap.dedent("""
        import os, signal, sys
        sys.path.insert(0, sys.argv[3])
        from pathlib import Path
        from test_resume import host
        from toys_search import resumable
        from nasdistill.search.run import run_search
        def listener(event):
            if event.kind == "epoch" and event.rung == "full":
                os.kill(os.getpid(), signal.SIGKILL)
        run_search(resumable(Path(sys.argv[1])), Path(sys.argv[2]), host=host(), listener=listener)
    """)
    run = tmp_path / "run"
    command = [sys.executable, "-c", script, str(digits), str(run), str(Path(__file__).parent)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert RunDirectory.open(run).state() == "killed"
    assert list(run.glob("trials/*/checkpoint-*.safetensors")), "the training's own checkpoint"
    result = resume_search(run, host=host())
    assert outcome(result, run) == whole[0]
    assert not list(run.glob("trials/*/checkpoint-*"))
    assert RunDirectory.open(run).state() == "finished"
    messages = []
    again = resume_search(run, host=host(), listener=lambda event: messages.append(event.text))
    assert again == result
    assert any("nothing to go on with" in text for text in messages)


@pytest.mark.slow
def test_two_processes_cannot_work_on_one_run(torn):
    run = torn
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from nasdistill.store.rundir import RunDirectory
        with RunDirectory.open(Path(sys.argv[1])).owned():
            print("mine", flush=True)
            sys.stdin.read()
    """)
    run.write("status.json", {"state": "running"})
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout.readline() == "mine\n"
        assert run.state() == "running"
        with pytest.raises(UsageError, match=f"is being worked on by process {other.pid} "):
            resume_search(run.path, host=host())
        other.stdin.close()
    assert other.returncode == 0
    assert run.state() == "killed"


def test_other_axes_versions_data_or_settings_are_refused_with_the_difference(torn, whole):
    run = torn
    before = {p: p.read_bytes() for p in run.path.rglob("*.json") if p.name != "owner.json"}
    good = read_json(run.path / "frozen.json")

    def refused(change, words):
        value = json.loads(json.dumps(good))
        change(value)
        write_json(run.path / "frozen.json", value)
        with pytest.raises(UsageError, match=words):
            resume_search(run.path, host=host())
        write_json(run.path / "frozen.json", good)

    refused(
        lambda v: v["axes"]["resnet_s0"].update(width=[8, 24]), r"axis resnet_s0.width: \[8, 24\] then, \[8, 16\] now"
    )
    refused(lambda v: v["plugins"].update(spaces="nasdistill 0.0.1"), "plugin spaces: nasdistill 0.0.1 then")
    refused(lambda v: v["plugins"].update(acme="acme 2.0"), r"plugin 'acme' \(acme 2\.0\), which is not installed here")
    config = read_json(run.path / "config.json")
    write_json(run.path / "config.json", {**config, "search": {**config["search"], "seed": 5}})
    with pytest.raises(UsageError, match=r"config\.json was edited"):
        resume_search(run.path, host=host())
    write_json(run.path / "config.json", config)
    teacher = read_json(run.path / "teacher.json")
    write_json(run.path / "teacher.json", {**teacher, "task_fingerprint": "other"})
    with pytest.raises(UsageError, match="data has changed"):
        resume_search(run.path, host=host())
    write_json(run.path / "teacher.json", teacher)
    assert {p: p.read_bytes() for p in before} == before
    assert outcome(resume_search(run.path, host=host()), run.path) == whole[0]


def test_a_run_of_another_format_or_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a run directory"):
        resume_search(tmp_path)
    write_json(tmp_path / "run.json", {"format": "nasdistill.run", "format_version": 99})
    with pytest.raises(UsageError, match="run format 99"):
        resume_search(tmp_path)
    write_json(tmp_path / "run.json", {"format": "nasdistill.run", "format_version": 1})
    with pytest.raises(UsageError, match=r"no config\.json"):
        resume_search(tmp_path)


def test_a_time_limit_counts_over_all_processes(digits, tmp_path, whole):
    run = broken_off(digits, tmp_path / "run", whole[1], 0.5, search__timeout=1e6)
    known = len(list(run.outcomes()))
    write_json(run.path / "clock.json", {"seconds": 2e6})
    result = resume_search(run.path, host=host())
    assert result["state"] == "finished"
    assert len(list(run.outcomes())) == known, "nothing new is proposed"
    assert result["front"]
