"""Cores inside timm vision transformers: swapped by class, recorded as data, exact through everything."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import pytest
import torch
from torch import nn

from nasdistill.bridge import prepare_imports
from nasdistill.bridge.timm import (
    apply_attention,
    attention_record,
    attention_view,
    clear_attention,
    set_attention,
    verify_attention,
)
from nasdistill.errors import ConfigError, MismatchError, UnknownComponentError
from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionMask, AttentionResult
from nasdistill.spec.component import AttentionTags

prepare_imports()
timm = pytest.importorskip("timm")

IMAGE = 64
NAMES = ["softmax", "flow", "sigmoid", "linear", "window"]


def vit(name="test_vit", **options):
    torch.manual_seed(0)
    options = {"img_size": IMAGE, "num_classes": 10, **options}
    model = timm.create_model(name, pretrained=False, **options)
    with torch.no_grad():  # zero-initialised parts would hide differences
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))


class Scaled(AttentionCore):
    """A core with a parameter of its own: the mean of the values, scaled."""

    def __init__(self, options=None, *, geometry, host=None):
        super().__init__(options, geometry=geometry, host=host)
        self.gain = nn.Parameter(torch.full((geometry.heads, 1, 1), 2.0))

    def forward(self, q, k, v, ctx):
        return AttentionResult(self.gain * v.mean(dim=2, keepdim=True).expand_as(q))

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        raise NotImplementedError


class Factory:
    """The host, with one more core, and a record of the geometries asked for."""

    def __init__(self, host, **tags):
        self.host, self.extra, self.geometries = host, AttentionTags(owns_parameters=True, **tags), []

    def create(self, kind, name, options=None, **context):
        self.geometries.append(context["geometry"])
        return Scaled(options, **context) if name == "test:scaled" else self.host.create(kind, name, options, **context)

    def load(self, kind, name):
        return Scaled if name == "test:scaled" else self.host.load(kind, name)

    def canonical(self, kind, name):
        return name if name == "test:scaled" else self.host.canonical(kind, name)

    def tags(self, kind, name):
        return self.extra if name == "test:scaled" else self.host.tags(kind, name)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {}),
        ("test_vit2", {}),
        ("test_vit3", {}),
        ("test_vit", {"qk_norm": True}),
        ("test_vit", {"qkv_bias": False, "class_token": False, "global_pool": "avg"}),
        ("test_vit", {"reg_tokens": 3}),
        ("deit_tiny_distilled_patch16_224", {"depth": 2, "embed_dim": 48}),
    ],
)
def test_softmax_reproduces_the_stock_model(name, options, host, images):
    model = vit(name, **options)
    expected = model(images)
    record = set_attention(model, "softmax", host)
    assert len(record) == len(model.blocks)
    assert verify_attention(model, images) == {path: 1 for path, _ in record}
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)


def test_softmax_reproduces_gates_and_norms_behind_the_attention(host):
    from timm.layers import Attention

    torch.manual_seed(0)
    options = {"num_heads": 2, "qkv_bias": True, "qk_norm": True, "scale_norm": True, "norm_layer": nn.LayerNorm}
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Module()])
    model.blocks[0].attn = Attention(16, gated=True, attn_head_dim=6, **options)
    x = torch.randn(2, 5, 16)
    expected = model.blocks[0].attn(x)
    set_attention(model, "softmax", host)
    torch.testing.assert_close(model.blocks[0].attn(x), expected)
    with pytest.raises(MismatchError, match="gate"):
        attention_view(model.blocks[0].attn)


@pytest.mark.parametrize("name", NAMES)
def test_each_variant_computes_what_its_core_computes(name, host, images):
    """The block's attention equals projections, core and output projection called by hand."""
    model = vit()
    set_attention(model, {1: name}, host)
    verify_attention(model, images)
    attention, seen = model.blocks[1].attn, {}
    attention.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out))
    logits = model(images)
    x = seen["x"]
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    by_hand = attention.core(q, k, v, AttentionContext()).out.transpose(1, 2).flatten(2)
    torch.testing.assert_close(seen["out"], attention.proj(by_hand))
    assert torch.allclose(logits, vit()(images), atol=1e-5) == (name == "softmax")


def test_a_mix_per_block_with_options(host, images):
    model = vit()
    choice = {0: ("window", {"window": 3}), -1: ("flow", {"source_clamp": 1.0})}
    record = set_attention(model, choice, host)
    last = len(model.blocks) - 1
    assert [path for path, _ in record] == ["blocks.0.attn", f"blocks.{last}.attn"]
    assert record[0][1] == {"variant": "attention:window", "options": {"window": 3}}
    assert record[1][1]["variant"] == "attention:flow"
    assert record[1][1]["options"]["source_clamp"] == 1.0
    assert verify_attention(model, images) == {"blocks.0.attn": 1, f"blocks.{last}.attn": 1}
    assert attention_record(model) == record
    # A second call replaces a core, and returns only what it changed.
    assert set_attention(model, {0: "linear"}, host)[0][1]["variant"] == "attention:linear"
    assert [spec["variant"] for _, spec in attention_record(model)] == ["attention:linear", "attention:flow"]


