"""Window attention: softmax over the keys near a query, along the sequence or over the patch grid.

    out_i = sum_{j near i} softmax(q_i . k_j * scale + bias_ij) v_j

`window` = w is the full width and odd. On a sequence, j is near i when |i - j| <= (w - 1) / 2; on an h x w' grid when
that holds for rows and for columns (w x w keys). A window is cut at the borders, not shifted. Tokens outside the grid
(class token, registers, text) are global: they see every token and every token sees them.

Cost: queries are taken in tiles; each tile attends to its own keys, a margin of (w - 1) / 2 around them and the global
tokens, with what is too far masked out. Per head N (t + w - 1)^a (D + Dv) multiply-accumulates for tiles of side t on
an a-dimensional layout, linear in the length. Where that is more than a third of the full product (short sequences,
wide windows), or where a bias or a predicate mask gives every pair its own rule, one masked product runs instead.

Sources: sliding windows on sequences, "Longformer: The Long-Document Transformer", arXiv 2004.05150; neighbourhoods on
grids, "Neighborhood Attention Transformer", arXiv 2204.07143. The latter shifts windows inwards at the border so that
every query has w^2 keys; we cut them, as the former does.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import field_validator
from torch import Tensor

from nasdistill.interfaces import (
    AttentionContext,
    AttentionCore,
    AttentionGeometry,
    AttentionMask,
    AttentionResult,
    Example,
    TokenLayout,
    refuse_undeclared,
    static_shape,
)
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions, parse_options, searchable
from nasdistill_attention import TAGS
from nasdistill_attention._shared import as_dtype, constant, repeat_heads
from nasdistill_attention.softmax import softmax_attention, softmax_map


class WindowOptions(ComponentOptions):
    """Options of window attention."""

    window: int = searchable(
        7, choices=(3, 5, 7, 9), ge=1, description="Width of the window in tokens (on a grid: of each side); odd."
    )

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a window has a middle")
        return value


class Plan(NamedTuple):
    """How a layout is cut into T tiles of Q queries with K keys each; indices are positions in the sequence."""

    queries: npt.NDArray[np.int64]
    """``(T, Q)``; a tile that sticks out over the border repeats position 0."""
    keys: npt.NDArray[np.int64]
    """``(T, K)``; the global tokens first."""
    near: npt.NDArray[np.bool_]
    """``(T, Q, K)``: the key exists and is near the query, or is global; all True for queries that do not exist."""
    bias: npt.NDArray[np.float32]
    """The same as 0 and -inf."""
    back: npt.NDArray[np.int64]
    """``(L,)``: where in the ``T * Q`` results each local token's stands."""


def split_layout(tokens: int, layout: TokenLayout | None) -> tuple[int, tuple[int, int], int]:
    """Return how many global tokens come first, the grid of the local ones, and how many global tokens come last.

    Without a grid the local tokens are one row.

    Raises:
        ValueError: the layout does not describe `tokens` tokens, or has frames.
    """
    if layout is None:
        return 0, (1, tokens), 0
    if layout.frames is not None:
        raise ValueError("window attention does not support a layout with frames")
    last = layout.text or 0
    grid = layout.grid or (1, tokens - layout.prefix - last)
    if layout.prefix + grid[0] * grid[1] + last != tokens or grid[1] < 1:
        raise ValueError(f"window attention got {tokens} tokens for the layout {layout}")
    return layout.prefix, grid, last


@functools.lru_cache(maxsize=64)
def near_pattern(tokens: int, layout: TokenLayout | None, window: int) -> npt.NDArray[np.bool_]:
    """Return ``(N, N)`` bool: which tokens see each other."""
    first, (rows, columns), last = split_layout(tokens, layout)
    reach = window // 2
    y, x = np.divmod(np.arange(rows * columns), columns)
    near = (abs(y[:, None] - y) <= reach) & (abs(x[:, None] - x) <= reach)
    out = np.ones((tokens, tokens), dtype=bool)
    out[first : tokens - last, first : tokens - last] = near
    return out


@functools.lru_cache(maxsize=64)
def near_bias(tokens: int, layout: TokenLayout | None, window: int) -> npt.NDArray[np.float32]:
    """Return `near_pattern` as 0 and -inf: added to scores it takes fewer operations than a bool mask."""
    return _as_bias(near_pattern(tokens, layout, window))


