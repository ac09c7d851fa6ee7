"""What every bundled attention core promises, checked for each of them, and its tags in both directions."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from nasdistill.errors import ConfigError
from nasdistill.host import Host
from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionGeometry, AttentionMask
from nasdistill.spec.component import Kind

HOST = Host.load(third_party=False)
CORES = [record.id for record in HOST.specs(Kind.ATTENTION) if record.spec.tags.level == "core"]
LONG = 150
"""Longer than a chunk and than what is computed as one full product: the linear-time paths run."""


def tags(name):
    return HOST.tags(Kind.ATTENTION, name)


def cores(declared=lambda tags: True):
    """Run a test for the cores whose tags declare something; that the others refuse it has a test of its own."""
    return pytest.mark.parametrize("name", [name for name in CORES if declared(tags(name))])


every_core = cores()


def build(name, *, heads=2, dim=8, value_dim=0, kv_heads=0, options=None, causal=False):
    geometry = AttentionGeometry(heads * dim, heads, dim, kv_heads=kv_heads, value_dim=value_dim, causal=causal)
    return HOST.create(Kind.ATTENTION, name, options, geometry=geometry)


def qkv(n, *, m=None, batch=2, heads=2, kv_heads=None, dim=8, value_dim=None, dtype=torch.float64, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(heads, n, dim), (kv_heads or heads, m or n, dim), (kv_heads or heads, m or n, value_dim or dim)]
    made = [torch.randn(batch, *size, dtype=dtype, generator=generator) for size in sizes]
    return [tensor.requires_grad_(grad) for tensor in made]


def modes(name):
    """Masks under which the core works in self-attention."""
    found = [("bidirectional", None)] if tags(name).bidirectional else []
    return found + ([("causal", AttentionMask(causal=True))] if tags(name).causal != "no" else [])


@every_core
def test_is_a_core_with_canonical_id(name):
    core = build(name)
    assert isinstance(core, AttentionCore)
    assert core.id == name
    assert bool(list(core.parameters())) == tags(name).owns_parameters


@pytest.mark.parametrize("n", [1, 7, 64, LONG])
@pytest.mark.parametrize(("dim", "value_dim"), [(1, 1), (5, 3), (16, 16)])
@every_core
def test_shapes(name, n, dim, value_dim):
    core = build(name, dim=dim, value_dim=value_dim)
    for _, mask in modes(name):
        inputs = qkv(n, dim=dim, value_dim=value_dim, dtype=torch.float32)
        out = core(*inputs, AttentionContext(mask=mask)).out
        assert out.shape == (2, 2, n, value_dim)
        assert out.dtype == torch.float32
        assert out.isfinite().all()


@pytest.mark.parametrize("n", [6, LONG])
@every_core
def test_precisions_agree(name, n):
    core = build(name)
    for _, mask in modes(name):
        ctx, inputs = AttentionContext(mask=mask), qkv(n)
        exact = core(*inputs, ctx).out
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2)):
            out = core(*(x.to(dtype) for x in inputs), ctx).out
            assert out.dtype == dtype
            assert ((out.double() - exact).norm() / exact.norm()) < tolerance
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = core(*(x.bfloat16() for x in inputs), ctx).out
        assert ((out.double() - exact).norm() / exact.norm()) < 4e-2


@every_core
def test_same_inputs_same_output(name):
    core, inputs = build(name), qkv(LONG, dtype=torch.float32)
    before = [x.clone() for x in inputs]
    for _, mask in modes(name):
        first, second = (core(*inputs, AttentionContext(mask=mask)).out for _ in range(2))
        assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("n", [6, LONG])
@every_core
def test_samples_are_independent(name, n):
    core, inputs = build(name), qkv(n, batch=3)
    for _, mask in modes(name):
        together = core(*inputs, AttentionContext(mask=mask)).out
        alone = torch.cat([core(*(x[b : b + 1] for x in inputs), AttentionContext(mask=mask)).out for b in range(3)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [5, 40])
@every_core
@pytest.mark.paper("2202.06258", "attention:flow")
def test_gradients(name, n):
    """Checked against finite differences, in random directions for the longer sequence."""
    core = build(name, dim=3)
    for _, mask in modes(name):
        inputs = qkv(n, batch=1, dim=3, grad=True)
        ctx = AttentionContext(mask=mask)
        assert torch.autograd.gradcheck(lambda q, k, v, ctx=ctx: core(q, k, v, ctx).out, inputs, fast_mode=n > 5)
        core(*inputs, ctx).out.square().sum().backward()
        assert all(x.grad.abs().sum() > 0 for x in inputs)


@pytest.mark.parametrize("n", [1, 6, 64, LONG])
@cores(lambda t: t.causal == "strict")
@pytest.mark.paper("2202.06258", "attention:flow")
@pytest.mark.paper("2410.10781", "attention:sigmoid")
def test_a_later_token_changes_nothing_earlier_bitwise(name, n):
    core = build(name)
    ctx = AttentionContext(mask=AttentionMask(causal=True))
    for dtype in (torch.float32, torch.float64):
        inputs = qkv(n, dtype=dtype)
        out = core(*inputs, ctx).out
        for cut in {0, n // 3, n // 2, n - 1}:
            changed = [torch.cat([x[:, :, :cut], 7 * torch.randn_like(x[:, :, cut:])], dim=2) for x in inputs]
            other = core(*changed, ctx).out
            assert torch.equal(out[:, :, :cut], other[:, :, :cut])
            assert not torch.equal(out[:, :, cut:], other[:, :, cut:])


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.padding)
def test_padding_is_as_if_it_were_not_there(name, n):
    """Right padding: each sample gives what it gives alone and shorter, whatever stands in the padding."""
    core = build(name)
    lengths = [n, n - 2, 1]
    valid = torch.arange(n)[None] < torch.tensor(lengths)[:, None]
    for _, base in modes(name):
        causal = base is not None
        ctx = AttentionContext(mask=AttentionMask(causal=causal, key_valid=valid, query_valid=valid))
        inputs = qkv(n, batch=3)
        out = core(*inputs, ctx).out
        changed = [torch.where(valid[:, None, :, None], x, 50 * torch.randn_like(x)) for x in inputs]
        assert torch.equal(core(*changed, ctx).out, out)
        for b, length in enumerate(lengths):
            alone = core(*(x[b : b + 1, :, :length] for x in inputs), AttentionContext(mask=base)).out
            torch.testing.assert_close(out[b : b + 1, :, :length], alone, rtol=0, atol=1e-10)
            assert (out[b, :, length:] == 0).all()


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.padding)
def test_a_padded_key_changes_nothing(name, n):
    core, inputs = build(name), qkv(n)
    valid = torch.ones(2, n, dtype=torch.bool)
    valid[0, :2] = valid[1, 3] = False
    for _, base in modes(name):
        ctx = AttentionContext(mask=AttentionMask(causal=base is not None, key_valid=valid))
        q, k, v = inputs
        other_k, other_v = (torch.where(valid[:, None, :, None], x, 30 * torch.randn_like(x)) for x in (k, v))
        out = core(q, k, v, ctx).out
        assert torch.equal(out, core(q, other_k, other_v, ctx).out)
        assert not torch.equal(out, core(q, k, v, AttentionContext(mask=base)).out)


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.padding)
def test_rows_without_any_key_are_zero_with_finite_gradients(name, n):
    core = build(name)
    keys, queries = torch.ones(2, n, dtype=torch.bool), torch.ones(2, n, dtype=torch.bool)
    keys[0] = False  # a sample without any key
    queries[1, 2] = False  # a padded query
    for need_map in {False, tags(name).returns_map}:
        for _, base in modes(name):
            inputs = qkv(n, grad=True, dtype=torch.float32)
            mask = AttentionMask(causal=base is not None, key_valid=keys, query_valid=queries)
            out = core(*inputs, AttentionContext(mask=mask, need_map=need_map)).out
            assert (out[0] == 0).all()
            assert (out[1, :, 2] == 0).all()
            assert (out[1, :, 3:] != 0).any()
            out.square().sum().backward()
            for x in inputs:
                assert x.grad.isfinite().all()
                assert (x.grad[0] == 0).all()


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.causal == "strict" and t.padding)
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


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.gqa)
def test_grouped_heads_are_repeated_heads(name, n):
    q, k, v = qkv(n, heads=6, kv_heads=2)
    grouped, full = build(name, heads=6, kv_heads=2), build(name, heads=6)
    for _, mask in modes(name):
        ctx = AttentionContext(mask=mask)
        repeated = full(q, k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1), ctx).out
        torch.testing.assert_close(grouped(q, k, v, ctx).out, repeated)
    with pytest.raises(ValueError, match="do not divide"):
        full(q[:, :5], k, v, AttentionContext(mask=modes(name)[0][1]))


@pytest.mark.parametrize(("n", "m"), [(1, 9), (9, 1), (40, 60), (60, 40)])
@cores(lambda t: t.cross)
@pytest.mark.paper("2202.06258", "attention:flow")
def test_cross_attention(name, n, m):
    core, inputs = build(name), qkv(n, m=m, value_dim=5)
    out = core(*inputs, AttentionContext()).out
    assert out.shape == (2, 2, n, 5)
    order = torch.randperm(m)
    q, k, v = inputs
    torch.testing.assert_close(core(q, k[:, :, order], v[:, :, order], AttentionContext()).out, out)


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.returns_map)
def test_map_times_values_is_the_output(name, n):
    core, inputs = build(name), qkv(n)
    for _, mask in modes(name):
        plain, mapped = (core(*inputs, AttentionContext(mask=mask, need_map=need)) for need in (False, True))
        assert plain.map is None
        assert mapped.map.shape == (2, 2, n, n)
        torch.testing.assert_close(mapped.map @ inputs[2], plain.out)
        torch.testing.assert_close(mapped.out, plain.out)
        if mask is not None:
            assert (mapped.map.triu(1) == 0).all()


@pytest.mark.parametrize("steps", [[1] * 40, [7, 1, 30, 2], [LONG - 1, 1]])
@cores(lambda t: t.decodes)
@pytest.mark.paper("2202.06258", "attention:flow")
def test_decoding_equals_the_parallel_form(name, steps):
    core, n = build(name), sum(steps)
    inputs = qkv(n, kv_heads=1)
    mask = AttentionMask(causal=True)
    whole = core(*inputs, AttentionContext(mask=mask)).out
    cache, outs, start = core.start_cache(), [], 0
    for step in steps:
        part = (x[:, :, start : start + step] for x in inputs)
        outs.append(core(*part, AttentionContext(mask=mask, cache=cache)).out)
        start += step
    torch.testing.assert_close(torch.cat(outs, dim=2), whole)


@cores(lambda t: t.decodes and t.padding)
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


CAPABILITIES = {
    "a causal mask": (lambda t: t.causal != "no", {"mask": AttentionMask(causal=True)}, {}),
    "without a causal mask": (lambda t: t.bidirectional, {}, {}),
    "cross attention": (lambda t: t.cross, {}, {"m": 9}),
    "grouped heads": (lambda t: t.gqa, {}, {"kv_heads": 1}),
    "padding": (lambda t: t.padding, {"mask": AttentionMask(key_valid=torch.ones(2, 6, dtype=torch.bool))}, {}),
    "a window mask": (lambda t: t.patterns, {"mask": AttentionMask(window=(1, 1))}, {}),
    "a predicate mask": (lambda t: t.patterns, {"mask": AttentionMask(predicate=lambda i, j: i >= j - 1)}, {}),
    "bias": (lambda t: t.bias, {"bias": torch.zeros(6, 6, dtype=torch.float64)}, {}),
    "an attention map": (lambda t: t.returns_map, {"need_map": True}, {}),
}


@pytest.mark.parametrize("feature", CAPABILITIES)
@every_core
def test_what_is_declared_works_and_the_rest_is_refused(name, feature):
    declared, context, sizes = CAPABILITIES[feature]
    kv_heads = sizes.get("kv_heads", 0)
    core, inputs = build(name, kv_heads=kv_heads), qkv(6, **sizes)
    if declared(tags(name)):
        assert core(*inputs, AttentionContext(**context)).out.isfinite().all()
    else:
        with pytest.raises(ValueError, match=feature) as caught:
            core(*inputs, AttentionContext(**context))
        assert name in str(caught.value)


@cores(lambda t: not t.decodes)
def test_a_cache_is_refused_where_decoding_is_not_declared(name):
    with pytest.raises(ValueError, match="decoding"):
        build(name).start_cache()
    with pytest.raises(ValueError, match="decoding"):
        build(name)(*qkv(1), AttentionContext(mask=AttentionMask(causal=True), cache=object()))


@pytest.mark.parametrize("n", [6, LONG])
@cores(lambda t: t.patterns and t.bias)
def test_patterns_and_bias_change_the_right_pairs(name, n):
    """A window or predicate mask, and a bias of -inf, equal each other where all are declared."""
    core, inputs = build(name, dim=4), qkv(n, dim=4)
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    near = (j >= i - 2) & (j <= i + 1)
    bias = torch.zeros(n, n, dtype=torch.float64).masked_fill(~near, float("-inf"))
    by_window = core(*inputs, AttentionContext(mask=AttentionMask(window=(2, 1)))).out
    by_rule = core(
        *inputs, AttentionContext(mask=AttentionMask(predicate=lambda i, j: (j >= i - 2) & (j <= i + 1)))
    ).out
    by_bias = core(*inputs, AttentionContext(bias=bias)).out
    torch.testing.assert_close(by_window, by_rule)
    torch.testing.assert_close(by_window, by_bias)
    assert not torch.allclose(by_window, core(*inputs, AttentionContext()).out)


@every_core
def test_exact_means_softmax(name):
    inputs = qkv(9)
    scores = inputs[0] @ inputs[1].transpose(-1, -2) * 8**-0.5
    same = torch.allclose(build(name)(*inputs, AttentionContext()).out, scores.softmax(-1) @ inputs[2])
    assert same == tags(name).exact


@every_core
def test_copies_compute_the_same(name):
    core, inputs = build(name), qkv(LONG)
    twin = copy.deepcopy(core)
    twin.load_state_dict(core.state_dict())
    ctx = AttentionContext(mask=modes(name)[0][1])
    assert torch.equal(twin(*inputs, ctx).out, core(*inputs, ctx).out)


@every_core
def test_unknown_option_is_refused(name):
    with pytest.raises(ConfigError, match="nonsense"):
        build(name, options={"nonsense": 1})


@every_core
def test_copies_share_the_host_and_pickles_drop_it(name):
    core = build(name)
    assert core.host is HOST
    assert copy.deepcopy(core).host is HOST
    loaded = pickle.loads(pickle.dumps(core))
    ctx = AttentionContext(mask=modes(name)[0][1])
    assert torch.equal(loaded(*qkv(6), ctx).out, core(*qkv(6), ctx).out)
    with pytest.raises(RuntimeError, match="without a host"):
        _ = loaded.host
