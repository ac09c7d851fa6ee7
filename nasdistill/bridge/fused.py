"""Modules of timm and transformers that write the softmax out although they have a fused branch.

timm decides by a module's ``fused_attn``, transformers by ``config._attn_implementation``. Capturing attention needs
the fused branch, because it watches the calls of ``F.scaled_dot_product_attention``. Neither library is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def fused_branches(model: nn.Module) -> Iterator[bool]:
    """Send modules that have both a written-out and a fused attention through the fused one; restored afterwards.

    Yields:
        Whether anything was switched.
    """
    switched: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        if getattr(module, "fused_attn", None) is False:
            switched.append((module, "fused_attn", False))
            setattr(module, "fused_attn", True)  # noqa: B010 - not a declared attribute
        config = getattr(module, "config", None)
        eager = getattr(config, "_attn_implementation", None) == "eager" and not getattr(config, "output_attentions", 0)
        if eager and getattr(module, "_supports_sdpa", False):
            switched.append((config, "_attn_implementation", "eager"))
            setattr(config, "_attn_implementation", "sdpa")  # noqa: B010 - a property of a foreign class
    try:
        yield bool(switched)
    finally:
        for owner, name, value in reversed(switched):
            setattr(owner, name, value)
