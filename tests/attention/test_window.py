"""Window attention: tiles equal a masked dense product, on rows and grids, with global tokens and every mask."""

from __future__ import annotations

import pytest
import torch

from nasdistill.errors import ConfigError
from nasdistill.interfaces import AttentionContext, AttentionGeometry, AttentionMask, TokenLayout
from nasdistill_attention.window import (
    WindowAttention,
    near_pattern,
    tile_plan,
    tiled_pairs,
    use_tiles,
    window_attention,
)


def made(*sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*size, dtype=dtype, generator=generator) for size in sizes]


def near_reference(n, layout, window):
    """Decide every pair of tokens by its coordinates."""
    reach = window // 2
    first = layout.prefix if layout else 0
    last = n - ((layout.text or 0) if layout else 0)
    columns = layout.grid[1] if layout and layout.grid else n
    out = torch.ones(n, n, dtype=torch.bool)
    for i in range(first, last):
        for j in range(first, last):
            (yi, xi), (yj, xj) = divmod(i - first, columns), divmod(j - first, columns)
            out[i, j] = abs(yi - yj) <= reach and abs(xi - xj) <= reach
    return out


def dense(q, k, v, allowed):
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~allowed, float("-inf"))
    return torch.nan_to_num(scores.softmax(-1)) @ v


LAYOUTS = [
    (1, None),
    (5, None),
    (33, None),
    (150, None),
    (70, TokenLayout(prefix=2)),
    (66, TokenLayout(grid=(8, 8), prefix=2)),
    (63, TokenLayout(grid=(7, 9))),
    (9, TokenLayout(grid=(1, 9))),
    (13, TokenLayout(grid=(13, 1))),
    (143, TokenLayout(grid=(11, 12), prefix=1, text=10)),
    (17, TokenLayout(grid=(4, 4), prefix=1)),
]


@pytest.mark.parametrize(("n", "layout"), LAYOUTS)
@pytest.mark.parametrize("window", [1, 3, 7, 41])
def test_tiles_equal_a_masked_product(n, layout, window):
    near = near_reference(n, layout, window)
    assert torch.equal(torch.from_numpy(near_pattern(n, layout, window)), near)
    q, k, v = made((2, 3, n, 4), (2, 3, n, 4), (2, 3, n, 5))
    out = window_attention(q, k, v, window=window, layout=layout)
    torch.testing.assert_close(out, dense(q, k, v, near))


@pytest.mark.parametrize(("n", "layout"), LAYOUTS)
@pytest.mark.parametrize(
    "conditions", ["causal", "window", "padding", "causal padding", "queries", "causal window padding queries"]
)
def test_tiles_take_every_mask_but_predicates(n, layout, conditions):
    generator = torch.Generator().manual_seed(1)
    key_valid, query_valid = (torch.rand(2, n, generator=generator) > 0.3 for _ in range(2))
    mask = AttentionMask(
        causal="causal" in conditions,
        window=(2, 1) if "window" in conditions else None,
        key_valid=key_valid if "padding" in conditions else None,
        query_valid=query_valid if "queries" in conditions else None,
    )
    q, k, v = made((2, 3, n, 4), (2, 3, n, 4), (2, 3, n, 5))
    out = window_attention(q, k, v, window=3, layout=layout, mask=mask)
    torch.testing.assert_close(out, dense(q, k, v, near_reference(n, layout, 3) & mask.dense(n, n)))


@pytest.mark.parametrize(("n", "layout"), LAYOUTS)
def test_the_core_agrees_whatever_form_it_takes(n, layout):
    core = WindowAttention({"window": 3}, geometry=AttentionGeometry(12, 3, 4, layout=layout))
    q, k, v, bias = made((2, 3, n, 4), (2, 3, n, 4), (2, 3, n, 5), (3, n, n))
    near = near_reference(n, layout, 3)
    torch.testing.assert_close(core(q, k, v, AttentionContext()).out, dense(q, k, v, near))
    parity = AttentionMask(causal=True, predicate=lambda i, j: (i - j) % 2 == 0)
    out = core(q, k, v, AttentionContext(mask=parity)).out
    torch.testing.assert_close(out, dense(q, k, v, near & parity.dense(n, n)))
    scores = (q @ k.transpose(-1, -2) * 0.5 + bias).masked_fill(~near, float("-inf"))
    torch.testing.assert_close(core(q, k, v, AttentionContext(bias=bias)).out, scores.softmax(-1) @ v)
    mapped = core(q, k, v, AttentionContext(need_map=True))
    assert (mapped.map[..., ~near] == 0).all()
    torch.testing.assert_close(mapped.map.sum(-1), torch.ones(2, 3, n, dtype=torch.float64))


def test_a_window_over_everything_is_softmax():
    q, k, v = made((1, 2, 49, 8), (1, 2, 49, 8), (1, 2, 49, 8))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    layout = TokenLayout(grid=(7, 7))
    torch.testing.assert_close(window_attention(q, k, v, window=13, layout=layout), expected)
    torch.testing.assert_close(window_attention(q, k, v, window=97), expected)


def test_the_context_overrides_the_geometry_in_layout():
    core = WindowAttention({"window": 3}, geometry=AttentionGeometry(8, 1, 8, layout=TokenLayout(grid=(4, 4))))
    q, k, v = made((1, 1, 16, 8), (1, 1, 16, 8), (1, 1, 16, 8))
    row = core(q, k, v, AttentionContext(layout=TokenLayout(grid=(1, 16)))).out
    torch.testing.assert_close(row, dense(q, k, v, near_reference(16, None, 3)))
    assert not torch.allclose(row, core(q, k, v, AttentionContext()).out)


def test_long_inputs_take_tiles_and_their_pairs_grow_linearly():
    assert not use_tiles(16, TokenLayout(grid=(4, 4)), 3)
    assert use_tiles(257, TokenLayout(grid=(16, 16), prefix=1), 3)
    assert use_tiles(512, None, 7)
    for layout, n in ((None, 512), (TokenLayout(grid=(32, 32)), 1024)):
        longer = TokenLayout(grid=(64, 64)) if layout else None
        assert tiled_pairs(4 * n, longer, 7) == pytest.approx(4 * tiled_pairs(n, layout, 7), rel=0.05)
        plan = tile_plan(n, layout, 7)
        assert plan.near.size == tiled_pairs(n, layout, 7)


def test_a_layout_that_does_not_fit_is_refused():
    q, k, v = made((1, 1, 16, 8), (1, 1, 16, 8), (1, 1, 16, 8))
    core = WindowAttention(geometry=AttentionGeometry(8, 1, 8, layout=TokenLayout(grid=(5, 5))))
    with pytest.raises(ValueError, match="16 tokens"):
        core(q, k, v, AttentionContext())
    with pytest.raises(ValueError, match="frames"):
        core(q, k, v, AttentionContext(layout=TokenLayout(grid=(4, 4), frames=1)))


@pytest.mark.parametrize("window", [0, -3, 4])
def test_the_window_is_odd_and_positive(window):
    with pytest.raises(ConfigError, match="window"):
        WindowAttention({"window": window}, geometry=AttentionGeometry(8, 1, 8))
