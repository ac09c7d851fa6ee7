"""A task that notices what is done with it: which splits are read, and whether what it hands out is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch, Split, Task, TextInfo
from nasdistill.spec.io import IOSpec


class WatchedTask(Task):
    """Does what another, prepared task does.

    Args:
        task: the other one.

    Attributes:
        read: the splits whose batches were asked for, in the order in which they first were.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.id, self.options = task.id, task.options
        self.metric = task.metric  # type: ignore[misc]  # of the class there, of the instance here
        self.read: list[Split] = []
        self._task = task
        self._given: list[tuple[str, Tensor, Tensor]] = []

    def disturbed(self) -> list[str]:
        """Return the names of the tensors that were changed after they had been handed out.

        A task may hand out views of its data, and then these have changed, too.
        """
        return sorted({name for name, tensor, copy in self._given if not torch.equal(tensor.detach(), copy)})

    def __getattr__(self, name: str) -> Any:
        """Return what this one does not have itself."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._task, name)

    def prepare(self, cache_dir: Path | None = None, progress: Callable[[str], None] | None = None) -> None:
        """Return at once: the other one is prepared."""

    @property
    def io(self) -> IOSpec:
        """The other one's input and output."""
        return self._task.io

    @property
    def fingerprint(self) -> str:
        """The other one's fingerprint."""
        return self._task.fingerprint

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """The other one's preprocessing."""
        return self._task.preprocessing

    @property
    def text(self) -> TextInfo | None:
        """How the other one's text becomes ids."""
        return self._task.text

    @property
    def classes(self) -> tuple[str, ...]:
        """The other one's classes."""
        return self._task.classes

    def size(self, split: Split) -> int:
        """Return the number of samples of a split."""
        return self._task.size(split)

    def batches(
        self, split: Split, *, batch_size: int, epoch: int = 0, seed: int = 0, train: bool = False
    ) -> Iterator[Batch]:
        """Yield the other one's batches, and write down that they were read."""
        if split not in self.read:
            self.read.append(split)
        for batch in self._task.batches(split, batch_size=batch_size, epoch=epoch, seed=seed, train=train):
            named = {**batch.inputs, "ids": batch.ids}
            if batch.labels is not None:
                named["labels"] = batch.labels
            self._given += [(name, tensor, tensor.detach().clone()) for name, tensor in named.items()]
            yield batch

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call a model on a batch."""
        return self._task.forward(model, batch)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss on labels."""
        return self._task.loss(output, batch)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the metric."""
        return self._task.score(outputs, labels)

    def evidence(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the metric needs of a batch."""
        return self._task.evidence(output, batch)

    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return real inputs; those of the training split."""
        return self._task.example(batch_size)

    def has_labels(self, split: Split) -> bool:
        """Return whether a split has labels."""
        return self._task.has_labels(split)

    def chance(self, split: Split) -> float | None:
        """Return what the same answer for every sample scores."""
        return self._task.chance(split)
