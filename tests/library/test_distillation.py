"""Training one architecture: the same numbers after a stop, the folder's rules, several processes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from export_toys import DIGITS
from toys_search import write_digits

import nasdistill
from nasdistill.errors import MismatchError, UsageError
from nasdistill.files import read_json, write_json
from nasdistill.host import Host
from nasdistill.library import training
from nasdistill.library.training import CHECKPOINT, Distillation, distill_architecture
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ComponentConfig, parse_config


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "library-cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz", 120)


def wanted(host, data, *, epochs=3, params=None, init=None, space="conv_vit", **training) -> Distillation:
    options = {"attention": ["softmax", "flow"]} if space == "conv_vit" else {}
    params = params or {"width": 32, "depth": 1, "block00.attention": "flow"}
    config = parse_config(
        {
            "task": {"options": {"data": str(data)}},
            "teacher": {"name": "timm:test_resnet"},
            "space": [{"name": space, "options": options}],
            "training": {"batch_size": 40, "checkpoint_seconds": 0.0, **training},
        },
        where="test",
    )
    arch = host.create(Kind.SEARCH_SPACE, space, options).architecture(params)
    return Distillation(arch, config, epochs, seed=3, init=init)


def test_a_training_that_was_stopped_ends_with_the_same_weights(host, data, tmp_path):
    reports = []
    said = []
    whole = distill_architecture(
        wanted(host, data), tmp_path / "whole", host=host, on_epoch=reports.append, message=said.append
    )
    assert sum("no better than chance: its validation accuracy is 0.1250" in line for line in said) == 1
    assert [report.epoch for report in reports] == [0, 1, 2]
    assert whole["validation"]["score"] == reports[-1].evaluation.score

    def stop(report):
        if report.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill_architecture(wanted(host, data), tmp_path / "torn", host=host, on_epoch=stop)
    assert (tmp_path / "torn" / CHECKPOINT).exists()
    assert not (tmp_path / "torn" / "result.json").exists()
    with pytest.raises(UsageError, match="neither a run nor a saved student"):
        nasdistill.load(tmp_path / "torn")
    said.clear()
    torn = distill_architecture(wanted(host, data), tmp_path / "torn", host=host, message=said.append)
    assert torn["resumed"] == 2
    assert not any("chance" in line for line in said), "it was said when the folder was begun"
    students = [nasdistill.load_student(tmp_path / name) for name in ("whole", "torn")]
    assert students[0].provenance["state_sha256"] == students[1].provenance["state_sha256"]
    assert (torn["validation"], torn["test"]) == (whole["validation"], whole["test"])
    assert sorted(p.name for p in (tmp_path / "torn").iterdir()) == [
        "architecture.json", "distill.json", "model.safetensors", "provenance.json", "result.json",
    ]  # fmt: skip
    assert students[0].score == whole["validation"]["score"]
    assert students[0].test_score == whole["test"]["score"]
    assert students[0].io == DIGITS
    assert students[0].space().options.attention == ("softmax", "flow")


def test_a_finished_folder_is_found_finished_and_another_request_is_refused(host, data, tmp_path):
    out = tmp_path / "out"
    first = distill_architecture(wanted(host, data, epochs=1), out, host=host)
    said = []
    assert distill_architecture(wanted(host, data, epochs=1), out, host=host, message=said.append) == first
    assert any("nothing was trained" in line for line in said)
    with pytest.raises(UsageError, match="epochs was 1, is 2"):
        distill_architecture(wanted(host, data, epochs=2), out, host=host)
    with pytest.raises(UsageError, match=r"training\.lr was 0\.002, is 0\.1"):
        distill_architecture(wanted(host, data, epochs=1, lr=0.1), out, host=host)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(UsageError, match="holds no distillation"):
        distill_architecture(wanted(host, data), tmp_path / "full", host=host)
    with pytest.raises(UsageError, match="is a file"):
        distill_architecture(wanted(host, data), tmp_path / "full" / "notes.txt", host=host)
    (out / "result.json").write_text("{")
    with pytest.raises(UsageError, match=r"result\.json is damaged"):
        distill_architecture(wanted(host, data, epochs=1), out, host=host)


def test_it_starts_from_a_student(host, data, tmp_path):
    distill_architecture(wanted(host, data, epochs=2), tmp_path / "first", host=host)
    first = nasdistill.load_student(tmp_path / "first", host=host)
    said = []
    request = wanted(host, data, epochs=1, init=first, lr=1e-9)
    result = distill_architecture(request, tmp_path / "same", host=host, message=said.append)
    assert f"started from student {first.id}" in said
    # A vanishing learning rate leaves the weights where they started (batch statistics do move).
    before, after = first.weights(), nasdistill.load_student(tmp_path / "same").weights()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before if "norm.running" not in name
               and "num_batches" not in name)  # fmt: skip
    assert read_json(tmp_path / "same" / "provenance.json")["init"]["student"] == first.id
    assert result["validation"]["n"] > 0
    small = {"width": 32, "depth": 1, "block00.attention": "softmax", "block00.heads": 1}
    distill_architecture(
        wanted(host, data, epochs=1, params=small, init=first), tmp_path / "cut", host=host, message=said.append
    )
    assert any("parameters from student" in line for line in said)
    foreign = wanted(host, data, epochs=1, params={"width": 8, "stages": 1}, init=first, space="resnet_s0")
    with pytest.raises(MismatchError, match="cannot start architecture"):
        distill_architecture(foreign, tmp_path / "foreign", host=host)


def refused(host, data, out, recipe, options, *, space="conv_vit", params=None):
    request = wanted(host, data, space=space, params=params)
    recipe = ComponentConfig(name=recipe, options=options)
    request = replace(request, config=request.config.model_copy(update={"recipe": recipe}))
    with pytest.raises(UsageError) as caught:
        distill_architecture(request, out, host=host)
    return request, caught.value


def test_a_request_that_is_refused_leaves_no_folder(host, data, tmp_path):
    out = tmp_path / "bad" / "d4"
    softmax = {"width": 32, "depth": 1, "block00.attention": "softmax", "block00.heads": 1}
    request, _ = refused(host, data, out, "ecomla", {"convert": {"kv_rank": 100000}}, params=softmax)
    assert not out.parent.exists()
    out.mkdir(parents=True)
    refused(host, data, out, "ecomla", {"teacher": "hf:./nope"}, params=softmax)
    assert out.is_dir(), "it was there before"
    assert not any(out.iterdir())
    _, error = refused(host, data, out, "ecomla", {}, space="resnet_s0", params={"width": 8, "stages": 1})
    assert error.message == "ResNetS0Net made no attention call in its forward"
    assert "encoder, decoder, vit and conv_vit" in error.hint
    assert not any(out.iterdir())
    # What another call began stays, whatever becomes of this one.
    write_json(out / "distill.json", request.to_json())
    refused(host, data, out, "ecomla", {"convert": {"kv_rank": 100000}}, params=softmax)
    assert read_json(out / "distill.json") == request.to_json()


def test_a_training_that_is_refused_at_its_end_stays(host, data, tmp_path, monkeypatch):
    def refuse(*_):
        raise UsageError("no test")

    # The teacher is the first that is judged, so it is left out.
    monkeypatch.setattr(training, "_judge_teacher", lambda *_: None)
    monkeypatch.setattr(training, "evaluate", refuse)
    with pytest.raises(UsageError, match="no test"):
        distill_architecture(wanted(host, data, epochs=1), tmp_path / "out", host=host)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [CHECKPOINT, "distill.json"]


# ---- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    from nasdistill.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        streams = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, streams.out, streams.err)

    return run


def test_the_command_reads_an_architecture_file_a_configuration_and_options(command, host, data, tmp_path, monkeypatch):
    arch = wanted(host, data).architecture
    write_json(tmp_path / "arch.json", arch.to_json())
    (tmp_path / "longer.toml").write_text(
        f'[teacher]\nname = "timm:test_vit"\n[task.options]\ndata = "{data}"\n[training]\nbatch_size = 30\n'
        '[objective]\ntask_weight = 1.0\nlosses = [{ name = "kd", weight = 0.5, options = { temperature = 2.0 } }]\n'
    )
    words = [
        "distill", "arch.json", "--config", "longer.toml", "--teacher", "timm:test_resnet", "--epochs", 2,
        "--out", "out", "--loss", "kd", "--set", "training.lr=0.003", "--seed", 5, "--json",
    ]  # fmt: skip
    done = command(*words)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["student"] == "out"
    assert "own weights" not in done.stderr  # an architecture has none
    assert result["teacher"]["name"] == "timm:test_resnet"
    assert {"validation", "test", "epochs", "params", "history", "metric"} <= set(result)
    assert "epoch 1 of 2: loss" in done.stderr
    facts = read_json(tmp_path / "out" / "provenance.json")
    assert facts["objective"]["losses"][0] | {"weight": 0.5} == facts["objective"]["losses"][0]
    assert facts["objective"]["losses"][0]["options"] == {"temperature": 2.0}
    assert (facts["training"]["lr"], facts["training"]["batch_size"], facts["seed"]) == (0.003, 30, 5)
    again = command(*words)
    assert json.loads(again.stdout) == result
    assert "nothing was trained" in again.stderr
    # The folder is a student: it can be trained on, and exported.
    more = [
        "distill",
        "out",
        "--init",
        "out",
        "--teacher",
        "timm:test_resnet",
        "--data",
        data,
        "--epochs",
        1,
        "--out",
        "more",
    ]
    done = command(*more)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert "started from student" in done.stderr
    assert "own weights" not in done.stderr
    done = command("distill", "out", *more[4:-1], "fresh")
    assert done.returncode == 0, done.stderr
    assert "the student's own weights are left aside; --init out goes on from them\n" in done.stderr
    assert re.search(r"^started with (fresh weights|[\d,]+ of [\d,]+ parameters from the teacher)$", done.stderr, re.M)
    assert "started from student" not in done.stderr
    assert "weights" not in command("distill", "out", *more[4:-1], "fresh").stderr  # finished

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupt)
    done = command("distill", "out", *more[4:-1], "torn")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted; the same command goes on")
    done = command("export", "more", "onnx-folder", "--to", "onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]["max_rel"] < 1e-4
    assert (tmp_path / "onnx-folder" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill", "none.json", "--epochs", "1", "--out", "o"], "cannot read architecture file none.json"),
        (["distill", "bad.json", "--epochs", "1", "--out", "o"], "is not one of"),
        (["distill", "bad.json", "--epochs", "0", "--out", "o"], "--epochs must be at least 1"),
        (["distill", "good.json", "--epochs", "1", "--out", "o", "--teacher", "timm:nothing"], "nothing"),
        (["distill", "good.json", "--epochs", "1", "--out", "o", "--loss", "kd=much"], "the weight must be a number"),
        (["distill", "good.json", "--epochs", "1", "--out", "o", "--set", "training.lrr=1"], "lrr"),
        (["distill", "good.json", "--epochs", "1", "--out", "o", "--data", "none.npz"], "none.npz"),
        (["distill", "good.json", "--epochs", "1", "--out", "o", "--init", "none"], "there is no folder none"),
        (["export", "none", "o", "--to", "hf"], "there is no folder none"),
        (["export", ".", "o", "--to", "hf"], "neither a run nor a saved student"),
    ],
)
def test_mistakes_are_said_in_words_and_leave_nothing(words, message, command, tmp_path):
    Architecture.of("spaces:conv_vit", {"width": 7}).save(tmp_path / "bad.json")
    Host.load(third_party=False).create(Kind.SEARCH_SPACE, "conv_vit").default().save(tmp_path / "good.json")
    done = command(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "bug" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available() or os.name != "posix", reason="needs gloo")
def test_accelerate_launches_two_processes(host, data, tmp_path):
    """By its module: the `accelerate` program imports timm, which beside a CPU torch needs our help to import."""
    request = wanted(host, data, epochs=2)
    write_json(tmp_path / "arch.json", request.architecture.to_json())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # --multi_gpu chooses accelerate's own launcher of processes (for CPUs it would want MPI); where there is no GPU,
    # they talk through gloo.
    words = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port),
        "-m", "nasdistill", "distill", "arch.json", "--teacher", "timm:test_resnet", "--data", str(data),
        "--epochs", "2", "--out", "out", "--json",
    ]  # fmt: skip
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)  # one process answers
    assert done.stderr.count("epoch 2 of 2") == 1
    student = nasdistill.load_student(tmp_path / "out")
    assert student.provenance["processes"] == 2
    assert result["epochs"] == student.epochs == 2
    with torch.no_grad():
        assert student.model()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
