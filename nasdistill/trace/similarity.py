"""How alike the attention maps of a model's layers are.

    similarity(l, m) = mean over samples, heads and queries of cos(A_l[b, h, i, :], A_m[b, h, i, :])

Rows of any two maps are alike when both are flat, as those of an untrained model are. The corrected similarity compares
what they differ in from a flat row: with u_i = 1 / (number of keys that query i may see), it is the mean of
cos(A_l[b, h, i, :] - u_i, A_m[b, h, i, :] - u_i) over these keys, 0 for maps that have nothing in common and negative
for opposite ones. Rows with one key, or flat to rounding, have no such cosine and do not count there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FLAT = 1e-6
"""A row whose distance from the flat row is below this, relative to the flat row's norm, counts as flat."""


class MapSimilarity:
    """Gathers the similarity of every pair of layers over batches.

    Attributes:
        layers: the layers seen, in order.
    """

    def __init__(self) -> None:
        self.layers: list[int] = []
        self._sums: dict[tuple[int, int], list[float]] = {}
        self._entropies: dict[int, list[float]] = {}

    @torch.no_grad()
    def add(self, maps: Mapping[int, Tensor], allowed: Tensor | None = None, valid: Tensor | None = None) -> None:
        """Take the maps of one batch.

        Args:
            maps: layer -> ``(B, H, N, M)``; rows sum to 1, or to 0 where nothing may be attended to.
            allowed: bool, broadcastable to the maps, the pairs that count; None takes those above 0 in any layer.
            valid: ``(B, N)`` bool, False at padded queries; None = all.
        """
        self.layers = sorted({*self.layers, *maps})
        for shape in {map_.shape for map_ in maps.values()}:
            alike = {layer: map_.float() for layer, map_ in sorted(maps.items()) if map_.shape == shape}
            self._add(list(alike), torch.stack(list(alike.values())), allowed, valid)

    def _add(self, layers: list[int], maps: Tensor, allowed: Tensor | None, valid: Tensor | None) -> None:
        counts = (maps > 0).any(0) if allowed is None else allowed.expand(maps.shape[1:])
        keys = counts.sum(-1, keepdim=True).clamp_min(1)
        rows = maps.sum(-1) > 0.5
        if valid is not None:
            rows = rows & valid[:, None, :]
        flat = counts / keys
        excess = (maps - flat) * counts
        told = rows & (excess.norm(dim=-1) > FLAT * flat.norm(dim=-1)) & (keys[..., 0] > 1)
        plain, plain_rows = _products(maps, rows)
        corrected, corrected_rows = _products(excess, told)
        for i, first in enumerate(layers):
            for j, second in enumerate(layers):
                kept = self._sums.setdefault((first, second), [0.0] * 4)
                for place, matrix in enumerate((plain, plain_rows, corrected, corrected_rows)):
                    kept[place] += float(matrix[i, j])
        many = rows & (keys[..., 0] > 1)
        entropy = -torch.xlogy(maps, maps).sum(-1) / keys[..., 0].clamp_min(2).log()
        for i, layer in enumerate(layers):
            total = self._entropies.setdefault(layer, [0.0, 0.0])
            total[0] += float((entropy[i] * many[i]).sum())
            total[1] += float(many[i].sum())

    def plain(self) -> list[list[float | None]]:
        """Return the similarity of each pair of `layers`, in [0, 1]; None where head counts or lengths differ."""
        return self._matrix(0, 0.0)

    def corrected(self) -> list[list[float | None]]:
        """Return the corrected similarity, in [-1, 1]; None also where every row is flat."""
        return self._matrix(2, -1.0)

    def entropy(self) -> list[float | None]:
        """Return the mean entropy of each layer's rows as a share of the flat row's, in [0, 1]."""
        found = (self._entropies[layer] for layer in self.layers)
        return [min(1.0, max(0.0, total / rows)) if rows else None for total, rows in found]

    def _matrix(self, place: int, lowest: float) -> list[list[float | None]]:
        def value(first: int, second: int) -> float | None:
            total, rows = self._sums.get((first, second), [0.0] * 4)[place : place + 2]
            return min(1.0, max(lowest, total / rows)) if rows else None

        return [[value(first, second) for second in self.layers] for first in self.layers]


def _products(maps: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cosines of rows, and how many there were, for each pair of layers.

    Args:
        maps: ``(L, B, H, N, M)``.
        rows: ``(L, B, H, N)`` bool, which rows count.
    """
    unit = maps / maps.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny) * rows[..., None]
    flat, counted = unit.flatten(1), rows.flatten(1).float()
    return flat @ flat.T, counted @ counted.T
