"""Order, padding and random draws: functions of what they say, and of nothing else."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill_tasks.text_batches import GRAIN, bucketed, mask_of, padded, uniform


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=300), st.integers(0, 3), st.integers(0, 3))
def test_every_sample_once_and_the_same_again(lengths, seed, epoch):
    order = bucketed(np.array(lengths), seed, "train", epoch)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    torch.manual_seed(seed + 17)
    assert np.array_equal(order, bucketed(np.array(lengths), seed, "train", epoch))


def fill(lengths, order, size):
    batches = [lengths[order[i : i + size]] for i in range(0, len(order), size)]
    return lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


def test_similar_lengths_share_a_batch_and_orders_differ():
    lengths = np.random.default_rng(0).geometric(0.05, 5000).clip(1, 128)
    orders = [bucketed(lengths, 0, "train", epoch) for epoch in range(4)]
    shuffled = fill(lengths, np.random.default_rng(1).permutation(5000), 32)
    for size in (8, 16, 32, 64):
        assert fill(lengths, orders[0], size) > 0.85 > 0.5 > shuffled
    assert len({order.tobytes() for order in orders}) == 4
    assert not np.array_equal(orders[0], bucketed(lengths, 1, "train", 0))
    # Short and long batches come in no order, and neighbours change from pass to pass.
    means = lengths[orders[0][: 5000 // GRAIN * GRAIN]].reshape(-1, 32).mean(1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    assert abs(np.corrcoef(means[0::2], means[1::2])[0, 1]) > 0.9  # both halves of a grain
    together = [{frozenset(order[i : i + 32].tolist()) for i in range(0, 4992, 32)} for order in orders[:2]]
    assert not together[0] & together[1]


def test_padding():
    rows = [np.array([5, 6, 7], dtype=np.uint16), np.array([9], dtype=np.uint16)]
    ids = padded(rows, 1)
    assert ids.tolist() == [[5, 6, 7], [9, 1, 1]]
    assert ids.dtype == torch.int64
    assert mask_of(rows, 3).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert padded(rows, 0, multiple=8).shape == (2, 8)
    assert padded(rows, 0, least=5).shape == (2, 5)


def test_draws_belong_to_sample_and_position():
    whole = uniform(7, np.arange(500), 64)
    assert whole.min() >= 0
    assert whole.max() < 1
    assert np.array_equal(uniform(7, np.array([3, 1]), 10), whole[[3, 1], :10])
    assert abs(whole.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(whole[:-1].ravel(), whole[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(whole[:, :-1].ravel(), whole[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(whole.ravel(), uniform(8, np.arange(500), 64).ravel())[0, 1]) < 0.02
    counts, _ = np.histogram(whole, bins=16, range=(0, 1))
    assert counts.min() > 0.9 * whole.size / 16
