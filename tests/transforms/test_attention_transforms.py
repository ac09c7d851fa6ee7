"""Latent attention and shared maps as transforms of stock models."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_toys import scramble
from safetensors.torch import save_file

from nasdistill.bridge.random_models import random_model
from nasdistill.bridge.timm import random_vit
from nasdistill.errors import ConfigError, DataError, MismatchError
from nasdistill.interfaces import Batch
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

HEADS = {"bert": "classes", "gpt2": "causal_lm", "llama": "causal_lm"}
FULL = {"cache": 1.0, "variant": {"q_rank": "full"}}


def text(n=11):
    ids = torch.randint(3, 60, (3, n), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, n, dtype=torch.long)
    mask[1, 7:] = 0
    return Batch({"input_ids": ids, "attention_mask": mask}, None, torch.arange(3))


def images(channels, side):
    x = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0))
    return Batch({"image": x}, None, torch.arange(3))


def forward(model, batch):
    out = model(**batch.inputs) if "input_ids" in batch.inputs else model(batch.image)
    return getattr(out, "logits", out)


def made(family):
    if family == "timm":
        return random_vit(depth=3), images(3, 32)
    if family == "vit":
        return random_model("vit", num_hidden_layers=3), images(1, 8)
    depth = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    return random_model(family, HEADS[family], **{depth: 3}), text()


def transform(host, name, **options):
    return host.create(Kind.TRANSFORM, name, options)


@pytest.mark.paper("2503.11132", "transforms:mla_upcycle")
@pytest.mark.parametrize("family", ["bert", "gpt2", "vit", "timm"])
def test_at_full_rank_stock_models_with_all_their_biases_are_the_same(host, family):
    model, batch = made(family)
    result = transform(host, "mla_upcycle", **FULL).apply(model, [batch], forward)
    real = batch.inputs.get("attention_mask", torch.ones(3, 1)).bool()
    with torch.no_grad():
        found, expected = forward(result.model, batch), forward(model, batch)
    if found.ndim == 3:
        found, expected = found[real], expected[real]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert [row["cached"] for row in result.report["layers"]] == [row["q_rank"] for row in result.report["layers"]]


@pytest.mark.paper("2503.11132", "transforms:mla_upcycle")
def test_each_layer_gets_the_rank_of_its_own_spectrum(host):
    model, batch = made("gpt2")
    with torch.no_grad():  # the middle layer's keys and values are of rank 3
        weight = model.transformer.h[1].attn.c_attn.weight
        weight[:, 16:] = torch.randn(16, 3) @ torch.randn(3, 32)
        model.transformer.h[1].ln_1.bias.fill_(0.3)
    result = transform(host, "mla_upcycle", energy=0.9999, edge_rank=5).apply(model, [batch], forward)
    assert [row["kv_rank"] for row in result.report["layers"]] == [5, 8, 5]  # 3 rounded up to a multiple of 8
    assert result.report["cache_share"] == pytest.approx((5 + 8 + 5) / (3 * 32))
    some = transform(host, "mla_upcycle", kv_rank=4, layers=(1,)).apply(model, [batch], forward)
    assert [(row["layer"], row["kv_rank"]) for row in some.report["layers"]] == [(1, 4)]
    assert some.report["cache_share"] == pytest.approx((4 + 2 * 32) / (3 * 32))


@pytest.mark.paper("2503.11132", "transforms:mla_upcycle")
def test_a_converted_llama_is_causal_and_rebuilt_from_json(host):
    model, batch = made("llama")
    one = transform(host, "mla_upcycle", energy=0.8, variant={"rope_dim": 4})
    result = one.apply(model, [batch], forward)
    assert all(row["cached"] == row["kv_rank"] + 4 for row in result.report["layers"])
    changed = copy.deepcopy(batch.inputs["input_ids"])
    changed[:, 6:] = 5
    with torch.no_grad():
        for parameter in result.model.parameters():
            parameter.add_(0.01)
        found = result.model(input_ids=batch.inputs["input_ids"]).logits
        torch.testing.assert_close(result.model(input_ids=changed).logits[:, :6], found[:, :6])
        padded = forward(result.model, batch)[1, :7]
        alone = result.model(input_ids=batch.inputs["input_ids"][1:2, :7]).logits[0]
        torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
        fresh = random_model("llama", "causal_lm", seed=5, num_hidden_layers=3)
        rebuilt = one.rebuild(fresh, json.loads(json.dumps(result.config)))
        rebuilt.load_state_dict(result.model.state_dict())
        assert torch.equal(forward(rebuilt, batch), forward(result.model, batch))


@pytest.mark.paper("2503.11132", "transforms:mla_upcycle")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_librarys_cache_holds_the_latents(host, family):
    model, batch = made(family)
    rope = {"rope_dim": 4} if family == "llama" else {}
    made_ = transform(host, "mla_upcycle", kv_rank=6, variant=rope).apply(model, [batch], forward).model
    ids, mask = batch.inputs["input_ids"], torch.ones(3, 11, dtype=torch.long)
    mask[1, :3] = 0  # padded on the left, as generation does
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    for given in ({}, {"attention_mask": mask, "position_ids": positions}):
        with torch.no_grad():
            whole = made_(input_ids=ids, use_cache=False, **given).logits
            cut = {name: value[:, :5] for name, value in given.items()}
            step = made_(input_ids=ids[:, :5], use_cache=True, **cut)
            found = [step.logits]
            for i in range(5, 11):
                cut = {name: value[:, : i + 1] if name == "attention_mask" else value[:, i : i + 1]
                       for name, value in given.items()}  # fmt: skip
                step = made_(input_ids=ids[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True, **cut)
                found.append(step.logits)
        found, real = torch.cat(found, dim=1), given.get("attention_mask", torch.ones(3, 11)).bool()
        torch.testing.assert_close(found[real], whole[real], atol=2e-5, rtol=1e-4)
        layer = step.past_key_values.layers[1]
        assert layer.keys.shape == (3, 1, 11, 6)
        assert layer.values.shape == (3, 1, 11, 4 if rope else 0)
    tokens = made_.generate(ids[:1, :4], max_new_tokens=4, do_sample=False, num_beams=2, pad_token_id=0)
    plain = made_.generate(ids[:1, :4], max_new_tokens=4, do_sample=False, num_beams=2, pad_token_id=0, use_cache=False)
    assert torch.equal(tokens, plain)


@pytest.mark.slow
@pytest.mark.paper("2409.14595", "transforms:echoatt")
def test_one_after_the_other_and_rebuilt_in_a_fresh_process(host, tmp_path: Path):
    """The first layer gets a latent, the others share a map: saved, and opened without what made it."""
    model, batch = made("gpt2")
    first = transform(host, "mla_upcycle", kv_rank=6, layers=(0,)).apply(model, [batch], forward)
    echo = transform(host, "echoatt", layers=(1, 2), variant={"groups": [[1, 2]]})
    second = echo.apply(first.model, [batch], forward)
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.add_(0.01)
        save_file({"logits": forward(second.model, batch), **batch.inputs}, tmp_path / "batch.safetensors")
    state = {name: value for name, value in second.model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(state, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps([first.config, second.config]))
    script = """
