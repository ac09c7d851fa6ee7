"""Capturing from models of several libraries: what is captured rebuilds what the model computed."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from nasdistill.errors import MismatchError, NasdistillError
from nasdistill.interfaces import (
    AttentionContext,
    AttentionCore,
    AttentionGeometry,
    AttentionMask,
    AttentionResult,
    Batch,
    ModuleAttention,
    Site,
    TokenLayout,
)
from nasdistill.spec.io import Cost
from nasdistill.testing.kit.traces import Text, forward, text_batch
from nasdistill.trace import SitePlan, describe, even_layer_map, make_tracer, trace_model

transformers.logging.set_verbosity_error()


class SoftmaxCore(AttentionCore):
    """Plain softmax written out, as an attention core."""

    def forward(self, q, k, v, ctx):
        scores = q @ k.transpose(-1, -2) * (ctx.scale or q.shape[-1] ** -0.5)
        if ctx.mask is not None:
            allowed = ctx.mask.dense(q.shape[-2], k.shape[-2], q.device)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, float("-inf"))
        return AttentionResult(torch.softmax(scores, -1).nan_to_num(0.0) @ v)

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        return Cost(0, 2 * n * m * geometry.dim)


class CoreAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.core = SoftmaxCore(geometry=AttentionGeometry(dim, heads, dim // heads))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, ctx):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(self.core(q, k, v, ctx).out.transpose(1, 2).flatten(2))


class CoreBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = CoreAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x, ctx):
        x = x + self.attn(self.norm1(x), ctx)
        return x + self.mlp(self.norm2(x))


class ConvStemNet(nn.Module):
    """A convolution stem, then blocks with attention cores, as the project's own spaces build them."""

    def __init__(self, dim=16, heads=2, depth=2, classes=5, causal=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(8, dim, 3, 2, 1))
        self.blocks = nn.ModuleList(CoreBlock(dim, heads) for _ in range(depth))
        self.head = nn.Linear(dim, classes)
        self.causal = causal

    def forward(self, image, valid=None):
        x = self.stem(image)
        grid = tuple(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2)
        mask = AttentionMask(causal=self.causal, key_valid=valid)
        for i, block in enumerate(self.blocks):
            x = block(x, AttentionContext(mask=mask, layer=i, layout=TokenLayout(grid=grid)))
        return self.head(x.mean(1))


IMAGE = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(2))
PADDED = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [0] * 5])
SMALL = dict(
    vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip


def _encoder(batch_first=True, **kwargs):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=batch_first, **kwargs)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=batch_first and not kwargs)


TOKENS = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(3))
FAMILIES = {
    "torch_encoder": (_encoder, lambda m, mask: m(TOKENS, src_key_padding_mask=None if mask is None else mask == 0)),
    "torch_encoder_norm_first": (
        lambda: _encoder(norm_first=True),
        lambda m, mask: m(TOKENS, src_key_padding_mask=None if mask is None else mask == 0),
    ),
    "bert": (
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
        lambda m, mask: m(input_ids=IDS, attention_mask=mask).logits,
    ),
    "bert_eager": (
        lambda: transformers.BertForSequenceClassification._from_config(
            transformers.BertConfig(**SMALL), attn_implementation="eager"
        ),
        lambda m, mask: m(input_ids=IDS, attention_mask=mask).logits,
    ),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=50, n_embd=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
            )
        ),
        lambda m, mask: m(input_ids=IDS, attention_mask=mask).logits,
    ),
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=2, **SMALL)),
        lambda m, mask: m(input_ids=IDS, attention_mask=mask).logits,
    ),
}


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    torch.manual_seed(0)
    build, call = FAMILIES[request.param]
    return build().eval(), call