def test_cores_know_the_layout(host):
    factory = Factory(host)
    set_attention(vit(reg_tokens=3, dynamic_img_size=False), "flow", factory)
    geometry = factory.geometries[0]
    assert geometry.layout.grid == (4, 4)
    assert geometry.layout.prefix == 4
    assert geometry.tokens == 20
    assert (geometry.dim, geometry.heads, geometry.head_dim) == (64, 2, 32)
    for free in ({"dynamic_img_size": True}, {"patch_drop_rate": 0.5}):
        factory = Factory(host)
        set_attention(vit(**free), "flow", factory)
        assert factory.geometries[0].tokens is None
        assert factory.geometries[0].layout.grid is None


def test_state_dict_keys_are_unchanged_but_for_new_parameters(host, images):
    model = vit()
    keys = set(model.state_dict())
    for name in NAMES:
        set_attention(model, name, host)
        assert set(model.state_dict()) == keys
    set_attention(model, {0: "test:scaled"}, Factory(host))
    assert set(model.state_dict()) - keys == {"blocks.0.attn.core.gain"}
    assert keys <= set(model.state_dict())


def test_a_record_rebuilds_the_model(host, images, tmp_path):
    factory = Factory(host)
    model = vit()
    record = set_attention(model, {0: "flow", 1: "test:scaled", 2: ("window", {"window": 3})}, factory)
    with torch.no_grad():
        model.blocks[1].attn.core.gain.mul_(1.5)
    stored = json.loads(json.dumps(record))
    torch.manual_seed(9)
    other = timm.create_model("test_vit", img_size=IMAGE, num_classes=10).eval()
    assert apply_attention(other, stored, factory) is other
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))
    assert attention_record(other) == record
    assert apply_attention(vit(), [], factory)


def test_copies_are_independent_and_exact(host, images):
    factory = Factory(host)
    model = vit()
    set_attention(model, {0: "flow", 1: "test:scaled", 2: "window"}, factory)
    expected = model(images)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert type(twins[0].blocks[0].attn) is type(model.blocks[0].attn)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for twin in twins:
        assert torch.equal(twin(images), expected)
        assert verify_attention(twin, images)


@pytest.mark.parametrize("name", [*NAMES, "test:scaled"])
def test_gradient_checkpointing_is_exact(name, host, images):
    plain = vit()
    set_attention(plain, name, Factory(host))
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing(True)
    for model in (plain, checkpointed):
        model.train()
        model(images).square().sum().backward()
    gradients = [dict(model.named_parameters()) for model in (plain, checkpointed)]
    for key, parameter in gradients[0].items():
        assert torch.equal(parameter.grad, gradients[1][key].grad), key
        assert parameter.grad.abs().sum() > 0 or "k." in key or "qkv" in key or "q_norm" in key, key


def test_verify_finds_a_core_that_is_bypassed(host, images):
    model = vit()
    set_attention(model, {0: "flow", 1: "flow"}, host)
    attention = model.blocks[1].attn
    attention.forward = lambda x, **_: attention.proj(x)
    with pytest.raises(MismatchError, match=r"blocks\.1\.attn was not reached"):
        verify_attention(model, images)
    with pytest.raises(MismatchError, match="no replaced attention"):
        verify_attention(vit(), images)


def test_verify_leaves_the_model_as_found(host, images):
    model = vit(drop_path_rate=0.5)
    set_attention(model, "flow", host)
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    verify_attention(model, (images,))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clearing_gives_the_stock_model_back(host, images):
    model = vit()
    expected, kinds = model(images), [type(module) for module in model.modules()]
    set_attention(model, {0: "flow", 2: "window"}, host)
    clear_attention(model)
    assert torch.equal(model(images), expected)
    assert [type(module) for module in model.modules()] == kinds
    assert attention_record(model) == []


@pytest.mark.parametrize(
    ("name", "module_class"),
    [
        ("swin_tiny_patch4_window7_224", "WindowAttention"),
        ("eva02_tiny_patch14_224", "EvaAttention"),
        ("beit_base_patch16_224", "Attention"),
        ("xcit_nano_12_p16_224", "XCA"),
        ("test_vit_relpos", "RelPosAttention"),
        ("mixer_s32_224", "MixerBlock"),
        ("test_resnet", "ResNet"),
    ],
)
def test_other_models_are_refused_by_name(name, module_class, host):
    with torch.device("meta"):
        model = timm.create_model(name)
    keys = set(model.state_dict())
    with pytest.raises(MismatchError, match=module_class):
        set_attention(model, "softmax", host)
    assert set(model.state_dict()) == keys


