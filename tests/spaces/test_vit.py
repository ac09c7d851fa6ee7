"""`vit`: AutoFormer's tables, slices of real ViTs of timm and transformers, shared weights, stock models."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys

import pytest
import timm
import torch
from export_toys import scramble
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from torch import nn

from nasdistill.bridge.random_models import random_model
from nasdistill.bridge.timm_info import model_sizes
from nasdistill.errors import ArchitectureError, ConfigError, MismatchError
from nasdistill.interfaces import Batch, ModelGeometry, TeacherInfo
from nasdistill.measure.counting import count_macs, count_params
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.store.students import save_student
from nasdistill_spaces.vit.sizes import LARGEST, TABLE, VitSizes, scaled

IO = IOSpec("image", (1, 8, 8), 3)
PIT = {"base_dim": [4], "mlp_ratio": [1.0, 2.0], "depth": [[1], [1, 2]], "heads": [[1, 2], [2, 3]],
       "attention": ["softmax", "flow"]}  # fmt: skip
LARGE = {"embed": 640, "depth": 16, "heads": 10, "mlp": 2560}
SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 24, "depth": 3, "num_heads": 3,
         "mlp_ratio": 2.0}  # fmt: skip
TIMM = {
    "vit": {}, "mean": {"global_pool": "avg"}, "mean, norm first": {"global_pool": "avg", "fc_norm": False},
    "registers": {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.3}, "no bias": {"qkv_bias": False},
    "no class token": {"class_token": False, "global_pool": "avg"},
}  # fmt: skip
EVERY = {"embed": [8, 16, 24], "depth": [1, 2, 3], "heads": [1, 2, 3], "mlp_ratio": [1.0, 2.0]}
STOCK = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 48, "num_labels": 3,
         "patch_size": 2}  # fmt: skip


WRITES = tuple(f"{part}.{kind}" for part in ("norm1", "norm2", "proj", "fc2") for kind in ("weight", "bias"))


def timm_vit(**more) -> nn.Module:
    """Return a small model of timm with weights of its own in every tensor."""
    model = timm.create_model("vit_tiny_patch16_224", **{**SMALL, **more}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def info_of(teacher: nn.Module) -> TeacherInfo:
    if hasattr(teacher, "config"):
        return TeacherInfo("transformers", teacher.config.to_dict())
    return TeacherInfo("timm", model_sizes(teacher))


def space_of(host, teacher: nn.Module, **options):
    kind = host.load(Kind.SEARCH_SPACE, "vit")
    given_ = {**EVERY, **options}
    return host.create(Kind.SEARCH_SPACE, "vit", {**kind.adapted(given_, info_of(teacher)), **given_})


def images(size: int = 3, shape: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    return torch.randn(size, *shape)


def answer(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(image)
    return out if isinstance(out, torch.Tensor) else out.logits


def inherited(space, arch, teacher, io=IO, **more) -> nn.Module:
    student = space.build(arch, io).to(next(teacher.parameters()).dtype).eval()
    assert space.inherit(student, arch, teacher, **more) is not None
    return student


def blocks(depth: int, **values) -> dict:
    return {f"block{i:02d}.{axis}": value for i in range(depth) for axis, value in values.items()}


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_the_tables_are_autoformers_for_a_teacher_that_is_large_enough(host):
    sizes = {}
    for teacher in (LARGE, {"embed": 1024, "depth": 24, "heads": 16, "mlp": 4096}):
        for name in TABLE:
            space = host.create(Kind.SEARCH_SPACE, "vit", {"teacher": teacher, "table": name})
            axes = {axis.name: axis.choices for axis in space.axes()}
            sizes[name] = space.size()
            assert {k: axes[k] for k in ("embed", "depth")} | {
                k: axes[f"block00.{k}"] for k in ("heads", "mlp_ratio")
            } == {
                "tiny": {"embed": (192, 216, 240), "heads": (3, 4), "mlp_ratio": (3.5, 4), "depth": (12, 13, 14)},
                "small": {
                    "embed": (320, 384, 448),
                    "heads": (5, 6, 7),
                    "mlp_ratio": (3, 3.5, 4),
                    "depth": (12, 13, 14),
                },
                "base": {"embed": (528, 576, 624), "heads": (9, 10), "mlp_ratio": (3, 3.5, 4), "depth": (14, 15, 16)},
            }[name]
    assert sizes == {"tiny": 3 * (4**12 + 4**13 + 4**14), "small": 3 * 9**12 * 91, "base": 3 * 6**14 * 43}
    assert [f"{size:.1e}" for size in sizes.values()] == ["1.1e+09", "7.7e+13", "1.0e+13"]
    assert round(sizes["tiny"] / 1e9, 2) == 1.06
    both = host.create(Kind.SEARCH_SPACE, "vit", {"teacher": LARGE})
    parts = {part.name: part for part in both.subspaces()}
    assert list(parts) == ["tiny", "small", "base"]
    assert parts["small"].choices["block13.heads"] == (5, 6, 7)
    assert "block14.heads" not in parts["small"].choices


def test_the_published_autoformer_t_is_a_point_and_its_blocks_have_the_papers_parameters(host):
    """It has a ratio of 3, which the released table does not list."""
    ratios = (3.5, 3.5, 3.0, 3.5, 3.0, 3.0, 4.0, 4.0, 3.5, 4.0, 3.5, 4.0, 3.5)
    heads = [4 if index == 10 else 3 for index in range(13)]
    io = IOSpec("image", (3, 224, 224), 1000)
    own = {"teacher": LARGE, "table": "tiny", "mlp_ratio": [3.0, 3.5, 4.0]}
    space = host.create(Kind.SEARCH_SPACE, "vit", own)
    params = {"embed": 192, "depth": 13}
    for index, (h, r) in enumerate(zip(heads, ratios, strict=True)):
        params |= {f"block{index:02d}.heads": h, f"block{index:02d}.mlp_ratio": r}
    arch = space.architecture(params)
    graph, d, total = space.graph(arch, io), 192, 0
    for index, (h, r) in enumerate(zip(heads, ratios, strict=True)):
        formula = 3 * 64 * h * (d + 1) + 64 * h * d + d + 2 * r * d * d + r * d + d + 4 * d
        nodes = [data for name, data in graph.nodes(data=True) if name.startswith(f"layers.{index}.")]
        assert sum(data["params"] for data in nodes) == formula
        total += formula
    rest = 3 * 16 * 16 * d + d + d + 197 * d + 2 * d + 1000 * d + 1000  # patches, token, positions, norm, classes
    assert space.cost(arch, io).params == total + rest
    assert 5.5e6 < total + rest < 5.9e6  # 5.7 million in the paper


def test_a_smaller_teacher_gets_shares_of_the_tables(host):
    """DeiT-small: 12 blocks, width 384, 6 heads."""
    space = host.create(Kind.SEARCH_SPACE, "vit", {"teacher": {"embed": 384, "depth": 12, "heads": 6, "mlp": 1536}})
    found = scaled("base", space.options.teacher)
    assert found == {"embed": (320, 344, 376), "depth": (11, 12), "heads": (5, 6), "mlp_ratio": (3.0, 3.5, 4.0)}
    assert scaled("tiny", space.options.teacher)["embed"] == (112, 128, 144)


@given(heads=st.integers(1, 20), head_dim=st.integers(1, 96), depth=st.integers(1, 30), ratio=st.floats(0.5, 8))
@settings(max_examples=60, deadline=None)
def test_scaled_choices_are_distinct_ascending_and_within_the_teacher(heads, head_dim, depth, ratio):
    embed = heads * head_dim
    sizes = VitSizes(embed=embed, depth=depth, heads=heads, mlp=max(1, round(embed * ratio)))
    for name in TABLE:
        for axis, choices in scaled(name, sizes).items():
            assert choices
            assert list(choices) == sorted(set(choices))
            assert choices[0] > 0
            if axis != "mlp_ratio":
                assert choices[-1] <= getattr(sizes, axis)
            if getattr(sizes, axis, 0) >= LARGEST[axis]:
                assert choices == TABLE[name][axis]


def test_patches_are_the_teachers_or_suit_the_images():
    assert [VitSizes().patch_for(s, s) for s in (8, 16, 28, 32, 64, 96, 224)] == [
        (2, 2), (2, 2), (4, 4), (4, 4), (8, 8), (8, 8), (16, 16)
    ]  # fmt: skip
    assert VitSizes(patch=(14, 14)).patch_for(224, 224) == (14, 14)


VARIANTS = ["softmax", "flow", "linear", "sigmoid", "window"]


@given(
    seed=st.integers(0, 2**32), heads=st.integers(1, 3), prefix=st.integers(0, 2), positions=st.booleans(),
    bias=st.booleans(), shape=st.sampled_from([(1, 8, 8), (3, 9, 6)]), pool=st.sampled_from(["mean", "normed_mean"]),
)  # fmt: skip
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_points_cost_what_is_said_whatever_the_teacher(host, seed, heads, prefix, positions, bias, shape, pool):
    sizes = {"heads": heads, "embed": 12 * heads, "mlp": 24, "depth": 3, "prefix": prefix, "qkv_bias": bias,
             "prefix_positions": positions, "pool": "token" if prefix == 1 else pool}  # fmt: skip
    space = host.create(Kind.SEARCH_SPACE, "vit", {"teacher": sizes, "attention": VARIANTS})
    arch, io = space.sample(random.Random(seed)), IOSpec("image", shape, 3)
    model = space.build(arch, io).eval()
    image, cost = images(3, shape), space.cost(arch, io)
    assert cost.params == count_params(model)
    assert cost.macs == count_macs(model, (image[:1],))
    named = {**dict(model.named_modules()), **dict(model.named_parameters())}
    for node, data in space.graph(arch, io).nodes(data=True):
        if data["params"]:
            found = named[node]
            own = found.numel() if isinstance(found, torch.Tensor) else sum(p.numel() for p in found.parameters())
            assert own == data["params"], node
    torch.testing.assert_close(answer(model, image)[1:2], answer(model, image[1:2]), atol=1e-5, rtol=1e-4)


# ---- what a teacher says of itself ----------------------------------------------------------------------------------


def test_sizes_are_read_from_both_libraries(host):
    teacher = timm_vit(**TIMM["registers"])
    sizes = space_of(host, teacher).options.teacher
    assert (sizes.embed, sizes.depth, sizes.heads, sizes.mlp, sizes.patch) == (24, 3, 3, 48, (2, 2))
    assert (sizes.prefix, sizes.prefix_positions, sizes.pool, sizes.eps) == (3, False, "token", 1e-6)
    deit = space_of(host, random_model("deit", **STOCK, layer_norm_eps=1e-5, qkv_bias=False)).options.teacher
    assert (deit.prefix, deit.eps, deit.qkv_bias, deit.mlp, deit.patch) == (2, 1e-5, False, 48, (2, 2))
    kind = host.load(Kind.SEARCH_SPACE, "vit")
    assert kind.adapted({}, TeacherInfo()) == {}
    assert kind.adapted({"teacher": {"depth": 2}}, info_of(teacher)) == {}
    options = json.loads(json.dumps(kind.adapted({}, info_of(teacher))))
    assert host.create(Kind.SEARCH_SPACE, "vit", options).options.teacher == sizes


REFUSED = [
    (TeacherInfo("transformers", {"model_type": "swin"}), r"'swin'.*sites q, k, v"),
    (TeacherInfo("timm", {"class": "ResNet", "architecture": "resnet18"}), r"'resnet18'"),
    (TeacherInfo("transformers", {"model_type": "vit", "hidden_size": 8}), r"num_hidden_layers, num_attention_heads"),
    (TeacherInfo("timm", {"class": "VisionTransformer", "embed_dim": 8}), r"lacks the sizes depth, num_heads"),
]


@pytest.mark.parametrize(("info", "words"), REFUSED)
def test_other_teachers_are_refused_by_what_is_missing(host, info, words):
    with pytest.raises(MismatchError, match=words):
        host.load(Kind.SEARCH_SPACE, "vit").adapted({}, info)


@pytest.mark.parametrize(
    ("built", "words"),
    [({"qk_norm": True}, "norms of q and k"), ({"pre_norm": True}, "before the blocks"),
     ({"global_pool": "max"}, "'max'"), ({"act_layer": nn.Mish}, "'mish'")],
)  # fmt: skip
def test_vits_of_another_make_are_refused(host, built, words):
    with pytest.raises(MismatchError, match=words):
        host.load(Kind.SEARCH_SPACE, "vit").adapted({}, info_of(timm_vit(**built)))


def test_options_and_inputs_are_checked(host):
    for options in (
        {"embed": [64]}, {"teacher": {"heads": 5}}, {"table": "huge"}, {"attention_options": {"window": {}}},
        {"depth": [2, 2]}, {"teacher": {"prefix": 0}}, {"attention": ["softmax", "softmax"]},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            host.create(Kind.SEARCH_SPACE, "vit", options)
    space = host.create(Kind.SEARCH_SPACE, "vit", {"teacher": {"patch": [16, 16]}})
    for io, words in (
        (IOSpec("tokens", (8,), 4, 9), "images"), (IOSpec("image", (1, 20, 8), 4), "hold no patch of 16 x 16"),
        (IOSpec("image", (1, 16, 16), 0, head="embedding"), "not embedding"),
    ):  # fmt: skip
        assert words in space.accepts(io)
        with pytest.raises(ArchitectureError, match="cannot be built"):
            space.build(space.default(), io)
    space = host.create(Kind.SEARCH_SPACE, "vit", {"attention": ["softmx"]})
    with pytest.raises(ArchitectureError, match="softmx"):
        space.build(space.default(), IO)


# ---- slices of real models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranking", ["none", "importance"])
@pytest.mark.parametrize("name", list(TIMM))
def test_the_whole_timm_model_is_inherited(host, name, ranking):
    teacher = timm_vit(**TIMM[name])
    space = space_of(host, teacher, ranking=ranking)
    student, image = space.build(space.default(), IO).eval(), images()
    report = space.inherit(student, space.default(), nn.ModuleDict({"inside": teacher}))
    assert report.copied == report.total == count_params(student)
    torch.testing.assert_close(answer(student, image), answer(teacher, image), atol=2e-6, rtol=1e-5)
    shared = space.supernet(IO, teacher).eval()
    torch.testing.assert_close(answer(shared, image), answer(teacher, image), atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_the_whole_transformers_model_is_inherited_bit_for_bit_and_saved_as_one(host, family, tmp_path):
    """Through the stock class and its folder, too; heads that do not fill the width included."""
    from nasdistill.bridge.stock import open_stock

    teacher = random_model(family, **STOCK)
    space = space_of(host, teacher)
    student, image = inherited(space, space.default(), teacher), images()
    assert torch.equal(answer(student, image), answer(teacher, image))
    for index, params in enumerate(({}, {"embed": 16, "depth": 2, **blocks(2, heads=1, mlp_ratio=1.0)})):
        arch = space.architecture(params)
        student = inherited(space, arch, teacher)
        stock = space.stock_model(arch, IO)
        folder = tmp_path / str(index)
        folder.mkdir()
        from safetensors.torch import save_file

        save_file(stock.weights(student.state_dict()), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(dict(stock.config)), encoding="utf-8")
        again, problems = open_stock(folder, "AutoModelForImageClassification")
        assert not problems
        assert torch.equal(answer(again, image), answer(student, image))
    assert stock.config["head_dim"] == 8


def test_what_no_stock_class_can_say_is_none(host):
    teacher = timm_vit()
    space = space_of(host, teacher, attention=["softmax", "flow"])
    assert space.stock_model(space.default(), IO) is not None
    for other in ({"block00.heads": 1}, {"block01.mlp_ratio": 1.0}, blocks(3, attention="flow")):
        assert space.stock_model(space.architecture(other), IO) is None
    assert space.stock_model(space.default(), IOSpec("image", (1, 9, 8), 3)) is None  # a row of pixels is not seen
    for built in (TIMM["mean"], TIMM["registers"]):
        space = space_of(host, timm_vit(**built))
        assert space.stock_model(space.default(), IO) is None


def test_a_smaller_timm_model_computes_what_the_slices_do(host):
    teacher = timm_vit()
    space = space_of(host, teacher)
    arch = space.architecture({"embed": 16, "depth": 2, **blocks(2, heads=2, mlp_ratio=2.0)})
    student, large, cut = inherited(space, arch, teacher), teacher.state_dict(), {}
    reference = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "embed_dim": 16, "num_heads": 2, "depth": 2})
    for name, tensor in reference.state_dict().items():
        source = large[name]  # floor(i * 3 / 2): blocks 0 and 1
        if ".qkv." in name:
            cut[name] = torch.cat([part[:16][..., :16] for part in source.chunk(3)])
        else:
            cut[name] = source[tuple(slice(0, size) for size in tensor.shape)]
    reference.load_state_dict(cut)
    image = images()
    torch.testing.assert_close(answer(student, image), answer(reference.eval(), image), atol=2e-6, rtol=1e-5)
    assert space.layer_map(arch, ModelGeometry({}, layers=3)) == {0: 0, 1: 2}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.paper("2407.14679", "spaces:vit")
def test_cutting_heads_and_neurons_is_the_teacher_with_those_columns_at_zero(host, library, calibrated):
    """Those that write nothing go first, and nothing is lost then."""
    teacher = (timm_vit() if library == "timm" else random_model("vit", **STOCK)).double()
    space = space_of(host, teacher, ranking="importance")
    arch = space.architecture(blocks(3, heads=1, mlp_ratio=1.0))
    image = images().double()
    calibration = [Batch({"image": image}, None, torch.arange(3))] if calibrated else []

    def outputs(model):
        if library == "timm":
            return [(block.attn.proj, block.mlp.fc2) for block in model.blocks]
        return [(layer.attention.o_proj, layer.mlp.fc2) for layer in model.vit.layers]

    for zeroed in (False, True):
        if zeroed:
            with torch.no_grad():
                for heads, neurons in outputs(teacher):
                    heads.weight[:, :8] = heads.weight[:, 16:] = 0  # all but head 1 of 3
                    neurons.weight[:, ::2] = 0
        student = inherited(space, arch, teacher, calibration=calibration)
        masked = copy.deepcopy(teacher)
        for ours, theirs in zip(student.layers, outputs(masked), strict=True):
            for kept, full in zip((ours.attention.o_proj, ours.mlp.fc2), theirs, strict=True):
                gone = ~(full.weight.T[:, None] == kept.weight.T[None]).all(-1).any(-1)
                assert gone.sum() == full.in_features - kept.in_features or zeroed
                with torch.no_grad():
                    full.weight[:, gone] = 0
        torch.testing.assert_close(answer(student, image), answer(masked, image), rtol=1e-9, atol=1e-9)
        assert torch.allclose(answer(student, image), answer(teacher, image), rtol=1e-9, atol=1e-9) == zeroed
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_channels_that_nothing_writes_or_reads_go_first(host):
    teacher = timm_vit()
    dead = torch.tensor([0, 3, 5, 11, 17, 20, 21, 23])
    alive = torch.tensor(sorted(set(range(24)) - set(dead.tolist())))
    with torch.no_grad():
        for name, tensor in teacher.named_parameters():
            if name.endswith(WRITES):
                tensor[dead] = 0
            if name.endswith(("qkv.weight", "fc1.weight", "head.weight")):
                tensor[:, dead] = 0
    space = space_of(host, teacher, ranking="importance")
    arch = space.architecture({"embed": 16})
    for calibration in ([], [Batch({"image": images()}, None, torch.arange(3))]):
        student = inherited(space, arch, teacher, calibration=calibration)
        assert torch.equal(student.embeddings.position_embeddings, teacher.pos_embed[..., alive])
        rows = set(map(tuple, teacher.blocks[2].mlp.fc1.weight[:, alive].tolist()))
        assert set(map(tuple, student.layers[2].mlp.fc1.weight.tolist())) <= rows
        assert torch.equal(student.layernorm.weight, teacher.norm.weight[alive])
        assert torch.equal(student.classifier.weight, teacher.head.weight[:, alive])


def test_positions_are_resized_as_timm_does_and_what_is_lacking_is_said(host):
    teacher = timm_vit()
    space = space_of(host, teacher)
    io = IOSpec("image", (1, 12, 6), 4)
    student = space.build(space.default(), io)
    report = space.inherit(student, space.default(), teacher)
    expected = resample_abs_pos_embed(teacher.pos_embed, new_size=[6, 3], old_size=[4, 4])
    torch.testing.assert_close(student.embeddings.position_embeddings, expected, atol=1e-6, rtol=1e-6)
    assert report.total - report.copied == 4 * 24 + 4
    assert any("positions resized from 4 x 4 to 6 x 3" in note for note in report.notes)
    assert any("outputs of 3 there, 4" in note for note in report.notes)
    sizes = {"embed": 24, "heads": 2, "depth": 3, "mlp": 48, "patch": [4, 4], "prefix_positions": False}
    other = host.create(Kind.SEARCH_SPACE, "vit", {"teacher": sizes})
    student = other.build(other.default(), IO)
    report = other.inherit(student, other.default(), teacher)
    assert any("heads of 8 there, 12 here" in note for note in report.notes)
    assert any("projection.weight left fresh: patches" in note for note in report.notes)
    folded = (teacher.cls_token + teacher.pos_embed[:, :1])[..., : student.shape.embed]
    assert torch.equal(student.embeddings.cls_token, folded)
    assert space.inherit(student, space.default(), nn.Linear(2, 2)) is None
    assert space.inherit(nn.Linear(2, 2), space.default(), teacher) is None
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", **SMALL)
    space = space_of(host, distilled)
    report = space.inherit(space.build(space.default(), IO), space.default(), distilled)
    assert report.copied == report.total
    assert any("distillation token" in note for note in report.notes)


def test_every_variant_starts_from_a_student_of_ours_and_exports(host, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra 'onnx' is not installed")
    from nasdistill.bridge.onnx import export_onnx

    space = space_of(host, timm_vit(), attention=VARIANTS)
    teacher = inherited(space, space.default(), timm_vit())
    params = {"depth": 3, **{f"block{i:02d}.attention": name for i, name in enumerate(("flow", "linear", "sigmoid"))}}
    arch, image = space.architecture(params), images(4)
    student = inherited(space, arch, teacher)
    assert torch.equal(student.layers[1].attention.q_proj.weight, teacher.layers[1].attention.q_proj.weight)
    path = tmp_path / "model.onnx"
    export_onnx(student, (image[:2],), path, dynamo=False, inputs=("input",), any_batch=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [out] = session.run(None, {"input": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), answer(student, image), atol=1e-5, rtol=1e-4)


# ---- shared weights -------------------------------------------------------------------------------------------------


def test_an_extracted_network_equals_the_sliced_and_the_inherited_one(host):
    teacher, image = timm_vit(), images()
    space = space_of(host, teacher, attention=["softmax", "flow"])
    shared = space.supernet(IO, teacher).eval()
    for seed in range(5):
        arch = space.sample(random.Random(seed))
        shared.set_arch(arch)
        alone = shared.extract(arch)
        torch.testing.assert_close(answer(alone, image), answer(shared, image), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(
            answer(inherited(space, arch, teacher), image), answer(shared, image), atol=1e-6, rtol=1e-6
        )
    shared.train()(image).sum().backward()
    assert shared.shared.classifier.weight.grad is not None
    tables = host.create(Kind.SEARCH_SPACE, "vit", {"teacher": {"depth": 8}})
    tiny = tables.subspaces()[0]
    small = tables.supernet(IO, subspace=tiny)
    assert small.shared.shape.embed == tiny.choices["embed"][-1] < 32
    with pytest.raises(ArchitectureError, match="no member of this supernet"):
        small.set_arch(tables.default())


# ---- saving ---------------------------------------------------------------------------------------------------------

LOAD = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from nasdistill.host import Host
from nasdistill.spec.component import Kind
from nasdistill.store.students import read_record, read_student
host, root = Host.load(), Path(sys.argv[1])
for folder in sorted(p for p in root.iterdir() if p.is_dir()):
    arch, io, weights, _ = read_student(folder)
    space = host.create(Kind.SEARCH_SPACE, arch.space, dict(read_record(folder).space_options))
    model = space.build(arch, io).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        save_file({"out": model(load_file(root / "inputs.safetensors")["image"])}, folder / "answer.safetensors")
assert "transformers" not in sys.modules and "timm" not in sys.modules
"""


