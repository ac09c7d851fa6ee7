"""What holds for single bundled losses beyond the contract that all of them keep."""

from __future__ import annotations

import pytest

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Site, StepInfo
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.pairs import PAIRS, side
from nasdistill.testing.kit.traces import Conv, Text, Vision, image_batch, plan_of, text_batch


def geometry(model, label):
    return plan_of(model, text_batch() if isinstance(model, Text) else image_batch(), label).geometry


def test_every_bundled_loss_is_here(host):
    names = {record.name for record in host.specs(Kind.LOSS)}
    assert names == {
        "kd", "logit_kl", "logit_mse", "embedding", "distilbert",
        "hidden", "hidden_cos", "hidden_ce", "pkd", "mi_alpha", "infonce", "tuba", "nwj",
        "minilm", "minilmv2", "qkv_relation", "spatial_attention", "relation",
    }  # fmt: skip


def test_the_projectors_of_hidden(host):
    student, teacher = side(PAIRS["conv"], "student"), side(PAIRS["conv"], "teacher")
    loss = host.create(Kind.LOSS, "hidden")
    for _ in range(2):  # building again replaces the parts
        loss.build(student.geometry, teacher.geometry, {})
        assert len(list(loss.parameters())) == 6  # weight and bias of three pairs
    terms = loss(student.trace, teacher.trace, student.batch, StepInfo())
    assert set(terms) == {f"features_{i}-features_{i}" for i in range(3)}
    loss.build(student.geometry, student.geometry, {})
    assert not list(loss.parameters())
    always = host.create(Kind.LOSS, "hidden", {"projector": "always"})
    always.build(student.geometry, student.geometry, {})
    assert len(list(always.parameters())) == 6


@pytest.mark.parametrize(
    ("loss", "options", "student", "teacher", "shapes"),
    [
        ("minilm", {}, Text(16, 1, 2), Text(24, 3), ["(1, 7, 16)", "(3, 7, 8)"]),
        ("minilm", {}, Vision(stride=2), Vision(stride=1), ["(2, 16, 12)", "(2, 64, 12)"]),
        ("minilmv2", {}, Vision(stride=2), Vision(stride=1), ["(2, 16, 12)", "(2, 64, 12)"]),
        ("minilmv2", {"relation_heads": 16, "fit": "refuse"}, Text(16, 1), Text(24, 3), ["16 relation heads", "24"]),
        ("hidden", {"layers": "last"}, Text(16, 2, 2), Vision(), ["(7, 16)", "(16, 24)"]),
        ("spatial_attention", {}, Text(16, 2, 2), Vision(), ["(7, 16)", "(16, 24)"]),
        ("kd", {}, Conv(), Conv(classes=7), ["(5,) at logits", "(7,) at logits"]),
    ],
)
def test_impossible_pairs_are_refused_with_both_shapes(host, loss, options, student, teacher, shapes):
    built = host.create(Kind.LOSS, loss, options)
    with pytest.raises(MismatchError) as caught:
        built.build(geometry(student, "the small one"), geometry(teacher, "the big one"), {})
    assert all(shape in str(caught.value) for shape in shapes)
    assert caught.value.hint


@pytest.mark.parametrize("loss", ["minilm", "minilmv2"])
def test_models_without_attention_are_refused(host, loss):
    with pytest.raises(MismatchError, match="resnet_s0 has no site q"):
        host.create(Kind.LOSS, loss).build(geometry(Conv(), "resnet_s0"), geometry(Vision(), "teacher"), {})


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("hidden", {"layers": [[5, 0]]}, r"no site hidden.5"),
        ("relation", {"student_site": "attention.-1"}, "not scores"),
        ("relation", {"student_site": "nonsense"}, "unknown site"),
    ],
)
def test_missing_sites_are_refused(host, loss, options, message):
    with pytest.raises(MismatchError, match=message):
        host.create(Kind.LOSS, loss, options).build(geometry(Vision(), "s"), geometry(Vision(), "t"), {})


def test_layer_map_is_followed(host):
    student, teacher = geometry(Text(16, 2, 2), "s"), geometry(Text(depth=6), "t")
    loss = host.create(Kind.LOSS, "hidden", {"layers": "map"})
    loss.build(student, teacher, {0: 1, 1: 4})
    assert loss.sites().teacher == {Site("hidden", 1), Site("hidden", 4)}
    loss.build(student, teacher, {})
    assert loss.sites().teacher == {Site("hidden", 2), Site("hidden", 5)}


def test_stage_maps_pair_by_resolution(host):
    loss = host.create(Kind.LOSS, "spatial_attention")
    loss.build(geometry(Conv((4, 4, 4, 4)), "s"), geometry(Conv((4, 4)), "t"), {})
    assert loss.sites().student == loss.sites().teacher == {Site("features", 0), Site("features", 1)}
