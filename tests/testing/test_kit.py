"""What checks and tests work on is what it says it is."""

from __future__ import annotations

import torch

from nasdistill.interfaces import SingleTeacher, Stage
from nasdistill.testing.kit.inputs import network, samples
from nasdistill.testing.kit.models import DIGITS, digits_loss
from nasdistill.testing.kit.runner import RecordingRunner, stand_in
from nasdistill.testing.kit.task import tiny_task
from nasdistill.testing.kit.teacher import accuracy, tiny_teacher
from nasdistill.testing.kit.watched import WatchedTask
from nasdistill.testing.state import same


def test_the_tiny_teacher_knows_digits_that_it_never_saw():
    teacher = tiny_teacher()
    assert accuracy(teacher) > 0.85
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_every_tiny_teacher_is_a_copy():
    first, second = tiny_teacher(), tiny_teacher()
    with torch.no_grad():
        first.fc.weight.zero_()
    assert second.fc.weight.any()
    assert accuracy(tiny_teacher()) > 0.85


def test_the_tiny_teacher_fits_the_tiny_task():
    task = tiny_task()
    assert task.io == DIGITS
    task.check(tiny_teacher(), "the tiny teacher")


def recording(host, **changes):
    student = network("SmallResNet")
    return RecordingRunner(
        host, student, lambda size, start: samples(None, size, start), stand_in("SmallResNet", samples()), **changes
    ), student


def loss_of(student):
    return digits_loss(student(samples(size=16).image), samples(size=16)).item()


def test_the_recording_runner_trains_what_it_is_told_to(host):
    runner, student = recording(host, steps=5)
    student.stem.requires_grad_(False)
    before, loss = {name: p.detach().clone() for name, p in student.named_parameters()}, loss_of(student)
    stage = Stage("head", losses={"task": 1.0}, trains=("fc.*", "stem.*"), epochs=1)
    result = runner.train(stage, student)
    changed = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert loss_of(student) < loss
    assert result.student is student
    assert not student.training
    assert [p.requires_grad for p in student.stage1.parameters()] == [True] * 6
    assert [run.stage for run in runner.stages] == [stage]


def test_the_recording_runner_seeds_stages_by_their_names(host):
    states = []
    for first in ("one", "other"):
        runner, student = recording(host)
        runner.train(Stage(first, losses={"task": 1.0}, epochs=1), network("SmallResNet"))
        runner.train(Stage("main", teacher="builtin:digits", losses={"kd": 1.0}, epochs=1), student)
        states.append(dict(student.state_dict()))
        assert runner.opened == ["builtin:digits"]
    assert same(states[0], states[1]) == ""


def test_the_recording_runner_notices_what_is_done_behind_its_back(host):
    runner, student = recording(host)
    runner.finish()
    assert runner.foreign == []
    with torch.no_grad():
        student.fc.bias.add_(1.0)
    runner.evaluate(student)
    assert runner.foreign == ["before an evaluation, fc.bias had been changed outside the runner"]
    runner.register_teacher("frozen", SingleTeacher(student, label="frozen", fingerprint="frozen"))
    runner.train(Stage("late", teacher="frozen", losses={"kd": 1.0}, epochs=1), student)
    assert "requires_grad" in runner.foreign[-1]


def test_a_watched_task_is_the_task(host):
    task = tiny_task(samples=50)
    watched = WatchedTask(task)
    for split in ("train", "test"):
        for one, other in zip(watched.batches(split, batch_size=8), task.batches(split, batch_size=8), strict=True):
            assert same(one, other) == ""
    assert watched.read == ["train", "test"]
    assert watched.disturbed() == []
    next(iter(watched.batches("train", batch_size=4))).image.zero_()
    assert watched.disturbed() == ["image"]