def _context(trace, layer):
    """Attention output from the captured q, k, v, mask and scale."""
    v = trace[f"v.{layer}"]
    attention = trace[f"attention.{layer}"]
    return attention @ v.float().repeat_interleave(attention.shape[1] // v.shape[1], dim=1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of torch's own fast path
@pytest.mark.parametrize("padded", [False, True])
def test_captured_qkv_rebuild_the_context(family, padded):
    model, call = family
    mask = PADDED if padded else None
    plan = SitePlan(model, lambda m: call(m, mask))
    assert plan.geometry.layers == 3
    sites = {f"{name}.{i}" for i in range(3) for name in ("attention", "v", "context")}
    with torch.no_grad():
        plain = call(model, mask)
        with plan.capture(sites) as recorder:
            output = call(model, mask)
    trace = recorder.trace(valid=mask)
    if padded and isinstance(model, nn.TransformerEncoder):
        plain, output = plain[PADDED.bool()], output[PADDED.bool()]  # the fast path zeroes padding, the slow one not
    torch.testing.assert_close(output, plain, atol=2e-6, rtol=1e-5)
    for i in range(3):
        rows = PADDED.bool() if padded else torch.ones(3, 9, dtype=torch.bool)
        context = trace[f"context.{i}"].transpose(1, 2)[rows]
        torch.testing.assert_close(_context(trace, i).transpose(1, 2)[rows], context, atol=1e-5, rtol=1e-5)
        assert (trace.signal(f"q.{i}").valid is None) != padded
        # padding receives no weight from any real token
        if padded:
            weights = trace[f"attention.{i}"].amax(1)
            assert not (weights * (~PADDED.bool())[:, None, :])[rows].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_core_model_is_captured(causal, padded):
    torch.manual_seed(0)
    model = ConvStemNet(causal=causal)
    valid = torch.arange(16)[None] < torch.tensor([[16], [9], [3]]) if padded else None
    plan = SitePlan(model, lambda m: m(IMAGE, valid))
    geometry = plan.geometry
    assert (geometry.layers, geometry.stages) == (2, 2)
    assert geometry["q.0"].shape == (2, 16, 8)
    assert geometry["q.0"].causal is causal
    assert geometry["hidden.-1"].grid == (4, 4)
    assert geometry["features.0"].shape == (8, 8, 8)
    assert geometry["features.1"].shape == (16, 4, 4)
    assert geometry["pooled"].shape == (16,)
    with plan.capture([*geometry.sites]) as recorder:
        output = model(IMAGE, valid)
    trace = recorder.trace(output)
    for i in range(2):
        torch.testing.assert_close(_context(trace, i), trace[f"context.{i}"], atol=1e-6, rtol=1e-5)
        merged = trace[f"context.{i}"].transpose(1, 2).flatten(2)
        torch.testing.assert_close(model.blocks[i].attn.proj(merged), trace[f"attn_out.{i}"])
        before = trace["embedding"] if i == 0 else trace[f"hidden.{i - 1}"]
        total = before + trace[f"attn_out.{i}"] + trace[f"ffn_out.{i}"]
        torch.testing.assert_close(total, trace[f"hidden.{i}"])
        torch.testing.assert_close(trace[f"norm.{i}"], model.blocks[i].norm1(before))
    assert torch.equal(trace["features.1"].flatten(2).transpose(1, 2), trace["embedding"])
    assert torch.equal(trace["pooled"], trace["hidden.1"].mean(1))
    assert torch.equal(model.head(trace["pooled"]), trace.logits)
    if padded:
        assert torch.equal(trace.signal("q.0").valid, valid)


def test_flat_block_without_an_attention_module():
    """q, k, v, core, projection and FFN side by side in one block."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
            self.core = SoftmaxCore(geometry=AttentionGeometry(12, 3, 4))
            self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            x = x + self.proj(self.core(q, k, v, AttentionContext()).out.transpose(1, 2).flatten(2))
            return x + self.down(self.up(x).relu())

    model = nn.Sequential(Flat(), Flat())
    x = torch.randn(2, 5, 12)
    plan = SitePlan(model, lambda m: m(x))
    assert plan.geometry.layers == 2
    with plan.capture(["hidden.0", "ffn_out.0", "attn_out.0"]) as recorder:
        model(x)
    trace = recorder.trace()
    torch.testing.assert_close(x + trace["attn_out.0"] + trace["ffn_out.0"], trace["hidden.0"])
    assert torch.equal(trace["hidden.0"], model[0](x))


def test_attention_with_weights_asked_for():
    """nn.MultiheadAttention returns averaged weights by default and then writes its softmax out."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 12)

        def forward(self, x, mask):
            out, weights = self.attn(x, x, x, key_padding_mask=mask)
            self.seen = weights
            return x + self.mlp(x + out)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def forward(self, x, mask):
            for block in self.blocks:
                x = block(x, mask)
            return x

    model, x = Net(), torch.randn(2, 6, 12)
    mask = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    plan = SitePlan(model, lambda m: m(x, mask))
    assert plan.geometry["q.0"].shape == (3, 6, 4)
    with plan.capture(["attention.1", "v.1", "context.1", "attn_out.1"]) as recorder:
        model(x, mask)
    trace = recorder.trace()
    torch.testing.assert_close(trace["attention.1"].mean(1), model.blocks[1].seen, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(_context(trace, 1), trace["context.1"], atol=1e-6, rtol=1e-5)
    merged = trace["context.1"].transpose(1, 2).flatten(2)
    torch.testing.assert_close(model.blocks[1].attn.out_proj(merged), trace["attn_out.1"])


def test_sequence_first_models_are_captured_batch_first():
    for tokens in (9, 3):  # 3 tokens of 3 samples: shapes alone cannot tell
        model = _encoder(batch_first=False).eval()
        x = torch.randn(tokens, 3, 32)
        plan = SitePlan(model, lambda m, x=x: m(x))
        with plan.capture(["hidden.0", "attn_out.0", "ffn_out.2", "embedding"]) as recorder:
            model(x)
        trace = recorder.trace()
        assert torch.equal(trace["embedding"], x.transpose(0, 1))
        expected = model.layers[0].self_attn(x, x, x, need_weights=False)[0].transpose(0, 1)
        torch.testing.assert_close(trace["attn_out.0"], expected, atol=1e-6, rtol=1e-5)
        assert trace["hidden.0"].shape == trace["ffn_out.2"].shape == (3, tokens, 32)


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("test_vit", {"img_size": 64}, 6),
        ("swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}, 4),
        ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 2}, 2),
        ("beit_base_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 2}, 2),
    ],
)
def test_timm_attention(name, options, layers):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options)
    size = options["img_size"]
    x = torch.randn(2, 3, size, size)
    plan = SitePlan(model, lambda m: m(x))
    assert plan.geometry.layers == layers
    model.eval()
    sites = [f"{n}.{i}" for i in range(layers) for n in ("attention", "v", "context", "hidden", "attn_out")]
    with torch.no_grad(), plan.capture([*sites, "logits"]) as recorder:
        output = model(x)
    trace = recorder.trace(output)
    for i in range(layers):
        torch.testing.assert_close(_context(trace, i), trace[f"context.{i}"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output, model(x), atol=1e-6, rtol=1e-5)
    shape = plan.geometry["hidden.-1"]
    assert shape.grid is not None
    assert 0 <= shape.shape[0] - shape.grid[0] * shape.grid[1] <= 1


def test_unfused_modules_are_switched_and_restored():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=3, img_size=56, embed_dim=12, depths=(1,), num_heads=(2,)
    ).eval()
    attention = model.layers[0].blocks[0].attn
    assert attention.fused_attn is False
    x = torch.randn(1, 3, 56, 56)
    plan = SitePlan(model, lambda m: m(x))
    with plan.capture(["q.0"]) as recorder:
        assert attention.fused_attn is True
        model(x)
    assert attention.fused_attn is False
    assert recorder.trace()["q.0"].shape == (4, 2, 49, 6)  # windows stay in the batch axis
    with plan.capture(["hidden.0"]):
        assert attention.fused_attn is False  # no attention asked for: nothing switched


