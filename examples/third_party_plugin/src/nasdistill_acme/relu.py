"""ReLU attention: scores below zero count nothing, the others as they are, divided by the number of keys.

    w_ij = relu(q_i . k_j * scale + bias_ij)^p / n_i,   out_i = sum_j w_ij v_j

n_i is the number of keys that query i may see, so the output keeps its size when the sequence grows; masked pairs have
w_ij = 0, and so has a row without any allowed pair. p = 1 or 2. Nothing is normalised over a row: there is no pass over
it, and a query that matches no key gets nothing.

Cost: N M (D + Dv) multiply-accumulates per head, as softmax attention.

Source: "Replacing softmax with ReLU in Vision Transformers", arXiv 2309.08586 (p = 1, division by the length), and
"Transformer Quality in Linear Time", arXiv 2202.10447 (p = 2). Where pairs are masked we divide by the keys that are
left, not by the length: padding then changes nothing.
"""

from __future__ import annotations

from typing import Any

from nasdistill.interfaces import (
    AttentionContext,
    AttentionCore,
    AttentionGeometry,
    AttentionResult,
    refuse_undeclared,
    static_shape,
)
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions, searchable
from torch import Tensor

from nasdistill_acme import RELU_TAGS


class ReluOptions(ComponentOptions):
    """Options of `relu`."""

    power: int = searchable(1, choices=(1, 2), ge=1, le=2, description="p: exponent of what the ReLU lets through.")


def relu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    power: int = 1,
) -> tuple[Tensor, Tensor]:
    """Attend with rectified scores.

    Args:
        q: ``(B, H, N, D)``.
        k: ``(B, H, M, D)``.
        v: ``(B, H, M, Dv)``.
        mask: bool, broadcastable to ``(B, H, N, M)``, True = attend; None = all.
        bias: added to the scaled scores, broadcastable to ``(B, H, N, M)``.
        scale: factor on q.k; None = ``D ** -0.5``.
        power: p, 1 or 2.

    Returns:
        The output ``(B, H, N, Dv)`` and the weights ``(B, H, N, M)``.
    """
    scores = q @ k.transpose(-1, -2) * (static_shape(q)[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    weights = scores.relu() if power == 1 else scores.relu().square()
    if mask is None:
        weights = weights / static_shape(k)[-2]
    else:
        count = mask.sum(dim=-1, keepdim=True).clamp(min=1)
        weights = weights * mask / count.to(weights.dtype)
    weights = weights.to(v.dtype)
    return weights @ v, weights


class ReluAttention(AttentionCore):
    """ReLU attention."""

    options_model = ReluOptions
    options: ReluOptions

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> AttentionResult:
        """Attend; see :class:`nasdistill.interfaces.AttentionCore`. Rows of the map do not sum to 1."""
        refuse_undeclared(self.id, RELU_TAGS, q, k, ctx)
        groups = static_shape(q)[1] // static_shape(k)[1]
        if groups > 1:  # fewer key/value heads than query heads
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        mask = None if ctx.mask is None else ctx.mask.dense(static_shape(q)[-2], static_shape(k)[-2], q.device)
        out, weights = relu_attention(q, k, v, mask=mask, bias=ctx.bias, scale=ctx.scale, power=self.options.power)
        return AttentionResult(out, map=weights if ctx.need_map else None)

    @classmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the cost of the two products."""
        per_head = n * m * (geometry.head_dim + geometry.value_dim)
        return Cost(0, geometry.heads * per_head, geometry.heads * n * (m + geometry.value_dim))
