"""Canonical views: the output projection's output on new inputs, from the view alone; refusals that name the reason."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers
from families import ATTENDING, FAMILIES, PADDING, TEXT, built
from torch import nn

from nasdistill.bridge.fused import fused_branches
from nasdistill.bridge.joint import joint_output, joint_views
from nasdistill.bridge.timm import attention_view
from nasdistill.bridge.views import attention_views, pack_view, unpack_view, view_output
from nasdistill.errors import MismatchError
from nasdistill.interfaces import RotaryEmbedding
from nasdistill.trace import SitePlan

VIEWED = [name for name in ATTENDING if not FAMILIES[name].refused]


def inputs_and_outputs(model, views, run):
    """Run a model and return, per layer, what went into the first projection and what the output projection gave."""
    seen, handles = {}, []
    with fused_branches(model):
        for layer, view in views.items():
            names = {role: view.sources[role].weight.rpartition(".")[0] for role in ("q", "k", "o")}
            owners = {role: model.get_submodule(name) for role, name in names.items()}
            handles += [
                owners[role].register_forward_hook(
                    lambda module, args, kwargs, out, key=(layer, role): seen.__setitem__(key, (args, kwargs, out)),
                    with_kwargs=True,
                )
                for role in names
            ]
        with torch.no_grad():
            run(model)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", VIEWED)
def test_a_view_rebuilds_the_attention_on_new_inputs(name):
    family, model = FAMILIES[name], built(name)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    views = attention_views(model, lambda m: family.forward(m, None, 0))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert sorted(views) == list(range(family.layers))
    for padded in (False, True)[: 1 + family.padded]:
        mask = PADDING if padded else None
        plan = SitePlan(model, lambda m, mask=mask: family.forward(m, mask, 1))
        sites = [f"{site}.{layer}" for layer in views for site in ("q", "k", "v")]
        with torch.no_grad(), plan.capture(sites) as recorder:
            seen = inputs_and_outputs(model, views, lambda m, mask=mask: family.forward(m, mask, 1))
        trace = recorder.trace()
        for layer, view in views.items():
            signal = trace.signal(f"q.{layer}")
            if isinstance(model.get_submodule(view.path), nn.MultiheadAttention):
                (x, *_), _, (expected, _) = seen[layer, "q"]
                if not model.get_submodule(view.path).batch_first:
                    x, expected = x.transpose(0, 1), expected.transpose(0, 1)
            else:
                x, expected = seen[layer, "q"][0][0], seen[layer, "o"][2]
            with torch.no_grad():
                rebuilt = view_output(view, x, mask=signal.mask, bias=signal.bias)
            expected = expected.reshape(rebuilt.shape)
            rows = mask.bool() if padded else torch.ones(rebuilt.shape[:2], dtype=torch.bool)
            torch.testing.assert_close(rebuilt[rows], expected[rows], atol=1e-5, rtol=1e-5)
            assert (view.layer, view.geometry.causal, view.cross) == (layer, family.causal, False)


def test_cross_attention_has_views_of_its_own():
    family, model = FAMILIES["unet_condition"], built("unet_condition")
    views = attention_views(model, lambda m: family.forward(m, None, 0), cross=True)
    assert sorted(views) == [0, 1, 2]
    for view in views.values():
        assert view.cross
        assert view.path.endswith("attn2")
        assert view.w_k.shape[1] == 32
        x, source = torch.randn(2, 6, view.w_q.shape[1]), torch.randn(2, 4, 32)
        with torch.no_grad():
            module = model.get_submodule(view.path)
            torch.testing.assert_close(view_output(view, x, source), module(x, source), atol=1e-5, rtol=1e-5)


def test_what_a_view_says_of_a_grouped_rotated_normed_layer():
    family, model = FAMILIES["qwen3"], built("qwen3")
    view = attention_views(model, lambda m: family.forward(m, None, 0), layers=[1])[1]
    geometry = view.geometry
    assert (geometry.heads, geometry.kv_heads, geometry.head_dim, geometry.dim, geometry.causal) == (4, 2, 16, 32, True)
    assert torch.equal(view.w_k, model.layers[1].self_attn.k_proj.weight)
    assert view.sources["q"].weight == "layers.1.self_attn.q_proj.weight"
    assert isinstance(view.rotary, RotaryEmbedding)
    assert (view.rotary.style, view.rotary.dim) == ("half", 16)
    assert torch.equal(view.rotary.inv_freq, model.rotary_emb.inv_freq)  # the model's own, not the solved ones
    assert torch.equal(view.q_norm.weight, model.layers[1].self_attn.q_norm.weight)
    assert view.norm_paths == ("layers.1.self_attn.q_norm", "layers.1.self_attn.k_norm")
    x = torch.randn(1, 4, 40, 16)  # longer than the dry run
    cos, sin = model.rotary_emb(x, torch.arange(40)[None])
    stock = transformers.models.qwen3.modeling_qwen3.apply_rotary_pos_emb(x, x, cos, sin)[0]
    torch.testing.assert_close(view.rotary.rotate(x), stock, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(view.rotary.rotate(x, torch.arange(40)[None]), stock, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_rotation_of_a_part_of_the_channels_in_pairs_or_halves(style):
    torch.manual_seed(0)
    sizes = {**TEXT, "num_hidden_layers": 1, "hidden_size": 64}
    if style == "half":
        model = transformers.GPTNeoXModel(transformers.GPTNeoXConfig(**sizes, rotary_pct=0.5))
    else:
        more = {"num_key_value_heads": 2, "head_dim": 16, "partial_rotary_factor": 0.5}
        model = transformers.GlmModel(transformers.GlmConfig(**sizes, **more))
    ids = torch.randint(3, 50, (2, 9))
    view = attention_views(model.eval(), lambda m: m(input_ids=ids))[0]
    assert (view.rotary.style, view.rotary.dim) == (style, 8)
    assert torch.equal(view.rotary.inv_freq, model.rotary_emb.inv_freq)


def test_models_in_half_precision_have_views():
    family, model = FAMILIES["llama"], built("llama").to(torch.bfloat16)
    view = attention_views(model, lambda m: family.forward(m, None, 0))[1]
    assert torch.equal(view.w_q, model.layers[1].self_attn.q_proj.weight)
    assert (view.rotary.style, view.rotary.dim) == ("half", 8)
    assert torch.equal(view.rotary.inv_freq, model.rotary_emb.inv_freq.float())


def test_packed_and_transposed_weights_are_indexed():
    family, model = FAMILIES["gpt2"], built("gpt2")
    view = attention_views(model, lambda m: family.forward(m, None, 0))[0]
    packed = model.h[0].attn.c_attn.weight
    source = view.sources["k"]
    assert (source.weight, source.bias, source.axis) == ("h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", 1)
    assert torch.equal(packed.index_select(source.axis, source.index).t(), view.w_k)
    assert source.index.tolist() == list(range(32, 64))
    assert view.sources["o"].axis == 0


def test_the_view_equals_timms_own():
    family, model = FAMILIES["timm_vit"], built("timm_vit")
    found = attention_views(model, lambda m: family.forward(m, None, 0))[1]
    known = attention_view(model.blocks[1].attn, "blocks.1.attn")
    for name in ("w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o"):
        assert torch.equal(getattr(found, name), getattr(known, name))
    assert (found.scale, found.path, found.rotary, found.q_norm) == (known.scale, known.path, None, None)
    assert found.geometry.layout.grid == (4, 4)
    assert found.geometry.layout.prefix == 1


def test_views_as_data_are_read_off_another_model():
    family = FAMILIES["qwen3"]
    views = attention_views(built("qwen3"), lambda m: family.forward(m, None, 0))
    other = FAMILIES["qwen3"].build()
    for layer, view in attention_views(other, lambda m: family.forward(m, None, 0)).items():
        found = unpack_view(other, json.loads(json.dumps(pack_view(views[layer]))), view.path)
        for field in dataclasses.fields(view):
            mine, theirs = getattr(found, field.name), getattr(view, field.name)
            if isinstance(theirs, torch.Tensor):
                assert torch.equal(mine, theirs), field.name
            elif field.name in ("geometry", "scale", "path", "layer", "norm_paths", "cross", "score_bias"):
                assert mine == theirs, field.name
        torch.testing.assert_close(found.rotary.inv_freq, view.rotary.inv_freq)
    with pytest.raises(MismatchError, match="is not the recorded one"):
        unpack_view(built("llama"), pack_view(views[0]), views[0].path)


@pytest.mark.parametrize("name", [name for name in ATTENDING if FAMILIES[name].refused])
def test_joint_streams_are_refused_by_name(name):
    family, model = FAMILIES[name], built(name)
    with pytest.raises(MismatchError, match=rf"to_v.*add_v_proj.*{family.refused}"):
        attention_views(model, lambda m: family.forward(m, None, 0))


@pytest.mark.parametrize("name", [name for name in ATTENDING if FAMILIES[name].refused])
def test_a_joint_view_rebuilds_both_streams_on_new_inputs(name):
    family, model = FAMILIES[name], built(name)
    views = joint_views(model, lambda m: family.forward(m, None, 0))
    assert sorted(views) == ([0, 1] if name == "sd3" else [0])  # in Flux's last block one stream is left
    seen = {}

    def keep(key, given):
        return lambda module, args, out: seen.__setitem__(key, args[0] if given else out)

    for layer, view in views.items():
        for place, stream in enumerate(view.streams):
            for role, source in stream.sources.items():
                owner = model.get_submodule(source.weight.rpartition(".")[0])
                owner.register_forward_hook(keep((layer, place, role), given=role != "o"))
    with torch.no_grad():
        family.forward(model, None, 1)
        for layer, view in views.items():
            found = joint_output(view, [seen[layer, place, "q"] for place in range(2)])
            for place, stream in enumerate(view.streams):
                assert (stream.q_norm is None, stream.rotary is None) == (False, name == "sd3" or place == 0)
                if (layer, place) == (1, 1):  # SD3's last block leaves the text where it is
                    assert found[place].shape == (2, 5, 0)
                    continue
                torch.testing.assert_close(found[place], seen[layer, place, "o"], atol=1e-5, rtol=1e-5)
        assert all(stream.geometry.layout is None for stream in view.streams)
    last = views[max(views)]
    assert last.tokens == ((16, 5) if name == "sd3" else (5, 16))
    with pytest.raises(MismatchError, match=r"layer 7 of .* has no joint attention; it has 2 layers"):
        joint_views(model, lambda m: family.forward(m, None, 0), layers=[0, 7])


def test_what_stands_between_joint_attention_and_its_projections_is_refused():
    class Joint(nn.Module):
        def __init__(self, gated):
            super().__init__()
            self.first, self.second = nn.Linear(16, 48), nn.Linear(12, 48)
            self.out, self.other, self.gate = nn.Linear(16, 16), nn.Linear(16, 12), nn.Linear(12, 16)
            self.gated = gated

        def forward(self, x, y):
            q, k, v = (
                torch.cat(parts, 1).unflatten(-1, (2, 8)).transpose(1, 2)
                for parts in zip(self.first(x).chunk(3, -1), self.second(y).chunk(3, -1), strict=True)
            )
            joined = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x, text = joined[:, : x.shape[1]], joined[:, x.shape[1] :]
            return self.out(x), self.other(text * self.gate(y).sigmoid() if self.gated else text)

    torch.manual_seed(0)
    x, y = torch.randn(2, 9, 16), torch.randn(2, 7, 12)
    view = joint_views(model := Joint(False), lambda m: m(x, y))[0]
    with torch.no_grad():
        for found, expected in zip(joint_output(view, [x, y]), model(x, y), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(MismatchError, match="something stands between its joined output"):
        joint_views(Joint(True), lambda m: m(x, y))
    encoder = built("bert")
    with pytest.raises(MismatchError, match="BertModel has no joint attention"):
        joint_views(encoder, lambda m: FAMILIES["bert"].forward(m, None, 0))


def test_scores_written_out_by_hand_are_refused_by_name():
    model = transformers.DebertaV2Model(transformers.DebertaV2Config(**TEXT)).eval()
    ids = torch.randint(3, 50, (2, 9))
    with pytest.raises(MismatchError, match=r"by hand .*DisentangledSelfAttention"):
        attention_views(model, lambda m: m(input_ids=ids))
    family, convolutions = FAMILIES["convnext"], built("convnext")
    with pytest.raises(MismatchError, match="made no attention call"):
        attention_views(convolutions, lambda m: family.forward(m, None, 0))
    family, encoder = FAMILIES["bert"], built("bert")
    with pytest.raises(MismatchError, match=r"layer 7 of BertModel has no self-attention; it has 2 layers"):
        attention_views(encoder, lambda m: family.forward(m, None, 0), layers=[0, 7])


class Odd(nn.Module):
    """Attention with something between its parts that a view cannot say."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.qkv, self.proj, self.gate = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.what == "cube":
            q = q**3
        if self.what == "convolution":
            k = self.conv(x.transpose(1, 2)).transpose(1, 2).unflatten(-1, (2, 8)).transpose(1, 2)
        if self.what == "factor":
            q = q * 0.5
        if self.what == "computed":
            q = nn.functional.linear(x, self.qkv.weight[:16] * 2).unflatten(-1, (2, 8)).transpose(1, 2)
        out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.what == "gate":
            out = out * self.gate(x).sigmoid()
        if self.what == "beside":
            return nn.functional.linear(torch.cat([out, x], -1), torch.cat([self.proj.weight, self.gate.weight], 1))
        return self.proj(out)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cube", "neither a norm per head nor a rotation"),
        ("convolution", r"k is projected by a convolution \('conv'\)"),
        ("gate", "a gate or a norm follows it"),
        ("beside", "also reads 16 channels"),
        ("computed", "no parameters of the model"),
    ],
)
def test_what_a_view_cannot_say_is_named(what, says):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    with pytest.raises(MismatchError, match=says):
        attention_views(Odd(what), lambda m: m(x))


def test_a_factor_on_q_goes_into_the_scale():
    torch.manual_seed(0)
    model, x = Odd("factor"), torch.randn(2, 9, 16)
    view = attention_views(model, lambda m: m(x))[0]
    assert view.scale == pytest.approx(0.5 * 8**-0.5, rel=1e-4)
    with torch.no_grad():
        fresh = torch.randn(3, 5, 16)
        torch.testing.assert_close(view_output(view, fresh), model(fresh), atol=1e-5, rtol=1e-5)
