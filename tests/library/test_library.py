"""Runs and students from Python: finished, killed, moved, damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_toys import DIGITS, scramble
from safetensors.torch import load_file
from toys_search import tiny, write_digits

import nasdistill
from nasdistill.errors import ArchitectureError, TrialFailure, UnknownComponentError, UsageError
from nasdistill.files import read_json, write_json
from nasdistill.interfaces import Exporter
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.store import RunDirectory, save_student, save_weights, weights_hash


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real search of a few seconds; its spaces have options that are not the defaults."""
    from nasdistill.host import Host
    from nasdistill.search.run import run_search

    root = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NASDISTILL_CACHE", str(root / "cache"))
        config = tiny(write_digits(root / "digits.npz"), search__trials=5)
        result = run_search(config, root / "run", host=Host.load(third_party=False))
    return root / "run", result


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run somewhere else."""
    return Path(shutil.copytree(finished[0], tmp_path / "elsewhere" / "run"))


@pytest.fixture
def killed(copy):
    """What a kill before the final report leaves."""
    shutil.rmtree(copy / "students")
    for name in ("result.json", "final.json"):
        (copy / name).unlink()
    write_json(copy / "status.json", {"state": "running"})
    return copy


def images():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def answer(student):
    with torch.no_grad():
        return student.model()(images())


def weights_file(run: Path, student) -> Path:
    return RunDirectory(run).weights(int(student.id[:4]), student.epochs)


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_run_says_what_its_result_says(finished):
    path, result = finished
    run = nasdistill.load(path)
    assert isinstance(run, nasdistill.Run)
    assert run.state == "finished"
    assert run.result["front"] == result["front"]
    assert [s.id for s in run.front] == [entry["id"] for entry in result["front"]]
    for student, entry in zip(run.front, result["front"], strict=True):
        assert (student.score, student.test_score) == (entry["score"], entry["test_score"])
        assert (student.params, student.macs) == (entry["params"], entry["macs"])
        assert student.latencies == entry["latency_ms"]
        assert student.latency_ms == entry["latency_ms"]["targets:simulated"]["value"]
        assert student.architecture.to_json() == entry["architecture"]
        assert student.provenance["state_sha256"] == weights_hash(student.model())
    trained = [o["number"] for o in RunDirectory(path).outcomes() if o["epochs"]]
    assert [int(s.id[:4]) for s in run.students] == trained
    assert len(run.students) > len(run.front) or len(trained) == len(run.front)
    assert "front of" in repr(run)
    assert "ms" in repr(run.front[0])


def test_every_trained_trial_loads_with_the_weights_of_its_last_rung(finished):
    path, _ = finished
    for student in nasdistill.load_run(path).students:
        saved = load_file(weights_file(path, student))
        assert student._source.weights_sha256 is not None
        model = student.model()
        assert not model.training
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_a_killed_run_gives_the_same_students(finished, killed):
    whole, torn = nasdistill.load_run(finished[0]), nasdistill.load_run(killed)
    assert torn.state == "killed"
    assert [s.id for s in torn.front] == [s.id for s in whole.front]
    for one, other in zip(torn.students, whole.students, strict=True):
        assert torch.equal(answer(one), answer(other))
        assert one.test_score is None
        assert one.preprocessing == other.preprocessing
        assert one.io == other.io == DIGITS
    here, there = torn.front[0].provenance, whole.front[0].provenance
    for key in ("teacher", "task", "objective", "training", "seed", "epochs", "validation", "cost", "primary_target"):
        assert here[key] == there[key], key


def test_a_run_of_an_earlier_version_still_loads(copy):
    """Without task.json and the hashes of weights, the students of the front say what goes in."""
    (copy / "task.json").unlink()
    for path in (copy / "trials").glob("*/outcome.json"):
        outcome = read_json(path)
        for rung in outcome.get("rungs", {}).values():
            rung.pop("weights_sha256", None)
        write_json(path, outcome)
    run = nasdistill.load_run(copy)
    assert all(answer(student).shape == (4, 10) for student in run.students)
    shutil.rmtree(copy / "students")
    with pytest.raises(UsageError, match="does not say what goes into its networks"):
        nasdistill.load_run(copy).students[0].model()


@pytest.mark.slow
def test_a_moved_run_loads_in_a_fresh_process_from_a_relative_path(finished, copy):
    expected = {s.id: answer(s).tolist() for s in nasdistill.load_run(finished[0]).students}
    code = (
        "import json, sys\nimport nasdistill\nassert 'torch' not in sys.modules\n"
        "run = nasdistill.load('run')\nimport torch\ntorch.set_num_threads(1)\n"
        "x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))\n"
        "print(json.dumps({s.id: s.model()(x).tolist() for s in run.students}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy.parent, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_a_run_that_goes_on_shows_more_when_loaded_again(killed):
    run = nasdistill.load_run(killed)
    student = run.students[-1]
    trial = RunDirectory(killed).trial(int(student.id[:4]))
    shutil.move(trial, killed.parent / "later")
    before = nasdistill.load_run(killed)
    assert student.id not in [s.id for s in before.students]
    shutil.move(killed.parent / "later", trial)
    assert student.id not in [s.id for s in before.students]
    assert student.id in [s.id for s in nasdistill.load_run(killed).students]


def test_a_run_with_nothing_yet_says_so(killed):
    shutil.rmtree(killed / "trials")
    run = nasdistill.load_run(killed)
    assert (run.front, run.students) == ([], [])
    with pytest.raises(UsageError, match=r"no student of .* has been trained yet"):
        run.best()


# ---- choosing -------------------------------------------------------------------------------------------------------


def test_the_best_has_the_best_score_within_the_limits(finished):
    run = nasdistill.load_run(finished[0])
    complete = [s for s in run.students if s.state == "complete"]
    assert run.best().score == max(s.score for s in complete)
    assert run.best().id in [s.id for s in run.front]
    fastest = min(complete, key=lambda s: s.latency_ms)
    for limits in ({}, {"target": "simulated"}, {"target": "targets:simulated"}):
        found = run.best(max_latency_ms=fastest.latency_ms, **limits)
        assert found.latency_ms <= fastest.latency_ms
    with pytest.raises(UsageError, match=f"within .* ms on targets:simulated\n.*upper end.*{fastest.latency_ms:.4g}"):
        run.best(max_latency_ms=fastest.latency_ms * 0.9)
    smallest = min(s.params for s in complete)
    assert run.best(max_params=smallest).params == smallest
    with pytest.raises(UsageError, match="multiply-accumulates"):
        run.best(max_macs=1)
    with pytest.raises(UsageError, match=r"no student .* was timed on target 'simulate'"):
        run.best(target="simulate")


def test_without_a_full_distillation_the_longest_trained_one_is_the_best(killed):
    for path in (killed / "trials").glob("*/outcome.json"):
        outcome = read_json(path)
        if outcome["state"] == "complete":
            write_json(path, {**outcome, "state": "running"})
    run = nasdistill.load_run(killed)
    assert run.front == []
    assert run.best().epochs == max(s.epochs for s in run.students)


def test_students_are_found_by_id_prefix_and_trial(finished):
    path, _ = finished
    run = nasdistill.load_run(path)
    student = run.students[0]
    number = int(student.id[:4])
    for identifier in (student.id, student.id[:8], number, str(number), student.id[:4]):
        assert run.student(identifier).id == student.id
    assert nasdistill.load(f"{path}:{number}").id == student.id
    untrained = next(o["number"] for o in RunDirectory(path).outcomes() if not o["epochs"] and "repeats" not in o)
    with pytest.raises(UsageError, match=f"trial {untrained} .* was not trained"):
        run.student(untrained)
    with pytest.raises(UsageError, match="no student 'nonsense'"):
        run.student("nonsense")


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "another"])
@pytest.mark.parametrize("where", ["student", "trial"])
def test_weights_that_are_not_the_recorded_ones_are_refused(copy, damage, where):
    run = nasdistill.load_run(copy)
    student = run.front[0]
    path = copy / "students" / student.id / "model.safetensors"
    if where == "trial":
        shutil.rmtree(copy / "students")
        path = weights_file(copy, student)
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "remove":
        path.unlink()
    else:
        save_weights(scramble(student.model()), path)
    found = nasdistill.load_run(copy).student(student.id)
    assert found.score == student.score  # the record is still there
    with pytest.raises(UsageError, match=path.name):
        found.model()
    with pytest.raises(UsageError, match=path.name):
        found.export("torch", copy / "export")
    assert not (copy / "export").exists()


def test_weights_without_a_hash_are_still_refused_when_truncated_or_of_another_shape(killed):
    run = nasdistill.load_run(killed)
    student = run.front[0]
    path = RunDirectory(killed).trial(int(student.id[:4])) / "outcome.json"
    outcome = read_json(path)
    for rung in outcome["rungs"].values():
        rung.pop("weights_sha256")
    write_json(path, outcome)
    weights = weights_file(killed, student)
    save_weights(torch.nn.Linear(2, 2), weights)
    with pytest.raises(UsageError, match="do not fit architecture"):
        nasdistill.load_run(killed).student(student.id).model()
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(UsageError, match="cannot read weights"):
        nasdistill.load_run(killed).student(student.id).model()


def edit(path: Path) -> None:
    """Change one axis, as a hand would: the attention variant, or the number of blocks."""
    raw = read_json(path)
    axis = next(name for name in raw["params"] if name.endswith((".attention", ".blocks")))
    raw["params"][axis] = {"softmax": "linear", "linear": "softmax"}.get(raw["params"][axis], 3)
    write_json(path, raw)


def test_an_architecture_that_was_edited_is_refused(copy):
    student = nasdistill.load_run(copy).front[0]
    edit(copy / "students" / student.id / "architecture.json")
    with pytest.raises(UsageError, match="was changed after the student was saved"):
        nasdistill.load(copy / "students" / student.id)
    with pytest.raises(UsageError, match="was changed after the student was saved"):
        nasdistill.load_run(copy).student(student.id).model()
    shutil.rmtree(copy / "students")
    edit(RunDirectory(copy).trial(int(student.id[:4])) / "architecture.json")
    with pytest.raises(UsageError, match="was changed after it was trained"):
        nasdistill.load_run(copy).student(student.id).model()


def test_an_edited_architecture_with_a_fitting_fingerprint_is_refused_too(copy):
    student = nasdistill.load_run(copy).front[0]
    path = copy / "students" / student.id / "architecture.json"
    edit(path)
    raw = read_json(path)
    write_json(path, {**raw, "fingerprint": Architecture.from_json(raw).fingerprint})
    with pytest.raises(UsageError, match="was changed after the student was saved"):
        nasdistill.load(path.parent)


@pytest.mark.parametrize("name", ["architecture.json", "provenance.json", "model.safetensors"])
def test_a_student_with_a_missing_or_empty_file_is_refused(copy, name):
    student = nasdistill.load_run(copy).front[0]
    folder = copy / "students" / student.id
    (folder / name).write_bytes(b"")
    with pytest.raises(UsageError, match=name):
        nasdistill.load_student(folder).model()
    (folder / name).unlink()
    with pytest.raises(UsageError, match=r"neither a run nor a saved student|model\.safetensors"):
        nasdistill.load_student(folder).model()


def test_a_damaged_trial_costs_only_itself(copy):
    students = nasdistill.load_run(copy).students
    RunDirectory(copy).trial(int(students[0].id[:4])).joinpath("outcome.json").write_text("{")
    assert [s.id for s in nasdistill.load_run(copy).students] == [s.id for s in students[1:]]


@pytest.mark.parametrize(("name", "text"), [("run.json", "{}"), ("teacher.json", "{"), ("config.json", '{"space": 3}')])
def test_damaged_files_of_a_run_are_named(killed, name, text):
    (killed / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        nasdistill.load_run(killed).students[0].model()


def test_other_folders_are_refused_with_advice(tmp_path, finished, capsys):
    from nasdistill.cli import main

    with pytest.raises(UsageError, match="there is no folder"):
        nasdistill.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="neither a run nor a saved student"):
        nasdistill.load(tmp_path)
    (tmp_path / "trials").mkdir()
    with pytest.raises(UsageError, match=r"no run\.json"):
        nasdistill.load(tmp_path)
    assert main(["export", str(finished[0]), str(tmp_path / "hf"), "--to", "hf"]) == 0
    opening = "AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)."
    assert f"Opens with {opening}" in capsys.readouterr().out
    with pytest.raises(UsageError, match=f"hf, which opens with {re.escape(opening)}"):
        nasdistill.load(tmp_path / "hf")


# ---- plugins that are gone ------------------------------------------------------------------------------------------

GONE = [{"plugin": "acme", "distribution": "nasdistill-acme", "version": "1.2"}]


def save(folder, arch, options=None):
    model = torch.nn.Linear(2, 2)
    facts = {"software": {"nasdistill": "0", "plugins": GONE}}
    save_student(folder, model, arch, DIGITS, facts, space_options=options)


def test_a_space_whose_plugin_is_gone_is_named_with_its_version(tmp_path):
    save(tmp_path, Architecture.of("acme:wide", {}))
    student = nasdistill.load_student(tmp_path)
    with pytest.raises(UnknownComponentError, match=r"plugin 'acme' \(nasdistill-acme 1\.2\), which is not installed"):
        student.model()
    with pytest.raises(UnknownComponentError, match=r"nasdistill-acme==1\.2"):
        student.model()


def test_a_variant_whose_plugin_is_gone_is_named_too(tmp_path, host):
    options = {"attention": ["odd", "softmax"]}
    space = host.create(Kind.SEARCH_SPACE, "conv_vit", options)
    save(tmp_path, space.architecture({"block00.attention": "odd"}), options)
    with pytest.raises(ArchitectureError, match=r"'odd'.*nasdistill-acme 1\.2"):
        nasdistill.load_student(tmp_path).model()


# ---- building -------------------------------------------------------------------------------------------------------


def test_build_takes_an_architecture_in_every_form(finished, tmp_path):
    student = nasdistill.load_run(finished[0]).front[0]
    folder = finished[0] / "students" / student.id
    described = read_json(folder / "architecture.json")
    forms = [folder, folder / "architecture.json", str(folder), described, json.dumps(described)]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    built = [nasdistill.build(form) for form in forms]
    options = described["space_options"]
    built.append(nasdistill.build(student.architecture, io=student.io, space_options=options))
    bare = {key: value for key, value in described.items() if key not in ("io", "space_options")}
    bare["space"] = bare["space"].split(":")[1]
    bare.pop("fingerprint")
    built.append(nasdistill.build(bare, io=described["io"], space_options=options))
    assert torch.equal(before, torch.random.get_rng_state())
    hashes = {weights_hash(model) for model in built}
    assert len(hashes) == 1
    assert hashes != {weights_hash(nasdistill.build(folder, seed=1))}
    with pytest.raises(UsageError, match="does not say what goes into the network"):
        nasdistill.build(student.architecture)
    with pytest.raises(UsageError, match="'kind', 'shape' and 'outputs'"):
        nasdistill.build(student.architecture, io={"kind": "image"})
    with pytest.raises(ArchitectureError, match="cannot read"):
        nasdistill.build(tmp_path / "none.json")


def test_the_student_that_init_would_go_on_from(finished, host):
    """What `distill` names where it does not start from the student's own weights."""
    from nasdistill.cli.distill import student_name

    run, best = finished[0], nasdistill.load_run(finished[0]).best()
    assert student_name(str(run), host) == f"{run}:{best.id}"
    assert student_name(f"{run}:{best.id}", host) == f"{run}:{best.id}"
    folder = str(run / "students" / best.id)
    assert student_name(folder, host) == folder
    assert student_name(str(run / "trials" / best.id[:4] / "architecture.json"), host) is None
    assert student_name(json.dumps(best.architecture.to_json()), host) is None


