"""`ecomla` and `echoatt_two_stage`: what is converted, who teaches, and in which order."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from nasdistill.distill import StageRunner
from nasdistill.distill.recipes import structure
from nasdistill.interfaces import SingleTeacher, StageResult
from nasdistill.interfaces.recipe import TEACHER
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.config import TrainingConfig
from nasdistill.testing.kit.attention import SmallEncoder
from nasdistill.testing.kit.models import digits
from nasdistill.testing.kit.task import tiny_task


@pytest.fixture
def student():
    with seeded(0, "student"):
        return SmallEncoder(depth=4).eval()


class Watching:
    """A runner that converts in earnest, trains nothing, and notes what it is asked for."""

    def __init__(self, host):
        self.host, self.stages, self.students, self.teachers, self.notes = host, [], [], {}, []

    def transform(self, name, student, options=None):
        made = self.host.create(Kind.TRANSFORM, name, options).apply(student, [digits(8)], lambda m, b: m(b.image))
        self.students.append(made.model)
        return made

    def train(self, stage, student):
        self.stages.append(stage)
        self.students.append(student)
        return StageResult(student, None)

    def register_teacher(self, name, session):
        self.teachers[name] = session

    def note(self, text):
        self.notes.append(text)


def images():
    return digits(4, start=50).image


@pytest.mark.paper("2503.11132", "recipes:ecomla")
def test_the_converted_model_learns_the_outputs_of_the_one_it_was(host, student):
    runner = Watching(host)
    options = {"teacher": "self", "convert": {"kv_rank": 3, "edge_rank": 5}}
    found = host.create(Kind.RECIPE, "ecomla", options).run(student, runner)
    assert [(stage.teacher, dict(stage.losses)) for stage in runner.stages] == [("self", {"kd": {"temperature": 1.0}})]
    assert found is runner.students[0] is runner.students[1]
    assert [block.attn.core.sizes.kv_rank for block in found.blocks] == [5, 3, 3, 5]
    with torch.no_grad():
        assert torch.equal(runner.teachers["self"].model(images()), student(images()))
        assert (found(images()) - student(images())).abs().max() > 1e-3
    plain = Watching(host)
    host.create(Kind.RECIPE, "ecomla").run(student, plain)
    assert plain.stages[0].teacher == "teacher"
    assert not plain.teachers


@pytest.mark.paper("2409.14595", "recipes:echoatt_two_stage")
def test_the_teacher_leaves_after_the_first_stage(host, student):
    runner = Watching(host)
    found = host.create(Kind.RECIPE, "echoatt_two_stage", {"adjust_epochs": 3}).run(student, runner)
    first, second = runner.stages
    assert (first.teacher, set(first.losses)) == ("teacher", {"task", "kd", "hidden"})
    assert (second.teacher, dict(second.losses), second.epochs) == (None, {"task": 1.0}, 3)
    shared = [block.attn.sharing.role for block in found.blocks if hasattr(block.attn, "sharing")]
    assert shared == ["leader", "follower"]  # of four layers the first and the last keep their own maps
    assert found is runner.students[-1]
    assert len(host.create(Kind.RECIPE, "echoatt_two_stage", {"adjust_epochs": 0}).plan()) == 1


def test_both_train_on_the_engine(host, student, tmp_path):
    """With their default losses: hidden states of converted layers are seen as those of any other."""
    task = tiny_task()
    for name, options in (("ecomla", {}), ("echoatt_two_stage", {"adjust_epochs": 1})):
        runner = StageRunner(task, host=host, training=TrainingConfig(batch_size=32), seed=0, cache_dir=tmp_path)
        runner.register_teacher(TEACHER, SingleTeacher(copy.deepcopy(student), label="before", fingerprint="0"))
        found = host.create(Kind.RECIPE, name, {"epochs": 1, **options}).run(student, runner)
        stages = ["distil", "adjust"] if name == "echoatt_two_stage" else ["distil"]
        assert [entry["name"] for entry in runner.record if entry["kind"] == "stage"] == stages
        assert runner.record[0]["kind"] == "transform"
        assert [step.name for step in runner.transforms_of(found)] == [
            {"ecomla": "transforms:mla_upcycle", "echoatt_two_stage": "transforms:echoatt"}[name]
        ]
        with torch.no_grad():
            assert found.eval()(images()).isfinite().all()


def test_both_say_what_they_converted(host, student):
    runner = Watching(host)
    found = host.create(Kind.RECIPE, "ecomla", {"convert": {"kv_rank": 3}}).run(student, runner)
    before, after = (sum(parameter.numel() for parameter in one.parameters()) for one in (student, found))
    (line,) = runner.notes
    assert line.startswith("ecomla: 4 layers converted to latent attention, a cache of ")
    assert line.endswith(f"; {before:,} parameters before, {after:,} after")
    shares = {
        "layer 2 shares the attention of layer 1; ": {},
        "layers 1, 2 share the attention of layer 0; ": {"groups": [[0, 1, 2]]},
        "of 4 layers the first 2 and the last 1 keep their own maps (options first, last), which leaves 1; nothing is "
        "shared": {"first": 2},
        "blocks are of one layer (option block); nothing is shared": {"block": 1},
        "no group that is named has two layers; nothing is shared": {"groups": [[1]]},
    }  # fmt: skip
    for text, share in shares.items():
        runner = Watching(host)
        host.create(Kind.RECIPE, "echoatt_two_stage", {"share": share}).run(student, runner)
        assert runner.notes[0].startswith(f"echoatt: {text}")
    runner = Watching(host)
    share = {"by": "threshold", "threshold": 1.0}
    host.create(Kind.RECIPE, "echoatt_two_stage", {"share": share}).run(student, runner)
    assert re.fullmatch(
        r"echoatt: no two layers are alike enough \(similarity at most 0\.\d{3} < 1, option threshold\); "
        r"nothing is shared",
        runner.notes[0],
    )


def test_a_transform_that_changed_nothing_is_not_recorded(host, student, tmp_path):
    runner = StageRunner(tiny_task(), host=host, training=TrainingConfig(), seed=0, cache_dir=tmp_path)
    same = runner.transform("echoatt", student, {"variant": {"block": 1}})
    assert same.model is not student
    assert runner.transforms_of(same.model) == ()
    one = runner.transform(
        "echoatt", same.model, {"variant": {"mix": 1.0}}
    )  # the same weights and function, another class
    assert [step.config["mix"] for step in runner.transforms_of(one.model)] == [1.0]
    # A setting alone is a change as well.
    other = copy.deepcopy(student)
    other.blocks[0].attn.heads_of_late = 7
    assert structure(other) != structure(student)
    other = copy.deepcopy(student)
    other.blocks[0].register_forward_hook(lambda *_: None)
    assert structure(other) != structure(student)
    with torch.no_grad():
        other = copy.deepcopy(student).train()
        next(other.parameters()).add_(1)
    assert structure(other) == structure(student)