@functools.lru_cache(maxsize=64)
def tile_plan(tokens: int, layout: TokenLayout | None, window: int) -> Plan:
    """Return the tiles of a layout."""
    first, (rows, columns), last = split_layout(tokens, layout)
    reach = window // 2
    side_y, side_x = tile_sides(rows, columns, window)
    tops, lefts = np.arange(0, rows, side_y), np.arange(0, columns, side_x)
    margin_y = 0 if rows == 1 else reach

    def positions(height: int, width: int, border_y: int, border_x: int) -> tuple[Any, Any, Any]:
        """Rows, columns and existence of the points of each tile grown by a border, all ``(T, points)``."""
        y = (tops[:, None] + np.arange(-border_y, height + border_y))[:, None, :, None]
        x = (lefts[:, None] + np.arange(-border_x, width + border_x))[None, :, None, :]
        y, x = np.broadcast_arrays(y, x)
        y, x = (part.reshape(len(tops) * len(lefts), -1) for part in (y, x))
        return y, x, (y >= 0) & (y < rows) & (x >= 0) & (x < columns)

    qy, qx, q_exists = positions(side_y, side_x, 0, 0)
    ky, kx, k_exists = positions(side_y, side_x, margin_y, reach)
    near = (abs(qy[:, :, None] - ky[:, None]) <= reach) & (abs(qx[:, :, None] - kx[:, None]) <= reach)
    near = near & k_exists[:, None] | ~q_exists[:, :, None]  # no row is empty, so no row is 0 / 0
    queries = np.where(q_exists, first + qy * columns + qx, 0)
    keys = np.where(k_exists, first + ky * columns + kx, 0)
    outside = np.r_[0:first, tokens - last : tokens]
    keys = np.concatenate([np.broadcast_to(outside, (len(keys), len(outside))), keys], axis=1)
    near = np.concatenate([np.ones((*near.shape[:2], len(outside)), dtype=bool), near], axis=2)
    back = np.empty(rows * columns, dtype=np.int64)
    back[(queries - first)[q_exists]] = np.flatnonzero(q_exists)
    return Plan(queries, keys, near, _as_bias(near), back)


