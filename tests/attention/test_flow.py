"""Flow-Attention against its definition, written out flow by flow, and the exact properties of its source."""

from __future__ import annotations

import math

import pytest
import torch

from nasdistill.errors import ConfigError
from nasdistill.interfaces import AttentionContext, AttentionGeometry, AttentionMask
from nasdistill_attention.flow import (
    FlowAttention,
    causal_flow_attention,
    flow_attention,
    flow_attention_explicit,
)

PAPER_EPS = 1e-6


def made(*sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*size, dtype=dtype, generator=generator) for size in sizes]


def flow_reference(q, k, v, eps=PAPER_EPS, clamp=None):
    """One head, ``(N, D) (M, D) (M, Dv)``: the paper's equations, eps on both factors of every flow product."""
    n, m = len(q), len(k)
    q, k = torch.sigmoid(q), torch.sigmoid(k)

    def dot(a, b):
        return ((a + eps) * (b + eps)).sum()

    incoming = torch.stack([dot(q[i], k.sum(0)) for i in range(n)])
    outgoing = torch.stack([dot(k[j], q.sum(0)) for j in range(m)])
    conserved_in = torch.stack([dot(q[i], sum(k[j] / outgoing[j] for j in range(m))) for i in range(n)])
    conserved_out = torch.stack([dot(k[j], sum(q[i] / incoming[i] for i in range(n))) for j in range(m)])
    if clamp is not None:
        conserved_out = conserved_out.clamp(-clamp, clamp)
    weight = m * torch.softmax(conserved_out, dim=0)
    rows = []
    for i in range(n):
        mixed = sum((q[i] @ k[j]) / incoming[i] * weight[j] * v[j] for j in range(m))
        rows.append(torch.sigmoid(conserved_in[i] * n / m) * mixed)
    return torch.stack(rows), conserved_in, conserved_out


def causal_flow_reference(q, k, v, eps=PAPER_EPS):
    """One head, position by position, with the counts written out."""
    q, k = torch.sigmoid(q), torch.sigmoid(k)

    def dot(a, b):
        return ((a + eps) * (b + eps)).sum()

    rows, s, o, strength, weight = [], [], [], [], []
    for t in range(len(q)):
        count = t + 1
        s.append(count / dot(q[t], k[: t + 1].sum(0)))
        o.append(count / dot(k[t], q[: t + 1].sum(0)))
        conserved_in = dot(q[t], sum(k[u] * o[u] for u in range(t + 1))) / count
        conserved_out = dot(k[t], sum(q[u] * s[u] for u in range(t + 1))) / count
        strength.append(math.exp(conserved_out))
        weight.append(strength[t] / sum(strength) * count)
        state = sum(torch.outer(k[u], v[u] * weight[u]) for u in range(t + 1))
        rows.append(torch.sigmoid(conserved_in) * (q[t] * s[t] / count) @ state)
    return torch.stack(rows)


@pytest.mark.parametrize(("n", "m"), [(9, 9), (1, 9), (9, 1), (5, 12)])
@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.paper("2202.06258", "attention:flow")
def test_both_forms_equal_the_definition(n, m, clamp):
    q, k, v = made((n, 6), (m, 6), (m, 4))
    expected, _, _ = flow_reference(q, k, v, clamp=clamp)
    batched = [x[None, None] for x in (q, k, v)]
    torch.testing.assert_close(flow_attention(*batched, source_clamp=clamp)[0, 0], expected, rtol=0, atol=1e-5)
    explicit, share = flow_attention_explicit(*batched, source_clamp=clamp)
    torch.testing.assert_close(explicit[0, 0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(share @ v, explicit)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (64, 64), (200, 90)])
@pytest.mark.paper("2202.06258", "attention:flow")
def test_linear_form_equals_explicit_form(n, m):
    q, k, v = made((2, 3, n, 8), (2, 3, m, 8), (2, 3, m, 5), dtype=torch.float32)
    explicit, _ = flow_attention_explicit(q, k, v)
    torch.testing.assert_close(flow_attention(q, k, v), explicit, rtol=0, atol=1e-5)


