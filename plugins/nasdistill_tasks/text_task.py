"""What the text tasks share: options, tokenised splits, batches, and what follows from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from nasdistill.errors import DataError, MismatchError
from nasdistill.files import cache_folder, file_hash
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.info import TeacherInfo, TextInfo
from nasdistill.interfaces.task import Split, Task
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import ComponentOptions
from nasdistill_tasks.fit import logits_of
from nasdistill_tasks.text_batches import SIDE, bucketed, mask_of, padded
from nasdistill_tasks.text_store import Store, Writer, open_store
from nasdistill_tasks.text_tokens import CHARS, Characters, Encoder, Pretrained, letters_of

LONGEST = 128
"""Tokens that texts are cut to unless an option says otherwise: distillation with more is slow, and rarely needed."""

IGNORED = -100
"""Label of what has none."""

Progress = Callable[[str], None]


class TextOptions(ComponentOptions):
    """Options that all text tasks have."""

    data: str = Field("toy", min_length=1, description="`toy`, or a path: a file, or a folder with one per split.")
    validation_data: str | None = Field(
        None, description="File of the validation split, beside `data` for training; or a saved data set's name of it."
    )
    test_data: str | None = Field(None, description="The same for the test split.")
    tokenizer: str = Field(
        CHARS, min_length=1, description="Folder or name of a transformers tokenizer; `chars` makes one of characters."
    )
    max_length: int = Field(LONGEST, ge=4, description="Tokens that texts are cut to, special ones included.")
    vocabulary: int | None = Field(
        None, ge=2, description="Token ids that models know; the tokenizer's own number when not given."
    )
    pad_to_multiple_of: int = Field(1, ge=1, le=512, description="Batches are padded to a multiple of so many tokens.")
    reference_length: int | None = Field(
        None, ge=1, description="Length at which costs and latencies are taken; the usual one when not given."
    )
    validation_share: float = Field(0.1, gt=0, lt=1, description="Share of validation data, where we split.")
    test_share: float = Field(0.1, gt=0, lt=1, description="Share of test data, where we split.")

    @model_validator(mode="after")
    def _shares(self) -> TextOptions:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        if self.reference_length is not None and self.reference_length > self.max_length:
            raise ValueError("reference_length is above max_length")
        return self


@dataclass(frozen=True, slots=True)
class Samples:
    """Tokenised texts of one split: rows of a store.

    Attributes:
        store: holds ``ids`` and ``offsets`` (``n + 1``), and ``types`` for pairs.
        index: ``(k,)`` rows that belong to the split, by id.
    """

    store: Store
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> NDArray[Any]:
        """``(k,)`` tokens of each sample."""
        offsets = self.store.arrays["offsets"]
        found: NDArray[Any] = offsets[self.index + 1] - offsets[self.index]
        return found

    def rows(self, ids: NDArray[np.int64], name: str = "ids") -> list[NDArray[Any]]:
        """Return the tokens (or another array over them) of samples."""
        offsets, values = self.store.arrays["offsets"], self.store.arrays[name]
        return [values[offsets[row] : offsets[row + 1]] for row in self.index[ids]]


class TextTask(Task):
    """Base of the text tasks: a subclass fills `_parts`, and makes batches of rows."""

    options_model = TextOptions
    options: TextOptions

    _encoder: Encoder
    _fingerprint: str
    _reference: int
    _ready = False

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return the teacher's tokenizer, its vocabulary's size and a length that it takes.

        Raises:
            MismatchError: `max_length` is given, and the teacher does not take so many tokens; or it is a model of
                transformers without a tokenizer, and the task was not told which to use.
        """
        if teacher.library == "transformers" and teacher.tokenizer is None and "tokenizer" not in options:
            raise MismatchError(  # ids of another tokenizer mean nothing to it, and nothing later would show that
                "there is no tokenizer beside the teacher",
                hint="Save it into the model's folder (tokenizer.save_pretrained), or name it in the task's options: "
                f'tokenizer = "FOLDER", or "{CHARS}" for a model that was trained on this task\'s characters.',
            )
        found: dict[str, Any] = {}
        limit, given = teacher.max_length, options.get("max_length")
        if limit is not None:
            if isinstance(given, int) and given > limit:
                raise MismatchError(
                    f"max_length is {given}, but the teacher takes at most {limit} tokens",
                    hint=f"Set max_length to {limit} or less in the task's options, or leave it out.",
                )
            found["max_length"] = min(limit, LONGEST)
        if teacher.tokenizer is not None:
            found["tokenizer"] = teacher.tokenizer
            size = teacher.model.get("vocab_size")
            if isinstance(size, int) and options.get("tokenizer", teacher.tokenizer) == teacher.tokenizer:
                found["vocabulary"] = size
        return {name: value for name, value in found.items() if name not in options}

    def prepare(self, cache_dir: Path | None = None, progress: Progress | None = None) -> None:
        """Read, tokenise and split the text; from an earlier time's store where it is there."""
        if self._ready:
            return

        def note(text: str) -> None:
            if progress is not None:
                progress(f"note: {text}")

        self._load((cache_dir or cache_folder()) / "tokens", progress or (lambda text: None), note)
        options, size = self.options, self._encoder.size
        for text in self._encoder.notes:
            note(text)
        if options.vocabulary is not None and options.vocabulary < size:
            raise MismatchError(
                f"the models know {options.vocabulary} token ids, but the tokenizer {options.tokenizer} has {size}",
                hint="Use the teacher's own tokenizer, or a teacher that was trained with this one.",
            )
        self._reference = options.reference_length or self._usual_length()
        self._ready = True

    @property
    def fingerprint(self) -> str:
        """Hash of the files, the tokenizer, the splits and all options that batches depend on."""
        self._must_be_ready()
        return self._fingerprint

    @property
    def text(self) -> TextInfo:
        """How text becomes ids."""
        self._must_be_ready()
        return self._encoder.info(self.options.max_length)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What whoever serves a student must do: the tokenizer, the longest text, the ids that fill up."""
        self._must_be_ready()
        return {
            **self._encoder.facts(),
            "max_length": self.options.max_length,
            "padding_side": SIDE,
            "pad_id": self._encoder.pad_id,
            "inputs": list(self.io.input_names),
        }

    def write_assets(self, folder: Path) -> None:
        """Write the tokenizer as ``AutoTokenizer.from_pretrained`` reads it; it fills up where batches here are."""
        self._must_be_ready()
        self._encoder.save(folder)

    def size(self, split: Split) -> int:
        """Return the number of samples of a split."""
        return len(self._lengths(split))

    def batches(
        self, split: Split, *, batch_size: int, epoch: int = 0, seed: int = 0, train: bool = False
    ) -> Iterator[Batch]:
        """Yield batches ``{"input_ids": (B, N), "attention_mask": (B, N)}``, N their longest text; see :class:`Task`.

        In training, texts of similar length share a batch (:mod:`nasdistill_tasks.text_batches`).
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        lengths = self._lengths(split)
        order = bucketed(lengths, seed, split, epoch) if train else np.arange(len(lengths))
        for begin in range(0, len(order), batch_size):
            yield self._batch(split, order[begin : begin + batch_size], epoch, seed, train)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call a model on ids, mask and, for pairs, token types."""
        types = batch.inputs.get("token_type_ids")
        named = {} if types is None else {"token_type_ids": types}
        return logits_of(model(batch.inputs["input_ids"], batch.inputs["attention_mask"], **named))

    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return ids and mask ``(batch_size, io.shape[0])`` of training texts of about that length.

        The closest ones that are not longer come first; they are repeated where they run out.
        """
        lengths, wanted = np.asarray(self._lengths("train")), self.io.shape[0]
        longer = lengths > wanted
        order = np.lexsort((np.arange(len(lengths)), np.abs(lengths - wanted), longer))
        chosen = order[np.arange(batch_size) % min(len(order), max(batch_size, 1))]
        rows = [row[:wanted] for row in self._plain_rows("train", chosen)]
        ids = padded(rows, self._encoder.pad_id, least=wanted)
        return ids, mask_of(rows, ids.shape[1])

    # ---- for subclasses -------------------------------------------------------------------------------------------

    def _load(self, folder: Path, progress: Progress, note: Progress) -> None:
        """Read the data into what `_lengths` and `_batch` need; set `_encoder` and `_fingerprint`."""
        raise NotImplementedError

    def _lengths(self, split: Split) -> NDArray[Any]:
        """Return ``(n,)`` tokens of the samples of a split."""
        raise NotImplementedError

    def _batch(self, split: Split, ids: NDArray[np.int64], epoch: int, seed: int, train: bool) -> Batch:
        """Return the batch of these samples."""
        raise NotImplementedError

    def _plain_rows(self, split: Split, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return the tokens of samples as a model gets them when nothing is drawn."""
        raise NotImplementedError

    def _usual_length(self) -> int:
        """Return the median length of the training texts, rounded up to a multiple of 8."""
        usual = int(np.median(self._lengths("train")))
        return min(self.options.max_length, -(-usual // 8) * 8)

    def _token_io(self, outputs: int, head: Any) -> IOSpec:
        """Return the IOSpec of this task's tokens."""
        self._must_be_ready()
        return IOSpec("tokens", (self._reference,), outputs, self._vocabulary, head)

    @property
    def _vocabulary(self) -> int:
        """Number of token ids of the models."""
        return self.options.vocabulary or self._encoder.size

    def _inputs(self, rows: Sequence[NDArray[Any]], types: Sequence[NDArray[Any]] | None = None) -> dict[str, Tensor]:
        """Return padded inputs ``(B, N)``."""
        multiple = self.options.pad_to_multiple_of
        ids = padded(rows, self._encoder.pad_id, multiple=multiple)
        inputs = {"input_ids": ids, "attention_mask": mask_of(rows, ids.shape[1])}
        if types is not None:
            inputs["token_type_ids"] = padded(types, 0, multiple=multiple)
        return inputs

    def _open_encoder(self, texts: Callable[[], Iterator[str]], *, framed: bool) -> Encoder:
        """Return the tokenizer; `texts` yields the training text for a vocabulary of characters."""
        if self.options.tokenizer != CHARS:
            return Pretrained(self.options.tokenizer)
        letters = letters_of(texts())
        if not letters:
            raise DataError(f"{self.options.data} has no text")
        return Characters(letters, framed=framed)

    def _must_be_ready(self) -> None:
        if not self._ready:
            raise RuntimeError(f"{self.id}: call prepare() first")


def hashes(paths: Sequence[Path]) -> list[str]:
    """Return the hash of each file's content. Raises DataError for one that cannot be read."""
    try:
        return [file_hash(path) for path in paths]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from None


def store_of(
    folder: Path, key: Mapping[str, Any], make: Callable[[Writer], Mapping[str, Any]], note: Progress
) -> Store:
    """Return a store, and tell what it says of itself: how many texts were cut or left out."""
    store = open_store(folder, key, make, note)
    for text in store.facts.get("notes", ()):
        note(text)
    return store


def id_type(size: int) -> type[np.uint16 | np.int32]:
    """Return the smallest type that holds `size` ids."""
    return np.uint16 if size <= 2**16 else np.int32


def masked_mean(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean of ``(B,)`` over the samples whose label may be used; 0 with a gradient without any."""
    if batch.labelled is not None:
        if not bool(batch.labelled.any()):
            return values.sum() * 0
        values = values[batch.labelled]
    return values.mean()
