"""Model outputs as a flat list of tensors, and how far two such lists are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def flatten_outputs(value: Any) -> list[Tensor]:
    """Return the tensors in a model's output, in order: mappings by value (Hugging Face outputs), sequences by item.

    None and plain numbers are left out, as exporters leave them out.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in flatten_outputs(item)]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [tensor for item in value for tensor in flatten_outputs(item)]
    return []


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference, relative to the largest value of the same expected output.

    Args:
        found: what the artefact computed.
        expected: what torch computed.

    Returns:
        The worst over all outputs; infinite when the numbers of outputs, a shape, or the places of NaN and infinite
        values differ, or when an expected output holds any of those.
    """
    if len(found) != len(expected):
        return math.inf
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return math.inf
        a, b = one.detach().to("cpu", torch.float64), other.detach().to("cpu", torch.float64)
        if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return math.inf
        if b.numel() == 0:
            continue
        scale = float(b.abs().max())
        difference = float((a - b).abs().max())
        worst = max(worst, difference / scale if scale > 0 else (0.0 if difference == 0 else math.inf))
    return worst