def test_score_and_measure_take_students_of_a_run(finished, host):
    from nasdistill.cli.architectures import Spaces, read_architectures

    run = nasdistill.load_run(finished[0])
    chosen = [run.best(), run.students[0]]
    found = read_architectures(Spaces(host), [str(run.path), f"{run.path}:{chosen[1].id}"])
    assert [arch for _, arch in found] == [student.architecture for student in chosen]
    for (space, _), student in zip(found, chosen, strict=True):
        assert space.options == student.space().options
    with pytest.raises(UsageError, match="no student '99'"):
        read_architectures(Spaces(host), [f"{run.path}:99"])


# ---- exporting ------------------------------------------------------------------------------------------------------


def test_an_export_and_its_student_are_equal(finished, tmp_path):
    student = nasdistill.load_run(finished[0]).best()
    facts = student.export("torch", tmp_path / "a" / "b")
    again = nasdistill.load(tmp_path / "a" / "b")
    assert torch.equal(answer(again), answer(student))
    assert (again.id, again.score, again.test_score) == (student.id, student.score, student.test_score)
    assert again.latencies == student.latencies
    assert facts["weights_sha256"] == again.provenance["weights_sha256"]
    stated = read_json(tmp_path / "a" / "b" / "export.json")
    assert facts == {"folder": str(tmp_path / "a" / "b"), **stated}
    assert str(tmp_path) not in json.dumps(stated)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == (tmp_path / "a").stat().st_mode & 0o077
    assert again.export("onnx", tmp_path / "c")["parity"]["max_abs"] < 1e-3


