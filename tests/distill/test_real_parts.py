"""The engine with the bundled task, spaces and losses: real digits, every loss, with and without the cache."""

from __future__ import annotations

import pytest
import torch
from toys_distill import finite, same, state

from nasdistill.distill import TeacherCache, train
from nasdistill.interfaces import SingleTeacher
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig

STUDENTS = {
    "conv_vit": {"width": 32, "stem_width": 8, "depth": 1},
    "resnet_s0": {"width": 8, "stages": 2, "stage0.blocks": 1, "stage1.blocks": 1},
}


@pytest.fixture(scope="module")
def scene(host):
    task = host.create(Kind.TASK, "image_classification", {"data": "digits", "labels": 0.5})
    task.prepare()
    space = host.create(Kind.SEARCH_SPACE, "conv_vit")
    with seeded(0, "teacher"):
        model = space.build(space.architecture({"width": 64, "stem_width": 8, "depth": 2}), task.io)
    return host, task, SingleTeacher(model, label="conv_vit", fingerprint="random conv_vit")


def run(scene, kind, cache, *, balance="none", steps=4):
    host, task, teacher = scene
    space = host.create(Kind.SEARCH_SPACE, kind)
    arch = space.architecture(STUDENTS[kind])
    with seeded(0, "student"):
        student = space.build(arch, task.io)
    losses = tuple(LossConfig(name=spec.id, weight=0.5, optional=True) for spec in host.specs(Kind.LOSS))
    result = train(
        student, task, teacher, ObjectiveConfig(losses=losses, balance=balance), TrainingConfig(batch_size=256),
        epochs=1, steps=steps, seed=0, host=host, cache=cache,
    )  # fmt: skip
    return result


@pytest.mark.parametrize("kind", STUDENTS)
def test_every_loss_with_and_without_the_cache(scene, kind, tmp_path):
    host = scene[0]
    # 1,078 images are 5 batches of 256; only whole passes are kept.
    plain = run(scene, kind, None, steps=5)
    cache = TeacherCache(tmp_path)
    filled, read = run(scene, kind, cache, steps=5), run(scene, kind, cache, steps=5)
    assert same(state(plain.model), state(filled.model))
    assert same(state(plain.model), state(read.model))
    assert cache.hits == 5
    known = {spec.name for spec in host.specs(Kind.LOSS)}
    used = {name for name in plain.history[0].terms if "." not in name} - {"task", "total"}
    assert used | set(plain.skipped) == known
    assert {"kd", "relation"} <= used
    if kind == "conv_vit":
        assert {"hidden", "minilm", "minilmv2"} <= used
    else:
        assert {"minilm", "minilmv2"} <= set(plain.skipped)
    assert finite(plain.evaluation)
    owned = {name.partition(".")[0] for name in plain.model.state_dict()}
    assert not owned & known


@pytest.mark.parametrize("balance", ["magnitude", "gradient"])
def test_balances_work_with_every_loss(scene, balance):
    before = run(scene, "conv_vit", None, balance="none", steps=1)
    after = run(scene, "conv_vit", None, balance=balance, steps=2)
    assert finite(after.evaluation)
    assert not same(state(before.model), state(after.model))
    assert all(torch.isfinite(p).all() for p in after.model.parameters())