def test_eager_transformers_are_switched_and_restored():
    model = FAMILIES["bert_eager"][0]().eval()
    plan = SitePlan(model, lambda m: m(input_ids=IDS).logits)
    assert model.config._attn_implementation == "eager"
    with plan.capture(["q.0"]):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "eager"


def test_hidden_equals_the_librarys_hidden_states():
    torch.manual_seed(0)
    model = FAMILIES["bert"][0]().eval()
    plan = SitePlan(model, lambda m: m(input_ids=IDS).logits)
    with torch.no_grad(), plan.capture(["hidden.0", "hidden.1", "hidden.2", "embedding"]) as recorder:
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    trace = recorder.trace()
    assert torch.equal(trace["embedding"], states[0])
    assert all(torch.equal(trace[f"hidden.{i}"], states[i + 1]) for i in range(3))


def test_encoder_decoder_blocks():
    """T5 lists its sub-layers too; blocks are still whole, and a decoder's sites are those of its self-attention."""
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ).eval()
    plan = SitePlan(model, lambda m: m(input_ids=IDS, decoder_input_ids=IDS[:, :5]).logits)
    geometry = plan.geometry
    assert geometry.layers == 4
    assert [geometry[f"attention.{i}"].shape for i in range(4)] == [(4, 9, 9)] * 2 + [(4, 5, 5)] * 2
    with plan.capture(["hidden.0", "hidden.2"]) as recorder:
        states = model(input_ids=IDS, decoder_input_ids=IDS[:, :5], output_hidden_states=True)
    assert torch.equal(recorder.trace()["hidden.0"], states.encoder_hidden_states[1])
    assert torch.equal(recorder.trace()["hidden.2"], states.decoder_hidden_states[1])


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "densenet121"])
def test_feature_maps_are_the_stages(name):
    """The same maps as timm's own feature extraction, which is written per family."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    x = torch.randn(2, 3, 96, 96)
    plan = SitePlan(model, lambda m: m(x))
    geometry = plan.geometry
    assert geometry.layers == 0
    expected = [info["num_chs"] for info in model.feature_info]
    assert [geometry[f"features.{i}"].shape[0] for i in range(geometry.stages)][-len(expected) :] == expected
    if not hasattr(model, "forward_intermediates"):
        return
    with torch.no_grad(), plan.capture([f"features.{i}" for i in range(geometry.stages)]) as recorder:
        model(x)
        maps = [m for m in model.forward_intermediates(x, intermediates_only=True) if m.shape[-1] < 48]
    trace = recorder.trace()
    for index, map_ in zip(range(-len(maps), 0), maps, strict=True):
        torch.testing.assert_close(trace[f"features.{geometry.stages + index}"], map_, atol=1e-5, rtol=1e-5)


def test_gates_and_global_pooling_are_no_stages():
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    geometry = describe(model, lambda m: m(torch.randn(1, 3, 64, 64)))
    assert [geometry[f"features.{i}"].shape[1:] for i in range(geometry.stages)] == [
        (32, 32), (16, 16), (8, 8), (4, 4), (2, 2),
    ]  # fmt: skip
    assert geometry["pooled"].shape == (1024,)
    deep = describe(timm.create_model("resnet18", num_classes=3), lambda m: m(torch.randn(1, 3, 32, 32)))
    assert deep["features.-1"].shape == (512, 1, 1)  # a trunk that really ends in one pixel


def test_overwritten_maps_are_copied():
    """A later in-place activation must not reach into the captured map."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(1, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.relu(self.features(x), inplace=True).mean((2, 3)))

    model, x = Net(), torch.randn(2, 1, 8, 8)
    plan = SitePlan(model, lambda m: m(x))
    with plan.capture(["features.0"]) as recorder:
        model(x)
    assert torch.equal(recorder.trace()["features.0"], model.features(x))
    assert bool((recorder.trace()["features.0"] < 0).any())


