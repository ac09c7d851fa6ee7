"""Linear attention: a positive feature map in place of the softmax, so that keys and values are summed up once.

    out_i = phi(q_i) S / (phi(q_i) . z)        S = sum_j phi(k_j)^T v_j  (D x Dv),   z = sum_j phi(k_j)  (D)
    phi(x) = elu(x) + 1 + eps

Causal: S and z are running sums over j <= i. They are also the whole state of token-by-token decoding.

Cost per head, in multiply-accumulates: bidirectional M D Dv + N D Dv + N D, linear in the length; causal adds
N C (D + Dv) for chunks of C tokens. Up to 1024 pairs the N x M product is formed instead, which is faster there.

Source: "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", arXiv 2006.16236. We add
eps = 1e-6 to phi rather than to the denominator: rows then sum to 1 for any input, and nothing divides by 0. There is
no scale on q.k: the context's `scale` has no meaning here.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nasdistill.interfaces import (
    AttentionContext,
    AttentionCore,
    AttentionGeometry,
    AttentionResult,
    Example,
    refuse_undeclared,
    static_shape,
)
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions, parse_options
from nasdistill_attention import TAGS
from nasdistill_attention._shared import (
    SMALL,
    StateCache,
    as_dtype,
    causal_product,
    causal_product_macs,
    no_autocast,
    nonzero,
    repeat_heads,
    validity,
    widen,
)

EPS = 1e-6
State = tuple[Tensor, Tensor]
"""S ``(B, H, D, Dv)`` and z ``(B, H, 1, D)`` of the tokens so far."""


class LinearOptions(ComponentOptions):
    """Options of linear attention."""

    chunk: int = Field(64, ge=1, description="Tokens per chunk of the causal form; changes speed, not the result.")


def feature_map(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return phi(x), zero at padding."""
    features = F.elu(x) + (1.0 + EPS)
    return features if valid is None else features.masked_fill(~valid, 0.0)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, *, query_valid: Tensor | None = None, key_valid: Tensor | None = None
) -> Tensor:
    """Attend in linear time, every query to every key.

    Args:
        q: ``(B, H, N, D)``.
        k: ``(B, H, M, D)``.
        v: ``(B, H, M, Dv)``.
        query_valid: ``(B, 1, N, 1)`` bool, False at padding.
        key_valid: ``(B, 1, M, 1)`` bool, False at padding.

    Returns:
        ``(B, H, N, Dv)``.
    """
    queries, keys = feature_map(q, query_valid), feature_map(k, key_valid)
    if key_valid is not None:
        v = v.masked_fill(~key_valid, 0.0)
    total = queries @ keys.sum(dim=-2, keepdim=True).transpose(-1, -2)
    if query_valid is not None or key_valid is not None:
        total = nonzero(total)
    return queries @ (keys.transpose(-1, -2) @ v) / total


