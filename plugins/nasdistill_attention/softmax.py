"""Softmax attention, the reference that every other variant is compared with.

    out_i = sum_j softmax_j(q_i . k_j * scale + bias_ij) v_j        scale = D ** -0.5 unless the context gives one

Cost: N M (D + Dv) multiply-accumulates per head, time and (without a fused kernel) memory quadratic in the length.

Source: "Attention Is All You Need", arXiv 1706.03762. We depart in one definition: a query that may attend to nothing
gives 0, where the formula is 0 / 0.

Runs torch's fused `scaled_dot_product_attention`, so the map exists only when it is asked for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nasdistill.interfaces import (
    AttentionContext,
    AttentionCore,
    AttentionGeometry,
    AttentionResult,
    refuse_undeclared,
    static_shape,
)
from nasdistill.spec.io import Cost
from nasdistill_attention import TAGS
from nasdistill_attention._shared import KeyValueCache, as_dtype, masked_softmax, repeat_heads


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attend with torch's fused kernel.

    Args:
        q: ``(B, H, N, D)``.
        k: ``(B, H, M, D)``.
        v: ``(B, H, M, Dv)``.
        mask: bool, broadcastable to ``(B, H, N, M)``, True = attend.
        bias: added to the scaled scores, broadcastable to ``(B, H, N, M)``.
        causal: the square causal mask; only with N = M and without `mask` and `bias`.
        scale: factor on q.k; None = ``D ** -0.5``.

    Returns:
        ``(B, H, N, Dv)``.
    """
    # The default scale is passed as a number: left to the kernel, an exporter derives it from the shape at run time.
    scale = static_shape(q)[-1] ** -0.5 if scale is None else scale
    if bias is not None:
        bias = as_dtype(bias, q)
        mask = bias if mask is None else torch.where(mask, bias, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def softmax_map(
    q: Tensor, k: Tensor, *, mask: Tensor | None = None, bias: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return the attention map ``(B, H, N, M)`` and the log of its normaliser ``(B, H, N)``.

    Rows of the map sum to 1, or to 0 where nothing may be attended to (the log is then that of the smallest number).
    """
    scores = q @ k.transpose(-1, -2) * (static_shape(q)[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    masked = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
    lowest = torch.finfo(scores.dtype).min
    return masked_softmax(scores, mask), masked.clamp_min(lowest).logsumexp(dim=-1)


class SoftmaxAttention(AttentionCore):
    """Exact softmax attention with every kind of mask, bias, grouped heads and decoding."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> AttentionResult:
        """Attend; see :class:`nasdistill.interfaces.AttentionCore`."""
        refuse_undeclared(self.id, TAGS["softmax"], q, k, ctx)
        if ctx.cache is not None:
            k, v = ctx.cache.append(k, v)
        k, v = repeat_heads(q, k, v)
        n, m = static_shape(q)[-2], static_shape(k)[-2]
        mask = ctx.mask
        square = mask is not None and n == m and ctx.bias is None and not ctx.need_map
        if mask is not None and square and causal_only(mask):
            return AttentionResult(softmax_attention(q, k, v, causal=True, scale=ctx.scale))
        dense = None if mask is None else mask.dense(n, m, q.device)
        if not ctx.need_map:
            return AttentionResult(softmax_attention(q, k, v, mask=dense, bias=ctx.bias, scale=ctx.scale))
        weights, lse = softmax_map(q, k, mask=dense, bias=ctx.bias, scale=ctx.scale)
        return AttentionResult(as_dtype(weights, v) @ v, lse=lse, map=weights)

    def start_cache(self) -> KeyValueCache:
        """Return an empty cache of keys and values."""
        return KeyValueCache()

    @classmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the cost of the two products; a causal mask is not counted as saved work."""
        per_head = n * m * (geometry.head_dim + geometry.value_dim)
        return Cost(0, geometry.heads * per_head, geometry.heads * n * (m + geometry.value_dim))


def causal_only(mask: Any) -> bool:
    """Whether the mask is the plain causal one, for which the kernel has a faster path."""
    others = (mask.window, mask.key_valid, mask.query_valid, mask.predicate)
    return bool(mask.causal) and all(part is None for part in others)
