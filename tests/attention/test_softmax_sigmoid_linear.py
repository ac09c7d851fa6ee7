"""Softmax, sigmoid and linear attention against their definitions, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch

from nasdistill.interfaces import AttentionContext, AttentionGeometry, AttentionMask
from nasdistill_attention.linear import (
    LinearAttention,
    causal_linear_attention,
    linear_attention,
    linear_attention_explicit,
)
from nasdistill_attention.sigmoid import SigmoidAttention, sigmoid_attention
from nasdistill_attention.softmax import SoftmaxAttention, softmax_map

GEOMETRY = AttentionGeometry(16, 2, 8)


def made(*sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*size, dtype=dtype, generator=generator) for size in sizes]


def naive(q, k, v, weigh, mask=None, bias=None, scale=None):
    """``out_i = sum_j w_ij v_j / Z_i``, head by head and row by row; rows without keys are 0."""
    batch, heads, n, dim = q.shape
    scale = dim**-0.5 if scale is None else scale
    out = torch.zeros(batch, heads, n, v.shape[-1], dtype=v.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(n):
                keys = [j for j in range(k.shape[2]) if mask is None or mask[b % len(mask), 0, i, j]]
                scores = [
                    q[b, h, i] @ k[b, h, j] * scale + (0 if bias is None else bias[h % len(bias), i, j]) for j in keys
                ]
                if keys:
                    weights = weigh(torch.stack(scores))
                    out[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, keys, strict=True))
    return out


MASKS = [
    None,
    AttentionMask(causal=True),
    AttentionMask(window=(1, 2)),
    AttentionMask(causal=True, key_valid=torch.tensor([[False, True, True, True, True], [True] * 4 + [False]])),
    AttentionMask(predicate=lambda i, j: (i + j) % 3 == 0),
]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("n", [5, 3, 7])
@pytest.mark.paper("2410.10781", "attention:sigmoid")
def test_softmax_and_sigmoid_equal_their_definitions(mask, with_bias, scale, n):
    q, k, v, bias = made((2, 2, n, 8), (2, 2, 5, 8), (2, 2, 5, 3), (2, n, 5))
    bias = bias if with_bias else None
    dense = None if mask is None else mask.dense(n, 5)
    context = {"mask": mask, "bias": bias, "scale": scale}
    variants = [
        (SoftmaxAttention(geometry=GEOMETRY), lambda s: s.softmax(0)),
        (SigmoidAttention(geometry=GEOMETRY), torch.sigmoid),
        (SigmoidAttention({"normalise": True}, geometry=GEOMETRY), lambda s: s.sigmoid() / (s.sigmoid().sum() + 1e-8)),
    ]
    for core, weigh in variants:
        expected = naive(q, k, v, weigh, dense, bias, scale)
        for need_map in (False, True):
            result = core(q, k, v, AttentionContext(**context, need_map=need_map))
            torch.testing.assert_close(result.out, expected)


def test_softmax_map_rows_and_normaliser():
    q, k = made((1, 2, 6, 8), (1, 2, 9, 8))
    mask = torch.ones(1, 1, 6, 9, dtype=torch.bool)
    mask[..., 2, :] = False
    weights, lse = softmax_map(q, k, mask=mask)
    rows = weights.sum(-1)
    assert (rows[:, :, 2] == 0).all()
    torch.testing.assert_close(rows[:, :, [0, 1, 3, 4, 5]], torch.ones(1, 2, 5, dtype=torch.float64))
    scores = (q @ k.transpose(-1, -2)) * 8**-0.5
    torch.testing.assert_close(lse[:, :, 0], scores[:, :, 0].logsumexp(-1))
    torch.testing.assert_close((scores - lse[..., None]).exp()[:, :, 0], weights[:, :, 0])


def test_softmax_with_a_bias_of_minus_infinity_on_a_whole_row():
    core = SoftmaxAttention(geometry=GEOMETRY)
    q, k, v = (x.requires_grad_() for x in made((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)))
    bias = torch.zeros(4, 4, dtype=torch.float64)
    bias[1] = float("-inf")
    out = core(q, k, v, AttentionContext(bias=bias)).out
    assert (out[:, :, 1] == 0).all()
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.paper("2410.10781", "attention:sigmoid")
def test_sigmoid_weighs_each_key_on_its_own():
    """More keys change no weight; with normalisation they do, and rows sum to 1."""
    q, k, v = made((1, 2, 4, 8), (1, 2, 9, 8), (1, 2, 9, 8))
    few, _ = sigmoid_attention(q, k[:, :, :5], v[:, :, :5])
    more, weights = sigmoid_attention(q, k, v)
    rest, _ = sigmoid_attention(q, k[:, :, 5:], v[:, :, 5:])
    torch.testing.assert_close(more, few + rest)
    _, few_weights = sigmoid_attention(q, k[:, :, :5], v[:, :, :5])
    torch.testing.assert_close(weights[..., :5], few_weights)
    _, normalised = sigmoid_attention(q, k, v, normalise=True)
    torch.testing.assert_close(normalised.sum(-1), torch.ones(1, 2, 4, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.paper("2410.10781", "attention:sigmoid")
def test_sigmoid_without_normalisation_does_not_overflow_half_precision():
    core = SigmoidAttention(geometry=GEOMETRY)
    q, k, v = (x.half() for x in made((1, 2, 2048, 8), (1, 2, 2048, 8), (1, 2, 2048, 8), dtype=torch.float32))
    for mask in (None, AttentionMask(causal=True)):
        out = core(q + 3, k + 3, v + 1, AttentionContext(mask=mask)).out
        assert out.isfinite().all()
        assert out.abs().max() > 1000  # it does grow with the number of keys


def test_normalised_sigmoid_in_half_precision_with_nothing_to_attend():
    core = SigmoidAttention({"normalise": True}, geometry=GEOMETRY)
    q, k, v = (x.half() for x in made((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8)))
    mask = AttentionMask(key_valid=torch.zeros(1, 4, dtype=torch.bool))
    assert (core(q, k, v, AttentionContext(mask=mask)).out == 0).all()


def phi(x):
    return x + 1 if x > 0 else math.exp(x)


@pytest.mark.parametrize(("n", "m", "causal"), [(6, 6, False), (3, 8, False), (6, 6, True), (3, 8, True), (8, 3, True)])
def test_linear_equals_its_definition(n, m, causal):
    q, k, v = made((1, 2, n, 4), (1, 2, m, 4), (1, 2, m, 3))
    expected = torch.zeros(1, 2, n, 3, dtype=torch.float64)
    for h in range(2):
        for i in range(n):
            keys = [j for j in range(m) if not causal or j <= i + m - n]
            weights = [
                sum(phi(float(a)) * phi(float(b)) for a, b in zip(q[0, h, i], k[0, h, j], strict=True)) for j in keys
            ]
            if keys:
                expected[0, h, i] = sum(w * v[0, h, j] for w, j in zip(weights, keys, strict=True)) / sum(weights)
    close = {"rtol": 0, "atol": 1e-5}
    out, weights = linear_attention_explicit(q, k, v, causal=causal)
    torch.testing.assert_close(out, expected, **close)
    present = weights.sum(-1) > 0
    torch.testing.assert_close(weights.sum(-1), present.double())
    if not causal:
        torch.testing.assert_close(linear_attention(q, k, v), expected, **close)
    elif n <= m:
        for chunk in (1, 2, 64):
            torch.testing.assert_close(causal_linear_attention(q, k, v, chunk=chunk)[0], expected, **close)
    core = LinearAttention(geometry=GEOMETRY)
    mask = AttentionMask(causal=True) if causal else None
    torch.testing.assert_close(core(q, k, v, AttentionContext(mask=mask)).out, expected, **close)


@pytest.mark.parametrize(("n", "m"), [(200, 200), (90, 200)])
@pytest.mark.parametrize("causal", [False, True])
def test_linear_time_form_equals_explicit_form(n, m, causal):
    q, k, v = made((2, 3, n, 8), (2, 3, m, 8), (2, 3, m, 5), dtype=torch.float32)
    explicit, _ = linear_attention_explicit(q, k, v, causal=causal)
    fast = causal_linear_attention(q, k, v)[0] if causal else linear_attention(q, k, v)
    torch.testing.assert_close(fast, explicit, rtol=0, atol=1e-5)


def test_linear_rows_sum_to_one_even_for_features_near_zero():
    q, k, v = made((1, 1, 50, 4), (1, 1, 50, 4), (1, 1, 50, 4), dtype=torch.float32)
    ones = torch.ones_like(v)
    for shift in (0.0, -30.0, -1e4):
        out = linear_attention(q + shift, k + shift, ones)
        torch.testing.assert_close(out, ones, rtol=0, atol=1e-4)
        torch.testing.assert_close(causal_linear_attention(q + shift, k + shift, ones)[0], ones, rtol=0, atol=1e-4)


def test_linear_decoding_needs_a_causal_mask():
    core = LinearAttention(geometry=GEOMETRY)
    token = made((1, 2, 1, 8), (1, 2, 1, 8), (1, 2, 1, 8))
    with pytest.raises(ValueError, match="causal"):
        core(*token, AttentionContext(cache=core.start_cache()))
    mapped = AttentionContext(mask=AttentionMask(causal=True), cache=core.start_cache(), need_map=True)
    with pytest.raises(ValueError, match="map while decoding"):
        core(*token, mapped)
