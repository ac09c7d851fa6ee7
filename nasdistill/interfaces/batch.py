"""Batches and where a training stands: what tasks produce and losses receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples.

    Attributes:
        inputs: named tensors, first axis B. Images: ``{"image": (B, C, H, W)}``; text: ``input_ids (B, N)``,
            ``attention_mask (B, N)``.
        labels: ``(B,)`` or ``(B, ...)``; None where the data has none.
        ids: ``(B,)`` int64, the samples' fixed positions in their split: with `epoch` they name an augmented input.
        labelled: ``(B,)`` bool, which labels may be used (semi-supervised data); None means all. Where it is False the
            label is no class (bundled tasks put -100, which ``cross_entropy`` ignores).
        epoch: which pass over the data; 0 for evaluation.
        extra: anything a task adds for its own losses (a second tokenisation, alignment matrices, boxes).
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor | None
    ids: Tensor
    labelled: Tensor | None = None
    epoch: int = 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of samples B."""
        return int(self.ids.shape[0])

    @property
    def image(self) -> Tensor:
        """``inputs["image"]``."""
        return self.inputs["image"]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device."""
        move = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(
            self,
            inputs=move,
            labels=None if self.labels is None else self.labels.to(device),
            ids=self.ids.to(device),
            labelled=None if self.labelled is None else self.labelled.to(device),
            extra={name: value.to(device) for name, value in self.extra.items()},
        )

    def select(self, index: Tensor) -> Batch:
        """Return the samples at `index` (int64 ``(K,)`` or bool ``(B,)``)."""
        return replace(
            self,
            inputs={name: value[index] for name, value in self.inputs.items()},
            labels=None if self.labels is None else self.labels[index],
            ids=self.ids[index],
            labelled=None if self.labelled is None else self.labelled[index],
            extra={name: value[index] for name, value in self.extra.items()},
        )


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Where a training stands.

    Attributes:
        step, total_steps: optimiser steps done and planned.
        epoch, total_epochs: passes done and planned.
        generator: the only source of randomness a loss may use.
    """

    step: int = 0
    total_steps: int = 1
    epoch: int = 0
    total_epochs: int = 1
    generator: torch.Generator | None = None

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return min(1.0, self.step / max(1, self.total_steps))
