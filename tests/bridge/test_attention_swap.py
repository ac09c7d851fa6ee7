"""Attention replaced in place in models of all libraries: exact where it must be, refused where it cannot be."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from families import ATTENDING, FAMILIES, PADDING, TEXT, built
from safetensors.torch import load_file, save_file
from torch import nn
from zoo_attention import Echo, Projected

from nasdistill.bridge.attention import (
    apply_attention,
    attention_record,
    clear_attention,
    convert_attention,
    set_attention,
    verify_attention,
)
from nasdistill.bridge.masks import MaskNature, described, read_mask
from nasdistill.bridge.views import attention_views
from nasdistill.errors import MismatchError
from nasdistill.interfaces import AttentionCore, AttentionMask, AttentionResult, TokenLayout
from nasdistill.spec.component import AttentionTags

CORES = ("flow", "sigmoid", "linear", "window")
BIASED = ("swin", "timm_swin")


class Gained(AttentionCore):
    """Softmax attention with a parameter per head, and a look at what it is called with."""

    def __init__(self, options=None, *, geometry, host=None):
        super().__init__(options, geometry=geometry, host=host)
        self.gain = nn.Parameter(torch.full((geometry.heads, 1, 1), 1.5))
        self.last = None

    def forward(self, q, k, v, ctx):
        self.last = ctx
        mask = None if ctx.mask is None else ctx.mask.dense(q.shape[2], k.shape[2])
        if ctx.bias is not None:
            mask = ctx.bias if mask is None else ctx.bias.masked_fill(~mask, float("-inf"))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=ctx.scale, enable_gqa=True)
        return AttentionResult(self.gain * out)

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        raise NotImplementedError


class Factory:
    """The host, with components of the tests."""

    def __init__(self, host, **tags):
        tags = AttentionTags(causal="strict", padding=True, owns_parameters=True, gqa=True, **tags)
        self.host, self.own = host, {"test:gained": (Gained, tags)}
        self.own |= {"test:projected": (Projected, Projected.tags), "test:echo": (Echo, Echo.tags)}

    def create(self, kind, name, options=None, **context):
        if name in self.own:
            return self.own[name][0](options, **context)
        return self.host.create(kind, name, options, **context)

    def load(self, kind, name):
        return self.own[name][0] if name in self.own else self.host.load(kind, name)

    def canonical(self, kind, name):
        return name if name in self.own else self.host.canonical(kind, name)

    def tags(self, kind, name):
        return self.own[name][1] if name in self.own else self.host.tags(kind, name)


def runner(name, mask=None, seed=0):
    """Return the forward of a family."""
    return lambda model: FAMILIES[name].forward(model, mask, seed)


def outputs(name, model, mask=None, seed=0):
    """Return what a model gives for the tokens that count."""
    with torch.no_grad():
        out = FAMILIES[name].forward(model, mask, seed)
    return out if mask is None else out[mask.bool()]


# ---- softmax takes the place of softmax ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTENDING)
def test_softmax_equals_the_stock_model(name, host):
    family, model = FAMILIES[name], built(name)
    stock = copy.deepcopy(model)
    keys = set(model.state_dict())
    record = set_attention(model, "softmax", host, run=runner(name))
    assert [spec["layer"] for _, spec in record] == list(range(family.layers))
    assert set(model.state_dict()) == keys
    assert verify_attention(model, runner(name)) == {path: 1 for path, _ in record}
    for mask in (None, PADDING)[: 1 + family.padded]:
        for seed in (0, 1):
            torch.testing.assert_close(
                outputs(name, model, mask, seed), outputs(name, stock, mask, seed), atol=1e-5, rtol=1e-5
            )
    clear_attention(model)
    assert attention_record(model) == []
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
    torch.testing.assert_close(outputs(name, model), outputs(name, stock), atol=0, rtol=0)


@pytest.mark.parametrize("side", ["left", "both", "all of a sample"])
@pytest.mark.parametrize("name", ["bert", "llama", "torch_causal"])
def test_padding_anywhere(name, side, host):
    mask = {
        "left": torch.tensor([[0] * 3 + [1] * 6, [1] * 9, [0] * 7 + [1] * 2]),
        "both": torch.tensor([[0] * 2 + [1] * 5 + [0] * 2] * 3),
        "all of a sample": torch.tensor([[1] * 9, [0] * 9, [1] * 4 + [0] * 5]),
    }[side]
    model = built(name)
    # With gradients: without them torch's own fast path answers a causal layer padded on the left with NaN alone.
    expected = FAMILIES[name].forward(model, mask, 0)[mask.bool()].detach()
    set_attention(model, "softmax", host, run=runner(name))
    torch.testing.assert_close(outputs(name, model, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("variant", CORES)
def test_variants_run_where_their_tags_allow(name, variant, host):
    family, model = FAMILIES[name], built(name)
    stock = outputs(name, model)
    if name in BIASED and variant in ("flow", "linear"):
        with pytest.raises(MismatchError, match=rf"layer 0 of Swin\w+ .*adds a bias to its scores.*'{variant}'"):
            set_attention(model, variant, host, run=runner(name))
        assert torch.equal(outputs(name, model), stock)
        return
    choice = (variant, {"window": 3}) if variant == "window" else variant
    record = set_attention(model, choice, host, run=runner(name))
    assert set(verify_attention(model, runner(name)).values()) == {1}
    found = outputs(name, model)
    assert found.isfinite().all()
    assert not torch.allclose(found, stock, atol=1e-4)
    assert {spec["variant"] for _, spec in record} == {f"attention:{variant}"}
    if family.padded:
        padded = outputs(name, model, PADDING)
        torch.testing.assert_close(padded[:9], found[0], atol=1e-5, rtol=1e-4)  # the first sample has no padding
        assert not torch.allclose(padded[9:15], found[1, :6], atol=1e-4) or family.causal


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("variant", ["flow", "window", "linear"])
def test_neither_padding_nor_later_tokens_change_anything(name, variant, host):
    model = built(name)
    set_attention(model, variant, host, run=runner(name))
    ids = torch.randint(3, 50, (3, 9))
    changed = torch.where(PADDING.bool(), ids, torch.randint(3, 50, (3, 9)))
    with torch.no_grad():
        first, second = (model(input_ids=x, attention_mask=PADDING)[0][PADDING.bool()] for x in (ids, changed))
        short = model(input_ids=ids[1:2, :6], attention_mask=torch.ones(1, 6, dtype=torch.int64))[0]
        whole = model(input_ids=ids[1:2], attention_mask=PADDING[1:2])[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(whole[:, :6], short, atol=1e-5, rtol=1e-4)
    if name == "llama":
        later = ids.clone()
        later[:, 5:] = 7
        with torch.no_grad():
            assert torch.equal(model(input_ids=ids)[0][:, :5], model(input_ids=later)[0][:, :5])


def test_layers_are_chosen_one_by_one(host):
    model, factory = built("llama"), Factory(host)
    record = set_attention(model, {-1: "test:gained", 0: ("window", {"window": 3})}, factory, run=runner("llama"))
    assert [(path, spec["variant"]) for path, spec in record] == [
        ("layers.0.self_attn", "attention:window"), ("layers.1.self_attn", "test:gained"),
    ]  # fmt: skip
    assert set(model.state_dict()) - set(built("llama").state_dict()) == {"layers.1.self_attn.core.gain"}
    again = set_attention(model, {0: "linear"}, factory, run=runner("llama"))
    assert [spec["variant"] for _, spec in again] == ["attention:linear"]
    assert [spec["variant"] for _, spec in attention_record(model)] == ["attention:linear", "test:gained"]
    core = model.layers[1].self_attn.core
    outputs("llama", model, PADDING)
    assert (core.last.layer, core.last.mask.causal) == (1, True)
    assert torch.equal(core.last.mask.key_valid, PADDING.bool())
    assert core.last.layer_input.shape == (3, 9, 32)
    assert core.geometry.kv_heads == 2


def test_cores_of_image_models_know_the_grid(host):
    for name, prefix in (("vit", 1), ("deit", 2), ("timm_vit", 1)):
        model = built(name)
        record = set_attention(model, {0: "window"}, host, run=runner(name))
        layout = model.get_submodule(record[0][0]).core.geometry.layout
        assert (layout.grid, layout.prefix) == ((4, 4), prefix)


@pytest.mark.parametrize(
    ("name", "streams", "layout"),
    [("sd3", [16, 5], TokenLayout(grid=(4, 4), text=5)), ("flux", [5, 16], TokenLayout(prefix=5))],
)
def test_joint_attention_is_said_to_be_joint_and_windows_leave_the_text_alone(name, streams, layout, host):
    """Image and text come in the library's own order; a window holds for the image, and text sees and is seen."""
    model, factory = built(name), Factory(host)
    record = set_attention(model, {0: "test:gained"}, factory, run=runner(name))
    assert record[0][1]["streams"] == streams
    outputs(name, model)
    core = model.get_submodule(record[0][0]).core
    assert core.last.layout == core.geometry.layout == layout
    model = built(name)
    set_attention(model, {0: ("window", {"window": 3})}, host, run=runner(name))
    core, seen = model.get_submodule(record[0][0]).core, []
    core.register_forward_hook(lambda module, args, out: seen.append((args, out.out)))
    outputs(name, model)
    (q, k, v, ctx), found = seen[0]
    text = torch.cat([torch.full((n,), n == 5) for n in streams])
    y, x = (torch.arange(16) // 4, torch.arange(16) % 4) if name == "sd3" else (torch.zeros(16), torch.arange(16))
    near = torch.ones(21, 21, dtype=torch.bool)
    near[(~text)[:, None] & ~text] = (((y[:, None] - y).abs() <= 1) & ((x[:, None] - x).abs() <= 1)).flatten()
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near, scale=ctx.scale)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_variants_with_projections_refuse_joint_attention_by_name(host):
    for name in ("sd3", "flux"):
        with pytest.raises(MismatchError, match=r"layer 0 .*attends over 2 streams together.* 'mla' does not support"):
            set_attention(built(name), "mla", host, run=runner(name))
        with pytest.raises(MismatchError, match=r"'echoatt' cannot convert layer 0 .*streams attended together"):
            convert_attention(built(name), "echoatt", host, run=runner(name))


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tags", "says"),
    [
        ("llama", {"causal": "no"}, "is causal"),
        ("llama", {"causal": "values"}, "is causal"),
        ("bert", {"bidirectional": False, "causal": "strict"}, "is not causal"),
        ("llama", {"causal": "strict"}, r"grouped heads \(4 query heads share 2 key/value heads\)"),
        ("swin", {}, "adds a bias"),
        ("vit", {"stateful": True}, "keeps no state"),
        ("vit", {"level": "model"}, "several layers together"),
    ],
)
def test_a_variant_that_does_not_fit_is_refused_and_nothing_changes(name, tags, says, host):
    factory, model = Factory(host), built(name)
    factory.own["test:gained"] = (Gained, AttentionTags(**tags))
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(MismatchError, match=says):
        set_attention(model, {0: "softmax", 1: "test:gained"}, factory, run=runner(name))
    assert [type(module) for module in model.modules()] == kinds