def test_an_export_is_whole_or_not_there(finished, tmp_path, monkeypatch):
    student = nasdistill.load_run(finished[0]).best()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="not an empty folder"):
        student.export("torch", tmp_path / "full")
    with pytest.raises(UnknownComponentError, match="hf"):
        student.export("hff", tmp_path / "none")
    assert student.export("torch", tmp_path / "empty")["files"]
    # A link to an empty folder stays one; the working directory would be replaced under whoever is in it.
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to("linked")
    assert student.export("torch", tmp_path / "link")["folder"] == str(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert nasdistill.load_student(tmp_path / "linked").id == student.id
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for here in (".", tmp_path / "here"):
        with pytest.raises(UsageError, match="is the working directory"):
            student.export("torch", here)
    assert Path.cwd().exists()
    assert not any(Path.cwd().iterdir())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere").symlink_to("absent")
    assert student.export("torch", tmp_path / "nowhere")["files"]
    assert (tmp_path / "absent" / "model.safetensors").is_file()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="loop"):
        student.export("torch", tmp_path / "loop")
    for name in ("link", "nowhere", "loop"):
        (tmp_path / name).unlink()

    class Breaks(Exporter):
        def export(self, request):
            (request.folder / "half").touch()
            raise ValueError("no room")

    monkeypatch.setattr("nasdistill_exporters.torch_folder.TorchFolder.export", Breaks.export)
    fresh = nasdistill.load_run(finished[0]).best()
    with pytest.raises(TrialFailure, match="exporters:torch failed: ValueError: no room"):
        fresh.export("torch", tmp_path / "broken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["absent", "empty", "full", "here", "linked"]


def test_importing_the_package_imports_neither_torch_nor_plugins():
    code = (
        "import sys, nasdistill\n"
        "assert not {'torch', 'optuna', 'pydantic', 'nasdistill.library', 'nasdistill_spaces'} & set(sys.modules)\n"
        "assert {'load', 'build', 'Run', 'Student'} <= set(dir(nasdistill))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
