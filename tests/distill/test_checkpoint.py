"""Checkpoints: a training that was cut short ends with the same bits as one that was not."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from toys_distill import Attentive, Convolutional, Factory, Perceptron, made, same, state, toy_task, toy_teacher

from nasdistill.distill import TeacherCache, train
from nasdistill.interfaces import TeacherSession
from nasdistill.spec.config import LossConfig, ObjectiveConfig, Schedule, TrainingConfig

ALL = ObjectiveConfig(
    task_weight=Schedule(start=1.0, end=0.2),
    losses=(LossConfig(name="kd"), LossConfig(name="hidden"), LossConfig(name="maps")),
)
KD = ObjectiveConfig()


class Cut(Exception):
    """The process ended here."""


def run(student, *, objective=KD, teacher=None, config=None, epochs=4, cut=None, **arguments):
    def on_step(info, terms):
        if cut is not None and info.step == cut:
            raise Cut

    arguments = {"seed": 0, "start_epoch": 3, **arguments}
    return train(
        student, toy_task(), teacher or toy_teacher(), objective, TrainingConfig(batch_size=32, **(config or {})),
        epochs=epochs, host=Factory(), on_step=on_step, **arguments,
    )  # fmt: skip


CASES = {
    "adamw": (lambda: made(Perceptron, dropout=0.2), KD, {}),
    "sgd": (lambda: made(Perceptron), KD, {"optimizer": "sgd", "schedule": "linear"}),
    "average": (lambda: made(Convolutional), KD, {"ema": 0.9}),
    "owned parts": (lambda: made(Attentive), ALL, {"accumulate": 2}),
    "bf16": (lambda: made(Attentive), ALL, {"precision": "bf16"}),
}


@pytest.mark.parametrize(("case", "cut"), [("adamw", 1), ("adamw", 4), *((case, 7) for case in CASES)])
def test_interrupted_equals_uninterrupted(tmp_path, case, cut):
    build, objective, config = CASES[case]
    whole, pieces = build(), build()
    expected = run(whole, objective=objective, config=config)
    cut = min(cut, expected.steps - 1)
    path = tmp_path / "training.safetensors"
    with pytest.raises(Cut):
        run(pieces, objective=objective, config=config, cut=cut, checkpoint=path)
    done = cut // (expected.steps // 4)
    assert path.exists() == (done > 0)
    again = build()  # another process: nothing but the file is left
    result = run(again, objective=objective, config=config, checkpoint=path)
    assert result.resumed == done
    assert result.steps == expected.steps
    assert same(state(whole), state(again))
    assert result.evaluation == expected.evaluation
    for one, two in zip(result.history, expected.history, strict=True):
        assert (one.epoch, one.terms, one.lr, one.evaluation) == (two.epoch, two.terms, two.lr, two.evaluation)
    if result.objective.losses:
        assert same(state(result.objective), state(expected.objective))


def test_a_finished_training_is_not_done_again(tmp_path):
    path = tmp_path / "training.safetensors"
    first, second = made(Perceptron), made(Perceptron, 1)
    expected = run(first, checkpoint=path, config={"ema": 0.9})
    steps = []
    result = run(second, checkpoint=path, config={"ema": 0.9}, on_epoch=steps.append)
    assert steps == []
    assert same(state(first), state(second))
    assert result.evaluation == expected.evaluation
    assert result.history == expected.history
    assert result.resumed == 4


def test_with_the_cache(tmp_path):
    whole, pieces = made(Attentive), made(Attentive)
    run(whole, objective=ALL)
    path = tmp_path / "training.safetensors"
    cache = TeacherCache(tmp_path / "cache")
    with pytest.raises(Cut):
        run(pieces, objective=ALL, cut=9, checkpoint=path, cache=cache)
    run(pieces, objective=ALL, checkpoint=path, cache=cache)
    assert same(state(whole), state(pieces))


@pytest.mark.parametrize("change", ["seed", "epochs", "objective", "config", "student", "teacher", "start_epoch"])
def test_a_checkpoint_of_another_training_is_not_continued(tmp_path, change):
    path = tmp_path / "training.safetensors"
    with pytest.raises(Cut):
        run(made(Perceptron), cut=6, checkpoint=path)
    other = {
        "seed": {"seed": 1},
        "epochs": {"epochs": 3},
        "objective": {"objective": ObjectiveConfig(task_weight=0.4)},
        "config": {"config": {"lr": 1e-3}},
        "teacher": {"teacher": toy_teacher(seed=3)},
        "start_epoch": {"start_epoch": 0},
        "student": {},
    }[change]
    width = 17 if change == "student" else 16
    fresh, student = made(Perceptron, width=width), made(Perceptron, width=width)
    run(fresh, **other)
    result = run(student, checkpoint=path, **other)
    assert result.resumed == 0
    assert result.notes == ["checkpoint training.safetensors belongs to another training; started anew"]
    assert same(state(fresh), state(student))


@pytest.mark.parametrize("content", [b"", b"nonsense" * 10, None])
def test_an_unreadable_checkpoint_starts_anew(tmp_path, content):
    path = tmp_path / "training.safetensors"
    run(made(Perceptron), checkpoint=path)
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    fresh, student = made(Perceptron), made(Perceptron)
    run(fresh)
    result = run(student, checkpoint=path)
    assert result.notes == ["checkpoint training.safetensors cannot be read; started anew"]
    assert same(state(fresh), state(student))


def test_a_flipped_bit_is_seen(tmp_path):
    path = tmp_path / "training.safetensors"
    whole = made(Perceptron)
    run(whole)
    with pytest.raises(Cut):
        run(made(Perceptron), cut=9, checkpoint=path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    again = made(Perceptron)
    result = run(again, checkpoint=path)
    assert result.resumed == 0
    assert result.notes == ["checkpoint training.safetensors cannot be read; started anew"]
    assert same(state(whole), state(again))


def test_the_file_is_plain_and_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    run(made(Attentive), objective=ALL, checkpoint=path, config={"ema": 0.9})
    assert [p.name for p in tmp_path.iterdir()] == ["training.safetensors"]
    with safe_open(path, framework="pt") as file:
        groups = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["facts"])
    assert groups == {"student", "objective", "average", "optimizer"}
    assert facts["step"] == 16
    before = path.read_bytes()
    monkeypatch.setattr("nasdistill.distill.checkpoint.save_file", _failing)
    with pytest.raises(OSError, match="No space"):
        run(made(Attentive), objective=ALL, checkpoint=path, seed=9)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["training.safetensors"]


def _failing(tensors, path, metadata):
    path.write_bytes(b"half of it")
    raise OSError(28, "No space left on device")


class Following(TeacherSession):
    """A moving average of the student."""

    label, cacheable, fingerprint = "average of the student", False, "following"

    @property
    def model(self):
        return self._model

    def start(self, student):
        self._model = copy.deepcopy(student).eval().requires_grad_(False)

    def after_step(self, student, step):
        with torch.no_grad():
            for mine, its in zip(self._model.parameters(), student.parameters(), strict=True):
                mine.lerp_(its, 0.1)


def test_a_teacher_that_changes_is_part_of_the_checkpoint(tmp_path):
    whole, again = made(Perceptron), made(Perceptron)
    run(whole, teacher=Following())
    path = tmp_path / "training.safetensors"
    with pytest.raises(Cut):
        run(made(Perceptron), teacher=Following(), cut=9, checkpoint=path)
    run(again, teacher=Following(), checkpoint=path)
    assert same(state(whole), state(again))


def test_tied_weights(tmp_path):
    def build():
        model = made(Perceptron)
        model.extra = torch.nn.Linear(36, 16, bias=False)
        model.extra.weight = model.first.weight
        return model

    whole, again = build(), build()
    run(whole)
    path = tmp_path / "training.safetensors"
    with pytest.raises(Cut):
        run(build(), cut=9, checkpoint=path)
    run(again, checkpoint=path)
    assert same(state(whole), state(again))
    assert again.extra.weight is again.first.weight


def test_checkpoints_can_be_spaced_out(tmp_path):
    path, seen = tmp_path / "training.safetensors", []
    for seconds in (1e6, 0.0):
        run(
            made(Perceptron), checkpoint=path, checkpoint_seconds=seconds, on_epoch=lambda _: seen.append(path.exists())
        )
    assert seen == [False] * 4 + [True] * 4