def test_channel_attention_offers_no_maps_over_tokens():
    model = timm.create_model("xcit_nano_12_p16_224", num_classes=3, img_size=64, depth=2)
    geometry = describe(model, lambda m: m(torch.randn(2, 3, 64, 64)))
    assert Site("attention", 0) not in geometry
    assert Site("hidden", 0) in geometry


# ---- behaviour of captures ---------------------------------------------------------------------------------------


def _hooks(model):
    return sum(
        len(h)
        for m in model.modules()
        for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    )


def test_nothing_is_left_behind(family):
    model, call = family
    model.train()
    model.get_submodule(next(name for name, _ in model.named_modules() if "0" in name)).eval()
    modes = {name: m.training for name, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    plan = SitePlan(model, lambda m: call(m, PADDED))
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert _hooks(model) == 0
    with plan.capture(["q.0", "hidden.-1"]):
        assert _hooks(model) > 0
        call(model, PADDED)
        assert _get_current_function_mode_stack() == []
    assert _hooks(model) == 0
    assert torch.is_grad_enabled()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_batch_norm_statistics_survive_the_dry_run():
    model = timm.create_model("test_resnet", num_classes=3).train()
    state = copy.deepcopy(model.state_dict())
    describe(model, lambda m: m(torch.randn(2, 3, 64, 64)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_buffers_written_in_the_forward_are_restored():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(2))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            self.calls += 1
            self.last = self.head(x).detach()[0]
            return self.head(x)

    model = Counting()
    before = model.last
    describe(model, lambda m: m(torch.randn(2, 4)))
    assert model.calls == 0
    assert model.last is before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_leaves_nothing(error):
    model = _encoder().eval()

    class Bomb(nn.Module):
        armed = False

        def forward(self, x):
            if self.armed:
                raise error("inside")
            return x

    model.layers[1].self_attn.out_proj.register_module("bomb", Bomb())
    bomb = model.layers[1].self_attn.out_proj.bomb
    original = F.scaled_dot_product_attention
    plan = SitePlan(model, lambda m: m(TOKENS))
    model.layers[1].dropout1 = bomb
    bomb.armed = True
    for site in ("q.1", "hidden.1"):
        with pytest.raises(error, match="inside"), plan.capture([site]):
            model(TOKENS)
        assert _hooks(model) == 0
        assert _get_current_function_mode_stack() == []
    assert F.scaled_dot_product_attention is original
    bomb.armed = False
    with plan.capture(["q.1"]) as recorder:
        model(TOKENS)
    assert recorder.trace()["q.1"].shape == (3, 4, 9, 8)


def test_only_what_is_asked_for_is_captured_and_hooked():
    model = ConvStemNet()
    plan = SitePlan(model, lambda m: m(IMAGE))
    with plan.capture(["hidden.-1"]) as recorder:
        assert not model.stem[0]._forward_hooks
        assert not model.blocks[0]._forward_hooks
        output = model(IMAGE)
    trace = recorder.trace(output)
    assert list(trace) == [Site("hidden", 1)]
    with pytest.raises(KeyError, match="was not captured"):
        trace["logits"]
    with plan.capture(["logits"]) as recorder:
        assert _hooks(model) == 0  # the output needs no hook
        output = model(IMAGE)
    assert torch.equal(recorder.trace(output).logits, output)
    with plan.capture([]):
        assert _hooks(model) == 0


def test_captures_nest():
    model = _encoder().eval()
    plan = SitePlan(model, lambda m: m(TOKENS))
    with plan.capture(["q.0", "hidden.0"]) as outer:
        with plan.capture(["q.0", "k.1"]) as inner:
            model(TOKENS)
        first = inner.trace()
        second = outer.trace()
        assert torch.equal(first["q.0"], second["q.0"])
        assert set(map(str, second)) == {"q.0", "hidden.0"}
        model(TOKENS + 1)
        assert not torch.equal(outer.trace()["q.0"], first["q.0"])  # the last forward counts
    assert _hooks(model) == 0
    assert _get_current_function_mode_stack() == []


def test_deep_copies_share_a_plan_and_plans_keep_no_model_alive():
    model = ConvStemNet()
    plan = SitePlan(model, lambda m: m(IMAGE))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.head.weight.zero_()
    with plan.capture(["pooled"], model=twin) as recorder:
        twin(IMAGE)
    with plan.capture(["pooled"]) as mine:
        model(IMAGE)
    torch.testing.assert_close(mine.trace()["pooled"], recorder.trace()["pooled"])
    gone = weakref.ref(model)
    del model, mine
    gc.collect()
    assert gone() is None
    with pytest.raises(NasdistillError, match="is gone"):
        plan.capture(["pooled"])


def test_gradients_flow_through_captures(family):
    model, call = family
    plan = SitePlan(model, lambda m: call(m, PADDED))
    with plan.capture(["attention.1", "v.1", "hidden.1"]) as recorder:
        call(model, PADDED)
    trace = recorder.trace()
    (trace["attention.1"].square().sum() + trace["v.1"].sum() + trace["hidden.1"].sum()).backward()
    blocks = [name for name, _ in model.named_parameters() if ".1." in name or "layers.1" in name]
    touched = {name: p.grad is not None and bool(p.grad.abs().sum() > 0) for name, p in model.named_parameters()}
    assert any(touched[name] for name in blocks)
    assert not any(touched[name] for name in touched if ".2." in name)  # nothing after the captured layer


def test_gradients_equal_a_plain_run_and_checkpointing():
    class Checkpointed(ConvStemNet):
        reentrant: bool | None = None

        def forward(self, image, valid=None):
            x = self.stem(image).flatten(2).transpose(1, 2)
            for block in self.blocks:
                if self.reentrant is None or not torch.is_grad_enabled():
                    x = block(x, AttentionContext())
                else:
                    x = checkpoint(block, x, AttentionContext(), use_reentrant=self.reentrant)
            return self.head(x.mean(1))

    torch.manual_seed(0)
    model = Checkpointed()
    plan = SitePlan(model, lambda m: m(IMAGE))

    def gradients(reentrant):
        model.reentrant = reentrant
        model.zero_grad()
        with plan.capture(["attention.1", "hidden.0"]) as recorder:
            output = model(IMAGE)
            trace = recorder.trace(output)
            (output.sum() + trace["attention.1"].square().sum() + trace["hidden.0"].square().sum()).backward()
            again = recorder.trace(output)["hidden.0"]
        assert again is trace["hidden.0"]  # the recomputation of the backward pass was not captured
        return [p.grad.clone() for p in model.parameters()]

    for ours, theirs in zip(gradients(False), gradients(None), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(NasdistillError, match="reentrant"):
        gradients(True)
    assert _hooks(model) == 0
    model.requires_grad_(False)  # a frozen trunk may run without gradients
    model.reentrant = True
    with (
        plan.capture(["hidden.0"]) as recorder,
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
    ):
        model(IMAGE)
    assert recorder.trace()["hidden.0"].shape == (3, 16, 16)


def test_autocast_recomputes_maps_in_float32():
    torch.manual_seed(0)
    model = _encoder().eval()
    plan = SitePlan(model, lambda m: m(TOKENS))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), plan.capture(["attention.0", "q.0"]) as recorder:
        model(TOKENS)
        attention = recorder.trace()["attention.0"]
    assert recorder.trace()["q.0"].dtype == torch.bfloat16
    assert attention.dtype == torch.float32
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 4, 9), atol=1e-6, rtol=0)


