"""Matching columns: which outputs of which product a tensor's channels are, as they are or turned.

Everything here compares numbers of one dry run; names play no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.bridge.dryrun import DryRun, Product
from nasdistill.bridge.watching import AttentionCall
from nasdistill.interfaces import RotaryEmbedding

_MAX_STREAMS = 3


@dataclass(slots=True)
class Match:
    """Columns found among a product's: entry ``index[c]`` times `factor` is column c."""

    product: Product
    index: Tensor
    factor: float = 1.0


def tolerance_of(call: AttentionCall) -> float:
    """Return the share by which two computations of the same numbers may differ in a call's precision."""
    return 1e-4 if call.q.dtype in (torch.float32, torch.float64) else 3e-2


def heads_of(x: Tensor, groups: int) -> Tensor:
    """Return ``(G, D, B, N)`` of heads ``(B, H, N, D)``, one of each group of equal ones."""
    return x.detach().float()[:, :: x.shape[1] // groups].permute(1, 3, 0, 2)


def columns_of(x: Tensor, groups: int) -> Tensor:
    """Return ``(G * D, B, N)``."""
    return heads_of(x, groups).flatten(0, 1)


def rows_of(x: Tensor, batch: int, tokens: int) -> Iterator[Tensor]:
    """Yield the columns of a product's side as ``(columns, B, N)``, for batch first and for sequence first."""
    if x.numel() != batch * tokens * x.shape[-1]:
        return
    flat = x.detach().float().reshape(-1, x.shape[-1]).t()
    yield flat.reshape(-1, batch, tokens)
    yield flat.reshape(-1, tokens, batch).transpose(1, 2)


def repeats(index: Tensor) -> bool:
    """Return whether an index names anything twice."""
    flat = index.flatten().tolist()
    return len(set(flat)) < len(flat)


def nearest(wanted: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each wanted vector the nearest given one and its distance, both scaled to length one."""
    first, second = (F.normalize(x.flatten(1), dim=1) for x in (wanted, given))
    distance, index = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    return index, distance


def one_factor(wanted: Tensor, found: Tensor, tolerance: float) -> float | None:
    """Return the one positive factor between two sets of columns, or None."""
    factor = float(wanted.norm() / found.norm().clamp_min(1e-20))
    if float((wanted - factor * found).norm()) > tolerance * float(wanted.norm()):
        return None
    return 1.0 if abs(factor - 1) < tolerance else factor


def direct(wanted: Tensor, products: Iterable[Product], tolerance: float) -> Match | None:
    """Find columns ``(C, B, N)`` among the outputs of products, the latest first."""
    _, batch, tokens = wanted.shape
    for product in reversed(list(products)):
        for given in rows_of(product.output, batch, tokens):
            if product.weight is None or given.shape[0] < wanted.shape[0]:
                continue
            index, distance = nearest(wanted, given)
            if float(distance.max()) > tolerance or repeats(index):
                continue
            factor = one_factor(wanted, given[index], tolerance)
            if factor is not None:
                return Match(product, index, factor)
    return None


def producers_of(done: DryRun, x: Tensor) -> list[Product]:
    """Return the products that a tensor was made from without another product between, by the graph of gradients."""
    by_node = {product.node: product for product in done.products if product.node is not None}
    found: list[Product] = []
    seen, waiting = set(), [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in by_node:
            found.append(by_node[node])
        else:
            waiting.extend(after for after, _ in node.next_functions)
    return sorted(found, key=lambda product: product.time)


@dataclass(slots=True)
class Stream:
    """One of several sequences that are attended together: tokens `start` to `stop` have projections of their own."""

    start: int
    stop: int
    product: Product


def streams_of(done: DryRun, call: AttentionCall, groups: int) -> list[Stream]:
    """Return the sequences that are attended together, in their order; empty where there is only one.

    They are told by v, of which each part of the sequence is the output of another product.
    """
    makers = [product for product in producers_of(done, call.v) if product.weight is not None]
    batch, _, tokens, _ = call.v.shape
    lengths = [product.output.numel() // (batch * product.output.shape[-1]) for product in makers]
    if not 1 < len(makers) <= _MAX_STREAMS or sum(lengths) != tokens or call.q.shape[2] != tokens:
        return []
    for order in permutations(range(len(makers))):
        found: list[Stream] = []
        for place in order:
            start = found[-1].stop if found else 0
            part = columns_of(call.v[:, :, start : start + lengths[place]], groups)
            if direct(part, [makers[place]], tolerance_of(call)) is None:
                break
            found.append(Stream(start, start + lengths[place], makers[place]))
        else:
            return found
    return []


# ---- norms and rotations ---------------------------------------------------------------------------------------------


def rotation(before: Tensor, after: Tensor, style: str, dim: int, tolerance: float) -> RotaryEmbedding | None:
    """Solve the rotation that turns ``(G, D, B, N)`` into another; None when there is none."""
    rest = (after[:, dim:] - before[:, dim:]).norm() if dim < before.shape[1] else torch.zeros(())
    if float(rest) > tolerance * float(after.norm()):
        return None
    (a, b), (turned_a, turned_b) = (_pairs(x[:, :dim], style) for x in (before, after))
    energy = (a.square() + b.square()).clamp_min(1e-20)
    # Least squares over heads and samples: the angle of a position and a pair is the same for all of them.
    total = energy.sum((0, 2))
    cos = (a * turned_a + b * turned_b).sum((0, 2)) / total
    sin = (a * turned_b - b * turned_a).sum((0, 2)) / total
    scaling = float((cos.square() + sin.square()).sqrt().mean())
    wide_cos, wide_sin = cos[None, :, None], sin[None, :, None]
    wrong = (turned_a - (a * wide_cos - b * wide_sin)).square() + (turned_b - (b * wide_cos + a * wide_sin)).square()
    if float(wrong.sum().sqrt()) > tolerance * float(after.norm()):
        return None
    lengths = (cos.square() + sin.square()).sqrt()
    if float((lengths - scaling).abs().max()) > 10 * tolerance:
        return None
    scaling = 1.0 if abs(scaling - 1) < tolerance else scaling
    while (
        style == "interleaved" and dim > 2 and scaling == 1 and bool((sin[-1].abs() < 1e-6).all() & (cos[-1] > 0).all())
    ):
        cos, sin, lengths, dim = cos[:-1], sin[:-1], lengths[:-1], dim - 2  # channels that do not turn
    cos, sin = cos.t() / lengths.t(), sin.t() / lengths.t()
    return RotaryEmbedding("half" if style == "half" else "interleaved", dim, scaling=scaling, cos=cos, sin=sin)


def _pairs(x: Tensor, style: str) -> tuple[Tensor, Tensor]:
    """Return the first and second members ``(G, dim / 2, B, N)`` of the pairs of channels."""
    if style == "half":
        half = x.shape[1] // 2
        return x[:, :half], x[:, half:]
    return x[:, 0::2], x[:, 1::2]


def rotary_sizes(head_dim: int) -> list[int]:
    """Return how many channels may turn, the likeliest first."""
    return [size for size in dict.fromkeys(head_dim * part // 8 for part in range(8, 0, -1)) if size and size % 2 == 0]


def turned(wanted: Tensor, products: Iterable[Product], tolerance: float) -> tuple[Match, RotaryEmbedding] | None:
    """Find columns of which `wanted` ``(G, D, B, N)`` is a rotation: a pair keeps its length at every position."""
    groups, head_dim, batch, tokens = wanted.shape
    for product in reversed(list(products)):
        for given in rows_of(product.output, batch, tokens):
            if product.weight is None or given.shape[0] < groups * head_dim:
                continue
            for dim in rotary_sizes(head_dim):
                for style in ("half", "interleaved"):
                    index = _turned_index(wanted, given, style, dim, 30 * tolerance)
                    if index is None:
                        continue
                    before = given[index.flatten()].reshape(groups, head_dim, batch, tokens)
                    rotary = rotation(before, wanted, style, dim, tolerance)
                    if rotary is not None:
                        return Match(product, index.flatten()), rotary
    return None


def _turned_index(wanted: Tensor, given: Tensor, style: str, dim: int, tolerance: float) -> Tensor | None:
    """Return ``(G, D)``: which given columns the pairs of heads come from, by their lengths; None without a match."""
    apart = dim // 2 if style == "half" else 1
    if given.shape[0] <= apart:
        return None
    a, b = _pairs(wanted[:, :dim], style)
    lengths = (a.square() + b.square()).sqrt()
    choices = (given[:-apart].square() + given[apart:].square()).sqrt()
    found, distance = nearest(lengths.flatten(0, 1), choices)
    if float(distance.max()) > tolerance:
        return None
    found = found.reshape(wanted.shape[0], dim // 2)
    index = torch.empty(wanted.shape[:2], dtype=torch.int64)
    if style == "half":
        index[:, : dim // 2], index[:, dim // 2 : dim] = found, found + apart
    else:
        index[:, 0:dim:2], index[:, 1:dim:2] = found, found + apart
    if dim < wanted.shape[1]:
        rest, distance = nearest(wanted[:, dim:].flatten(0, 1), given)
        if float(distance.max()) > tolerance:
            return None
        index[:, dim:] = rest.reshape(wanted.shape[0], -1)
    return index if not repeats(index) else None


def head_layouts(x: Tensor, batch: int, tokens: int, head_dim: int) -> Iterator[Tensor]:
    """Yield a leaf's tensor as heads ``(B, H, N, D)``, whichever of its axes are the heads."""
    if x.shape[-1] != head_dim or x.ndim != 4 or x.shape[0] != batch:
        return
    if x.shape[2] == tokens:
        yield x
    if x.shape[1] == tokens:
        yield x.transpose(1, 2)


def with_frequencies(rotary: RotaryEmbedding, model: nn.Module) -> RotaryEmbedding:
    """Return a rotation known by tables as a rule of positions, where its angles grow with the position.

    The frequencies solved from a few positions are replaced by the model's own where a buffer holds them.
    """
    cos, sin = rotary.cos, rotary.sin
    if cos is None or sin is None or cos.shape[0] < 2:
        return rotary
    angles = torch.atan2(sin, cos)
    solved = angles[1] - angles[0]
    steps = torch.arange(cos.shape[0], device=cos.device)[:, None]
    if float(angles[0].abs().max()) > 1e-2:
        return rotary

    def fits(frequencies: Tensor) -> bool:
        told = steps * frequencies[None]
        return max(float((told.cos() - cos).abs().max()), float((told.sin() - sin).abs().max())) < 1e-2

    held = [b for b in model.buffers() if b.ndim == 1 and b.shape == solved.shape and b.is_floating_point()]
    held = [buffer.detach().float().to(cos.device) for buffer in held]
    held = sorted(held, key=lambda buffer: float((buffer - solved).abs().max()))
    if held and float((held[0] - solved).abs().max()) < 1e-2 and fits(held[0]):
        return replace(rotary, inv_freq=held[0].clone(), cos=None, sin=None)
    return replace(rotary, inv_freq=solved, cos=None, sin=None) if fits(solved) else rotary
