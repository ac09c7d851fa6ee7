"""What the layers of several spaces' networks share: their sizes, and activations by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "relu": "", "silu": ""}
"""Activations by their name in transformers; for those that are a GELU, the approximation."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of one layer: heads, MLP neurons, and the name of the attention variant."""

    heads: int
    mlp: int
    attention: str

    @property
    def softmax(self) -> bool:
        """Whether the variant is plain softmax attention."""
        return self.attention in ("softmax", "attention:softmax")


def activate(name: str, x: Tensor) -> Tensor:
    """Apply one of `ACTIVATIONS`."""
    approximation = ACTIVATIONS[name]
    if approximation:
        return F.gelu(x, approximate=approximation)
    return F.relu(x) if name == "relu" else F.silu(x)
