"""Rank correlations, their intervals, and the regret of choosing by a score."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasdistill.measure.rank import (
    _resampled,
    correlation,
    kendall,
    log_rank_sum,
    partial_spearman,
    ranks,
    spearman,
    top_k_regret,
)

numbers = st.lists(st.one_of(st.none(), st.integers(-5, 5).map(float)), min_size=3, max_size=12)


def naive_kendall(x, y):
    pairs = list(itertools.combinations(range(len(x)), 2))
    sign = lambda a, b: (a > b) - (a < b)  # noqa: E731
    total = sum(sign(x[i], x[j]) * sign(y[i], y[j]) for i, j in pairs)
    untied = [sum(1 for i, j in pairs if v[i] != v[j]) for v in (x, y)]
    return total / math.sqrt(untied[0] * untied[1]) if all(untied) else None


def naive_gamma(x, y):
    signs = [(x[i] - x[j]) * (y[i] - y[j]) for i, j in itertools.combinations(range(len(x)), 2)]
    concordant, discordant = sum(s > 0 for s in signs), sum(s < 0 for s in signs)
    return (concordant - discordant) / (concordant + discordant)


def test_known_values():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert kendall([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)


@given(numbers, st.randoms(use_true_random=False))
def test_kendall_equals_the_count_of_pairs(scores, rng):
    truth = [rng.randint(0, 6) / 2 for _ in scores]
    filled = [-math.inf if score is None else score for score in scores]
    expected = naive_kendall(filled, truth) if sum(math.isfinite(x) for x in filled) >= 3 else None
    found = kendall(scores, truth)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == pytest.approx(expected, abs=1e-12)


@given(numbers)
def test_a_missing_score_ranks_behind_every_other(scores):
    found = ranks(scores)
    worst_number = max((r for r, s in zip(found, scores, strict=True) if s is not None), default=0)
    assert all(r > worst_number for r, s in zip(found, scores, strict=True) if s is None)
    assert sum(found) == pytest.approx(len(scores) * (len(scores) + 1) / 2)
    assert [len(scores) + 1 - r for r in found] == pytest.approx(ranks(scores, best_first=False))


def test_nan_counts_as_missing():
    assert ranks([1.0, math.nan, 2.0]) == [2.0, 3.0, 1.0]
    assert spearman([1, math.nan, 2, 3], [2, 1, 3, 4]) == pytest.approx(1.0)


def test_partial_correlation_removes_what_a_third_column_explains():
    rng = random.Random(0)
    size = [rng.gauss(0, 1) for _ in range(3000)]
    truth = [s + rng.gauss(0, 1) for s in size]
    copy = [s + rng.gauss(0, 1) for s in size]  # knows the size, and nothing else
    more = [t + rng.gauss(0, 1) for t in truth]
    assert spearman(copy, truth) > 0.4
    assert abs(partial_spearman(copy, truth, size)) < 0.06
    assert partial_spearman(more, truth, size) > 0.5
    assert partial_spearman(size, truth, size) is None
    assert partial_spearman(truth, truth, copy) == pytest.approx(1.0)
    # Ranks of the residuals' correlation by hand: (r12 - r13 r23) / sqrt((1 - r13^2) (1 - r23^2))
    a, b, c = [1, 2, 3, 4], [1, 3, 2, 4], [2, 1, 3, 4]
    assert partial_spearman(a, b, c) == pytest.approx((0.8 - 0.8 * 0.4) / math.sqrt((1 - 0.64) * (1 - 0.16)))
    assert partial_spearman([1, 9, 2, 3, 4], [1, None, 3, 2, 4], [2, 0, 1, 3, 4]) == pytest.approx(
        partial_spearman(a, b, c)
    )


def test_a_missing_truth_leaves_the_comparison():
    assert spearman([1, 9, 2, 3], [1, None, 2, 3]) == pytest.approx(1.0)
    assert correlation("kendall", [1, 9, 2, 3], [1, None, 2, 3]).n == 3


@pytest.mark.parametrize("column", [[1, 2], [1, 1, 1], [None, None, None], [1, 2, None, None]])
def test_undefined_correlations_are_none(column):
    truth = list(range(len(column)))
    assert spearman(column, truth) is None
    assert kendall(column, truth) is None
    assert correlation("spearman", column, truth) is None
    assert spearman(truth, [1] * len(truth)) is None


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="3 scores for 2"):
        spearman([1, 2, 3], [1, 2])


def test_intervals_hold_the_value_shrink_with_n_and_repeat():
    rng = random.Random(0)

    def sample(n):
        truth = [rng.random() for _ in range(n)]
        return [t + 0.3 * rng.random() for t in truth], truth

    small, large = sample(15), sample(200)
    for kind in ("spearman", "kendall"):
        first, second = (correlation(kind, *data, resamples=300) for data in (small, large))
        assert first.low <= first.value <= first.high
        assert second.high - second.low < first.high - first.low
        assert first == correlation(kind, *small, resamples=300)
        assert first.n == 15


@pytest.mark.parametrize("kind", ["spearman", "kendall"])
def test_resampling_by_counts_equals_resampling_by_index(kind):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
    x[3] = -np.inf
    counts = rng.multinomial(12, np.full(12, 1 / 12), size=40).astype(float)
    counts[0] = 0
    counts[0, 5] = 12  # one candidate twelve times has no correlation
    found = _resampled(kind, x, y, counts)
    for row, value in zip(counts, found, strict=True):
        index = np.repeat(np.arange(12), row.astype(int))
        expected = {"spearman": spearman, "kendall": kendall}[kind](x[index].tolist(), y[index].tolist())
        assert np.isnan(value) if expected is None else value == pytest.approx(expected, abs=1e-12)


def test_the_interval_covers_the_truth():
    """Of 60 samples from one population nearly all 95 % intervals must hold its correlation (about .83)."""
    rng = random.Random(1)
    population = [(t := rng.gauss(0, 1), t + 0.6 * rng.gauss(0, 1)) for _ in range(20_000)]
    true = spearman(*zip(*population, strict=True))
    hits = 0
    for trial in range(60):
        drawn = rng.sample(population, 40)
        found = correlation("spearman", *zip(*drawn, strict=True), resamples=200, seed=trial)
        hits += found.low <= true <= found.high
    assert hits >= 50


def test_regret():
    truth = [0.9, 0.8, 0.7, 0.6]
    assert top_k_regret([4, 3, 2, 1], truth, k=1) == 0.0
    assert top_k_regret([1, 2, 3, 4], truth, k=3) == pytest.approx(0.1)
    assert top_k_regret([1, 2, 3, 4], truth, k=9) == 0.0
    assert top_k_regret([None, 1, 2, 3], truth, k=3) == pytest.approx(0.1)
    assert top_k_regret([], []) is None
    with pytest.raises(ValueError, match="k"):
        top_k_regret([1], [1], k=0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=7), st.integers(1, 4))
def test_regret_with_ties_is_the_mean_over_all_choices(pairs, k):
    scores, truth = [float(s) for s, _ in pairs], [float(t) for _, t in pairs]
    k_now = min(k, len(pairs))
    results = []
    for chosen in itertools.combinations(range(len(pairs)), k_now):
        rest = [i for i in range(len(pairs)) if i not in chosen]
        if all(scores[c] >= scores[r] for c in chosen for r in rest):
            results.append(max(truth) - max(truth[c] for c in chosen))
    assert top_k_regret(scores, truth, k) == pytest.approx(sum(results) / len(results), abs=1e-9)


def test_log_rank_sum_is_at_most_zero():
    assert log_rank_sum([]) == []
    assert log_rank_sum([[1.0, None], [2.0, 5.0]]) == pytest.approx([2 * math.log(1 / 2), 0.0])


# ---- published table -----------------------------------------------------------------------------------------------


@pytest.mark.data
def test_statistics_of_the_published_table(data_folder):
    """The 64 CIFAR-100 ResNets of DisWOT (arXiv:2303.15678): size against accuracy, alone and distilled."""

    def read(name):
        lines = (data_folder / "diswot_s0" / name).read_text().split("\n")
        return {line.split()[0]: float(line.split()[1]) for line in lines if line.strip()}

    vanilla, kd = read("vanilla.txt"), read("kd.txt")
    names = sorted(kd)
    assert names == sorted(vanilla)
    assert len(names) == 64
    assert max(vanilla, key=vanilla.get) == "777"
    assert max(kd, key=kd.get) == "557"

    def params(name):
        a, b, c = map(int, name)
        total = 3 * 16 * 9 + 32 + 64 * 100 + 100
        for blocks, width, before in ((a, 16, 16), (b, 32, 16), (c, 64, 32)):
            total += blocks * (18 * width * width + 4 * width)
            if before != width:  # the first block reads the narrower map and has a 1 x 1 shortcut with its norm
                total += 9 * (before - width) * width + before * width + 2 * width
        return total

    truth = [kd[n] for n in names]
    columns = {
        "vanilla": [vanilla[n] for n in names],
        "params": [params(n) for n in names],
        "depth": [sum(map(int, n)) for n in names],
    }
    # (Kendall's tau-b, Spearman, and the share of concordant minus discordant among the pairs without ties)
    expected = {"vanilla": (0.836, 0.957, 0.837), "params": (0.873, 0.968, 0.874), "depth": (0.657, 0.814, 0.705)}
    for name, (tau, rho, gamma) in expected.items():
        assert kendall(columns[name], truth) == pytest.approx(tau, abs=0.0005)
        assert spearman(columns[name], truth) == pytest.approx(rho, abs=0.0005)
        assert naive_gamma(columns[name], truth) == pytest.approx(gamma, abs=0.0005)
    # The best three alone are 777, 377 and 577; the best of them with a teacher is 577.
    assert top_k_regret(columns["vanilla"], truth, k=3) == pytest.approx(74.86 - 74.53)
    assert top_k_regret(columns["vanilla"], truth, k=1) == pytest.approx(74.86 - 74.44)
