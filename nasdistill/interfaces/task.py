"""Tasks: data, how a model is called on it, the loss on its labels, and the metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError, one_line
from nasdistill.interfaces.base import Component
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.info import TeacherInfo, TextInfo
from nasdistill.seeds import seeded
from nasdistill.spec.io import IOSpec

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a score is.

    Attributes:
        name: ``"accuracy"``.
        higher_is_better: direction.
        unit: for tables: ``"share"`` is a number in [0, 1] shown as percent.
    """

    name: str
    higher_is_better: bool = True
    unit: str = "share"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's result on one split.

    Attributes:
        score: the metric.
        loss: mean task loss (breaks ties between equal scores).
        n: number of samples.
    """

    score: float
    loss: float
    n: int


class Task(Component, ABC):
    """Data and its meaning.

    Order and augmentation are functions of ``(seed, epoch, sample)`` and of nothing else: the same arguments give the
    same batches bit for bit, in any process. The teacher cache rests on this.

    Attributes:
        metric: what `score` returns; a task whose options choose it sets it on the instance, too.
    """

    metric: ClassVar[Metric]

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return options to fill in from the teacher (tokenizer, longest input, label names), such as are not given.

        What it returns is put beside `options` before the task is created, and recorded with the run.
        """
        return {}

    @classmethod
    def suggested(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return tables of a run's configuration that suit this task, used where the user gave none.

        Keys are those of the configuration (``space``, ``objective``, ``training``, ``proxy``); values as in TOML.
        """
        return {}

    @abstractmethod
    def prepare(self, cache_dir: Path | None = None, progress: Callable[[str], None] | None = None) -> None:
        """Read the data; cheap when called again.

        Raises:
            DataError: unreadable, empty, or inconsistent; the message names the file and what was expected.
            MissingExtraError: a reader's package is not installed.
        """

    @property
    @abstractmethod
    def io(self) -> IOSpec:
        """Input and output of this task's models (after `prepare`)."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of data, splits and preprocessing (after `prepare`)."""

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """How stored data becomes a model's input, as JSON (after `prepare`): what whoever serves a student must do.

        Empty where the task does not say.
        """
        return {}

    @property
    def text(self) -> TextInfo | None:
        """How text becomes token ids (after `prepare`); None for tasks without text.

        Teachers compare it with their own tokenizer before anything is trained.
        """
        return None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs (after `prepare`); empty where the data names none.

        Teachers compare them with their own labels before anything is trained.
        """
        return ()

    def write_assets(self, folder: Path) -> None:
        """Write into an empty folder the files that serving a student needs beside its weights (a tokenizer).

        They are kept with the run and with every saved student, so that these can be moved. Nothing by default.
        """

    @abstractmethod
    def size(self, split: Split) -> int:
        """Return the number of samples of a split."""

    @abstractmethod
    def batches(
        self, split: Split, *, batch_size: int, epoch: int = 0, seed: int = 0, train: bool = False
    ) -> Iterator[Batch]:
        """Yield the batches of one pass.

        Args:
            split: which samples.
            batch_size: samples per batch; the last one may be smaller.
            epoch: with `seed`, chooses order and augmentation when `train`.
            seed: see `epoch`.
            train: shuffled and augmented; otherwise in order and plain.
        """

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call a model on a batch; for classification ``(B, K)`` logits."""

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss on the labels that may be used (``batch.labelled``); 0 with a gradient when there is
        none.
        """

    @abstractmethod
    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the metric over a whole split from what `evidence` gave, batch after batch along the first axis: by
        default outputs ``(n, K)`` and labels ``(n, ...)``.
        """

    def evidence(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what `score` needs of a labelled batch, a row per sample in both.

        A task whose outputs are large, or differ in length from batch to batch, reduces them here.
        """
        assert batch.labels is not None
        return output, batch.labels

    @abstractmethod
    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return real positional inputs of a model, for export and timing."""

    def has_labels(self, split: Split) -> bool:
        """Return whether a split has labels."""
        return True

    def chance(self, split: Split) -> float | None:
        """Return the best score on a split that the same answer for every sample gets; None where that is not known.

        A teacher that scores no better than that is warned of; where the metric is called ``accuracy``, ``perplexity``
        or ``bits_per_byte`` also one that is better by noise only.
        """
        return None

    def check(self, model: nn.Module, label: str = "model") -> None:
        """Run two samples through a model, in eval mode and left as it was, and refuse one that does not fit.

        By default a model fits when its output has a row per sample and ``io.outputs`` numbers on the last axis; one
        that embeds gives vectors of any width, a language model logits for every token.

        Raises:
            MismatchError: names the model's and the task's shapes.
        """
        batch = next(iter(self.batches("train", batch_size=2)))
        where = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        modes = {module: module.training for module in model.modules()}
        hint = "Choose another model, or other options of the task."
        try:
            with torch.no_grad(), seeded(0, "trial forward"):
                output: object = self.forward(model.eval(), batch.to(where))
        except MismatchError:
            raise
        except Exception as error:  # whatever a foreign model raises on inputs it was not made for
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in batch.inputs.items())
            raise MismatchError(
                f"{label} does not take this data ({self.io}; {shapes}): {one_line(error)}", hint=hint
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode
        found = tuple(output.shape) if isinstance(output, Tensor) else None
        if found is None or not self._fits(found, batch):
            wanted = {
                "classes": f"{self.io.outputs} on the last axis",
                "embedding": f"one vector per sample: ({batch.size}, {self.io.outputs or 'any width'})",
            }.get(self.io.head, f"{self.io.outputs} on the last axis for every token")
            raise MismatchError(
                f"{label} gives {type(output).__name__ if found is None else found} for {batch.size} samples, but the "
                f"task ({self.io}) needs {wanted}",
                hint=hint,
            )

    def _fits(self, shape: tuple[int, ...], batch: Batch) -> bool:
        """Return whether an output of this shape is what `io` promises for a batch."""
        io = self.io
        if len(shape) < 2 or shape[0] != batch.size or (io.outputs and shape[-1] != io.outputs):
            return False
        if io.head == "embedding":
            return len(shape) == 2
        tokens = batch.inputs.get("input_ids")
        return io.head == "classes" or tokens is None or shape[:-1] == tuple(tokens.shape)
