"""Watching attention: q, k, v, mask and context of every softmax call, without leaving the fused kernels.

Models call ``F.scaled_dot_product_attention``; a torch function mode sees its arguments and its result and changes
nothing. Three things need care. A mode does not see into Python functions that look for overrides themselves
(``F.multi_head_attention_forward``), so that function's own code is run with the look-up answered "none". Some modules
write the softmax out although they have a fused branch; :mod:`nasdistill.bridge.fused` switches those for the length of
the capture. And a mode belongs to a thread: a forward in another thread is not seen.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nasdistill.interfaces.attention import AttentionContext

_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(slots=True)
class AttentionCall:
    """One attention call, heads as the second axis.

    Attributes:
        q: ``(B, H, N, D)``.
        k: ``(B, G, M, D)``, G divides H.
        v: ``(B, G, M, Dv)``.
        out: ``(B, H, N, Dv)``.
        mask: bool, broadcastable to ``(B, H, N, M)``, True = attend.
        bias: float, added to the scores, broadcastable likewise.
        scale: factor on q.k.
        causal: declared causal by the caller.
        key_valid: ``(B, M)`` where the caller says which keys are no padding.
        grid: ``(h, w)`` of the tokens where the caller says so.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    mask: Tensor | None
    bias: Tensor | None
    scale: float
    causal: bool
    key_valid: Tensor | None = None
    grid: tuple[int, int] | None = None

    @classmethod
    def from_sdpa(cls, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> AttentionCall | None:
        """Read the arguments of ``F.scaled_dot_product_attention``; None for shapes that are no heads of tokens."""
        given = {**dict(zip(_SDPA, args, strict=False)), **kwargs}
        q, k, v = given["query"], given["key"], given["value"]
        mask, bias = split_mask(given.get("attn_mask"))
        scale = given.get("scale")
        if q.ndim == 3:  # one head without a head axis
            q, k, v, out = (tensor.unsqueeze(1) for tensor in (q, k, v, out))
            mask = mask.unsqueeze(-3) if mask is not None and mask.ndim == 3 else mask
            bias = bias.unsqueeze(-3) if bias is not None and bias.ndim == 3 else bias
        if q.ndim != 4:
            return None
        causal = bool(given.get("is_causal", False))
        n, m = q.shape[-2], k.shape[-2]
        if causal and n != m:  # the kernel aligns its triangle at the start, a causal signal at the end
            mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril()
        return cls(q, k, v, out, mask, bias, float(scale) if scale is not None else q.shape[-1] ** -0.5, causal)

    @classmethod
    def from_core(cls, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext, out: Tensor) -> AttentionCall:
        """Read a call of an attention core of this project."""
        mask = None if ctx.mask is None else ctx.mask.dense(q.shape[-2], k.shape[-2], q.device)
        return cls(
            q, k, v, out, mask, ctx.bias,
            scale=ctx.scale if ctx.scale is not None else q.shape[-1] ** -0.5,
            causal=ctx.mask is not None and ctx.mask.causal,
            key_valid=None if ctx.mask is None else ctx.mask.key_valid,
            grid=None if ctx.layout is None else ctx.layout.grid,
        )  # fmt: skip

    def looks_causal(self) -> bool:
        """Return whether no query sees a later key, declared or by the mask's content."""
        if self.causal:
            return True
        n, m = self.q.shape[-2], self.k.shape[-2]
        if self.mask is None or n != m or n < 2 or self.mask.shape[-2] == 1:
            return False
        later = torch.ones(n, m, dtype=torch.bool, device=self.mask.device).triu(1)
        allowed = self.mask.expand(*self.mask.shape[:-2], n, m)
        return not bool((allowed & later).any()) and bool((allowed & later.T).any())


def core_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, AttentionContext]:
    """Return q, k, v and the context from the arguments of an attention core's ``forward``."""
    given = {**dict(zip(("q", "k", "v", "ctx"), args, strict=False)), **kwargs}
    return given["q"], given["k"], given["v"], given["ctx"]


def split_mask(given: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return a kernel's mask argument as (bool mask, finite bias); entries near the type's minimum mean "never"."""
    if given is None or given.dtype == torch.bool:
        return given, None
    allowed = given > torch.finfo(given.dtype).min / 2
    return allowed, given.masked_fill(~allowed, 0.0)


def opened_multi_head() -> Callable[..., Any]:
    """Return ``F.multi_head_attention_forward`` without its own look for overrides, so that a mode sees inside it."""
    original = F.multi_head_attention_forward
    scope = {**original.__globals__, "has_torch_function": lambda _: False}
    opened = types.FunctionType(original.__code__, scope, original.__name__, original.__defaults__)
    opened.__kwdefaults__ = original.__kwdefaults__
    return opened


class WatchAttention(TorchFunctionMode):
    """Hands every attention call made while it is open to `sink`.

    Args:
        sink: receives the call.
    """

    def __init__(self, sink: Callable[[AttentionCall], None]) -> None:
        super().__init__()
        self._sink = sink
        self._packed: _Packed | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call; look at attention."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._open(args, kwargs)
        out = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            call = AttentionCall.from_sdpa(args, kwargs, out)
            if call is not None:
                self._sink(call)
        elif self._packed is not None and func in (torch.bmm, torch.baddbmm):
            call = self._packed.product(func, args, out)
            if call is not None:
                self._sink(call)
        return out

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``F.multi_head_attention_forward`` itself with this mode still on, so that what it calls is seen."""
        before = self._packed
        self._packed = _Packed(heads=kwargs["num_heads"] if "num_heads" in kwargs else args[4])
        try:
            with self:
                return opened_multi_head()(*args, **kwargs)
        finally:
            self._packed = before


class Quiet(TorchFunctionMode):
    """Does nothing, but keeps ``nn.TransformerEncoder`` from its nested-tensor path, whose layers see no padding."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call."""
        return func(*args, **(kwargs or {}))


class _Packed:
    """Reads the two matrix products of ``F.multi_head_attention_forward`` when it is asked for weights.

    That branch scales q first and works on ``(B * H, N, D)``.
    """

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._first: tuple[Tensor, Tensor, Tensor | None] | None = None

    def product(self, func: Any, args: tuple[Any, ...], out: Tensor) -> AttentionCall | None:
        """Take the next product; the second one completes a call."""
        if self._first is None:
            mask, q, k = args if func is torch.baddbmm else (None, *args)
            self._first = (q, k.transpose(-2, -1), mask)
            return None
        (q, k, given), v = self._first, args[1]
        self._first = None
        mask, bias = split_mask(given)
        depth = q.shape[-1]
        return AttentionCall(
            self._split(q) * math.sqrt(depth), self._split(k), self._split(v), self._split(out),
            None if mask is None else self._split(mask), None if bias is None else self._split(bias),
            scale=depth**-0.5, causal=False,
        )  # fmt: skip

    def _split(self, tensor: Tensor) -> Tensor:
        """``(B * H, N, X)`` to ``(B, H, N, X)``; a tensor shared by all stays shared."""
        if tensor.shape[0] == 1 and self._heads > 1:
            return tensor[None]
        return tensor.reshape(-1, self._heads, *tensor.shape[1:])
