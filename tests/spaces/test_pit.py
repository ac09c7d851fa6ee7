"""`pit`: Auto-Prox's choices, equality with timm's PiT, what is cut and what is not."""

from __future__ import annotations

import json
import random

import pytest
import timm
import torch
from torch import nn

from nasdistill.bridge.timm_info import model_sizes
from nasdistill.errors import ArchitectureError, ConfigError, MismatchError
from nasdistill.interfaces import TeacherInfo
from nasdistill.measure.counting import count_macs, count_params
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

IO = IOSpec("image", (1, 16, 16), 3)
SMALL = {"img_size": 16, "patch_size": 4, "stride": 2, "in_chans": 1, "num_classes": 3, "base_dims": (8, 8, 8),
         "depth": (2, 2, 3), "heads": (1, 2, 4), "mlp_ratio": 2.0}  # fmt: skip
WRITES = tuple(f"{part}.{kind}" for part in ("proj", "fc2") for kind in ("weight", "bias"))


@pytest.fixture
def teacher() -> nn.Module:
    from timm.models.pit import PoolingVisionTransformer

    model = PoolingVisionTransformer(**SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def space(host, teacher):
    options = host.load(Kind.SEARCH_SPACE, "pit").adapted({}, TeacherInfo("timm", model_sizes(teacher)))
    return host.create(Kind.SEARCH_SPACE, "pit", {**json.loads(json.dumps(options)), "base_dim": [4, 8],
                                                  "mlp_ratio": [1.0, 2.0]})  # fmt: skip


def answer(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(image)


def test_the_choices_are_those_of_auto_prox(host):
    space = host.create(Kind.SEARCH_SPACE, "pit")
    found = {axis.name: axis.choices for axis in space.axes() if axis.ordered}
    assert found == {
        "base_dim": (16, 24, 32, 40), "mlp_ratio": (2, 4, 6, 8), "stage0.depth": (1, 2, 3), "stage1.depth": (4, 6, 8),
        "stage2.depth": (2, 4, 6), **{f"stage{i}.heads": (2, 4, 8) for i in range(3)},
    }  # fmt: skip
    assert space.size() == 4 * 4 * 27 * 27
    io = IOSpec("image", (3, 224, 224), 1000)
    assert space.options.patch_for(224, 224) == (16, 8)
    assert [space.options.patch_for(s, s) for s in (8, 16, 32, 64, 96)] == [(2, 1), (2, 1), (4, 2), (8, 4), (8, 4)]
    point = {"base_dim": 32, "mlp_ratio": 4.0, "stage0.depth": 2, "stage1.depth": 6, "stage2.depth": 4,
             "stage0.heads": 2, "stage1.heads": 4, "stage2.heads": 8}  # fmt: skip
    cost = space.cost(space.architecture(point), io)
    with torch.device("meta"):
        assert cost.params == count_params(timm.create_model("pit_ti_224"))


def test_the_whole_timm_model_is_inherited(space, teacher):
    student, image = space.build(space.default(), IO).eval(), torch.randn(3, 1, 16, 16)
    report = space.inherit(student, space.default(), nn.ModuleDict({"inside": teacher}))
    assert report.copied == report.total == count_params(student)
    torch.testing.assert_close(answer(student, image), answer(teacher, image), atol=2e-6, rtol=1e-5)
    source = space.modeling_source(space.default(), IO)
    again = source.factory(json.loads(json.dumps(dict(source.config))), source.parts).eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(answer(again, image), answer(student, image))
    other = space.build(space.default(), IO).eval()
    space.inherit(other, space.default(), student)  # a student of ours is a teacher, too
    assert torch.equal(answer(other, image), answer(student, image))
    assert space.inherit(other, space.default(), nn.Linear(2, 2)) is None


@pytest.mark.parametrize("seed", range(5))
def test_points_cost_what_is_said_and_start_from_slices(space, teacher, seed):
    arch, image = space.sample(random.Random(seed)), torch.randn(2, 1, 16, 16)
    model, cost = space.build(arch, IO).eval(), space.cost(arch, IO)
    assert cost.params == count_params(model)
    assert cost.macs == count_macs(model, (image[:1],))
    named = {**dict(model.named_modules()), **dict(model.named_parameters())}
    for node, data in space.graph(arch, IO).nodes(data=True):
        if data["params"]:
            found = named[node]
            own = found.numel() if isinstance(found, torch.Tensor) else sum(p.numel() for p in found.parameters())
            assert own == data["params"], node
    report = space.inherit(model, arch, teacher)
    pools = sum(stage.pool.conv.weight.numel() + stage.pool.conv.bias.numel() for stage in list(model.stages)[1:])
    fresh = [note for note in report.notes if "pooling left fresh" in note]
    assert report.copied == report.total or (fresh and report.total - report.copied <= pools)


def test_cutting_what_nothing_uses_changes_nothing(space, teacher):
    """Neurons that write nothing; channels that nobody reads, and halves of heads whose q and k are 0."""
    arch = space.architecture({"base_dim": 8, "mlp_ratio": 1.0, "stage1.heads": 2, "stage2.heads": 4})
    with torch.no_grad():
        for stage in teacher.transformers:
            for block in stage.blocks:
                block.mlp.fc2.weight[:, ::2] = 0
    image = torch.randn(2, 1, 16, 16)
    student = space.build(arch, IO).eval()
    space.inherit(student, arch, teacher)
    torch.testing.assert_close(answer(student, image), answer(teacher, image), atol=2e-6, rtol=1e-5)
    # Smaller heads: the width shrinks too, so only the scores of one block are compared.
    with torch.no_grad():
        qkv = teacher.transformers[0].blocks[0].attn.qkv
        qkv.weight[[1, 3, 5, 7]] = qkv.weight[[9, 11, 13, 15]] = 0  # 4 of 8 dimensions of q and k
        qkv.bias[[1, 3, 5, 7]] = qkv.bias[[9, 11, 13, 15]] = 0
        qkv.weight[:, ::2] = 0  # 4 of 8 channels are read by nobody
        for stage in teacher.transformers[:1]:
            for block in stage.blocks:
                for name, parameter in block.named_parameters():
                    if name.endswith(WRITES):
                        parameter[::2] = 0
                    elif name == "attn.qkv.weight" or name == "mlp.fc1.weight":
                        parameter[:, ::2] = 0
    half = space.architecture({"base_dim": 4, "mlp_ratio": 1.0})
    student = space.build(half, IO).eval()
    space.inherit(student, half, teacher)
    ours, x = student.stages[0].layers[0].attention, torch.randn(5, 8)
    scores = ours.q_proj(x[:, 1::2]) @ ours.k_proj(x[:, 1::2]).T / 4**0.5
    q, k, _ = qkv(x).chunk(3, dim=-1)
    torch.testing.assert_close(scores, q @ k.T / 8**0.5, atol=1e-5, rtol=1e-4)


def test_what_is_larger_or_other_is_left_fresh_and_said(host, space, teacher):
    large = host.create(Kind.SEARCH_SPACE, "pit", {"base_dim": [12], "depth": [[1], [1], [1]],
                                                   "heads": [[1], [2], [4]], "mlp_ratio": [1.0]})  # fmt: skip
    report = large.inherit(large.build(large.default(), IO), large.default(), teacher)
    assert report.copied == 0
    assert report.notes == ("left fresh: base_dim of stage 0 are 12, more than the teacher's",)
    io = IOSpec("image", (2, 20, 16), 4)
    report = space.inherit(space.build(space.default(), io), space.default(), teacher)
    for words in ("patches left fresh", "positions resized from 7 x 7 to 9 x 7", "classifier left fresh"):
        assert any(words in note for note in report.notes)


def test_teachers_options_and_inputs_are_checked(host):
    kind = host.load(Kind.SEARCH_SPACE, "pit")
    assert kind.adapted({}, TeacherInfo("transformers", {"model_type": "vit"})) == {}
    options = kind.adapted({"stride": 8}, host.create(Kind.TEACHER, "timm").describe("pit_s_224"))
    assert options == {"base_dim": [16, 24, 32, 40, 48], "mlp_ratio": [2.0, 4.0], "depth": [[1, 2], [4, 6], [2, 4]],
                       "heads": [[2, 3], [2, 4, 6], [2, 4, 8, 12]], "patch": 16}  # fmt: skip
    with pytest.raises(MismatchError, match="one size of heads"):
        kind.adapted({}, TeacherInfo("timm", {"class": "PoolingVisionTransformer", "base_dims": [8, 16]}))
    for options in ({"depth": [[1]]}, {"patch": 4}, {"heads": [[1, 1]] * 3}, {"attention_options": {"window": {}}},
                    {"attention": ["flow", "flow"]}):  # fmt: skip
        with pytest.raises(ConfigError):
            host.create(Kind.SEARCH_SPACE, "pit", options)
    space = host.create(Kind.SEARCH_SPACE, "pit", {"patch": 12, "stride": 4})
    for io, words in (
        (IOSpec("image", (1, 8, 20), 3), "no patch of 12 x 12"),
        (IOSpec("tokens", (8,), 4, 9), "images"),
    ):
        assert words in space.accepts(io)
        with pytest.raises(ArchitectureError, match="cannot be built"):
            space.build(space.default(), io)