def test_students_load_in_a_fresh_process_without_the_teacher(host, tmp_path):
    from safetensors.torch import load_file, save_file

    image, said = images(), {}
    save_file({"image": image}, tmp_path / "inputs.safetensors")
    for name, teacher in (("timm", timm_vit(**TIMM["registers"])), ("deit", random_model("deit", **STOCK))):
        space = space_of(host, teacher, attention=["softmax", "window"])
        arch = space.sample(random.Random(3))
        model, folder = inherited(space, arch, teacher), tmp_path / name
        save_student(folder, model, arch, IO, {}, space_options=space.options.model_dump(mode="json"))
        said[folder] = answer(model, image)
        source = space.modeling_source(arch, IO)
        config = json.loads(json.dumps(dict(source.config)))
        again = source.factory(config, source.parts).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(answer(again, image), said[folder])
    space = host.create(Kind.SEARCH_SPACE, "pit", PIT)
    arch = space.architecture({"stage0.heads": 1, "stage1.attention": "flow"})
    model, folder = scramble(space.build(arch, IO)), tmp_path / "pit"
    save_student(folder, model, arch, IO, {}, space_options=space.options.model_dump(mode="json"))
    said[folder] = answer(model, image)
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder, expected in said.items():
        assert torch.equal(load_file(folder / "answer.safetensors")["out"], expected)
