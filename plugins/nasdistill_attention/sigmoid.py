"""Sigmoid attention: every key is weighed on its own, so attention has no sink to fall into.

    w_ij = sigmoid(q_i . k_j * scale + bias_ij),  out_i = sum_j w_ij v_j / Z_i

    Z_i = 1 without normalisation, sum_j w_ij + 1e-8 with it; masked pairs have w_ij = 0.

Cost: N M (D + Dv) multiply-accumulates per head, as softmax, without the pass over a row that softmax needs.

Source: "When Attention Sink Emerges in Language Models: An Empirical View", arXiv 2410.10781. Its finding: without
normalisation no attention sink forms; with it the sink returns. Without normalisation the output grows with the number
of keys, so copied softmax weights need finetuning. As in the paper the mask multiplies the weight after the sigmoid.
"""

from __future__ import annotations

from typing import Any

import torch
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
from nasdistill.spec.options import ComponentOptions
from nasdistill_attention import TAGS
from nasdistill_attention._shared import KeyValueCache, as_dtype, repeat_heads

EPS = 1e-8


class SigmoidOptions(ComponentOptions):
    """Options of sigmoid attention."""

    normalise: bool = Field(False, description="Divide each row of weights by its sum, so that it sums to 1.")


def sigmoid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attend with sigmoid weights.

    Args:
        q: ``(B, H, N, D)``.
        k: ``(B, H, M, D)``.
        v: ``(B, H, M, Dv)``.
        mask: bool, broadcastable to ``(B, H, N, M)``, True = attend.
        bias: added to the scaled scores, broadcastable to ``(B, H, N, M)``.
        scale: factor on q.k; None = ``D ** -0.5``.
        normalise: divide by the sum of the weights.

    Returns:
        The output ``(B, H, N, Dv)`` and the weights ``(B, H, N, M)``, both after normalisation.
    """
    scores = q @ k.transpose(-1, -2) * (static_shape(q)[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    weights = scores.sigmoid()
    if mask is not None:
        weights = weights * mask
    if normalise:
        # Summed in float32 for half precision: 1e-8 is 0 in float16, and long sums drift.
        total = weights.sum(-1, keepdim=True, dtype=torch.promote_types(weights.dtype, torch.float32)) + EPS
        weights = as_dtype(weights / total, v)
    return as_dtype(weights, v) @ v, weights


class SigmoidAttention(AttentionCore):
    """Sigmoid attention, unnormalised by default."""

    options_model = SigmoidOptions
    options: SigmoidOptions
    examples = (Example(name="default"), Example({"normalise": True}, name="normalised"))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> AttentionResult:
        """Attend; see :class:`nasdistill.interfaces.AttentionCore`. Rows of the map sum to 1 only when normalised."""
        refuse_undeclared(self.id, TAGS["sigmoid"], q, k, ctx)
        if ctx.cache is not None:
            k, v = ctx.cache.append(k, v)
        k, v = repeat_heads(q, k, v)
        dense = None if ctx.mask is None else ctx.mask.dense(static_shape(q)[-2], static_shape(k)[-2], q.device)
        out, weights = sigmoid_attention(
            q, k, v, mask=dense, bias=ctx.bias, scale=ctx.scale, normalise=self.options.normalise
        )
        return AttentionResult(out, map=weights if ctx.need_map else None)

    def start_cache(self) -> KeyValueCache:
        """Return an empty cache of keys and values."""
        return KeyValueCache()

    @classmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the cost of the two products."""
        per_head = n * m * (geometry.head_dim + geometry.value_dim)
        return Cost(0, geometry.heads * per_head, geometry.heads * n * (m + geometry.value_dim))