def test_bad_requests_leave_the_model_unchanged(host, images):
    model = vit()
    expected = model(images)
    with pytest.raises(MismatchError, match=f"has {len(model.blocks)} blocks"):
        set_attention(model, {99: "flow"}, host)
    with pytest.raises(UnknownComponentError, match="flaw"):
        set_attention(model, {0: "flow", 1: "flaw"}, host)
    with pytest.raises(ConfigError, match="odd"):
        set_attention(model, {0: "flow", 1: ("window", {"window": 4})}, host)
    with pytest.raises(MismatchError, match=r"blocks\.77\.attn"):
        apply_attention(model, [["blocks.77.attn", {"variant": "flow", "options": {}}]], host)
    for tags in ({"stateful": True}, {"level": "module"}, {"bidirectional": False}):
        with pytest.raises(MismatchError, match="stateless bidirectional"):
            set_attention(model, {0: "flow", 1: "test:scaled"}, Factory(host, **tags))
    assert attention_record(model) == []
    assert torch.equal(model(images), expected)


def test_attention_dropout_is_refused(host):
    with pytest.raises(MismatchError, match="attn_drop_rate=0"):
        set_attention(vit(attn_drop_rate=0.1), "flow", host)


class TestMasks:
    """timm's mask arguments, as stock attention takes them."""

    def masks(self, n):
        rows, generator = 3, torch.Generator().manual_seed(2)
        valid = torch.ones(rows, n, dtype=torch.bool)
        valid[1, -5:] = False
        pattern = torch.rand(n, n, generator=generator) > 0.3
        pattern.fill_diagonal_(True)
        return {
            "padding": valid[:, None, None],
            "pattern": pattern,
            "pattern 4-D": pattern[None, None],
            "per sample": pattern & valid[:, None, None],
            "bias": torch.randn(n, n, generator=generator),
            "bias per head": torch.randn(1, 2, n, n, generator=generator),
        }

    @pytest.mark.parametrize(
        "kind", ["padding", "pattern", "pattern 4-D", "per sample", "bias", "bias per head", "causal"]
    )
    def test_softmax_equals_stock(self, kind, host, images):
        model = vit()
        n = model.pos_embed.shape[1]
        arguments = {"is_causal": True} if kind == "causal" else {"attn_mask": self.masks(n)[kind]}
        expected = model(images, **arguments)
        set_attention(model, "softmax", host)
        torch.testing.assert_close(model(images, **arguments), expected, rtol=0, atol=1e-5)
        assert not torch.allclose(model(images), expected, atol=1e-4)

    def test_padding_reaches_variants_in_which_queries_meet(self, host):
        model = vit()
        set_attention(model, "flow", host)
        x = torch.randn(2, 9, 64)
        valid = (torch.arange(9) < 6).expand(2, 9)
        changed = torch.where(valid[..., None], x, torch.randn_like(x))
        attention = model.blocks[0].attn
        outs = [attention(y, attn_mask=valid[:, None, None])[:, :6] for y in (x, changed)]
        assert torch.equal(*outs)
        torch.testing.assert_close(outs[0], attention(x[:, :6]))

    def test_what_a_core_cannot_use_is_refused(self, host, images):
        model = vit()
        n = model.pos_embed.shape[1]
        set_attention(model, "flow", host)
        for kind, feature in (("bias", "bias"), ("pattern", "predicate"), ("per sample", "bias")):
            with pytest.raises(ValueError, match=feature):
                model(images, attn_mask=self.masks(n)[kind])
        with pytest.raises(ValueError, match="exclude"):
            model.blocks[0].attn(torch.randn(1, n, 64), attn_mask=self.masks(n)["bias"], is_causal=True)

    def test_causal_reaches_the_core(self, host, images):
        model = vit()
        set_attention(model, {0: "flow"}, host)
        seen = []
        model.blocks[0].attn.core.register_forward_pre_hook(lambda module, args: seen.append(args[3]))
        model(images, is_causal=True)
        assert seen[0].mask == AttentionMask(causal=True)
        assert seen[0].layer_input.shape == (3, model.pos_embed.shape[1], 64)


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_parity_of_a_mixed_model(dynamo, host, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    model = vit(depth=len(NAMES), dynamic_img_size=False)
    set_attention(model, dict(enumerate(NAMES)), host)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (images[:1],), str(path), input_names=["x"], dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    out = torch.from_numpy(session.run(None, {"x": images[:1].numpy()})[0])
    torch.testing.assert_close(out, model(images[:1]).detach(), rtol=0, atol=1e-5)


def test_view_rebuilds_the_attention(host):
    attention = vit(qk_norm=True).blocks[0].attn
    x = torch.randn(2, 7, 64)
    expected = attention(x)
    for _ in range(2):
        view = attention_view(attention, "blocks.0.attn")
        heads = view.geometry.heads
        q, k, v = (
            nn.functional.linear(x, w, b).unflatten(-1, (heads, -1)).transpose(1, 2)
            for w, b in ((view.w_q, view.b_q), (view.w_k, view.b_k), (view.w_v, view.b_v))
        )
        scores = view.q_norm(q) @ view.k_norm(k).transpose(-1, -2) * view.scale
        context = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(nn.functional.linear(context, view.w_o, view.b_o), expected)
        assert view.path == "blocks.0.attn"
        model = nn.Module()
        model.blocks = nn.ModuleList([nn.Module()])
        model.blocks[0].attn = attention
        set_attention(model, "flow", host)  # the view of a swapped module is that of its weights
    with pytest.raises(MismatchError, match="Linear"):
        attention_view(nn.Linear(2, 2))