def test_bad_requests_are_refused(host):
    model = built("bert")
    with pytest.raises(MismatchError, match="layer 9 does not exist: BertModel has 2"):
        set_attention(model, {9: "flow"}, host, run=runner("bert"))
    with pytest.raises(MismatchError, match="has no attention over another sequence"):
        set_attention(model, {0: "flow"}, host, run=runner("bert"), cross=True)
    with pytest.raises(MismatchError, match="made no attention call"):
        set_attention(built("convnext"), "flow", host, run=runner("convnext"))
    with pytest.raises(MismatchError, match="no replaced attention"):
        verify_attention(model, runner("bert"))
    record = set_attention(copy.deepcopy(model), "flow", host, run=runner("bert"))
    with pytest.raises(MismatchError, match=r"no module 'encoder\.layer\.0"):
        apply_attention(built("gpt2"), record, host)
    apply_attention(model, record, host)
    with pytest.raises(MismatchError, match="replaced already"):
        apply_attention(model, record, host)


def test_a_mask_that_the_variant_cannot_use_is_refused_in_the_forward(host):
    """Padding was not seen when the core was put in; a core without it does not run past it."""
    factory, model = Factory(host), built("bert")
    set_attention(model, "flow", factory, run=runner("bert"))
    pattern = torch.rand(3, 1, 9, 9) > 0.4
    with pytest.raises(ValueError, match="differs between samples or heads in more than padding"):
        model(input_ids=torch.randint(3, 50, (3, 9)), attention_mask=pattern)