def test_losses_inside_the_capture_are_not_mistaken_for_the_model():
    model = _encoder().eval()
    plan = SitePlan(model, lambda m: m(TOKENS))
    with plan.capture(["q.0"]) as recorder:
        model(TOKENS)
        q = recorder.trace()["q.0"]
        F.scaled_dot_product_attention(q, q + 1, q)
        F.multi_head_attention_forward(
            TOKENS, TOKENS, TOKENS, 32, 4, torch.randn(96, 32), None, None, None, False, 0.0, torch.randn(32, 32), None
        )
    assert recorder.trace()["q.0"] is q


def test_unknown_sites_and_unreached_modules_are_said_so():
    model = ConvStemNet()
    plan = SitePlan(model, lambda m: m(IMAGE), label="student conv_vit")
    with pytest.raises(MismatchError, match=r"student conv_vit has no site hidden.7"):
        plan.capture(["hidden.7"])
    with pytest.raises(MismatchError, match="no site q"):
        SitePlan(timm.create_model("test_resnet"), lambda m: m(torch.randn(1, 3, 64, 64))).capture(["q.-1"])
    with pytest.raises(NasdistillError, match="no forward of the model ran"), plan.capture(["hidden.0"]) as recorder:
        recorder.trace()
    with plan.capture(["hidden.1"]) as recorder:
        model.blocks = model.blocks[:1]
        model(IMAGE)
    with pytest.raises(NasdistillError, match=r"hidden.1 was not reached"):
        recorder.trace()
    with pytest.raises(NasdistillError, match=r"no module 'blocks.1'"), plan.capture(["hidden.1"]):
        pass
    assert _hooks(model) == 0


