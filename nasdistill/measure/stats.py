"""Statistics of noisy timings: medians of paired ratios, and intervals that survive autocorrelated noise.

Timings on a shared machine are not independent: a neighbour or a clock change slows many neighbouring samples alike.
An ordinary bootstrap draws samples one by one, forgets that, and reports intervals that are too narrow. The moving
*block* bootstrap draws runs of consecutive samples, so that dependence inside a run is kept. The length of the runs
follows from the autocorrelation found in the data, by the rule that is optimal for a first-order autoregression
(Andrews, "Heteroskedasticity and autocorrelation consistent covariance matrix estimation", Econometrica 1991).
For a median what matters is the autocorrelation of the *signs* of the deviations; for Gaussian noise the two are linked
by the arcsine law, rho = sin(pi/2 * rho_sign).

Cost: ``resamples`` medians of n values, about 3 ms for n = 200 and 500 resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nasdistill.spec.measurement import Quantiles

Samples = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval: ``low <= value <= high``."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's length, in the unit of the value."""
        return (self.high - self.low) / 2

    @property
    def relative_width(self) -> float:
        """Half width as a share of the value; infinite for a value of 0."""
        return self.half_width / abs(self.value) if self.value else math.inf

    def widened(self, share: float) -> Interval:
        """Return the interval with an independent relative error of `share` added in quadrature (on a log scale)."""
        up, down = math.log(self.high / self.value), math.log(self.value / self.low)
        return Interval(
            self.value, self.value * math.exp(-math.hypot(down, share)), self.value * math.exp(math.hypot(up, share))
        )

    def scaled(self, factor: float) -> Interval:
        """Return the interval times a positive factor."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


def quantiles(nanoseconds: Samples) -> Quantiles:
    """Summarise raw timings.

    Args:
        nanoseconds: ``(n,)`` timings of one call each, n >= 1.

    Returns:
        The summary in milliseconds; `cv` is standard deviation / mean.
    """
    values = np.asarray(nanoseconds, dtype=np.float64) / 1e6
    low, p10, p50, p90, p99 = (float(q) for q in np.quantile(values, (0.0, 0.1, 0.5, 0.9, 0.99)))
    mean = float(values.mean())
    return Quantiles(
        n=len(values), minimum=low, p10=p10, p50=p50, p90=p90, p99=p99, cv=float(values.std()) / mean if mean else 0.0
    )


def paired_ratios(
    samples: Samples, references: Sequence[Samples], weights: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """Return ``(n,)`` ratios of each sample to the geometric mean of the references' samples of the same round.

    Args:
        samples: ``(n,)`` timings.
        references: one or more ``(n,)`` timings, taken in the same rounds; all positive.
        weights: of the references in the mean, positive; None weighs them equally.
    """
    logs = [np.log(np.asarray(reference, dtype=np.float64)) for reference in references]
    mean = np.average(logs, axis=0, weights=weights)
    ratios: NDArray[np.float64] = np.exp(np.log(np.asarray(samples, dtype=np.float64)) - mean)
    return ratios


def reference_weights(time: float, references: Sequence[float]) -> list[float]:
    """Return how much each reference counts for a network that takes `time`: ``w ~ 1 / (1 + ln(time / reference)^2)``.

    A busy neighbour slows short networks, which are mostly calls and instruction fetches, more than long ones, which
    are mostly arithmetic (1.8 against 1.2 times, say). References of like duration are slowed alike.

    Args:
        time: median time of the network, positive.
        references: median times of the references, in the same unit.

    Returns:
        Weights that sum to 1.
    """
    raw = [1 / (1 + math.log(time / reference) ** 2) for reference in references]
    return [weight / sum(raw) for weight in raw]


def sign_autocorrelation(values: Samples) -> float:
    """Return an estimate in [0, 0.9] of the lag-1 autocorrelation of Gaussian noise behind `values`.

    Computed from the signs of the deviations from the median, so single outliers do not matter, and corrected for the
    downward bias of about 1/n that short series have. Negative correlation is reported as 0: it only narrows intervals.
    """
    series = np.asarray(values, dtype=np.float64)
    if len(series) < 8:
        return 0.0
    signs = np.sign(series - np.median(series))
    norm = float(np.dot(signs, signs))
    if norm == 0.0:
        return 0.0
    raw = float(np.dot(signs[1:], signs[:-1])) / norm
    rho = math.sin(math.pi / 2 * min(1.0, max(-1.0, raw))) + 1.5 / len(series)
    return min(0.9, max(0.0, rho))


def block_length(values: Samples) -> int:
    """Return the block length for :func:`median_interval`: 1 for independent samples, at most a fifth of the series.

    ``l = (6^(1/2) * rho / (1 - rho^2))^(2/3) * n^(1/3)``, the optimum for an AR(1) process with autocorrelation rho.
    """
    n = len(values)
    rho = sign_autocorrelation(values)
    length = math.pow(math.sqrt(6) * rho / (1 - rho * rho), 2 / 3) * math.pow(n, 1 / 3)
    return max(1, min(math.ceil(length), n // 5))


def median_interval(
    values: Samples, *, confidence: float = 0.95, seed: int = 0, resamples: int = 1000, block: int | None = None
) -> Interval:
    """Return the median with its moving-block bootstrap interval.

    Args:
        values: ``(n,)`` samples in the order in which they were taken, n >= 1.
        confidence: level of the interval, in (0, 1).
        seed: of the resampling; the same samples and seed give the same interval.
        resamples: bootstrap samples.
        block: length of the blocks; None derives it from the data.
    """
    series = np.asarray(values, dtype=np.float64)
    n = len(series)
    if n == 0:
        raise ValueError("no samples")
    middle = float(np.median(series))
    if n == 1:
        return Interval(middle, middle, middle)
    length = min(n, block or block_length(series))
    blocks = math.ceil(n / length)
    rng = np.random.default_rng(seed)
    # Circular blocks: every sample is drawn equally often, also those at the ends.
    starts = rng.integers(0, n, size=(resamples, blocks, 1))
    index = ((starts + np.arange(length)) % n).reshape(resamples, blocks * length)[:, :n]
    medians = np.median(series[index], axis=1)
    tail = (1 - confidence) / 2
    low, high = (float(q) for q in np.quantile(medians, (tail, 1 - tail)))
    # A bootstrap from few blocks is too narrow for the same reason that a normal interval is with few samples: the
    # spread itself is badly known. The remedy is the same too, Student's t with (free blocks - 1) degrees of freedom.
    widen = _student_over_normal(confidence, max(3.0, n / length - 1))
    # The interval of a median stays inside the data (and so positive for positive data).
    return Interval(
        middle,
        max(float(series.min()), middle - (middle - min(low, middle)) * widen),
        min(float(series.max()), middle + (max(high, middle) - middle) * widen),
    )


def _student_over_normal(confidence: float, freedom: float) -> float:
    """Return the ratio of Student's to the normal quantile, by the Cornish-Fisher expansion (1 % off at 3 degrees)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return (z + first / freedom + second / freedom**2 + third / freedom**3) / z


def drift(values: Samples, *, confidence: float = 0.95, seed: int = 0) -> float:
    """Return how far the median moved from the first half to the second, as a share of the overall median.

    0 unless the two halves' intervals are apart (by chance 1 time in 200 at 95 %). The interval of the whole series is
    no yardstick: a drift widens it. Arguments as in :func:`median_interval`; fewer than 12 samples say nothing.
    """
    series = np.asarray(values, dtype=np.float64)
    middle = float(np.median(series))
    if len(series) < 12 or middle == 0:
        return 0.0
    half = len(series) // 2
    first, second = (
        median_interval(part, confidence=confidence, seed=seed, resamples=300)
        for part in (series[:half], series[-half:])
    )
    apart = first.high < second.low or second.high < first.low
    return (second.value - first.value) / middle if apart else 0.0