def linear_attention_explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_valid: Tensor | None = None,
    key_valid: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attend through the N x M weights; return the output and the weights.

    Arguments as in :func:`linear_attention`; with `causal`, query i sees the keys j <= i + (M - N).
    """
    queries, keys = feature_map(q, query_valid), feature_map(k, key_valid)
    if key_valid is not None:
        v = v.masked_fill(~key_valid, 0.0)
    weights = queries @ keys.transpose(-1, -2)
    if causal:
        weights = weights.tril(static_shape(k)[-2] - static_shape(q)[-2])
    total = weights.sum(dim=-1, keepdim=True)
    empty_rows = causal and static_shape(q)[-2] > static_shape(k)[-2]
    if empty_rows or query_valid is not None or key_valid is not None:
        total = nonzero(total)
    weights = weights / total
    return weights @ v, weights


def causal_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_valid: Tensor | None = None,
    key_valid: Tensor | None = None,
    chunk: int = 64,
    state: State | None = None,
    keep_state: bool = False,
) -> tuple[Tensor, State | None]:
    """Attend in linear time, each query to itself and what came before.

    Arguments as in :func:`linear_attention`, with N <= M: the queries are the last tokens. `chunk` is the number of
    tokens per chunk, `state` holds the sums over the tokens before the first key, if there are any.

    Returns:
        ``(B, H, N, Dv)``, and with `keep_state` the state after the last token.
    """
    queries, keys = feature_map(q, query_valid), feature_map(k, key_valid)
    if key_valid is not None:
        v = v.masked_fill(~key_valid, 0.0)
    earlier = static_shape(k)[-2] - static_shape(q)[-2]
    if earlier:
        state = _advance(state, keys[:, :, :earlier], v[:, :, :earlier])
        keys, v = keys[:, :, earlier:], v[:, :, earlier:]
    running = keys.cumsum(dim=-2) if state is None else keys.cumsum(dim=-2) + state[1]
    total = (queries * running).sum(dim=-1, keepdim=True)
    if query_valid is not None or key_valid is not None:
        total = nonzero(total)
    out = causal_product(queries, keys, v, chunk, None if state is None else state[0]) / total
    return out, _advance(state, keys, v) if keep_state else None


def _advance(state: State | None, keys: Tensor, v: Tensor) -> State:
    """Add tokens (as features) to the state."""
    products, sums = keys.transpose(-1, -2) @ v, keys.sum(dim=-2, keepdim=True)
    return (products, sums) if state is None else (state[0] + products, state[1] + sums)


class LinearAttention(AttentionCore):
    """Linear attention with the feature map elu + 1."""

    options_model = LinearOptions
    options: LinearOptions
    examples = (Example(name="default"), Example({"chunk": 16}, name="short chunks"))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> AttentionResult:
        """Attend; see :class:`nasdistill.interfaces.AttentionCore`. Rows of the map sum to 1."""
        refuse_undeclared(self.id, TAGS["linear"], q, k, ctx)
        k, v = repeat_heads(q, k, v)
        n, m = static_shape(q)[-2], static_shape(k)[-2]
        causal = ctx.mask is not None and ctx.mask.causal
        queries, keys = validity(ctx.mask, n, m)
        if ctx.cache is not None and not causal:
            raise ValueError(f"{self.id}: decoding needs a causal mask")
        if ctx.cache is not None and ctx.need_map:
            raise ValueError(f"{self.id} does not support an attention map while decoding: earlier keys are not kept")
        with no_autocast(q):
            wide = widen(q), widen(k), widen(v)
            weights = None
            if ctx.cache is not None:
                out, ctx.cache.state = causal_linear_attention(
                    *wide,
                    query_valid=queries,
                    key_valid=keys,
                    chunk=self.options.chunk,
                    state=ctx.cache.state,
                    keep_state=True,
                )
            elif ctx.need_map or n * m <= SMALL or (causal and n > m):
                out, weights = linear_attention_explicit(*wide, query_valid=queries, key_valid=keys, causal=causal)
            elif causal:
                out, _ = causal_linear_attention(*wide, query_valid=queries, key_valid=keys, chunk=self.options.chunk)
            else:
                out = linear_attention(*wide, query_valid=queries, key_valid=keys)
        return AttentionResult(as_dtype(out, v), map=weights if ctx.need_map else None)

    def start_cache(self) -> StateCache:
        """Return an empty state, of constant size whatever the number of tokens."""
        return StateCache()

    @classmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the cost of the form that runs for these lengths."""
        chunk = parse_options(LinearOptions, options, where=cls.__name__).chunk
        d, dv, heads = geometry.head_dim, geometry.value_dim, geometry.heads
        if n * m <= SMALL:
            return Cost(0, heads * n * m * (d + dv), heads * n * (m + dv))
        if geometry.causal:
            macs = causal_product_macs(n, chunk, d, dv) + max(m - n, 0) * d * dv
            return Cost(0, heads * macs, heads * n * (min(n, chunk) + dv))
        return Cost(0, heads * (m * d * dv + n * d * dv + n * d), heads * (d * dv + n * dv + n))
