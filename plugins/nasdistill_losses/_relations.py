"""Token relations: softmax of scores under a common mask, compared by KL (used by `minilm` and `minilmv2`)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nasdistill.interfaces import ModelGeometry, Signal, Site
from nasdistill_losses._tokens import both_valid


def relation_kl(student: Tensor, teacher: Tensor, allowed: Tensor | None, valid: Tensor | None) -> Tensor:
    """Return KL(teacher || student) of row-wise softmaxes.

    Summed over keys, averaged over heads and each sample's valid rows, then over samples.

    Args:
        student: scores ``(B, H, N, M)``.
        teacher: scores, likewise; no gradient flows into them.
        allowed: bool, broadcastable to the scores: which pairs count, on both sides.
        valid: ``(B, N)`` bool: which rows count; rows with no allowed pair never do.
    """
    ours, theirs = student.float(), teacher.detach().float()
    rows = torch.ones(ours.shape[0], 1, ours.shape[2], dtype=torch.bool, device=ours.device)
    if allowed is not None:
        # A finite floor, not -inf: probabilities are exactly 0 there, and empty rows give no NaN gradients.
        floor = torch.finfo(torch.float32).min / 2
        ours, theirs = ours.masked_fill(~allowed, floor), theirs.masked_fill(~allowed, floor)
        rows = rows & allowed.any(-1)
    if valid is not None:
        rows = rows & valid[:, None, :]
    ours, theirs = torch.log_softmax(ours, dim=-1), torch.log_softmax(theirs, dim=-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    rows = rows.expand(-1, divergence.shape[1], -1)
    total = torch.where(rows, divergence, torch.zeros_like(divergence)).sum((1, 2))
    return (total / rows.sum((1, 2)).clamp_min(1)).mean()


def gram(tensor: Tensor, heads: int | None = None, other: Tensor | None = None) -> Tensor:
    """Return ``a b^T / sqrt(d)`` of heads ``(B, H, N, D)``, in float32 whatever autocast says.

    Args:
        tensor: a.
        heads: re-split the full width H * D into this many heads first; None keeps the model's own.
        other: b; None = a.
    """
    with torch.autocast(device_type=tensor.device.type, enabled=False):
        a = resplit(tensor.float(), heads)
        b = a if other is None else resplit(other.float(), heads)
        return a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])


def resplit(tensor: Tensor, heads: int | None) -> Tensor:
    """Join the heads of ``(B, H, N, D)`` and split their width into `heads` parts."""
    if heads is None or heads == tensor.shape[1]:
        return tensor
    joined = tensor.transpose(1, 2).flatten(2)
    return joined.reshape(*joined.shape[:2], heads, -1).transpose(1, 2)


def valid_rows(student: Signal, teacher: Signal) -> Tensor | None:
    """Return the tokens that are real on both sides.

    Where the models were not told, a token that no query may look at is padding.
    """
    return both_valid(_validity(student), _validity(teacher))


def _validity(signal: Signal) -> Tensor | None:
    if signal.valid is not None or signal.mask is None:
        return signal.valid
    b, _, n, _ = signal.tensor.shape
    mask = signal.mask
    if mask.shape[-1] != n:  # cross-attention: the mask speaks of other tokens than the rows
        return None
    seen = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape)).any(2).any(1)
    return seen.expand(b, n)


def allowed_pairs(student: Signal, teacher: Signal, valid: Tensor | None) -> Tensor | None:
    """Return which (query, key) pairs count for relations among the tokens: valid keys, causal where a model is."""
    n = student.tensor.shape[2]
    allowed = None if valid is None else valid[:, None, None, :]
    if student.causal or teacher.causal:
        triangle = torch.ones(n, n, dtype=torch.bool, device=student.tensor.device).tril()
        allowed = triangle if allowed is None else allowed & triangle
    return allowed


def pick_layer(choice: int | str, geometry: ModelGeometry, name: str) -> Site:
    """Return the site of a chosen layer.

    Args:
        choice: an index (negative from the end), ``"last"``, ``"upper_middle"`` (7/8 of the depth, as layer 21 of 24)
            or ``"auto"``: last for up to 12 layers, upper middle for deeper ones.
        geometry: of the model.
        name: of the site.
    """
    depth = geometry.layers
    if choice == "auto":
        choice = "last" if depth <= 12 else "upper_middle"
    if choice == "last":
        return Site(name, -1)
    return Site(name, math.ceil(7 * depth / 8) - 1 if choice == "upper_middle" else int(choice))
