"""One vector per sample from a layer: at the class token, at the last real token, or the mean over positions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nasdistill.interfaces import ModelGeometry, Signal, Site
from nasdistill_losses._tokens import as_tokens, grid_of

Position = Literal["auto", "first", "last", "mean"]
POSITION_HELP = (
    "Which vector stands for a sample: its `first` token (the class token), its `last` one (which alone sees the whole "
    "text in a causal model), or the `mean` over positions; `auto`: last in causal models, the mean of stage maps and "
    "of image tokens without a class token, else first. Padding is left out; stage maps always give the mean."
)


def choose_position(choice: Position, geometry: ModelGeometry, site: Site) -> Position:
    """Return the position at which a site's vectors are read."""
    shape = geometry[site]
    if shape.layout == "map":
        return "mean"
    if choice != "auto":
        return choice
    grid = grid_of(shape)
    if grid is not None:
        return "first" if shape.shape[0] > grid[0] * grid[1] else "mean"
    return "last" if any(item.causal for item in geometry.sites.values()) else "first"


def sample_vectors(signal: Signal, position: Position) -> Tensor:
    """Return ``(B, C)``; a signal that is one vector per sample already is returned as it is."""
    if signal.layout == "vector":
        return signal.tensor
    tokens, valid = as_tokens(signal), signal.valid
    if position == "mean":
        if valid is None:
            return tokens.float().mean(1)
        kept = torch.where(valid[..., None], tokens.float(), torch.zeros((), device=tokens.device))
        return kept.sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
    if valid is None:
        return tokens[:, 0 if position == "first" else -1]
    count = valid.shape[1]
    index = valid.int().argmax(1) if position == "first" else count - 1 - valid.int().flip(1).argmax(1)
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), index]
