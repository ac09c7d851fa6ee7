"""Base classes for code that is copied out of the toolkit: the same behaviour without host and options models."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn


class AttentionCore(nn.Module):
    """An attention core: ``forward(q, k, v, ctx)`` on ``(B, H, N, D)``.

    Attributes:
        id: its name in messages.
        geometry: sizes of the layer served.
        options: its options, all of them given.
    """

    def __init__(self, options: Mapping[str, Any] | None = None, *, geometry: Any, host: None = None) -> None:
        super().__init__()
        self.id = type(self).__name__
        self.geometry = geometry
        self.options = SimpleNamespace(**(options or {}))