def test_a_module_passed_by_is_noticed(host, monkeypatch):
    model = built("bert")
    set_attention(model, "flow", host, run=runner("bert"))
    model.set_attn_implementation("eager")  # the library would write its softmax out: the core is reached all the same
    verify_attention(model, runner("bert"))
    assert model.config._attn_implementation == "eager"
    functions = transformers.AttentionInterface._global_mapping
    monkeypatch.setitem(functions, "nasdistill:elsewhere", lambda module, q, k, v, mask, **_: (q, None))
    model.set_attn_implementation("nasdistill:elsewhere")
    with pytest.raises(MismatchError, match="did not reach its attention:flow"):
        outputs("bert", model)


def test_cached_decoding_is_exact_or_refused(host):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 50, (2, 5))
    run = lambda m: m(input_ids=ids).logits  # noqa: E731
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(ids, **settings)
    set_attention(model, "softmax", host, run=run)
    assert torch.equal(model.generate(ids, **settings), expected)
    padded = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    stock = transformers.LlamaForCausalLM(config).eval()
    stock.load_state_dict(model.state_dict())
    told = settings | {"attention_mask": padded}
    assert torch.equal(model.generate(ids, **told), stock.generate(ids, **told))
    for variant in ("linear", "test:projected-rotary"):
        other = copy.deepcopy(stock)
        if variant == "linear":
            set_attention(other, variant, host, run=run)
            with pytest.raises(ValueError, match="use_cache=False"):
                other.generate(ids, **settings)
            assert other.generate(ids, **settings, use_cache=False).shape == expected.shape
            continue
        family, other = FAMILIES["gpt2"], built("gpt2")
        set_attention(other, "test:projected", Factory(host), run=runner("gpt2"))
        past = other(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(MismatchError, match="use_cache=False"):
            other(input_ids=ids[:, :1], past_key_values=past, use_cache=True)
        assert family.forward(other, None, 0).isfinite().all()


# ---- survival --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTENDING)
def test_copies_pickles_and_state_dicts(name, host):
    factory, model = Factory(host, cross=True, bias=name in BIASED), built(name)
    record = set_attention(model, "test:gained", factory, run=runner(name))
    with torch.no_grad():
        for path, _ in record:
            model.get_submodule(path).core.gain.mul_(1.3)
    expected = outputs(name, model)
    for path, _ in record:
        model.get_submodule(path).core.last = None
    fresh = apply_attention(FAMILIES[name].build().eval(), json.loads(json.dumps(record)), factory)
    fresh.load_state_dict(model.state_dict())
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for twin in twins:
        assert torch.equal(outputs(name, twin), expected)
        assert attention_record(twin) == record
        assert set(verify_attention(twin, runner(name)).values()) == {1}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_is_exact(name, reentrant, host):
    factory, plain = Factory(host), built(name)
    set_attention(plain, {0: "flow", 1: "test:gained"}, factory, run=runner(name))
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    for model in (plain, checkpointed):
        model.train()
        embedded = model.get_input_embeddings()(torch.arange(3, 12)[None].repeat(2, 1))
        model(inputs_embeds=embedded, use_cache=False)[0].square().sum().backward()
    gradients = [dict(model.named_parameters()) for model in (plain, checkpointed)]
    assert any("core.gain" in key for key in gradients[0])
    for key, parameter in gradients[0].items():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, gradients[1][key].grad), key


