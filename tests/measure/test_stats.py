"""Statistics against known answers and simulated noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.measure import block_length, drift, median_interval, paired_ratios, quantiles
from nasdistill.measure.stats import reference_weights


def autoregression(rho: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) noise with unit variance."""
    steps = rng.standard_normal(n + 60)
    series = np.zeros(n + 60)
    for i in range(1, n + 60):
        series[i] = rho * series[i - 1] + math.sqrt(1 - rho * rho) * steps[i]
    return series[60:]


def test_quantiles_are_in_milliseconds():
    found = quantiles([1e6, 2e6, 3e6, 4e6, 5e6])
    assert (found.n, found.minimum, found.p50) == (5, 1.0, 3.0)
    assert found.p90 == pytest.approx(4.6)
    assert found.cv == pytest.approx(math.sqrt(2) / 3)


def test_paired_ratios_use_the_geometric_mean_of_the_same_round():
    assert paired_ratios([8.0, 12.0], [[2.0, 3.0], [8.0, 12.0]]) == pytest.approx([2.0, 2.0])
    assert paired_ratios([8.0], [[2.0], [8.0]], [3.0, 1.0]) == pytest.approx([8 / 2 ** (3 / 4) / 8 ** (1 / 4)])


def test_references_of_like_duration_count_most():
    weights = reference_weights(10.0, [10.0, 100.0, 1000.0])
    assert sum(weights) == pytest.approx(1)
    assert weights[0] > 0.7
    assert weights[0] > weights[1] > weights[2] > 0
    assert reference_weights(7.0, [3.0]) == [1.0]


def test_the_median_is_the_value_and_the_seed_fixes_the_interval():
    values = np.random.default_rng(0).normal(10, 1, 51)
    first = median_interval(values, seed=3)
    assert first.value == np.median(values)
    assert first.low < first.value < first.high
    assert median_interval(values, seed=3) == first
    assert len({median_interval(values, seed=seed) for seed in range(10)}) > 1
    assert median_interval([7.0]) == median_interval([7.0, 7.0, 7.0])
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


def test_errors_add_in_quadrature():
    found = median_interval([1.0]).widened(0.3).widened(0.4).scaled(2.0)
    assert (found.value, found.high) == (2.0, pytest.approx(2 * math.exp(0.5)))
    assert found.low == pytest.approx(2 * math.exp(-0.5))


def test_a_higher_confidence_is_wider():
    values = np.random.default_rng(1).normal(10, 1, 60)
    assert median_interval(values, confidence=0.99).half_width > median_interval(values, confidence=0.8).half_width


def test_a_single_outlier_does_not_matter():
    values = np.random.default_rng(2).normal(10, 0.1, 60)
    spoiled = values.copy()
    spoiled[30] = 1e6
    assert median_interval(spoiled).relative_width < 2 * median_interval(values).relative_width


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_coverage_of_the_interval_under_autocorrelated_noise(rho):
    rng = np.random.default_rng(11)
    hits, repetitions = 0, 200
    for i in range(repetitions):
        # Log-normal noise around 1 (median 1), as timings have it.
        found = median_interval(np.exp(0.1 * autoregression(rho, 80, rng)), seed=i, resamples=300)
        hits += found.low <= 1.0 <= found.high
    assert 0.80 <= hits / repetitions <= 0.99


def test_blocks_are_what_saves_the_coverage():
    rng = np.random.default_rng(12)
    with_blocks = without = 0
    for i in range(100):
        values = np.exp(0.1 * autoregression(0.8, 100, rng))
        one, other = (median_interval(values, seed=i, resamples=300, block=b) for b in (None, 1))
        with_blocks += one.low <= 1.0 <= one.high
        without += other.low <= 1.0 <= other.high
    assert with_blocks >= without + 20


def test_block_length_follows_the_dependence():
    rng = np.random.default_rng(5)
    independent = np.mean([block_length(rng.standard_normal(200)) for _ in range(30)])
    dependent = np.mean([block_length(autoregression(0.8, 200, rng)) for _ in range(30)])
    assert independent < 3 < 10 < dependent <= 40
    assert block_length([1.0] * 50) == 1
    assert block_length([1.0, 2.0]) == 1


def test_drift_compares_the_halves():
    assert drift([1.0] * 10 + [1.1] * 10) == pytest.approx(0.1 / 1.05)
    assert drift([2.0] * 20) == 0.0
    assert drift([1.0, 9.0]) == 0.0
    rng = np.random.default_rng(3)
    alarms = sum(drift(np.exp(0.1 * rng.standard_normal(60))) != 0 for _ in range(200))
    assert alarms <= 10
    found = sum(drift(np.exp(0.1 * rng.standard_normal(60)) + np.linspace(0, 0.5, 60)) > 0 for _ in range(100))
    assert found >= 90


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=60), st.floats(0.1, 100))
def test_intervals_hold_the_value_and_scale(values, factor):
    found = median_interval(values, resamples=50)
    assert found.low <= found.value <= found.high
    scaled = median_interval([value * factor for value in values], resamples=50)
    assert scaled.value == pytest.approx(found.value * factor)
    assert scaled.low == pytest.approx(found.low * factor, rel=1e-6, abs=1e-6 * factor * found.value)