def test_shared_modules_are_told_apart_by_call():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([CoreBlock(8, 2)])

        def forward(self, x):
            for _ in range(3):
                x = self.blocks[0](x, AttentionContext())
            return x

    model, x = Shared(), torch.randn(2, 4, 8)
    plan = SitePlan(model, lambda m: m(x))
    assert plan.geometry.layers == 3
    with plan.capture(["hidden.0", "hidden.2", "q.1"]) as recorder:
        output = model(x)
    trace = recorder.trace()
    assert torch.equal(trace["hidden.2"], output)
    assert torch.equal(trace["hidden.0"], model.blocks[0](x, AttentionContext()))


# ---- conveniences ------------------------------------------------------------------------------------------------


def test_even_layer_map():
    assert even_layer_map(4, 12) == {0: 2, 1: 5, 2: 8, 3: 11}
    assert even_layer_map(3, 2) == {0: 0, 1: 1, 2: 1}
    assert even_layer_map(0, 4) == even_layer_map(4, 0) == {}


def test_trace_model_and_tracer():
    model = FAMILIES["bert"][0]().train()
    batch = Batch({"input_ids": IDS, "attention_mask": PADDED}, labels=None, ids=torch.arange(3))

    def forward(m, b):
        return m(**b.inputs).logits

    tracer = make_tracer(forward)
    needs = frozenset({Site("hidden", 2), Site("logits")})
    trace = tracer(model, batch, needs)
    assert model.training  # the current mode is kept
    assert not trace["hidden.2"].requires_grad
    assert torch.equal(trace.signal("hidden.2").valid, PADDED.bool())
    assert trace.signal("logits").layout == "vector"
    plan = tracer.plan(model, batch)
    assert tracer.plan(model, batch) is plan
    mine, output = trace_model(model, batch, needs, forward, plan)
    assert mine["hidden.2"].requires_grad
    assert torch.equal(mine.logits, output)
    only, output = trace_model(model, batch, ["logits"], forward)
    assert torch.equal(only.logits, output)
    with pytest.raises(NasdistillError, match="no plan"):
        trace_model(model, batch, ["hidden.0"], forward)
    gone = weakref.ref(model)
    del model, trace, mine, output, only
    gc.collect()
    assert gone() is None
    assert len(tracer._plans) == 0


