"""Every loss on students of every bundled image space: it works, or it is refused before the first step."""

from __future__ import annotations

import random

import pytest
import torch

from nasdistill.errors import MismatchError
from nasdistill.interfaces import StepInfo
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.testing.kit.traces import forward, image_batch, plan_of, trace_of

IO = IOSpec("image", (1, 8, 8), 10)
LOSSES = (
    "kd", "logit_kl", "distilbert", "hidden", "hidden_cos", "pkd", "mi_alpha",
    "minilm", "minilmv2", "qkv_relation", "spatial_attention", "relation",
)  # fmt: skip
NEEDS_ATTENTION = {"minilm", "minilmv2", "qkv_relation", "distilbert"}


@pytest.fixture(scope="module")
def teacher(host):
    torch.manual_seed(0)
    space = host.create(Kind.SEARCH_SPACE, "conv_vit")
    return space.build(space.default(), IO).eval()


@pytest.mark.parametrize("space", ["conv_vit", "resnet_s0"])
@pytest.mark.parametrize("seed", range(3))
def test_losses_train_students_of_a_space_or_refuse_them(host, teacher, space, seed):
    torch.manual_seed(0)
    maker = host.create(Kind.SEARCH_SPACE, space)
    arch = maker.sample(random.Random(seed))
    student, batch = maker.build(arch, IO).train(), image_batch()
    plans = plan_of(student, batch, f"student {space}"), plan_of(teacher, batch, "the teacher")
    assert student.training
    works = set()
    for name in LOSSES:
        loss = host.create(Kind.LOSS, name)
        try:
            loss.build(plans[0].geometry, plans[1].geometry, maker.layer_map(arch, plans[1].geometry))
        except MismatchError as error:
            assert name in NEEDS_ATTENTION
            assert "the teacher" in str(error) or "student" in str(error)
            continue
        works.add(name)
        needs = loss.sites()
        with torch.no_grad():
            theirs = trace_of(teacher, batch, needs.teacher, plans[1])
        student.zero_grad()
        terms = loss(trace_of(student, batch, needs.student, plans[0]), theirs, batch, StepInfo())
        total = sum(terms.values())
        total.backward()
        assert bool(torch.isfinite(total))
        assert any(bool(p.grad.any()) for p in student.parameters() if p.grad is not None)
    assert works >= set(LOSSES) - NEEDS_ATTENTION
    if space == "resnet_s0":
        assert not works & NEEDS_ATTENTION
    assert forward(student, batch).shape == (4, 10)
