"""Sites by structure in every family: what is captured rebuilds the model's own attention, and nothing is left."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from families import ATTENDING, FAMILIES, PADDING, built
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode

from nasdistill.interfaces import Site
from nasdistill.trace import SitePlan


class Kernels(TorchDispatchMode):
    """Counts the fused attention kernels that run."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += "scaled_dot_product" in func.__name__
        return func(*args, **(kwargs or {}))


def state(model):
    """What a capture must not change."""
    settings = [
        (getattr(m, "fused_attn", None), getattr(getattr(m, "config", None), "_attn_implementation", None), type(m))
        for m in model.modules()
    ]
    hooks = sum(len(h) for m in model.modules() for h in (m._forward_hooks, m._forward_pre_hooks))
    return settings, hooks, [m.training for m in model.modules()], _get_current_function_mode_stack()


MASKS = {"": None, "right": PADDING, "left": PADDING.flip(1)}
CASES = [(name, padded) for name in ATTENDING for padded in MASKS if not padded or FAMILIES[name].padded]


@pytest.mark.parametrize(("name", "padded"), CASES)
def test_captured_qkv_rebuild_the_context(name, padded):
    family, model, mask = FAMILIES[name], built(name), MASKS[padded]
    fast_path = name.startswith("torch_")
    before = state(model)
    # Without gradients nn.TransformerEncoderLayer has a fast path of its own, in which no kernel can be counted.
    with torch.set_grad_enabled(fast_path), Kernels() as plainly:
        plain = family.forward(model, mask, 0)
    plan = SitePlan(model, lambda m: family.forward(m, mask, 0))
    assert plan.geometry.layers == family.layers
    sites = [f"{site}.{layer}" for layer in range(family.layers) for site in ("attention", "v", "context")]
    assert state(model) == before
    with torch.set_grad_enabled(fast_path), Kernels() as watched, plan.capture(sites) as recorder:
        output = family.forward(model, mask, 0)
    trace = recorder.trace(valid=mask)
    assert state(model) == before
    torch.testing.assert_close(output, plain, atol=2e-6, rtol=1e-5)
    assert watched.calls == plainly.calls > 0 or name == "timm_swin"  # which writes its softmax out by default
    for layer in range(family.layers):
        attention, v, context = (trace[f"{site}.{layer}"].detach() for site in ("attention", "v", "context"))
        v = v.repeat_interleave(attention.shape[1] // v.shape[1], dim=1)
        rows = mask.bool() if padded else torch.ones(context.shape[0], context.shape[2], dtype=torch.bool)
        rebuilt, expected = (x.transpose(1, 2)[rows] for x in (attention @ v, context))
        torch.testing.assert_close(rebuilt, expected, atol=1e-5, rtol=1e-5)
        signal = trace.signal(f"q.{layer}")
        assert signal.causal is family.causal
        if padded:  # no real token looks at padding
            assert not (attention.amax(1) * (~mask.bool())[:, None])[rows].any()
        if family.causal:
            assert not attention.triu(1).any()
        assert name.startswith("multi_head") or Site("hidden", layer) in plan.geometry


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].layers])
def test_convolution_networks_have_features_only(name):
    family, model = FAMILIES[name], built(name)
    plan = SitePlan(model, lambda m: family.forward(m, None, 0))
    geometry = plan.geometry
    assert geometry.layers == 0
    assert geometry.stages >= max(family.stages, 3)
    with torch.no_grad(), plan.capture([f"features.{i}" for i in range(geometry.stages)]) as recorder:
        family.forward(model, None, 0)
    trace = recorder.trace()
    sides = [trace[f"features.{i}"].shape[-1] for i in range(geometry.stages)]
    assert sides == sorted(set(sides), reverse=True)


def test_joint_blocks_are_known_by_their_image_stream():
    """Both streams leave a block of SD3 and Flux; the sites are those of the image tokens, which come first in."""
    for name in ("sd3", "flux"):
        family, model = FAMILIES[name], built(name)
        geometry = SitePlan(model, lambda m, family=family: family.forward(m, None, 0)).geometry
        for site in ("hidden", "ffn_out"):
            assert geometry[Site(site, 0)].shape[0] == 16
        assert geometry["q.0"].shape[1] == 21


def test_every_site_of_a_block_is_offered():
    counts = Counter()
    for name in ("bert", "gpt2", "llama", "vit", "timm_vit", "torch_encoder", "dit"):
        family, model = FAMILIES[name], built(name)
        geometry = SitePlan(model, lambda m, family=family: family.forward(m, None, 0)).geometry
        counts.update(site.name for site in geometry.sites if site.layer == 1)
    expected = ("q", "k", "v", "scores", "attention", "context", "attn_out", "ffn_out", "norm", "hidden")
    assert {site: counts[site] for site in expected} == dict.fromkeys(expected, 7)
