"""Masks as data: the dense, block, interval and counting forms say the same as a loop over all pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.interfaces import AttentionMask


def loop(mask: AttentionMask, n: int, m: int, batch: int) -> torch.Tensor:
    """Decide every pair on its own, as the class's docstring says."""
    out = torch.zeros(batch, n, m, dtype=torch.bool)
    for b in range(batch):
        for row in range(n):
            i = row + m - n
            for j in range(m):
                allowed = not (mask.causal and j > i)
                if mask.window is not None:
                    allowed = allowed and i - mask.window[0] <= j <= i + mask.window[1]
                if mask.key_valid is not None:
                    allowed = allowed and bool(mask.key_valid[b, j])
                if mask.query_valid is not None:
                    allowed = allowed and bool(mask.query_valid[b, row])
                if mask.predicate is not None:
                    allowed = allowed and bool(mask.predicate(torch.tensor([[i]]), torch.tensor([[j]]))[0, 0])
                out[b, row, j] = allowed
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[AttentionMask, int, int, int]:
    n, m, batch = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(1, 3))

    def valid(length: int) -> torch.Tensor | None:
        if not draw(st.booleans()):
            return None
        rows = st.lists(st.booleans(), min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(rows, min_size=batch, max_size=batch)))

    reach = st.integers(0, 4)
    mask = AttentionMask(
        causal=draw(st.booleans()),
        window=draw(st.none() | st.tuples(reach, reach)),
        key_valid=valid(m),
        query_valid=valid(n),
        predicate=draw(st.sampled_from([None, lambda i, j: (i + j) % 2 == 0, lambda i, j: i // 2 == j // 2])),
    )
    return mask, n, m, batch


@settings(max_examples=60, deadline=None)
@given(cases())
def test_dense_agrees_with_a_loop_over_pairs(case):
    mask, n, m, batch = case
    truth = loop(mask, n, m, batch)
    dense = mask.dense(n, m)
    dense = torch.ones(1, 1, n, m, dtype=torch.bool) if dense is None else dense
    assert dense.ndim == 4
    assert dense.shape[1:] == (1, n, m)
    assert torch.equal(dense[:, 0].expand(batch, n, m), truth)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_pairs_counts_the_dense_mask(case):
    mask, n, m, batch = case
    assert mask.pairs(n, m) == pytest.approx(float(loop(mask, n, m, batch).sum()) / batch)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 4), st.integers(1, 4))
def test_blocks_summarise_the_dense_mask(case, block_q, block_k):
    mask, n, m, batch = case
    truth = loop(mask, n, m, batch)
    blocks = mask.blocks(n, m, block_q, block_k)
    assert blocks.shape[1:] == (-(-n // block_q), -(-m // block_k))
    for b in range(batch):
        for r in range(blocks.shape[1]):
            for c in range(blocks.shape[2]):
                tile = truth[b, r * block_q : (r + 1) * block_q, c * block_k : (c + 1) * block_k]
                expected = 2 if tile.all() else int(tile.any())
                assert blocks[min(b, blocks.shape[0] - 1), r, c] == expected


@settings(max_examples=60, deadline=None)
@given(cases())
def test_intervals_are_the_run_of_keys_or_are_refused(case):
    mask, n, m, batch = case
    truth = loop(mask, n, m, batch)
    runs = []
    for row in truth.reshape(-1, m):
        keys = row.nonzero().flatten().tolist()
        runs.append(None if keys and keys != list(range(keys[0], keys[-1] + 1)) else keys)
    if any(run is None for run in runs):
        with pytest.raises(ValueError, match="one run"):
            mask.intervals(n, m)
        return
    intervals = mask.intervals(n, m).expand(batch, n, 2).reshape(-1, 2)
    for (start, stop), keys in zip(intervals.tolist(), runs, strict=True):
        assert list(range(start, stop)) == keys


def test_no_condition_is_no_mask():
    assert AttentionMask().dense(3, 4) is None
    assert AttentionMask().pattern(3, 4) is None
    assert AttentionMask().pairs(3, 4) == 12


def test_causal_is_aligned_at_the_end():
    assert AttentionMask(causal=True).dense(2, 4)[0, 0].tolist() == [[True, True, True, False], [True] * 4]
    assert AttentionMask(causal=True).pairs(8, 8) == 36


def test_predicate_gets_aligned_positions():
    seen = {}

    def predicate(i, j):
        seen["i"], seen["j"] = i, j
        return i >= j

    AttentionMask(predicate=predicate).dense(2, 5)
    assert seen["i"].flatten().tolist() == [3, 4]
    assert seen["i"].shape == (2, 1)
    assert seen["j"].shape == (1, 5)
