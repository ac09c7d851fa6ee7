"""Data reducers: return a smaller or better data set, or say which samples to ask the teacher about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.task import Task


@dataclass(frozen=True, slots=True)
class ReducedData:
    """A reduced training set or a query plan.

    Attributes:
        batch: synthesised samples with labels, as one big batch; None for a query plan.
        indices: ``(K,)`` int64 positions in the training split to use or to ask about; None for synthesised data.
        weights: ``(K,)`` sampling weight of each, None = equal.
        report: JSON-able facts (loss curve, support size, bound).
    """

    batch: Batch | None = None
    indices: Tensor | None = None
    weights: Tensor | None = None
    report: dict[str, Any] = field(default_factory=dict)


class DataReducer(Component, ABC):
    """Dataset distillation, active soft-labelling, pruning of samples or tokens."""

    @abstractmethod
    def reduce(
        self,
        task: Task,
        *,
        student: nn.Module | None,
        build: Callable[[], nn.Module] | None,
        budget: int,
        queried: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> ReducedData:
        """Return the reduced data.

        Args:
            task: a prepared task; only its training split may be read.
            student: the current student (active selection looks at its outputs), or None.
            build: returns a freshly initialised network (distribution matching wants many), or None.
            budget: samples to synthesise or to query.
            queried: positions already asked about in earlier rounds.
            generator: randomness.
        """