import json, sys, torch
from safetensors.torch import load_file
from nasdistill.bridge.random_models import random_model
from nasdistill.host import Host
from nasdistill.spec.component import Kind
host, model = Host.load(third_party=False), random_model("gpt2", "causal_lm", seed=9, n_layer=3)
for name, config in zip(("mla_upcycle", "echoatt"), json.load(open(sys.argv[1] + "/config.json"))):
    model = host.create(Kind.TRANSFORM, name).rebuild(model, config)
missing, unexpected = model.load_state_dict(load_file(sys.argv[1] + "/weights.safetensors"), strict=False)
assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
batch = load_file(sys.argv[1] + "/batch.safetensors")
with torch.no_grad():
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
assert torch.equal(found, batch["logits"]), (found - batch["logits"]).abs().max()
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.paper("2409.14595", "transforms:echoatt")
def test_sharing_by_similarity_reports_what_it_saw(host):
    model, batch = made("bert")
    result = transform(host, "echoatt", variant={"first": 0, "last": 0, "by": "dynamic"}).apply(model, [batch], forward)
    similarity = result.report["similarity"]
    best = max(((similarity[a][a + 1], [a, a + 1]) for a in range(2)), key=lambda pair: pair[0])[1]
    assert result.report["groups"] == [best]
    assert result.report["parameters_before"] - result.report["parameters_after"] == 2 * (16 * 16 + 16)


def test_refusals(host):
    model, _ = made("bert")
    for name in ("mla_upcycle", "echoatt"):
        with pytest.raises(DataError, match="calibration"):
            transform(host, name).apply(model, [], forward)
        with pytest.raises(MismatchError, match="attention"):
            transform(host, name).apply(torch.nn.Flatten(), [images(1, 4)], forward)
    for options in ({"kv_rank": 4, "energy": 0.5}, {"variant": {"cache": 0.5}}):
        with pytest.raises(ConfigError, match=r"not both|holds cache"):
            transform(host, "mla_upcycle", **options)


# ---- students, which are built around cores of ours ------------------------------------------------------------------

ENCODER = {"teacher": {"layers": 2, "hidden": 24, "heads": 3, "mlp": 48, "positions": 32}}
GPT2 = {"layers": 2, "width": 32, "heads": 4, "mlp": 48, "positions": 24}
LLAMA = {**GPT2, "style": "llama", "kv_heads": 1, "head_dim": 8, "tied": False}  # one key head: turned without loss


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("space", "options", "conversion"),
    [
        ("encoder", ENCODER, FULL),
        ("decoder", GPT2, FULL),
        ("decoder", LLAMA, {"kv_rank": 16, "variant": {"q_rank": "full", "rope_dim": 8}}),
    ],
    ids=["encoder", "gpt2", "llama"],
)
def test_converted_students_keep_their_masks_and_positions(host, space, options, conversion, side):
    head = {"outputs": 3, "head": "classes"} if space == "encoder" else {"outputs": 40, "head": "causal_lm"}
    io = IOSpec("tokens", (10,), vocabulary=40, **head)
    owner = host.create(Kind.SEARCH_SPACE, space, options)
    with seeded(0, "student"):
        student = scramble(owner.build(owner.default(), io))
        ids = torch.randint(40, (3, 10))
    mask = (torch.arange(10)[None] < torch.tensor([10, 6, 3])[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    batch = Batch({"input_ids": ids, "attention_mask": mask}, None, torch.arange(3))

    found = host.create(Kind.TRANSFORM, "mla_upcycle", conversion).apply(student, [batch], forward).model
    with torch.no_grad():
        before, after = forward(student, batch), forward(found.eval(), batch)
    real = mask.bool() if before.ndim == 3 else slice(None)
    assert torch.allclose(before[real], after[real], atol=1e-5)
    assert len(found.state_dict()) != len(student.state_dict())
