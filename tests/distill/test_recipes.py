"""Stages: what trains, what is carried, what is refused; and the real components together."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from toys_distill import Attentive, Factory, Perceptron, made, same, state, toy_task, toy_teacher

from nasdistill.distill import StageRunner, TeacherCache, evaluate, train
from nasdistill.errors import UsageError
from nasdistill.interfaces import Recipe, RecipeRunner, SingleTeacher, Stage, Transform, Transformed
from nasdistill.seeds import derive_seed
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig

TRAINING = TrainingConfig(batch_size=32)


class Doubling(Transform):
    def apply(self, model, calibration, forward):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.head.weight.mul_(2)
        return Transformed(twin, {"batches": len(calibration)})

    def rebuild(self, model, config):
        return model


class RecipeFactory(Factory):
    def create(self, kind, name, options=None, **context):
        return Doubling(options) if kind == Kind.TRANSFORM else super().create(kind, name, options)


def runner(**arguments):
    made_up = StageRunner(
        toy_task(),
        host=RecipeFactory(),
        training=TRAINING,
        seed=5,
        cache_dir=arguments.pop("cache_dir", None),
        **arguments,
    )
    made_up.register_teacher("toy", toy_teacher())
    return made_up


def test_a_stage_is_a_training():
    one, two = made(Perceptron), made(Perceptron)
    stage = Stage("short", teacher="toy", losses={"task": 0.3, "kd": {"weight": 2.0, "temperature": 3.0}}, epochs=2)
    result = runner().train(stage, one)
    objective = ObjectiveConfig(
        task_weight=0.3, losses=(LossConfig(name="kd", weight=2.0, options={"temperature": 3.0}),)
    )
    train(
        two, toy_task(), toy_teacher(), objective, TRAINING, epochs=2, seed=derive_seed(5, "stage", "short"),
        data_seed=derive_seed(5, "data", "task"), host=Factory(),
    )  # fmt: skip
    assert same(state(one), state(two))
    assert result.student is one
    assert result.evaluation == evaluate(one, toy_task())
    assert [row["epoch"] for row in result.history] == [0, 1]


def test_only_the_named_parameters_train_and_flags_come_back():
    student = made(Perceptron)
    student.norm.bias.requires_grad_(False)
    before, flags = state(student), [p.requires_grad for p in student.parameters()]
    runner().train(Stage("head", losses={"task": 1.0}, trains=("head.*", "norm.*"), epochs=1), student)
    after = state(student)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias", "norm.weight"}
    assert [p.requires_grad for p in student.parameters()] == flags


def test_budgets():
    stages = runner()
    for name, budget, steps in (
        ("a", {"epochs": 2}, 8),
        ("b", {"steps": 5}, 5),
        ("c", {"epochs": 0.5}, 2),
        ("d", {"epochs": 1, "optimizer": {"batch_size": 10, "lr": 1e-3}}, 10),
    ):
        stages.train(Stage(name, losses={"task": 1.0}, **budget), made(Perceptron))
        assert stages.record[-1]["steps"] == steps, name


def test_projectors_are_carried_when_asked():
    starts = {}
    for carry in ((), ("losses",)):
        stages, student = runner(), made(Attentive)
        first = Stage("first", teacher="toy", losses={"hidden": 1.0}, epochs=1, carry=carry)
        stages.train(first, student)
        trained = None if stages._losses is None else stages._losses["losses.hidden.projector.weight"]
        # A second stage with no step to speak of shows what the projector starts from.
        still = {"lr": 1e-30, "weight_decay": 0.0}
        second = Stage("second", teacher="toy", losses={"hidden": 1.0}, steps=1, optimizer=still, carry=("losses",))
        stages.train(second, student)
        starts[carry] = (trained, stages._losses["losses.hidden.projector.weight"])
    assert starts[()][0] is None
    trained, start = starts["losses",]
    assert torch.equal(trained, start)
    assert not torch.equal(start, starts[()][1])


def test_a_stage_does_not_depend_on_the_others():
    alone, after = runner(), runner()
    one, two = made(Perceptron), made(Perceptron)
    after.train(Stage("before", losses={"task": 1.0}, epochs=1), made(Perceptron))
    for stages, student in ((alone, one), (after, two)):
        stages.train(Stage("main", teacher="toy", losses={"kd": 1.0}, epochs=1), student)
    assert same(state(one), state(two))


class Assistant(Recipe):
    """Teacher -> assistant -> student, doubled on the way."""

    def run(self, student: nn.Module, runner: RecipeRunner) -> nn.Module:
        assistant = runner.train(
            Stage("assistant", teacher="toy", losses={"kd": 1.0}, epochs=2), made(Perceptron, width=32)
        )
        runner.register_teacher(
            "assistant", SingleTeacher(assistant.student, label="assistant", fingerprint="assistant")
        )
        student = runner.transform("doubling", student).model
        return runner.train(
            Stage("student", teacher="assistant", losses={"kd": 1.0, "task": 1.0}, epochs=3), student
        ).student


@pytest.mark.parametrize("cut", ["assistant", "student"])
def test_a_recipe_resumes_to_the_same_weights(tmp_path, cut, monkeypatch):
    whole = state(Assistant().run(made(Perceptron), runner(cache=TeacherCache(tmp_path / "cache"))))

    class Cut(Exception):
        pass

    def cutting(*arguments, **options):
        if options["student_label"] == f"stage {cut}":

            def stop(info, terms):
                if info.epoch == 1:
                    raise Cut

            options["on_step"] = stop
        return train(*arguments, **options)

    monkeypatch.setattr("nasdistill.distill.recipes.train", cutting)
    with pytest.raises(Cut):
        Assistant().run(made(Perceptron), runner(folder=tmp_path / "run"))
    monkeypatch.undo()
    stages = runner(folder=tmp_path / "run")
    assert same(whole, state(Assistant().run(made(Perceptron), stages)))
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert [(entry["kind"], entry["name"]) for entry in record] == [
        ("stage", "assistant"), ("transform", "doubling"), ("stage", "student"),
    ]  # fmt: skip
    assert record == stages.record


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("s", epochs=1, data="general"), "no data source 'general'"),
        (Stage("s"), "needs epochs or steps"),
        (Stage("s", epochs=1, steps=1), "needs epochs or steps"),
        (Stage("s", epochs=1, carry=("optimizer",)), "carries 'optimizer'"),
        (Stage("s", epochs=1, alternate="t"), "alternates with 't'"),
        (Stage("s", epochs=1, losses={"task": 1.0}, trains=("haed.*",)), "no parameter is named like 'haed"),
        (Stage("s", epochs=1, losses={"task": 1.0}, optimizer={"leaning_rate": 1}), "unknown key 'leaning_rate'"),
    ],
)
def test_refusals(stage, message):
    with pytest.raises(UsageError, match=message):
        runner().train(stage, made(Perceptron))
    stages = runner()
    stages.train(Stage("same", losses={"task": 1.0}, epochs=1), made(Perceptron))
    with pytest.raises(UsageError, match="was run already"):
        stages.train(Stage("same", losses={"task": 1.0}, epochs=1), made(Perceptron))
    with pytest.raises(UsageError, match="already"):
        stages.register_teacher("toy", toy_teacher())


def test_other_data():
    general = toy_task(train=40)
    stages = runner(data={"general": general})
    result = stages.train(Stage("s", losses={"task": 1.0}, data="general", epochs=1), made(Perceptron))
    assert stages.record[-1]["steps"] == 2
    assert result.evaluation == evaluate(result.student, toy_task())
