"""Metrics over a whole split, in double precision.

accuracy, F1 and Matthews' correlation coefficient from the table of counts C (rows: labels, columns: predictions):

    F1 of class k = 2 C_kk / (row_k + column_k), 0 where nothing is of that class and nothing predicted
    MCC = (n trace - sum_k row_k column_k) / sqrt((n^2 - sum row^2) (n^2 - sum column^2)), 0 where a factor is 0

(Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004), and the rank
correlation of Spearman: Pearson's correlation of the ranks, equal values sharing their mean rank.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def counts(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the table ``(K, K)`` of labels ``(n,)`` against predictions ``(n,)``."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes).double()


def f1(table: Tensor) -> Tensor:
    """Return the F1 ``(K,)`` of each class."""
    total = table.sum(0) + table.sum(1)
    return torch.where(total > 0, 2 * table.diag() / total.clamp_min(1), torch.zeros_like(total))


def mcc(table: Tensor) -> float:
    """Return Matthews' correlation coefficient in [-1, 1]."""
    n, row, column = table.sum(), table.sum(1), table.sum(0)
    spread = (n**2 - row.square().sum()) * (n**2 - column.square().sum())
    return 0.0 if spread <= 0 else float((n * table.trace() - row @ column) / spread.sqrt())


def best_constant(metric: str, labels: Tensor, classes: int, positive: int = 1) -> float:
    """Return the best score of one class for all of the labels ``(n,)``.

    With p_k the share of class k: accuracy max p_k; F1 of a class 2 p_k / (1 + p_k); macro F1 the best of these over K,
    since all other classes have 0; MCC 0.

    Args:
        metric: ``accuracy``, ``f1``, ``f1_macro`` or ``mcc``.
        labels: of a split.
        classes: K.
        positive: the class of ``f1``.
    """
    if metric == "mcc":
        return 0.0
    share = torch.bincount(labels, minlength=classes).double() / len(labels)
    if metric == "accuracy":
        return float(share.max())
    each = 2 * share / (1 + share)
    return float(each[positive] if metric == "f1" else each.max() / classes)


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the rank correlation of ``(n,)`` and ``(n,)``, 0 where one of them is constant."""
    return pearson(ranks(one), ranks(other))


def pearson(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the linear correlation, 0 where one of them is constant."""
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one @ one) * (other @ other)))
    return 0.0 if size == 0 else float(np.clip((one @ other) / size, -1, 1))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks from 1; equal values share their mean rank."""
    _, where, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    found: NDArray[np.float64] = (last - (sizes - 1) / 2)[where]
    return found