FRESH = """
import json, sys, torch
from nasdistill.bridge import prepare_imports
prepare_imports()
import transformers
from safetensors.torch import load_file
from nasdistill.bridge.attention import apply_attention
from nasdistill.host import Host
folder = sys.argv[1]
data = json.load(open(folder + "/record.json"))
config = transformers.AutoConfig.from_pretrained(folder)
model = apply_attention(transformers.AutoModel.from_config(config), data["record"], Host.load()).eval()
model.load_state_dict(load_file(folder + "/weights.safetensors"))
with torch.no_grad():
    out = model(input_ids=torch.tensor(data["ids"]), attention_mask=torch.tensor(data["mask"]))[0]
torch.save(out, folder + "/out.pt")
"""


def test_saved_and_loaded_in_a_fresh_process(host, tmp_path):
    """The implementation's name is not saved by the library, and does not have to be: the record says it all."""
    model = built("llama")
    record = set_attention(model, {0: ("window", {"window": 3}), 1: "mla"}, host, run=runner("llama"))
    ids = torch.randint(3, 50, (3, 9))
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=PADDING)[0]
    model.config.save_pretrained(tmp_path)
    assert "attn_implementation" not in Path(tmp_path, "config.json").read_text()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    data = {"record": record, "ids": ids.tolist(), "mask": PADDING.tolist()}
    Path(tmp_path, "record.json").write_text(json.dumps(data))
    subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, str(tmp_path)], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected)
    assert any("core" in key for key in load_file(tmp_path / "weights.safetensors"))


