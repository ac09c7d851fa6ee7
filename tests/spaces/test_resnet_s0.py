"""`resnet_s0`: the networks of the paper, the very small ones, and starting students from a teacher's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nasdistill.interfaces import ModelGeometry
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

DIGITS = IOSpec("image", (1, 8, 8), 10)
CIFAR = IOSpec("image", (3, 32, 32), 10)


@pytest.fixture
def space(host):
    return host.create(Kind.SEARCH_SPACE, "resnet_s0")


def shake(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value of its own, so that a wrong slice cannot go unseen."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) if "var" in name else 0.1 * torch.randn_like(tensor))
    return model.eval()


def point(space, **changes):
    return space.architecture({name.replace("_blocks", ".blocks"): value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("shortcut", "classes", "params"),
    [
        ("pad", 10, 269_722),  # ResNet-20 of the ResNet paper: "0.27M"
        ("projection", 10, 272_474),
        ("projection", 100, 278_324),  # resnet20 of the CIFAR-100 distillation literature: "0.28M"
    ],
)
@pytest.mark.paper("2303.15678", "spaces:resnet_s0")
def test_the_default_is_resnet_20(host, shortcut, classes, params):
    space = host.create(Kind.SEARCH_SPACE, "resnet_s0", {"shortcut": shortcut})
    io = IOSpec("image", (3, 32, 32), classes)
    model = space.build(space.default(), io)
    assert sum(p.numel() for p in model.parameters()) == space.cost(space.default(), io).params == params
    assert space.depth(space.default()) == 9


@pytest.mark.parametrize(("blocks", "params"), [(5, 464_154), (7, 658_586), (9, 853_018)])
@pytest.mark.paper("2303.15678", "spaces:resnet_s0")
def test_deeper_ones_have_the_known_sizes_too(host, blocks, params):
    """ResNet-32, -44 and -56: 0.46M, 0.66M, 0.85M."""
    space = host.create(Kind.SEARCH_SPACE, "resnet_s0", {"shortcut": "pad", "blocks": [blocks]})
    assert space.cost(space.default(), CIFAR).params == params


def test_resnet_20_costs_41_million_macs(space):
    assert round(space.cost(space.default(), CIFAR).macs / 1e6, 1) == pytest.approx(40.8, abs=0.3)


@pytest.mark.paper("2303.15678", "spaces:resnet_s0")
def test_s0_is_a_part_of_the_space_with_64_points(host, space):
    [s0] = space.subspaces()
    assert s0.name == "s0"
    inside = [a for a in space.enumerate() if all(a.params[name] in allowed for name, allowed in s0.choices.items())]
    assert len(inside) == 64
    only = host.create(Kind.SEARCH_SPACE, "resnet_s0", {"width": [16], "stem_stride": [1], "stages": [3]})
    assert only.size() == 64
    assert {tuple(a.params.items()) for a in only.enumerate()} == {tuple(a.params.items()) for a in inside}
    assert host.create(Kind.SEARCH_SPACE, "resnet_s0", {"width": [8]}).subspaces() == ()


def test_features_before_pooling_have_four_widths(space):
    model = space.build(point(space, width=32), CIFAR).eval()
    seen = {}
    model.pool.register_forward_hook(lambda module, args, out: seen.update(shape=args[0].shape))
    model(torch.randn(2, 3, 32, 32))
    assert seen["shape"] == (2, 128, 8, 8)
    assert model.fc.in_features == 128


@pytest.mark.parametrize(("side", "stride", "first"), [(8, 1, 8), (8, 2, 4), (32, 1, 32), (64, 1, 32), (224, 1, 28)])
def test_the_stem_brings_large_images_down(space, side, stride, first):
    io = IOSpec("image", (3, side, side), 4)
    graph = space.graph(point(space, stem_stride=stride), io)
    assert graph.nodes["stages.0.0.conv1"]["shape"] == (16, first, first)


def test_the_smallest_members_have_few_layers(space):
    graph = space.graph(point(space, stages=1, stage0_blocks=1, stem_stride=2), DIGITS)
    assert [data["op"] for _, data in graph.nodes(data=True)] == [
        "input",
        "conv",
        "conv",
        "conv",
        "add",
        "mean",
        "linear",
    ]


def test_padded_shortcuts_subsample_and_pad(host):
    space = host.create(Kind.SEARCH_SPACE, "resnet_s0", {"shortcut": "pad"})
    model = space.build(point(space, width=8, stages=2, stage0_blocks=1, stage1_blocks=1), DIGITS)
    image = torch.randn(2, 8, 8, 8)
    out = model.stages[1][0].shortcut(image)
    assert torch.equal(out[:, 4:12], image[:, :, ::2, ::2])
    assert out[:, :4].abs().max() == out[:, 12:].abs().max() == 0


def test_networks_without_token_layers_name_none(space):
    assert space.layer_map(space.default(), ModelGeometry({}, layers=6)) == {}


# ---- inheritance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_the_same_architecture_inherits_bit_for_bit(host, shortcut):
    space = host.create(Kind.SEARCH_SPACE, "resnet_s0", {"shortcut": shortcut})
    arch = space.default()
    teacher, student = shake(space.build(arch, DIGITS)), space.build(arch, DIGITS).eval()
    report = space.inherit(student, arch, teacher)
    assert report.copied == report.total == sum(p.numel() for p in student.parameters())
    image = torch.randn(3, 1, 8, 8)
    assert torch.equal(student(image), teacher(image))


def test_a_cut_channel_of_weight_zero_is_not_missed(space):
    """Channels that carry nothing go first, and without them the network computes the same."""
    small = point(space, width=8, stages=2, stage0_blocks=3, stage1_blocks=1)
    large = point(space, width=16, stages=2, stage0_blocks=3, stage1_blocks=1)
    teacher = shake(space.build(large, DIGITS))
    with torch.no_grad():
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                dead = torch.randperm(16)[:8] if module.num_features == 16 else torch.arange(0, 32, 2)
                if module.num_features == 16:
                    dead = torch.arange(1, 16, 2)
                module.weight[dead] = 0
                module.bias[dead] = 0
    student = space.build(small, DIGITS).eval()
    report = space.inherit(student, small, teacher)
    assert report.copied == report.total
    image = torch.randn(4, 1, 8, 8)
    assert torch.allclose(student(image), teacher(image), atol=1e-4)


@pytest.mark.parametrize("teacher_blocks", [1, 3])
@pytest.mark.parametrize("student_blocks", [1, 5])
@pytest.mark.parametrize("student_stages", [1, 3])
def test_other_depths_take_what_fits_and_count_it(space, teacher_blocks, student_blocks, student_stages):
    def arch(blocks, stages, width):
        return point(space, width=width, stages=stages, **{f"stage{i}_blocks": blocks for i in range(stages)})

    teacher = shake(space.build(arch(teacher_blocks, 3, 16), DIGITS))
    target = arch(student_blocks, student_stages, 8)
    student = space.build(target, DIGITS).eval()
    fresh = copy.deepcopy(student)
    report = space.inherit(student, target, teacher)
    changed = sum(int((a != b).sum()) for a, b in zip(student.parameters(), fresh.parameters(), strict=True))
    assert changed == report.copied <= report.total
    assert student(torch.randn(2, 1, 8, 8)).isfinite().all()


def test_teachers_of_another_family_give_nothing(host, space):
    student = space.build(space.default(), DIGITS)
    vit = host.create(Kind.SEARCH_SPACE, "conv_vit", {"depth": [1]})
    for teacher in (nn.Linear(2, 2), vit.build(vit.default(), DIGITS)):
        assert space.inherit(student, space.default(), teacher) is None
