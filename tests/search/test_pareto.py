"""Sorting, crowding and hypervolume against brute force."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.search.pareto import crowding, dominates, fronts, hypervolume, non_dominated, rank_order

points = st.lists(
    st.tuples(*[st.integers(0, 6).map(float)] * 2) | st.tuples(*[st.integers(0, 6).map(float)] * 2), max_size=12
)
points3 = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), max_size=8)


@given(points)
def test_the_front_is_exactly_what_nothing_dominates(rows):
    kept = set(non_dominated(rows))
    for i, row in enumerate(rows):
        beaten = any(
            all(a <= b for a, b in zip(other, row, strict=True)) and any(a < b for a, b in zip(other, row, strict=True))
            for other in rows
        )
        assert (i in kept) == (not beaten)


@given(points)
def test_fronts_partition_and_order_the_rows(rows):
    layers = fronts(rows)
    assert sorted(i for layer in layers for i in layer) == list(range(len(rows)))
    for earlier, later in zip(layers, layers[1:], strict=False):
        assert all(any(dominates(rows[i], rows[j]) for i in earlier) for j in later)
    assert sorted(rank_order(rows)) == list(range(len(rows)))
    level = {i: depth for depth, layer in enumerate(layers) for i in layer}
    order = rank_order(rows)
    assert [level[i] for i in order] == sorted(level[i] for i in order)


def test_extremes_are_never_crowded():
    rows = [(0.0, 4.0), (1.0, 2.0), (2.0, 1.5), (4.0, 0.0)]
    distance = crowding(rows)
    assert distance[0] == distance[3] == math.inf
    assert distance[1] == pytest.approx(2 / 4 + 2.5 / 4)
    assert distance[2] == pytest.approx(3 / 4 + 2 / 4)


@given(points)
@settings(max_examples=60)
def test_hypervolume_counts_unit_cells(rows):
    """On an integer grid the volume is the number of dominated unit cells."""
    reference = (6.0, 6.0)
    cells = sum(any(x <= cx and y <= cy for x, y in rows) for cx in range(6) for cy in range(6))
    assert hypervolume(rows, reference) == pytest.approx(cells)


@given(points3)
@settings(max_examples=60)
def test_hypervolume_in_three_dimensions(rows):
    reference = (4.0, 4.0, 4.0)
    span = range(4)
    cells = sum(any(x <= a and y <= b and z <= c for x, y, z in rows) for a in span for b in span for c in span)
    assert hypervolume(rows, reference) == pytest.approx(cells)


@given(points, st.randoms(use_true_random=False))
def test_hypervolume_ignores_order_duplicates_and_dominated_points(rows, rng: random.Random):
    reference = (6.5, 6.5)
    shuffled = [*rows, *rows]
    rng.shuffle(shuffled)
    front = [rows[i] for i in non_dominated(rows)]
    assert hypervolume(shuffled, reference) == pytest.approx(hypervolume(rows, reference))
    assert hypervolume(front, reference) == pytest.approx(hypervolume(rows, reference))


def test_points_outside_the_reference_or_infinite_add_nothing():
    assert hypervolume([(2.0, 0.0), (0.0, math.inf)], (1.0, 1.0)) == 0.0
    assert hypervolume([], (1.0, 1.0)) == 0.0


@given(points)
def test_pairs_have_the_fronts_that_peeling_finds(rows):
    """Two objectives have a faster way; a third one that is the same for all takes the other."""
    assert fronts(rows) == fronts([(*row, 0.0) for row in rows])
    assert fronts([(math.inf, 1.0), *rows]) == fronts([(math.inf, 1.0, 0.0), *((*row, 0.0) for row in rows)])