def _as_bias(near: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    return np.where(near, np.float32(0), np.float32("-inf"))


def tile_sides(rows: int, columns: int, window: int) -> tuple[int, int]:
    """Return the sides of a tile; the fastest of 2 to 12 on grids and 16 to 128 on rows, for windows of 3 to 31."""
    if rows == 1:
        return 1, min(columns, max(32, window))
    side = max(4, window // 2)
    return min(rows, side), min(columns, side)


def tiled_pairs(tokens: int, layout: TokenLayout | None, window: int) -> int:
    """Return how many (query, key) pairs the tiles and the global queries compute."""
    first, (rows, columns), last = split_layout(tokens, layout)
    side_y, side_x = tile_sides(rows, columns, window)
    tiles = -(-rows // side_y) * -(-columns // side_x)
    keys = (side_y + (0 if rows == 1 else window - 1)) * (side_x + window - 1) + first + last
    return tiles * side_y * side_x * keys + (first + last) * tokens


def use_tiles(tokens: int, layout: TokenLayout | None, window: int) -> bool:
    """Whether tiles compute at most a third of all pairs: gathering keys and values costs about the rest."""
    return 3 * tiled_pairs(tokens, layout, window) <= tokens * tokens


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    layout: TokenLayout | None = None,
    mask: AttentionMask | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend within windows, tile by tile.

    Args:
        q: ``(B, H, N, D)``.
        k: ``(B, H, N, D)``.
        v: ``(B, H, N, Dv)``.
        window: width of the window, odd.
        layout: where the tokens come from; None = one sequence.
        mask: further restrictions, without a predicate.
        scale: factor on q.k; None = ``D ** -0.5``.

    Returns:
        ``(B, H, N, Dv)``.
    """
    heads, n = static_shape(q)[1:3]
    first, _, last = split_layout(n, layout)
    plan = tile_plan(n, layout, window)
    queries, keys = constant(plan.queries, q), constant(plan.keys, q)
    # Tiles take the place of heads, and heads join the batch, so that the fused kernel sees four axes.
    tiled = [_gather(x, index) for x, index in ((q, queries), (k, keys), (v, keys))]
    if mask is None:
        tiles = softmax_attention(*tiled, bias=constant(plan.bias, q)[None], scale=scale)
    else:
        allowed = constant(plan.near, q) & _allowed(mask, queries[:, :, None], keys[:, None, :])
        padded = mask.key_valid is not None or mask.query_valid is not None
        allowed = allowed.repeat_interleave(heads if padded else 1, dim=0)
        tiles = softmax_attention(*tiled, mask=allowed, scale=scale)
    slots, value_dim = plan.queries.size, static_shape(v)[-1]
    local = tiles.reshape(-1, heads, slots, value_dim).index_select(2, constant(plan.back, q))
    if first + last == 0:
        return local
    outside = constant(np.r_[0:first, n - last : n], q)
    everywhere = torch.arange(n, device=q.device)
    rows = None if mask is None else _allowed(mask, outside[None, :, None], everywhere[None, None, :])
    seen_all = softmax_attention(q.index_select(2, outside), k, v, mask=rows, scale=scale)
    return torch.cat([seen_all[:, :, :first], local, seen_all[:, :, first:]], dim=2)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Return ``(B * H, T, P, D)``: the tokens at the ``(T, P)`` positions."""
    return x.index_select(2, index.flatten()).reshape(-1, *static_shape(index), static_shape(x)[-1])


def _allowed(mask: AttentionMask, i: Tensor, j: Tensor) -> Tensor:
    """Return which pairs of positions `mask` allows, ``(1 or B, T, Q, K)``, for i ``(T, Q, 1)`` and j ``(T, 1, K)``."""
    out = ((i >= 0) & (j >= 0))[None]
    if mask.causal:
        out = out & (j <= i)
    if mask.window is not None:
        out = out & (j >= i - mask.window[0]) & (j <= i + mask.window[1])
    if mask.key_valid is not None:
        out = out & mask.key_valid[:, j]
    if mask.query_valid is not None:
        out = out & mask.query_valid[:, i]
    return out


class WindowAttention(AttentionCore):
    """Local softmax attention on a sequence or a patch grid."""

    options_model = WindowOptions
    options: WindowOptions
    examples = (Example(name="default"), Example({"window": 3}, name="narrow"))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> AttentionResult:
        """Attend; see :class:`nasdistill.interfaces.AttentionCore`.

        The layout is the context's, else the geometry's; without one the tokens are one sequence.
        """
        refuse_undeclared(self.id, TAGS["window"], q, k, ctx)
        k, v = repeat_heads(q, k, v)
        n, window = static_shape(q)[-2], self.options.window
        layout, mask = ctx.layout or self.geometry.layout, ctx.mask
        own_rules = ctx.bias is not None or ctx.need_map or (mask is not None and mask.predicate is not None)
        if not own_rules and use_tiles(n, layout, window):
            return AttentionResult(window_attention(q, k, v, window=window, layout=layout, mask=mask, scale=ctx.scale))
        dense = None if mask is None else mask.dense(n, n, q.device)
        if dense is None and ctx.bias is None and not ctx.need_map:
            bias = constant(near_bias(n, layout, window), q)[None, None]
            return AttentionResult(softmax_attention(q, k, v, bias=bias, scale=ctx.scale))
        near = constant(near_pattern(n, layout, window), q)[None, None]
        near = near if dense is None else near & dense
        if not ctx.need_map:
            return AttentionResult(softmax_attention(q, k, v, mask=near, bias=ctx.bias, scale=ctx.scale))
        weights, lse = softmax_map(q, k, mask=near, bias=ctx.bias, scale=ctx.scale)
        return AttentionResult(as_dtype(weights, v) @ v, lse=lse, map=weights)

    @classmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the cost of the form that runs for this length (N = M) and the geometry's layout."""
        window = parse_options(WindowOptions, options, where=cls.__name__).window
        layout = geometry.layout
        pairs = tiled_pairs(n, layout, window) if use_tiles(n, layout, window) else n * n
        d, dv, heads = geometry.head_dim, geometry.value_dim, geometry.heads
        return Cost(0, heads * pairs * (d + dv), heads * (pairs + n * dv))
