"""What the bundled cores promise beyond the contract suite: precision, maps, left padding, one mask for another."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from nasdistill.host import Host
from nasdistill.interfaces import AttentionContext, AttentionGeometry, AttentionMask
from nasdistill.spec.component import Kind

HOST = Host.load(third_party=False)
CORES = [record.id for record in HOST.specs(Kind.ATTENTION) if record.spec.tags.level == "core"]
LONG = 150
"""Longer than a chunk and than what is computed as one full product: the linear-time paths run."""


def tags(name):
    return HOST.tags(Kind.ATTENTION, name)


def cores(declared=lambda tags: True):
    """Run a test for the cores whose tags declare something."""
    return pytest.mark.parametrize("name", [name for name in CORES if declared(tags(name))])


every_core = cores()


def build(name, *, heads=2, dim=8):
    return HOST.create(Kind.ATTENTION, name, geometry=AttentionGeometry(heads * dim, heads, dim))


def qkv(n, *, m=None, batch=2, dim=8, value_dim=None):
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, n, dim), (2, m or n, dim), (2, m or n, value_dim or dim)]
    return [torch.randn(batch, *size, dtype=torch.float64, generator=generator) for size in sizes]


def modes(name):
    """Masks under which the core works in self-attention."""
    found = [None] if tags(name).bidirectional else []
    return found + ([AttentionMask(causal=True)] if tags(name).causal != "no" else [])


@pytest.mark.parametrize("n", [6, LONG])
@every_core
def test_precisions_agree(name, n):
    core = build(name)
    for mask in modes(name):
        ctx, inputs = AttentionContext(mask=mask), qkv(n)
        exact = core(*inputs, ctx).out
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2)):
            out = core(*(x.to(dtype) for x in inputs), ctx).out
            assert out.dtype == dtype
            assert ((out.double() - exact).norm() / exact.norm()) < tolerance
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = core(*(x.bfloat16() for x in inputs), ctx).out
        assert ((out.double() - exact).norm() / exact.norm()) < 4e-2


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.causal == "strict" and t.padding)
@pytest.mark.paper("2202.06258", "attention:flow")
@pytest.mark.paper("2410.10781", "attention:sigmoid")
def test_left_padding_under_a_causal_mask(name, n):
    """The first rows see padding only; the rest is what the sequence gives without it."""
    core, inputs = build(name), qkv(n, batch=1)
    valid = (torch.arange(n) >= 3)[None]
    mask = AttentionMask(causal=True, key_valid=valid, query_valid=valid)
    out = core(*inputs, AttentionContext(mask=mask)).out
    alone = core(*(x[:, :, 3:] for x in inputs), AttentionContext(mask=AttentionMask(causal=True))).out
    assert (out[:, :, :3] == 0).all()
    torch.testing.assert_close(out[:, :, 3:], alone, rtol=0, atol=1e-10)
    # Queries before the first key count for nothing, even when they are not declared as padding.
    keys_only = core(*inputs, AttentionContext(mask=AttentionMask(causal=True, key_valid=valid))).out
    assert (keys_only[:, :, :3] == 0).all()
    assert keys_only.isfinite().all()


@cores(lambda t: t.padding and t.returns_map)
def test_rows_without_any_key_are_zero_in_the_map_too(name):
    core, keys = build(name), torch.ones(2, 6, dtype=torch.bool)
    keys[0] = False
    for base in modes(name):
        inputs = [x.requires_grad_() for x in qkv(6)]
        mask = AttentionMask(causal=base is not None, key_valid=keys)
        result = core(*inputs, AttentionContext(mask=mask, need_map=True))
        assert (result.out[0] == 0).all()
        assert (result.map[0] == 0).all()
        result.out.square().sum().backward()
        assert all(x.grad.isfinite().all() and (x.grad[0] == 0).all() for x in inputs)


@pytest.mark.parametrize(("n", "m"), [(1, 9), (60, 40)])
@cores(lambda t: t.cross)
@pytest.mark.paper("2202.06258", "attention:flow")
def test_the_order_of_keys_means_nothing(name, n, m):
    core, (q, k, v) = build(name), qkv(n, m=m, value_dim=5)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(0))
    out = core(q, k, v, AttentionContext()).out
    torch.testing.assert_close(core(q, k[:, :, order], v[:, :, order], AttentionContext()).out, out)


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.returns_map)
def test_map_times_values_is_the_output(name, n):
    core, inputs = build(name), qkv(n)
    for mask in modes(name):
        plain, mapped = (core(*inputs, AttentionContext(mask=mask, need_map=need)) for need in (False, True))
        assert plain.map is None
        torch.testing.assert_close(mapped.map @ inputs[2], plain.out)


@cores(lambda t: t.decodes and t.padding)
@pytest.mark.paper("2202.06258", "attention:flow")
def test_decoding_with_padding(name):
    core, n = build(name), 12
    inputs = qkv(n)
    valid = torch.ones(2, n, dtype=torch.bool)
    valid[0, :4] = False
    whole = core(*inputs, AttentionContext(mask=AttentionMask(causal=True, key_valid=valid, query_valid=valid))).out
    cache, outs = core.start_cache(), []
    for t in range(n):
        mask = AttentionMask(causal=True, key_valid=valid[:, : t + 1], query_valid=valid[:, t : t + 1])
        outs.append(core(*(x[:, :, t : t + 1] for x in inputs), AttentionContext(mask=mask, cache=cache)).out)
    torch.testing.assert_close(torch.cat(outs, dim=2), whole)


@cores(lambda t: not t.decodes)
def test_a_cache_is_refused_where_decoding_is_not_declared(name):
    inputs = [x[:, :, :1] for x in qkv(1)]
    with pytest.raises(ValueError, match="decoding"):
        build(name)(*inputs, AttentionContext(mask=AttentionMask(causal=True), cache=object()))


@every_core
def test_heads_that_do_not_divide_are_refused(name):
    q, k, v = qkv(6)
    with pytest.raises(ValueError, match="do not divide"):
        build(name)(torch.cat([q, q[:, :1]], dim=1), k, v, AttentionContext(mask=modes(name)[0]))


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.patterns and t.bias)
def test_a_window_is_a_bias_of_minus_infinity(name, n):
    core, inputs = build(name, dim=4), qkv(n, dim=4)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    near = (j >= i - 2) & (j <= i + 1)
    bias = torch.zeros(n, n, dtype=torch.float64).masked_fill(~near, float("-inf"))
    by_window = core(*inputs, AttentionContext(mask=AttentionMask(window=(2, 1)))).out
    torch.testing.assert_close(by_window, core(*inputs, AttentionContext(bias=bias)).out)


@every_core
def test_copies_share_the_host_and_pickles_drop_it(name):
    core = build(name)
    assert core.host is HOST
    assert copy.deepcopy(core).host is HOST
    loaded = pickle.loads(pickle.dumps(core))
    ctx = AttentionContext(mask=modes(name)[0])
    assert torch.equal(loaded(*qkv(6), ctx).out, core(*qkv(6), ctx).out)
    with pytest.raises(RuntimeError, match="without a host"):
        _ = loaded.host
