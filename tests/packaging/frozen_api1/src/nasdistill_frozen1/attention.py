"""Attention in which every allowed key counts nearly the same: scores are squeezed to a thousandth."""

from __future__ import annotations

import torch

from nasdistill.interfaces import AttentionCore, AttentionResult, refuse_undeclared
from nasdistill.spec.io import Cost
from nasdistill_frozen1 import TAGS


class Mean(AttentionCore):
    """The mean of the allowed values, nearly."""

    def forward(self, q, k, v, ctx):
        refuse_undeclared(self.id, TAGS, q, k, ctx)
        scores = (q @ k.transpose(-1, -2)).tanh() * 1e-3
        mask = None if ctx.mask is None else ctx.mask.dense(q.shape[-2], k.shape[-2], q.device)
        if mask is None:
            weights = scores.softmax(-1)
        else:
            weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
        weights = weights.to(v.dtype)
        return AttentionResult(weights @ v, map=weights if ctx.need_map else None)

    @classmethod
    def cost(cls, geometry, n, m, options=None):
        per_head = n * m * (geometry.head_dim + geometry.value_dim)
        return Cost(0, geometry.heads * per_head, geometry.heads * n * (m + geometry.value_dim))
