"""How well scores rank what was measured later: rank correlations with intervals, and the regret of choosing by them.

A missing score (None: the proxy failed) ranks behind every other one, as it does in a search. A missing truth takes
the candidate out of the comparison. Fewer than three candidates with a score, or a constant column, have no
correlation: None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nasdistill.seeds import derive_seed

Scores = Sequence[float | None]


def ranks(scores: Scores, *, best_first: bool = True) -> list[float]:
    """Return the ranks of `scores` (higher is better): 1 to n, ties share their mean rank, None is worst.

    Args:
        scores: the values; NaN counts as None.
        best_first: whether the best has rank 1 (True) or rank n (False).
    """
    filled = _filled(scores)
    return [float(rank) for rank in _rankdata(-filled if best_first else filled)]


def log_rank_sum(rows: Sequence[Scores]) -> list[float]:
    """Return, for each row of scores, the sum over columns of log(rank / n), best rank n; at most 0."""
    if not rows:
        return []
    columns = [ranks(column, best_first=False) for column in zip(*rows, strict=True)]
    return [sum(math.log(column[i] / len(rows)) for column in columns) for i in range(len(rows))]


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation.

    Attributes:
        value: in [-1, 1].
        low, high: bootstrap interval over the candidates.
        n: number of candidates compared.
    """

    value: float
    low: float
    high: float
    n: int


def spearman(scores: Scores, truth: Scores) -> float | None:
    """Return Spearman's rho (ties at their mean rank), None when undefined."""
    return _coefficient("spearman", *_paired(scores, truth))


def kendall(scores: Scores, truth: Scores) -> float | None:
    """Return Kendall's tau-b, None when undefined."""
    return _coefficient("kendall", *_paired(scores, truth))


def partial_spearman(scores: Scores, truth: Scores, given: Scores) -> float | None:
    """Return Spearman's rho of scores and truth with a third column held fixed, None when undefined.

    What a proxy says beyond `given` (the parameter count, say): near 0, it only repeats it.
    """
    kept = [i for i, value in enumerate(truth) if value is not None and math.isfinite(value)]
    columns = [[column[i] for i in kept] for column in (scores, truth, given)]
    xy, xz, yz = spearman(columns[0], columns[1]), spearman(columns[0], columns[2]), spearman(columns[2], columns[1])
    if xy is None or xz is None or yz is None:
        return None
    scale = (1.0 - xz * xz) * (1.0 - yz * yz)
    return None if scale < 1e-12 else max(-1.0, min(1.0, (xy - xz * yz) / math.sqrt(scale)))


def correlation(
    kind: Literal["spearman", "kendall"],
    scores: Scores,
    truth: Scores,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Correlation | None:
    """Return a rank correlation with its percentile bootstrap interval, None when undefined.

    Args:
        kind: which coefficient.
        scores: one score per candidate, higher is better.
        truth: what was measured, higher is better.
        resamples: how many times the candidates are drawn with replacement; draws without a correlation (one column
            constant) are left out.
        confidence: level of the interval.
        seed: seed of the draws.
    """
    x, y = _paired(scores, truth)
    value = _coefficient(kind, x, y)
    if value is None:
        return None
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", kind))
    counts = rng.multinomial(len(x), np.full(len(x), 1.0 / len(x)), size=resamples).astype(np.float64)
    draws = _resampled(kind, x, y, counts)
    draws = draws[np.isfinite(draws)]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail]) if len(draws) else (value, value)
    return Correlation(value, float(low), float(high), len(x))


def top_k_regret(scores: Scores, truth: Scores, k: int = 3) -> float | None:
    """Return what is lost by training only the `k` best-scored candidates: best truth minus the best among them.

    0 is a perfect choice; the unit is the truth's. Where equal scores leave open who is among the k, the result is
    the expectation over all ways to choose. None without candidates.

    Args:
        scores: higher is better; None ranks last.
        truth: higher is better.
        k: how many would be trained.
    """
    x, y = _paired(scores, truth)
    if len(x) == 0:
        return None
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    k = min(k, len(x))
    border = np.sort(x)[::-1][k - 1]
    certain = y[x > border]
    tied = np.sort(y[x == border])[::-1]
    picks = k - len(certain)
    floor = float(certain.max()) if len(certain) else -math.inf
    # P(the best of `picks` draws is the i-th best of the tied) = C(n - 1 - i, picks - 1) / C(n, picks).
    total = math.comb(len(tied), picks)
    expected = sum(
        math.comb(len(tied) - 1 - i, picks - 1) / total * max(floor, float(value)) for i, value in enumerate(tied)
    )
    return max(0.0, float(y.max()) - expected)


def _filled(scores: Scores) -> NDArray[np.float64]:
    """Scores as an array, the missing ones below all others."""
    return np.array([-math.inf if s is None or math.isnan(s) else float(s) for s in scores], dtype=np.float64)


def _paired(scores: Scores, truth: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both columns without the candidates whose truth is missing."""
    if len(scores) != len(truth):
        raise ValueError(f"{len(scores)} scores for {len(truth)} candidates")
    keep = [i for i, value in enumerate(truth) if value is not None and math.isfinite(value)]
    y = np.array([truth[i] for i in keep], dtype=np.float64)
    return _filled([scores[i] for i in keep]), y


def _resampled(
    kind: str, x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The coefficient for every row of `counts`, which says how often each candidate was drawn; NaN when undefined.

    Both coefficients are sums over pairs of candidates, so drawing a candidate twice weights its pairs twice, and all
    draws together are a few matrix products.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        if kind == "kendall":
            first, second = (np.sign(_differences(column)) for column in (x, y))
            pairs = [((counts @ part) * counts).sum(axis=1) for part in (first * second, first**2, second**2)]
            return np.asarray(pairs[0] / np.sqrt(pairs[1] * pairs[2]))
        total = counts.sum(axis=1, keepdims=True)
        centred = []
        for column in (x, y):
            gaps = _differences(column)
            # The mean rank of a candidate: those below it, and half of those level with it.
            rank = counts @ ((gaps < 0) + 0.5 * (gaps == 0)).astype(np.float64)
            centred.append(rank - (counts * rank).sum(axis=1, keepdims=True) / total)
        moments = [(counts * a * b).sum(axis=1) for a, b in itertools.combinations_with_replacement(centred, 2)]
        return np.asarray(moments[1] / np.sqrt(moments[0] * moments[2]))


def _differences(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrix of the differences of ranks (finite where the values are not), ``[i, j] = rank of i - rank of j``."""
    rank = _rankdata(column)
    return np.asarray(rank[:, None] - rank[None, :], dtype=np.float64)


def _coefficient(kind: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """The coefficient of two columns, None when undefined."""
    if np.isfinite(x).sum() < 3 or np.all(x == x[0]) or np.all(y == y[0]):
        return None
    if kind == "spearman":
        # Ranks first: infinities (failed scores) have a rank but no product.
        value = np.corrcoef(_rankdata(x), _rankdata(y))[0, 1]
    else:
        from scipy import stats

        value = stats.kendalltau(_rankdata(x), _rankdata(y), variant="b").statistic
    return float(value)


def _rankdata(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ranks of the values, ties sharing their mean."""
    from scipy import stats  # a second to import: worker processes, which rank nothing, do without

    return np.asarray(stats.rankdata(column, method="average"), dtype=np.float64)