@pytest.mark.paper("2202.06258", "attention:flow")
def test_causal_form_equals_the_definition():
    q, k, v = made((17, 6), (17, 6), (17, 4))
    expected = causal_flow_reference(q, k, v)
    for chunk in (1, 4, 17, 64):
        out, state, share = causal_flow_attention(*(x[None, None] for x in (q, k, v)), chunk=chunk, need_map=True)
        assert state is None
        torch.testing.assert_close(out[0, 0], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close((share @ v)[0, 0], out[0, 0])


@pytest.mark.paper("2202.06258", "attention:flow")
def test_flow_is_conserved():
    """sum of Ihat = m and sum of Ohat = n: for the definition at eps = 0, for ours at its own eps."""
    n, m = 7, 11
    q, k, v = made((n, 6), (m, 6), (m, 4))
    _, conserved_in, conserved_out = flow_reference(q, k, v, eps=0.0)
    assert conserved_in.sum() == pytest.approx(m, abs=1e-12)
    assert conserved_out.sum() == pytest.approx(n, abs=1e-12)
    sink, source = (x.sigmoid() + PAPER_EPS for x in (q, k))
    flows = sink @ source.T
    assert (flows / flows.sum(0, keepdim=True)).sum() == pytest.approx(m, abs=1e-12)
    assert (flows / flows.sum(1, keepdim=True)).sum() == pytest.approx(n, abs=1e-12)


@pytest.mark.paper("2202.06258", "attention:flow")
def test_order_of_sources_does_not_matter_and_sinks_keep_their_order():
    q, k, v = made((1, 2, 40, 8), (1, 2, 50, 8), (1, 2, 50, 8))
    out = flow_attention(q, k, v)
    sources, sinks = torch.randperm(50), torch.randperm(40)
    torch.testing.assert_close(flow_attention(q, k[:, :, sources], v[:, :, sources]), out)
    torch.testing.assert_close(flow_attention(q[:, :, sinks], k, v), out[:, :, sinks])


@pytest.mark.paper("2202.06258", "attention:flow")
def test_equal_sources_give_their_value_times_the_allocation():
    q, k, c = made((9, 6), (1, 6), (1, 4))
    n, m = 9, 5
    out = flow_attention(q[None, None], k.expand(m, 6)[None, None], c.expand(m, 4)[None, None])[0, 0]
    _, conserved_in, _ = flow_reference(q, k.expand(m, 6), c.expand(m, 4))
    torch.testing.assert_close(out, torch.sigmoid(conserved_in * n / m)[:, None] * c, rtol=0, atol=1e-5)


def test_a_clamp_of_one_flattens_the_competition():
    """In self-attention the mean of Ohat is 1, so the released bound for images removes what lies above it."""
    q, k, v = (3 * x for x in made((1, 1, 30, 8), (1, 1, 30, 8), (1, 1, 30, 4), seed=3))
    flows = q.sigmoid() @ k.sigmoid().transpose(-1, -2)
    largest = {}
    for clamp in (None, 1.0, 50.0):
        share = flow_attention_explicit(q, k, v, source_clamp=clamp)[1]
        competition = (share / flows)[0, 0, 0]  # one row: proportional to the weights of the sources
        largest[clamp] = float(competition.max() / competition.mean())
    assert largest[None] > largest[1.0] > 1
    assert largest[None] == pytest.approx(largest[50.0])


def test_strong_competition_does_not_overflow():
    """A source that dwarfs all earlier ones has an Ohat far beyond what exp can hold in float32."""
    n = 80
    q, k, v = made((1, 1, n, 8), (1, 1, n, 8), (1, 1, n, 4), dtype=torch.float32)
    k = torch.cat([k[:, :, : n // 2] - 14, k[:, :, n // 2 :] + 10], dim=2)
    out, _, _ = causal_flow_attention(q, k, v)
    exact, _, _ = causal_flow_attention(q.double(), k.double(), v.double())
    assert out.isfinite().all()
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)


def test_extreme_inputs_stay_finite():
    q, k, v = (x * 1e4 for x in made((1, 2, 40, 8), (1, 2, 40, 8), (1, 2, 40, 4), dtype=torch.float32))
    for out in (flow_attention(q, k, v), flow_attention_explicit(q, k, v)[0], causal_flow_attention(q, k, v)[0]):
        assert out.isfinite().all()


def test_half_precision_sums_in_float32():
    core = FlowAttention(geometry=AttentionGeometry(16, 2, 8))
    q, k, v = made((1, 2, 3000, 8), (1, 2, 3000, 8), (1, 2, 3000, 8), dtype=torch.float32)
    for mask in (None, AttentionMask(causal=True)):
        ctx = AttentionContext(mask=mask)
        half = [x.half() for x in (q, k, v)]
        exact = core(*(x.double() for x in half), ctx).out
        assert core(*half, ctx).out.dtype == torch.float16
        torch.testing.assert_close(core(*half, ctx).out.double(), exact, rtol=2e-3, atol=1e-4)


def test_causal_cross_attention_is_refused():
    core = FlowAttention(geometry=AttentionGeometry(16, 2, 8))
    q, k, v = made((1, 2, 3, 8), (1, 2, 5, 8), (1, 2, 5, 8))
    with pytest.raises(ValueError, match="causal cross attention"):
        core(q, k, v, AttentionContext(mask=AttentionMask(causal=True)))


def test_decoding_needs_a_causal_mask_and_keeps_a_state_of_constant_size():
    core = FlowAttention(geometry=AttentionGeometry(16, 2, 8))
    cache = core.start_cache()
    token = made((1, 2, 1, 8), (1, 2, 1, 8), (1, 2, 1, 8))
    with pytest.raises(ValueError, match="causal"):
        core(*token, AttentionContext(cache=cache))
    sizes = []
    for _ in range(3):
        core(*token, AttentionContext(mask=AttentionMask(causal=True), cache=cache))
        sizes.append([part.shape for part in cache.state])
    assert sizes[0] == sizes[1] == sizes[2]
    with pytest.raises(ValueError, match="map while decoding"):
        core(*token, AttentionContext(mask=AttentionMask(causal=True), cache=cache, need_map=True))


@pytest.mark.parametrize("options", [{"source_clamp": 0}, {"source_clamp": -1.0}, {"chunk": 0}])
def test_options_have_bounds(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        FlowAttention(options, geometry=AttentionGeometry(16, 2, 8))