def test_a_tracers_geometry_is_that_of_the_batch_and_not_of_the_one_the_plan_was_made_with():
    model = Text(depth=1).eval()
    tracer = make_tracer(forward)
    long, short = text_batch(tokens=9, padded=False), text_batch(tokens=6, padded=False)
    tracer(model, long, frozenset({Site("q", 0)}))
    assert tracer.geometry(model, short)["q.0"].shape[1] == 6
    assert tracer.geometry(model, long)["q.0"].shape[1] == 9
    assert tracer.geometry(model, short) is tracer.geometry(model, short)
    assert tracer(model, short, frozenset({Site("q", 0)}))["q.0"].shape[2] == 6
    tracer.forget(model)
    assert tracer.geometry(model, short)["q.0"].shape[1] == 6


def test_a_block_is_the_member_of_the_list_not_a_part_of_it():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = CoreBlock(8, 2)

        def forward(self, x):
            return 2 * self.body(x, AttentionContext())

    model, x = nn.Sequential(Doubled(), Doubled()), torch.randn(2, 4, 8)
    plan = SitePlan(model, lambda m: m(x))
    with plan.capture(["hidden.0"]) as recorder:
        model(x)
    assert torch.equal(recorder.trace()["hidden.0"], model[0](x))


def test_an_error_that_the_model_handles_itself():
    """Counters and modes stay right when a watched module raises and the model goes on."""

    class Fallback(nn.Module):
        broken = False

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2))
            self.seen = []

        def forward(self, x):
            try:
                x = self.layers[0](x, src_mask=torch.ones(1, 1) if self.broken else None)
            except RuntimeError:
                x = x + 1
            self.seen = _get_current_function_mode_stack()
            return self.layers[1](x)

    model = Fallback().eval()
    plan = SitePlan(model, lambda m: m(TOKENS))
    model.broken = True
    with plan.capture(["q.0", "q.1", "hidden.1"]) as recorder:
        output = model(TOKENS)
    assert model.seen == []
    with pytest.raises(NasdistillError, match=r"q.0 was not reached"):
        recorder.trace()
    with plan.capture(["q.1", "hidden.1"]) as recorder:
        output = model(TOKENS)
    assert torch.equal(recorder.trace()["hidden.1"], output)


def test_module_level_attention_without_queries_and_keys():
    """A mixer that owns its projections (a state-space layer, say) has blocks and outputs, but no q, k, v."""

    class Mixer(ModuleAttention):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

        @classmethod
        def from_softmax(cls, view, options=None, *, host=None):
            return cls()

        def forward(self, x, ctx, source=None):
            return AttentionResult(self.outer(self.inner(x).cumsum(1)))

        @classmethod
        def cost(cls, geometry, n, m, options=None):
            return Cost(0, 0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer, self.mlp = Mixer(), nn.Linear(8, 8)

        def forward(self, x):
            x = x + self.mixer(x, AttentionContext()).out
            return x + self.mlp(x)

    model, x = nn.Sequential(Block(), Block()), torch.randn(2, 5, 8)
    plan = SitePlan(model, lambda m: m(x))
    assert plan.geometry.layers == 2
    assert Site("q", 0) not in plan.geometry
    with plan.capture(["hidden.0", "attn_out.0", "ffn_out.0"]) as recorder:
        model(x)
    trace = recorder.trace()
    assert torch.equal(trace["attn_out.0"], model[0].mixer(x, AttentionContext()).out)
    torch.testing.assert_close(x + trace["attn_out.0"] + trace["ffn_out.0"], trace["hidden.0"])
