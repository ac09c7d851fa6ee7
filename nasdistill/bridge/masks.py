"""A kernel's mask argument as data: padding, causality, windows, a pattern, a bias - exactly, or not at all.

Libraries hand the kernel one tensor in which all of these are mixed: bool, or float with 0 and the type's minimum (or
-inf), with or without relative positions added. A variant that cannot use a bias can often still use what the mask
says. So the tensor is taken apart and put together again: only a description that gives the same tensor back is used.
While a graph is traced numbers cannot be looked at; the layer's own nature (causal or not, biased or not), known from
its dry run, decides there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nasdistill.bridge.watching import split_mask
from nasdistill.interfaces import AttentionMask, static_shape


@dataclass(frozen=True, slots=True)
class MaskNature:
    """What is known of a layer's masks before a call.

    Attributes:
        causal: no query sees a later key.
        biased: the float mask holds a bias, not only "attend" and "do not".
        takes_bias: the variant can use a bias; then whatever cannot be described goes into one.
        exact: the variant is softmax attention: its queries do not influence each other.
    """

    causal: bool = False
    biased: bool = False
    takes_bias: bool = False
    exact: bool = False


def is_tracing() -> bool:
    """Return whether a graph is being traced or exported, so that nothing may be decided by the values of tensors."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined, no-untyped-call]


def read_mask(
    given: Tensor | None, is_causal: bool, q: Tensor, k: Tensor, nature: MaskNature, name: str = "the variant"
) -> tuple[AttentionMask | None, Tensor | None]:
    """Return a kernel's mask argument as a mask and a bias.

    Args:
        given: bool (True = attend) or float, broadcastable to ``(B, H, N, M)``; None.
        is_causal: the kernel's flag: key j counts for query i when j <= i.
        q: ``(B, H, N, D)``.
        k: ``(B, G, M, D)``.
        nature: of the layer and of the variant.
        name: of the variant, for messages.

    Raises:
        ValueError: the mask is no padding, causality, window or common pattern, and the variant takes no bias.
    """
    n, m = static_shape(q)[-2], static_shape(k)[-2]
    tracing = is_tracing()
    allowed, bias = split_mask(given)
    allowed, bias = _four(allowed), _four(bias)
    if bias is not None and not (nature.biased if tracing else bool(bias.any())):
        bias = None
    if allowed is not None and not tracing and bool(allowed.all()):
        allowed = None
    if is_causal:
        if n == m:
            return _for_variant(AttentionMask(causal=True), nature, n, m), bias
        return AttentionMask(predicate=lambda i, j: j <= i - (m - n)), bias
    if allowed is None:
        causal_by_nature = nature.causal and n == 1
        return (AttentionMask(causal=True) if causal_by_nature else None), bias
    mask = _assumed(allowed, nature) if tracing else described(allowed, n, m, nature)
    if mask is not None and not (tracing and nature.takes_bias and nature.exact):
        return _for_variant(mask, nature, n, m), bias
    if not nature.takes_bias:
        raise ValueError(
            f"{name} does not support this mask: it differs between samples or heads in more than padding, and "
            "the variant takes no additive score bias"
        )
    forbidden = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~allowed, float("-inf"))
    return None, forbidden if bias is None else bias.to(q.dtype) + forbidden


def _four(mask: Tensor | None) -> Tensor | None:
    """Return a mask with four axes."""
    return mask if mask is None else mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))


def _for_variant(mask: AttentionMask, nature: MaskNature, n: int, m: int) -> AttentionMask:
    """Say which queries are padding too where that matters: a variant in which queries meet must leave them out."""
    if nature.exact or n != m or mask.key_valid is None:
        return mask
    return replace(mask, query_valid=mask.key_valid)


def _assumed(allowed: Tensor, nature: MaskNature) -> AttentionMask:
    """Return what a mask of this layer says by its nature: padded keys, and causality or not."""
    return AttentionMask(causal=nature.causal, key_valid=allowed.any(dim=1).any(dim=1))


def described(allowed: Tensor, n: int, m: int, nature: MaskNature) -> AttentionMask | None:
    """Return the description that gives ``(B, H, N, M)`` bool back, the simplest first; None when there is none."""
    if allowed.shape[1] > 1:
        if not bool((allowed == allowed[:, :1]).all()):
            return None
        allowed = allowed[:, :1]
    if allowed.shape[-1] == 1 and m > 1:
        allowed = allowed.expand(*allowed.shape[:-1], m)
    if allowed.shape[2] == 1:  # one row for all queries: padding
        return AttentionMask(causal=nature.causal and n == 1, key_valid=_unless_all(allowed[:, 0, 0]))
    square = allowed[:, 0]
    valid, rows, common = square.any(1), square.any(2), square.any(0)
    live = valid.any(0)  # a key that is padding everywhere says nothing about the pattern
    i = torch.arange(n, device=square.device)[:, None] + (m - n)
    j = torch.arange(m, device=square.device)[None]
    reach = torch.where(common, i - j, -m)
    left, right = int(reach.max()), int(torch.where(common, j - i, -m).max())
    causal, everything = AttentionMask(causal=True), AttentionMask()
    window = AttentionMask(window=(max(left, 0), max(right, 0)), causal=right <= 0)
    table = common | ~live
    pattern = AttentionMask(predicate=lambda x, y: table[x - (m - n), y])
    simplest = (causal, everything) if nature.causal else (everything, causal)
    for mask in (*simplest, window, pattern):
        shape = mask.pattern(n, m, square.device)
        told = valid[:, None] if shape is None else shape & valid[:, None]
        if bool((told == square).all()):
            return replace(mask, key_valid=_unless_all(valid))
        if bool(((told & rows[:, :, None]) == square).all()):
            return replace(mask, key_valid=_unless_all(valid), query_valid=rows)
    return None


def _unless_all(valid: Tensor) -> Tensor | None:
    return None if bool(valid.all()) else valid


SDPA: tuple[str, ...] = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
"""Names of the arguments of ``F.scaled_dot_product_attention``, in order."""


def kernel_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of ``F.scaled_dot_product_attention`` by name."""
    return {**dict(zip(SDPA, args, strict=False)), **kwargs}
