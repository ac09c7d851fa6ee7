"""The run directory: refuses what it must, survives damage, moves."""

from __future__ import annotations

import os
import shutil
import stat

import optuna
import pytest

from nasdistill.errors import UsageError
from nasdistill.files import atomic_path, write_json
from nasdistill.store import RunDirectory


def test_create_makes_an_openable_run(tmp_path):
    run = RunDirectory.create(tmp_path / "a" / "run")
    run.write("teacher.json", {"score": 0.5})
    assert RunDirectory.open(run.path).read("teacher.json") == {"score": 0.5}
    assert run.read("missing.json") is None


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        RunDirectory.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_old_run_in_the_way_is_named(tmp_path):
    RunDirectory.create(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run"):
        RunDirectory.create(tmp_path / "run")


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunDirectory.create(tmp_path / "out")


def test_an_unwritable_parent_is_refused(tmp_path):
    if os.geteuid() == 0:
        # Permissions do not bind the superuser; a path below a file cannot be made by anyone.
        (tmp_path / "file").write_text("")
        target = tmp_path / "file" / "run"
    else:
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        target = tmp_path / "run"
    with pytest.raises(UsageError, match="cannot write"):
        RunDirectory.create(target)


def test_other_folders_and_versions_are_not_opened(tmp_path):
    with pytest.raises(UsageError, match="not a run directory"):
        RunDirectory.open(tmp_path)
    write_json(tmp_path / "run.json", {"format": "nasdistill.run", "format_version": 99})
    with pytest.raises(UsageError, match="format 99"):
        RunDirectory.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UsageError, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_next_free_counts_up(tmp_path):
    base = tmp_path / "digits"
    assert RunDirectory.next_free(base) == base
    base.mkdir()
    assert RunDirectory.next_free(base) == base, "an empty folder is free"
    RunDirectory.create(base)
    assert RunDirectory.next_free(base) == tmp_path / "digits-2"


def test_records_survive_a_move_and_a_torn_line(tmp_path):
    run = RunDirectory.create(tmp_path / "one")
    run.write_trial(3, {"number": 3, "architecture": None})
    run.write_trial(1, {"number": 1, "architecture": None})
    run.trial(2).mkdir(parents=True)
    (run.trial(2) / "outcome.json").write_text('{"numb')
    run.event("started")
    with (run.path / "events.jsonl").open("a") as stream:
        stream.write('{"event": "torn')
    shutil.move(run.path, tmp_path / "two")
    moved = RunDirectory.open(tmp_path / "two")
    assert [o["number"] for o in moved.outcomes()] == [1, 3]
    assert [e["event"] for e in moved.events()] == ["started"]
    assert str(tmp_path / "one") not in "".join(p.read_text() for p in moved.path.rglob("*.json"))


def test_the_study_lies_in_the_folder_whatever_its_name(tmp_path):
    run = RunDirectory.create(tmp_path / "a?b {c} #%20")
    optuna.create_study(storage=run.study_url, study_name="search")
    assert (run.path / "study.db").is_file()
    assert [p.name for p in tmp_path.iterdir()] == [run.path.name]


def test_trials_come_by_number_beyond_four_digits(tmp_path):
    run = RunDirectory.create(tmp_path / "one")
    for number in (10_000, 9_999, 2):
        run.write_trial(number, {"number": number, "architecture": None})
    assert [o["number"] for o in run.outcomes()] == [2, 9_999, 10_000]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def fail_half_way():
        with atomic_path(path) as temporary:
            temporary.write_text('{"a": 2')
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail_half_way()
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'