def test_a_variant_survives_the_librarys_own_saving(host, tmp_path):
    """Saved and loaded by transformers, the stock model comes back; applying the record gives the variant again."""
    model = built("bert")
    record = set_attention(model, "flow", host, run=runner("bert"))
    model.save_pretrained(tmp_path)
    stock = transformers.BertModel.from_pretrained(tmp_path).eval()
    assert stock.config._attn_implementation == "sdpa"
    assert not torch.allclose(outputs("bert", stock), outputs("bert", model), atol=1e-4)
    assert torch.equal(outputs("bert", apply_attention(stock, record, host)), outputs("bert", model))


def test_joint_attention_survives_the_librarys_own_saving(host, tmp_path):
    model = built("sd3")
    record = set_attention(model, "flow", host, run=runner("sd3"))
    model.save_pretrained(tmp_path)
    stock = FAMILIES["sd3"].build().from_pretrained(tmp_path).eval()
    assert not torch.allclose(outputs("sd3", stock), outputs("sd3", model), atol=1e-4)
    again = apply_attention(stock, json.loads(json.dumps(record)), host)
    assert torch.equal(outputs("sd3", again), outputs("sd3", model))


def test_no_mask_is_lost_as_with_the_librarys_own_switch(host, monkeypatch):
    """A function registered without a mask function gets no mask at all; our way gets the masks of the kernel."""
    seen = []

    def registered(module, q, k, v, attention_mask, scaling=None, **_):
        seen.append(attention_mask)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, enable_gqa=True)
        return out.transpose(1, 2), None

    model = built("llama")
    expected = outputs("llama", model, PADDING)
    theirs = copy.deepcopy(model)
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "nasdistill:unmasked", registered)
    theirs.set_attn_implementation("nasdistill:unmasked")
    moved = outputs("llama", theirs, PADDING)
    assert seen[0] is None
    assert not torch.allclose(moved, expected, atol=1e-2)
    set_attention(model, "softmax", host, run=runner("llama"))
    torch.testing.assert_close(outputs("llama", model, PADDING), expected, atol=1e-5, rtol=1e-5)
    for implementation in ("sdpa", "eager"):  # both kinds of masks: bool, and float with the type's minimum
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(outputs("llama", model, PADDING), expected, atol=1e-5, rtol=1e-5)
    for variant in ("flow", "linear"):  # neither takes a bias: the float mask must come as padding and causality
        set_attention(model, variant, host, run=runner("llama"))
        model.set_attn_implementation("sdpa")
        bool_masks = outputs("llama", model, PADDING)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(outputs("llama", model, PADDING), bool_masks, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "choice"), [("llama", {0: ("window", {"window": 3}), 1: "linear"}), ("vit", "flow")])
def test_decoders_and_image_models_run_in_onnxruntime(name, choice, host, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from nasdistill.bridge.onnx import export_onnx

    model, padded = built(name), FAMILIES[name].padded
    set_attention(model, choice, host, run=runner(name))

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *given):
            more = {"attention_mask": given[1], "use_cache": False} if padded else {}
            return self.model(given[0], **more)[0]

    first, other = (
        (torch.randint(3, 50, (3, 9)), mask) if padded else (torch.randn(3, 3, 32, 32),)
        for mask in (PADDING, torch.tensor([[1] * 5 + [0] * 4, [1] * 9, [0] * 3 + [1] * 6]))
    )
    names, whole = ["first", "mask"][: len(first)], Plain().eval()
    export_onnx(whole, first, tmp_path / "model.onnx", dynamo=False, inputs=names)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    [out] = session.run(None, {name: x.numpy() for name, x in zip(names, other, strict=True)})
    rows = other[1].bool() if padded else slice(None)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out)[rows], whole(*other)[rows], atol=1e-5, rtol=1e-4)


