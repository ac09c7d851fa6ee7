"""The pipeline as a space: points say how to train, and a search over them compares trainings."""

from __future__ import annotations

import random

import pytest
import torch
from toys_search import tiny, write_digits

import nasdistill
from nasdistill.errors import ArchitectureError
from nasdistill.files import read_json
from nasdistill.host.adapting import adapted_options
from nasdistill.interfaces import TeacherInfo
from nasdistill.search.run import run_search
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ObjectiveConfig, TrainingConfig
from nasdistill.spec.io import IOSpec

DIGITS = IOSpec("image", (1, 8, 8), 10)
SMALL = {"name": "resnet_s0", "options": {"width": [8, 16], "blocks": [1], "stages": [2], "stem_stride": [2]}}


@pytest.mark.paper("2109.11105", "spaces:kd_pipeline")
def test_a_point_says_losses_weights_mapping_and_augmentation(host):
    space = host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": SMALL})
    arch = space.architecture(
        {"kd.logit": "kd", "kd.temperature": 4.0, "kd.intermediate": "hidden", "kd.intermediate_weight": 0.1,
         "kd.mapping": "last", "kd.task_weight": 0.5, "kd.mixup": 0.4}
    )  # fmt: skip
    objective, training = space.teaching(arch, ObjectiveConfig(balance="magnitude"), TrainingConfig(lr=0.123))
    assert [(loss.name, loss.weight) for loss in objective.losses] == [("kd", 0.5), ("hidden", 0.1)]
    assert objective.losses[0].options == {"temperature": 4.0}
    assert objective.task_weight == 0.5
    assert objective.balance == "magnitude"
    assert (training.mixup, training.token_noise, training.lr) == (0.4, 0.0, 0.123)


def test_what_does_not_matter_is_inactive_and_nothing_to_train_on_is_refused(host):
    space = host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": SMALL, "logit_weight": [0.0, 1.0]})
    one = space.architecture({"kd.logit_weight": 1.0, "kd.mapping": "last", "kd.alpha": 0.9})
    assert one == space.architecture({"kd.logit_weight": 1.0})
    with pytest.raises(ArchitectureError, match="nothing to train on"):
        space.architecture({"kd.logit_weight": 0.0, "kd.task_weight": 0.0})
    rng = random.Random(0)
    for _ in range(30):
        space.check(space.mutate(space.sample(rng), rng))


def test_a_fixed_student_that_is_no_point_is_refused_before_anything_is_trained(host):
    space = host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": SMALL, "architecture": {"width": 9}})
    assert "width = 9" in space.accepts(DIGITS)


def test_a_student_that_does_not_fit_is_named_with_one_that_may(host):
    reason = host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": SMALL}).accepts(IOSpec("tokens", (12,), 2))
    assert reason.startswith(
        "it searches how students of the space spaces:resnet_s0 are trained, and of that: it needs"
    )
    assert reason.endswith('space.kd_pipeline.student={name="encoder"}')


def test_the_student_is_the_one_in_the_middle_of_its_space_unless_named(host):
    wide = {"name": "resnet_s0", "options": {"width": [8, 16, 32], "blocks": [1, 3], "stages": [2], "stem_stride": [2]}}
    space = host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": wide})
    assert space.network(space.default()).params["width"] == 16
    named = host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": wide, "architecture": {"width": 8}})
    assert named.network(named.default()).params["width"] == 8
    assert named.network(named.default()).params["stage0.blocks"] == 3


def test_the_network_is_the_inner_spaces(host):
    space = host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": SMALL, "architecture": "searched"})
    again = host.create(Kind.SEARCH_SPACE, "kd_pipeline", space.options.model_dump(mode="json"))
    assert again.size() == space.size() > host.create(Kind.SEARCH_SPACE, "kd_pipeline", {"student": SMALL}).size()
    inner = host.create(Kind.SEARCH_SPACE, "resnet_s0", SMALL["options"])
    arch = space.architecture({"student.width": 8})
    there = inner.architecture({"width": 8})
    assert space.network(arch) == there
    torch.manual_seed(0)
    ours = space.build(arch, DIGITS)
    torch.manual_seed(0)
    theirs = inner.build(there, DIGITS)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert space.cost(arch, DIGITS) == inner.cost(there, DIGITS)


def test_the_inner_space_adapts_to_the_teacher_too(host):
    options = adapted_options(host, "kd_pipeline", {}, TeacherInfo(tokenizer="somewhere"))
    assert options["mixup"] == [0.0]
    assert max(options["token_noise"]) > 0


def test_a_search_over_pipelines_trains_one_student_in_different_ways(host, tmp_path):
    few = {"temperature": [2.0], "logit_weight": [0.0, 1.0], "intermediate": ["none"], "task_weight": [0.5]}
    options = {"student": SMALL, **few, "logit": ["kd"], "mixup": [0.0, 0.4]}
    config = tiny(
        write_digits(tmp_path / "d.npz"), space=[{"name": "kd_pipeline", "options": options}],
        search__strategy="exhaustive", search__strategy_options={"epochs": 1}, search__trials=4,
    )  # fmt: skip
    run_search(config, tmp_path / "run", host=host)
    students = nasdistill.load_run(tmp_path / "run", host=host).students
    assert len(students) == 4
    assert len({student.params for student in students}) == 1
    weights = [torch.cat([t.flatten().float() for t in student.weights().values()]) for student in students]
    assert not any(torch.equal(weights[0], other) for other in weights[1:])
    assert students[0].model()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    for folder in (tmp_path / "run" / "students").iterdir():  # a student's record says how it was taught itself
        params, told = read_json(folder / "architecture.json")["params"], read_json(folder / "provenance.json")
        assert [loss["weight"] for loss in told["objective"]["losses"]] == [w for w in [params["kd.logit_weight"]] if w]
        assert told["training"]["mixup"] == params["kd.mixup"]
    for student in students:  # also of one that is not on the front, which the search saves no folder of
        params, told = student.architecture.params, student.provenance
        assert [loss["weight"] for loss in told["objective"]["losses"]] == [w for w in [params["kd.logit_weight"]] if w]
        assert (told["training"]["mixup"], told["objective"]["task_weight"]) == (params["kd.mixup"], 0.5)
    assert len(list((tmp_path / "run" / "students").iterdir())) < len(students)
