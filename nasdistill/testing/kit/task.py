"""A task small enough for tests, and complete: a few hundred real digits, in any size and number of channels.

Training images are augmented with a little noise, ``x + 0.05 z``, where z is drawn for the whole split at once: the
same image of the same epoch looks the same whatever the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nasdistill.files import content_hash
from nasdistill.interfaces import Batch, Metric, Split, Task
from nasdistill.seeds import torch_generator
from nasdistill.spec.component import Kind, TaskSpec
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import ComponentOptions
from nasdistill.testing.kit.models import digits

if TYPE_CHECKING:
    from nasdistill.testing.subject import Subject


class TinyTaskOptions(ComponentOptions):
    """How many digits, and in which form."""

    samples: int = Field(160, ge=20, le=1797, description="Images of all splits together.")
    first: int = Field(0, ge=0, description="The first image that is taken.")
    classes: int = Field(10, ge=2, le=10, description="The digits from 0 that occur.")
    side: int = Field(8, ge=8, le=64, description="Height and width.")
    channels: Literal[1, 3] = Field(1, description="1 (grey) or 3 (all alike).")
    labels: float = Field(1.0, gt=0, le=1, description="Share of the training images whose label may be used.")


class TinyTask(Task):
    """Digits: three fifths to train on, a fifth each for validation and test."""

    options_model = TinyTaskOptions
    options: TinyTaskOptions
    metric: ClassVar[Metric] = Metric("accuracy")

    def prepare(self, cache_dir: Path | None = None, progress: Callable[[str], None] | None = None) -> None:
        """Choose and split the images; nothing is read twice."""
        if hasattr(self, "_parts"):
            return
        options = self.options
        everything = digits(1797 - options.first, options.first)
        assert everything.labels is not None
        chosen = torch.nonzero(everything.labels < options.classes).squeeze(1)[: options.samples]
        batch = everything.select(chosen)
        images = F.interpolate(batch.image, size=(options.side, options.side)) if options.side != 8 else batch.image
        images = images.repeat(1, options.channels, 1, 1)
        assert batch.labels is not None
        fifth = torch.arange(len(images)) % 5
        where: dict[Split, Tensor] = {"train": fifth < 3, "validation": fifth == 3, "test": fifth == 4}
        self._parts = {split: (images[mask], batch.labels[mask]) for split, mask in where.items()}

    @property
    def io(self) -> IOSpec:
        """``image C x S x S -> K``."""
        return IOSpec("image", (self.options.channels, self.options.side, self.options.side), self.options.classes)

    @property
    def fingerprint(self) -> str:
        """Hash of the options: the images behind them never change."""
        return content_hash({"tiny": self.options.model_dump()})

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How the digits, whose pixels go up to 16, become inputs: ``(pixel * scale - mean) / std``."""
        return {
            "size": [self.options.side] * 2, "channels": self.options.channels, "scale": 1 / 16,
            "mean": [0.30526] * self.options.channels, "std": [0.376051] * self.options.channels,
        }  # fmt: skip

    def size(self, split: Split) -> int:
        """Return the number of images of a split."""
        return len(self._parts[split][0])

    def batches(
        self, split: Split, *, batch_size: int, epoch: int = 0, seed: int = 0, train: bool = False
    ) -> Iterator[Batch]:
        """Yield batches ``{"image": (B, C, S, S)}`` with labels ``(B,)``."""
        images, labels = self._parts[split]
        ids = torch.arange(len(images))
        labelled = ids < self.options.labels * len(images) if split == "train" and self.options.labels < 1 else None
        if train:
            images = images + 0.05 * torch.randn(images.shape, generator=torch_generator(seed, "noise", epoch))
            ids = ids[torch.randperm(len(ids), generator=torch_generator(seed, "order", epoch))]
        for rows in torch.split(ids, batch_size):
            yield Batch(
                {"image": images[rows]}, labels[rows], rows, None if labelled is None else labelled[rows], epoch
            )

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``(B, K)`` logits."""
        logits: Tensor = model(batch.image)
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross entropy over the labelled images."""
        if batch.labels is None or (batch.labelled is not None and not bool(batch.labelled.any())):
            return output.sum() * 0
        if batch.labelled is None:
            return F.cross_entropy(output, batch.labels)
        return F.cross_entropy(output[batch.labelled], batch.labels[batch.labelled])

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the accuracy."""
        return float((outputs.argmax(1) == labels).double().mean())

    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return the first training images, from the beginning again where they run out."""
        images, _ = self._parts["train"]
        return (images[torch.arange(batch_size) % len(images)],)


TINY_TASK = TaskSpec(
    "tiny",
    "nasdistill.testing.kit.task:TinyTask",
    "A few hundred digits, for tests",
    options="nasdistill.testing.kit.task:TinyTaskOptions",
    references=("UCI Optical Recognition of Handwritten Digits, test set, as in scikit-learn",),
)
"""Registered by no plugin: ``isolated_host(TINY_TASK)`` has it as ``local:tiny``."""


def tiny_task(**options: Any) -> TinyTask:
    """Return a prepared :class:`TinyTask`."""
    task = TinyTask(options)
    task.prepare()
    return task


def example_task(subject: Subject, **options: Any) -> Task:
    """Return the task that an example's context names, prepared; without one a :class:`TinyTask` with these options.

    The context's ``task_options`` go to either.
    """
    name, own = subject.context("task"), dict(subject.made("task_options") or {})
    if name is None:
        return tiny_task(**{**options, **own})
    task: Task = subject.host.create(Kind.TASK, name, own)
    task.prepare()
    return task


class AnyNet(nn.Module):
    """A small network for the models' input and output of any task, with batch norm and dropout.

    It reads its first argument: embeddings of token ids, averaged unless every token has an answer, or the flattened
    numbers.

    Args:
        io: input and output.
        outputs: another number of outputs than the task's, to be refused.
        kept: how many of the input's numbers it takes, to be refused; None takes all.
        per_token: whether every token has an answer; None = as the task's head has it, else to be refused.
    """

    def __init__(
        self, io: IOSpec, *, outputs: int | None = None, kept: int | None = None, per_token: bool | None = None
    ) -> None:
        super().__init__()
        self.per_token = io.head in ("masked_lm", "causal_lm") if per_token is None else per_token
        self.embed = nn.Embedding(io.vocabulary or 2, 16) if io.kind == "tokens" else None
        self.first = nn.Linear(16 if io.kind == "tokens" else kept or math.prod(io.shape), 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, outputs or io.outputs or 16)

    def forward(self, *inputs: Tensor, **named: Any) -> Tensor:
        """Return ``(B, K)``, or ``(B, N, K)`` where every token has an answer."""
        x = next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))
        tokens = x.shape
        if self.embed is None:
            x = x.flatten(1).float()
        else:
            x = self.embed(x).flatten(0, 1) if self.per_token else self.embed(x).mean(1)
        logits: Tensor = self.head(self.drop(self.norm(F.gelu(self.first(x)))))
        return logits.reshape(*tokens, -1) if self.per_token else logits