def test_export_and_onnx(host, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    from nasdistill.bridge.onnx import export_onnx

    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**TEXT), add_pooling_layer=False).eval()
    ids, mask = torch.randint(3, 50, (3, 9)), PADDING

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = model

        def forward(self, input_ids, attention_mask):
            return self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]

    choice = {0: "softmax", 1: "flow"}
    set_attention(model, choice, host, run=lambda m: m(input_ids=ids, attention_mask=mask)[0])
    whole, rows = Plain().eval(), mask.bool()
    others = torch.randint(3, 50, (3, 9)), torch.tensor([[1] * 5 + [0] * 4, [1] * 9, [1] * 8 + [0]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = whole(*others)
        exported = torch.export.export(whole, (ids, mask), strict=False).module()(*others)
        rows = others[1].bool()
        torch.testing.assert_close(exported[rows], expected[rows], atol=1e-5, rtol=1e-4)
        export_onnx(whole, (ids, mask), tmp_path / "model.onnx", dynamo=False, inputs=["ids", "mask"])
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    out = torch.from_numpy(session.run(None, {"ids": others[0].numpy(), "mask": others[1].numpy()})[0])
    torch.testing.assert_close(out[rows], expected[rows], atol=1e-5, rtol=1e-4)


# ---- nn.TransformerEncoder -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of torch's own fast path
def test_the_fast_paths_of_torch_do_not_pass_by_the_core(host):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    x, leave_out = torch.randn(3, 9, 32), PADDING == 0
    run = lambda m: m(x, src_key_padding_mask=leave_out)  # noqa: E731
    with torch.no_grad():
        expected = run(model)[PADDING.bool()]
    record = set_attention(model, {1: "softmax"}, host, run=run)  # the first layer keeps its own
    assert verify_attention(model, run) == {"layers.1.self_attn": 1}
    with torch.no_grad():
        torch.testing.assert_close(run(model)[PADDING.bool()], expected, atol=1e-5, rtol=1e-5)
        twin = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
        twin.load_state_dict(model.state_dict())
        apply_attention(twin, record, host)
        assert verify_attention(copy.deepcopy(twin), run) == {"layers.1.self_attn": 1}
    clear_attention(model)
    assert model.use_nested_tensor
    assert model.layers[1].activation_relu_or_gelu == 1


# ---- whole modules and whole models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "vit", "timm_vit", "torch_encoder", "multi_head", "dit"])
def test_a_module_takes_the_place_of_projections_too(name, host):
    factory, family, model = Factory(host), FAMILIES[name], built(name)
    stock = copy.deepcopy(model)
    record = set_attention(model, "test:projected", factory, run=runner(name))
    assert set(verify_attention(model, runner(name)).values()) == {1}
    for mask in (None, PADDING)[: 1 + family.padded]:
        torch.testing.assert_close(outputs(name, model, mask, 1), outputs(name, stock, mask, 1), atol=1e-5, rtol=1e-5)
    views = attention_views(stock, runner(name))
    gone = {source.weight for view in views.values() for source in view.sources.values()}
    assert gone.isdisjoint(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in stock.parameters())
    fresh = apply_attention(FAMILIES[name].build().eval(), json.loads(json.dumps(record)), factory)
    fresh.load_state_dict(model.state_dict())
    twins = [fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        assert torch.equal(outputs(name, twin), outputs(name, model))
    with pytest.raises(MismatchError, match="is gone"):
        clear_attention(model)
    with pytest.raises(MismatchError, match="no softmax attention any more"):
        set_attention(model, "flow", host, run=runner(name))


@pytest.mark.parametrize(
    ("name", "says"),
    [("swin", "adds a bias"), ("llama", "rotary"), ("unet", "does not take tokens"), ("sd3", "streams")],
)
def test_modules_that_cannot_be_replaced_whole_are_refused(name, says, host):
    model = built(name)
    keys = set(model.state_dict())
    with pytest.raises(MismatchError, match=says):
        set_attention(model, "test:projected", Factory(host), run=runner(name))
    assert set(model.state_dict()) == keys


def test_model_level_variants_get_the_views(host):
    model, seen = built("vit"), {}

    class Spy(Echo):
        def convert(self, model, views, layers, calibration):
            seen.update(views=views, layers=layers, model=model)
            return "converted"

    factory = Factory(host)
    factory.own["test:echo"] = (Spy, Echo.tags)
    assert convert_attention(model, "test:echo", factory, run=runner("vit")) == "converted"
    assert (seen["model"], seen["layers"], sorted(seen["views"])) == (model, [0, 1], [0, 1])
    with pytest.raises(MismatchError, match=r"set_attention"):
        convert_attention(model, "flow", factory, run=runner("vit"))
    with pytest.raises(MismatchError, match=r"convert_attention"):
        set_attention(model, "test:echo", factory, run=runner("vit"))


# ---- masks -----------------------------------------------------------------------------------------------------------


MASKS = {
    "padding": AttentionMask(key_valid=torch.arange(6)[None] < torch.tensor([[6], [4]])),
    "causal": AttentionMask(causal=True),
    "causal padding": AttentionMask(causal=True, key_valid=torch.arange(6)[None] >= torch.tensor([[0], [2]])),
    "window": AttentionMask(window=(1, 1)),
    "window behind": AttentionMask(window=(2, 0)),
    "padded rows": AttentionMask(
        window=(1, 1), key_valid=torch.arange(6)[None] < torch.tensor([[6], [3]]),
        query_valid=torch.arange(6)[None] < torch.tensor([[6], [3]]),
    ),
    "pattern": AttentionMask(predicate=lambda i, j: (i + j) % 3 != 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("form", ["bool", "minimum", "infinity", "per head"])
def test_a_tensor_is_read_as_the_mask_that_it_came_from(kind, form):
    dense = MASKS[kind].dense(6, 6)
    q = torch.randn(2, 3, 6, 4)
    given = dense.expand(2, 3, 6, 6) if form == "per head" else dense
    if form in ("minimum", "infinity"):
        lowest = torch.finfo(torch.float32).min if form == "minimum" else float("-inf")
        given = torch.zeros(dense.shape).masked_fill(~dense, lowest)
    mask, bias = read_mask(given, False, q, q, MaskNature(causal="causal" in kind, exact=True))
    assert bias is None
    assert torch.equal(mask.dense(6, 6).expand(2, 1, 6, 6), dense.expand(2, 1, 6, 6))
    if kind in ("causal", "causal padding"):
        assert mask.causal
        assert mask.window is mask.predicate is None
    if kind.startswith("window"):
        assert mask.window == MASKS[kind].window
    assert (mask.key_valid is None) == ("padd" not in kind)


def test_what_is_no_common_mask_goes_into_a_bias_or_is_refused():
    given = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    q = torch.randn(2, 3, 6, 4)
    assert described(given, 6, 6, MaskNature()) is None
    mask, bias = read_mask(given, False, q, q, MaskNature(takes_bias=True))
    assert mask is None
    assert torch.equal(bias == 0, given)
    with pytest.raises(ValueError, match="flow does not support this mask"):
        read_mask(given, False, q, q, MaskNature(), "flow")
    biased = torch.randn(1, 3, 6, 6).masked_fill(~MASKS["padding"].dense(6, 6), float("-inf"))
    mask, bias = read_mask(biased, False, q, q, MaskNature())
    assert torch.equal(mask.key_valid, MASKS["padding"].key_valid)
    assert torch.equal(bias[0, :, :, :4], biased[0, :, :, :4])
    assert bias.isfinite().all()
    assert read_mask(torch.zeros(1, 1, 6, 6), False, q, q, MaskNature()) == (None, None)


def test_a_variant_in_which_queries_meet_is_told_which_are_padding():
    q = torch.randn(2, 3, 6, 4)
    given = MASKS["padding"].dense(6, 6)
    for exact in (True, False):
        mask, _ = read_mask(given, False, q, q, MaskNature(exact=exact))
        assert (mask.query_valid is None) == exact
