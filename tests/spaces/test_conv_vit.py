"""`conv_vit`: its shapes, its reference point, and starting students from a teacher's weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import Batch, ModelGeometry
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill_spaces.conv_vit.inherit import source_blocks

DIGITS = IOSpec("image", (1, 8, 8), 10)
VARIANTS = ("softmax", "flow", "sigmoid", "linear", "window")
# Everything in small: heads of 8, so that 4 of them fill a width of 32.
TINY = {"width": [8, 16, 32], "stem_width": [8, 16], "depth": [1, 2, 3], "head_dim": 8}


@pytest.fixture
def space(host):
    return host.create(Kind.SEARCH_SPACE, "conv_vit", TINY)


def shake(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value of its own, so that a wrong slice cannot go unseen."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if (tensor.is_floating_point() and "position" not in name) or tensor.requires_grad:
                tensor.add_(0.3 * torch.rand_like(tensor) if "var" in name else 0.3 * torch.randn_like(tensor))
    return model.eval()


def batch(size: int = 6, io: IOSpec = DIGITS) -> Batch:
    return Batch({"image": torch.randn(size, *io.shape)}, None, torch.arange(size))


def points(space, **changes):
    """The reference with some axes changed; `heads` and the like set them in every block."""
    params = dict(space.reference().params)
    for name, value in changes.items():
        hits = [axis for axis in params if axis == name or axis.endswith(f".{name}")]
        assert hits
        params |= dict.fromkeys(hits, value)
    return space.architecture(params)


# ---- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "reduction", "grid"),
    [(8, 0, 4), (8, 1, 2), (16, 0, 8), (28, 0, 7), (32, 0, 8), (32, 1, 4), (64, 0, 8), (96, 0, 12), (224, 0, 14)],
)
def test_the_token_grid_follows_the_image(space, side, reduction, grid):
    io = IOSpec("image", (3, side, side), 4)
    arch = points(space, reduction=reduction, depth=1)
    graph = space.graph(arch, io)
    assert graph.nodes["position"]["shape"] == (grid * grid, 32)
    if side <= 32:
        assert space.build(arch, io).grid == (grid, grid)


def test_the_reference_is_the_largest_point_and_the_teacher_that_was_asked_for(host):
    space = host.create(Kind.SEARCH_SPACE, "conv_vit")
    arch = space.reference()
    params = arch.params
    assert (params["stem_width"], params["width"], params["depth"], params["reduction"]) == (32, 128, 6, 0)
    assert {params[f"block{i:02d}.{axis}"] for i in range(6) for axis in ("heads", "mlp_ratio")} == {4}
    assert {params[f"block{i:02d}.attention"] for i in range(6)} == {"softmax"}
    model = space.build(arch, DIGITS)
    assert [(u.conv.in_channels, u.conv.out_channels, u.conv.stride[0]) for u in model.stem] == [
        (1, 32, 1),
        (32, 128, 2),
    ]
    assert model.grid == (4, 4)
    assert all((b.attn.heads, b.attn.head_dim, b.mlp.fc1.out_features) == (4, 32, 512) for b in model.blocks)


def test_heads_that_do_not_divide_the_width_are_refused_where_they_must(host):
    space = host.create(
        Kind.SEARCH_SPACE, "conv_vit", {"head_dim": 0, "width": [32, 96], "heads": [1, 3], "depth": [1, 2]}
    )
    with pytest.raises(ArchitectureError, match=r"block00\.heads = 3 does not divide width = 32"):
        space.architecture({"width": 32, "depth": 1, "block00.heads": 3})
    arch = space.architecture({"width": 96, "depth": 1, "block00.heads": 3})
    assert space.build(arch, DIGITS).blocks[0].attn.head_dim == 32
    small = host.create(Kind.SEARCH_SPACE, "conv_vit", {
        "head_dim": 0, "width": [32, 96], "heads": [1, 3], "depth": [1, 2], "stem_width": [8], "mlp_ratio": [1],
        "attention": ["softmax"],
    })  # fmt: skip
    assert len(list(small.enumerate())) == small.size()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.paper("2202.06258", "spaces:conv_vit")
def test_every_bundled_variant_can_stand_in_a_block(space, variant):
    arch = points(space, attention=variant)
    model = space.build(arch, DIGITS).eval()
    image = torch.randn(3, 1, 8, 8)
    assert torch.allclose(model(image)[1:2], model(image[1:2]), atol=1e-5)
    assert space.cost(arch, DIGITS).params == sum(p.numel() for p in model.parameters())
    host_class = space.host.load(Kind.ATTENTION, variant)
    geometry = model.blocks[0].attn.core.geometry
    assert space.graph(arch, DIGITS).nodes["blocks.0.attn.core"]["macs"] == host_class.cost(geometry, 16, 16).macs


def test_cores_see_the_grid_the_layer_and_a_shared_store(space):
    model = space.build(points(space, depth=2), DIGITS).eval()
    seen = []
    for block in model.blocks:
        block.attn.core.register_forward_hook(lambda module, args, out: seen.append(args[3]))
    model(torch.randn(1, 1, 8, 8))
    assert [ctx.layer for ctx in seen] == [0, 1]
    assert all(ctx.layout.grid == (4, 4) and ctx.layer_input.shape == (1, 16, 32) for ctx in seen)
    assert seen[0].store is seen[1].store


def test_an_unknown_variant_is_refused_by_name(host):
    space = host.create(Kind.SEARCH_SPACE, "conv_vit", {"attention": ["softmx"]})
    with pytest.raises(ArchitectureError, match="softm"):
        space.build(space.default(), DIGITS)


def test_fixed_positions_cost_nothing_and_are_not_saved(host):
    space = host.create(Kind.SEARCH_SPACE, "conv_vit", {**TINY, "position": "sincos"})
    model = space.build(space.reference(), DIGITS)
    assert "position" not in model.state_dict()
    assert space.cost(space.reference(), DIGITS).params == sum(p.numel() for p in model.parameters())
    assert len({tuple(row) for row in model.position[0].tolist()}) == 16


# ---- inheritance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("position", ["learned", "sincos"])
@pytest.mark.paper("2407.14679", "spaces:conv_vit")
def test_the_same_architecture_inherits_bit_for_bit(host, calibrated, position):
    space = host.create(Kind.SEARCH_SPACE, "conv_vit", {**TINY, "position": position})
    arch = space.reference()
    teacher = shake(space.build(arch, DIGITS))
    student = space.build(arch, DIGITS).eval()
    report = space.inherit(student, arch, teacher, calibration=[batch()] if calibrated else ())
    total = sum(p.numel() for p in student.parameters())
    assert (report.copied, report.total) == (total, total)
    image = torch.randn(4, 1, 8, 8)
    assert torch.equal(student(image), teacher(image))


def test_inheriting_leaves_the_teacher_as_it_was(space):
    arch = points(space, width=16, heads=2, mlp_ratio=1, depth=2)
    teacher = shake(space.build(space.reference(), DIGITS)).train()
    teacher.blocks[1].eval()
    before = copy.deepcopy(teacher.state_dict())
    modes = [module.training for module in teacher.modules()]
    space.inherit(space.build(arch, DIGITS), arch, teacher, calibration=[batch(), batch()])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [module.training for module in teacher.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.paper("2407.14679", "spaces:conv_vit")
def test_cutting_heads_and_neurons_is_the_teacher_with_those_columns_at_zero(space, calibrated):
    arch = points(space, heads=2, mlp_ratio=1)
    teacher = shake(space.build(space.reference(), DIGITS)).double()
    student = space.build(arch, DIGITS).double().eval()
    data = [Batch({"image": batch().image.double()}, None, torch.arange(6))] if calibrated else ()
    report = space.inherit(student, arch, teacher, calibration=data)
    assert report.copied == report.total
    masked = copy.deepcopy(teacher)
    cut = 0
    for ours, theirs in zip(student.blocks, masked.blocks, strict=True):
        for kept, full in ((ours.attn.proj, theirs.attn.proj), (ours.mlp.fc2, theirs.mlp.fc2)):
            gone = ~(full.weight.T[:, None] == kept.weight.T[None]).all(-1).any(-1)  # columns the student lacks
            assert int(gone.sum()) == full.in_features - kept.in_features
            cut += int(gone.sum())
            with torch.no_grad():
                full.weight[:, gone] = 0
    assert cut == 3 * (16 + 96)
    image = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    assert (student(image) - teacher(image)).abs().max() > 1e-3
    assert torch.allclose(student(image), masked(image), rtol=1e-12, atol=1e-12)


@pytest.mark.paper("2407.14679", "spaces:conv_vit")
def test_the_heads_and_neurons_that_write_most_are_kept(space):
    teacher = shake(space.build(space.reference(), DIGITS))
    with torch.no_grad():
        for block in teacher.blocks:
            block.attn.proj.weight[:, 8:24] *= 1e-6  # heads 1 and 2 of 4
            block.mlp.fc2.weight[:, ::2] *= 1e-6
    arch = points(space, heads=2, mlp_ratio=2)
    for data in ((), [batch()]):
        student = space.build(arch, DIGITS)
        space.inherit(student, arch, teacher, calibration=data)
        for ours, theirs in zip(student.blocks, teacher.blocks, strict=True):
            kept = torch.cat([theirs.attn.proj.weight[:, :8], theirs.attn.proj.weight[:, 24:]], dim=1)
            assert torch.equal(ours.attn.proj.weight, kept)
            assert torch.equal(ours.mlp.fc2.weight, theirs.mlp.fc2.weight[:, 1::2])


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.paper("2407.14679", "spaces:conv_vit")
def test_parts_that_do_nothing_are_cut_without_a_trace(space, calibrated):
    """Heads and neurons that write nothing go, and the outputs stay; channels that say nothing go first, too."""
    teacher = shake(space.build(space.reference(), DIGITS))
    dead = torch.tensor([1, 4, 5, 30])
    with torch.no_grad():
        for block in teacher.blocks:
            block.attn.proj.weight[:, 8:24] = 0  # heads 1 and 2 of 4
            block.mlp.fc2.weight[:, ::2] = 0
    data = [batch()] if calibrated else ()
    arch = points(space, heads=2, mlp_ratio=2)
    student = space.build(arch, DIGITS).eval()
    report = space.inherit(student, arch, teacher, calibration=data)
    assert report.copied == report.total == space.cost(arch, DIGITS).params
    image = torch.randn(4, 1, 8, 8)
    assert torch.allclose(student(image), teacher(image), atol=1e-5)
    with torch.no_grad():
        for norm in [teacher.norm, *(norm for block in teacher.blocks for norm in (block.norm1, block.norm2))]:
            norm.weight[dead] = norm.bias[dead] = 0
        writers = [layer for block in teacher.blocks for layer in (block.attn.proj, block.mlp.fc2)]
        for layer in writers:
            layer.weight[dead] = layer.bias[dead] = 0
        teacher.stem[-1].norm.weight[dead] = teacher.stem[-1].norm.bias[dead] = 0
        teacher.position[..., dead] = 0
    arch = points(space, width=16)
    student = space.build(arch, DIGITS)
    space.inherit(student, arch, teacher, calibration=data)
    kept = {int((teacher.norm.weight == value).nonzero()) for value in student.norm.weight}
    assert not kept & set(dead.tolist())


@pytest.mark.paper("2407.14679", "spaces:conv_vit")
def test_channels_are_cut_alike_in_all_layers(space):
    teacher = shake(space.build(space.reference(), DIGITS))
    arch = points(space, width=16, stem_width=8, heads=2, mlp_ratio=2, depth=2)
    student = space.build(arch, DIGITS)
    report = space.inherit(student, arch, teacher)
    kept = [int((teacher.norm.bias == value).nonzero()) for value in student.norm.bias]
    assert kept == sorted(kept)
    assert len(kept) == 16
    assert torch.equal(student.head.weight, teacher.head.weight[:, kept])
    assert torch.equal(student.position, teacher.position[..., kept])
    assert torch.equal(student.stem[1].norm.running_var, teacher.stem[1].norm.running_var[kept])
    for ours, index in zip(student.blocks, source_blocks(2, 3), strict=True):
        assert torch.equal(ours.norm2.weight, teacher.blocks[index].norm2.weight[kept])
        assert torch.equal(ours.attn.proj.bias, teacher.blocks[index].attn.proj.bias[kept])
    assert report.copied == report.total == sum(p.numel() for p in student.parameters())


def test_a_head_of_another_size_keeps_its_share_of_the_scores(host):
    """A student head of 32 made of a teacher head of 16: what was copied weighs in the scores as before."""
    options = {"width": [32], "stem_width": [8], "depth": [1], "heads": [1], "mlp_ratio": [1], "head_dim": 16}
    space = host.create(Kind.SEARCH_SPACE, "conv_vit", options)
    teacher = shake(space.build(space.reference(), DIGITS))
    wide = host.create(Kind.SEARCH_SPACE, "conv_vit", {**options, "head_dim": 32})
    student = wide.build(wide.reference(), DIGITS).eval()
    with torch.no_grad():  # what is not copied must not speak
        student.blocks[0].attn.qkv.weight.zero_()
        student.blocks[0].attn.proj.weight.zero_()
    report = wide.inherit(student, wide.reference(), teacher)
    assert report.copied < report.total
    image = torch.randn(3, 1, 8, 8)
    assert torch.allclose(student(image), teacher(image), atol=1e-5)


def test_a_larger_student_takes_what_there_is_and_says_how_much(space):
    small = points(space, width=16, depth=1, heads=1, mlp_ratio=1)
    teacher = shake(space.build(small, DIGITS))
    arch = space.reference()
    student = space.build(arch, DIGITS)
    fresh = copy.deepcopy(student)
    report = space.inherit(student, arch, teacher)
    changed = sum(int((a != b).sum()) for a, b in zip(student.parameters(), fresh.parameters(), strict=True))
    assert changed == report.copied < report.total
    assert torch.equal(student.head.weight[:, :16], teacher.head.weight)


def test_the_report_counts_what_changed(space):
    teacher = shake(space.build(space.reference(), DIGITS))
    other = IOSpec("image", (1, 32, 32), 4)  # another stem, another grid, other classes
    arch = points(space, width=8, heads=1, depth=2, reduction=1)
    student = space.build(arch, other)
    fresh = copy.deepcopy(student)
    report = space.inherit(student, arch, teacher)
    changed = sum(int((a != b).sum()) for a, b in zip(student.parameters(), fresh.parameters(), strict=True))
    assert changed == report.copied
    assert any("head left fresh" in note for note in report.notes)
    assert student(torch.randn(2, 1, 32, 32)).isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS[1:])
@pytest.mark.paper("2202.06258", "spaces:conv_vit")
def test_other_variants_start_from_the_same_projections(space, variant):
    teacher = shake(space.build(space.reference(), DIGITS))
    arch = points(space, attention=variant)
    student = space.build(arch, DIGITS)
    space.inherit(student, arch, teacher)
    for ours, theirs in zip(student.blocks, teacher.blocks, strict=True):
        assert torch.equal(ours.attn.qkv.weight, theirs.attn.qkv.weight)
        assert torch.equal(ours.attn.proj.weight, theirs.attn.proj.weight)


def test_teachers_of_another_family_give_nothing(space):
    arch = space.reference()
    student = space.build(arch, DIGITS)
    before = copy.deepcopy(student.state_dict())
    for teacher in (nn.Linear(4, 4), nn.Sequential(nn.Conv2d(1, 8, 3)), nn.Module()):
        assert space.inherit(student, arch, teacher) is None
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("depth", "teacher", "blocks"),
    [(1, 6, (0,)), (2, 6, (0, 5)), (3, 6, (0, 3, 5)), (6, 6, (0, 1, 2, 3, 4, 5)), (3, 1, (0, 0, 0)), (1, 1, (0,))],
)
def test_blocks_come_from_both_ends_and_between(depth, teacher, blocks):
    assert source_blocks(depth, teacher) == blocks


def test_layer_wise_losses_pair_the_last_with_the_last(space):
    teacher = ModelGeometry({}, layers=6)
    assert space.layer_map(points(space, depth=1), teacher) == {0: 5}
    assert space.layer_map(points(space, depth=3), teacher) == {0: 1, 1: 3, 2: 5}
    assert space.layer_map(space.reference(), ModelGeometry({})) == {}
