"""What masked and causal language models share: plain text as blocks or lines, perplexity and bits per byte.

``packed``: all tokens of a file behind each other, cut into blocks of `max_length`; the last one may be shorter. Files
are read and tokenised in pieces of about 64 Ki characters that end at a line's end, whatever their size. ``lines``: one
sample per line that is not empty, cut to `max_length`. Where a single source is split, the beginning is for training,
then comes validation, then test: blocks of one passage stay on one side.

    perplexity    = exp(total negative log-likelihood / number of predicted tokens)
    bits per byte = total negative log-likelihood / ln 2 / bytes of the predicted tokens

where a token counts as many bytes as the text of its split has per token; unlike perplexity it can be compared between
tokenizers.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nasdistill.errors import DataError
from nasdistill.files import content_hash
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.task import Metric, Split
from nasdistill.spec.io import IOSpec
from nasdistill_tasks.text_files import find_files
from nasdistill_tasks.text_rows import CHUNK, append_ids, no_tokens, row_notes
from nasdistill_tasks.text_store import Store, Writer
from nasdistill_tasks.text_tables import PLAIN, not_utf8, numbered_lines
from nasdistill_tasks.text_task import IGNORED, Progress, Samples, TextOptions, TextTask, hashes, id_type, store_of
from nasdistill_tasks.text_tokens import Encoder

PIECE = 1 << 16
"""Bytes that are read and tokenised together: part of what the ids depend on, since words are not cut at its end."""

METRICS = {
    "perplexity": Metric("perplexity", higher_is_better=False, unit=""),
    "bits_per_byte": Metric("bits_per_byte", higher_is_better=False, unit=""),
}

LARGE = 4096
"""Vocabulary from which a teacher's logits are too many to keep."""


class LanguageModelOptions(TextOptions):
    """Options that language models share."""

    layout: Literal["packed", "lines"] = Field("packed", description="Blocks of running text, or one sample per line.")
    metric: Literal["perplexity", "bits_per_byte"] = Field("perplexity", description="What students are judged by.")


@dataclass(frozen=True, slots=True)
class Blocks:
    """Running text cut into blocks.

    Attributes:
        store: holds ``ids``.
        index: ``(k,)`` blocks that belong to the split, by id.
        body: tokens of a block.
        prefix, suffix: what stands before and after each.
    """

    store: Store
    index: NDArray[np.int64]
    body: int
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    @property
    def lengths(self) -> NDArray[Any]:
        """``(k,)`` tokens of each sample."""
        left = len(self.store.arrays["ids"]) - self.index * self.body
        found: NDArray[Any] = np.minimum(left, self.body) + len(self.prefix) + len(self.suffix)
        return found

    def rows(self, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return the tokens of samples."""
        values = self.store.arrays["ids"]
        bodies = (values[block * self.body : (block + 1) * self.body].astype(np.int64) for block in self.index[ids])
        return [np.concatenate([self.prefix, body, self.suffix]).astype(np.int64) for body in bodies]


class LanguageModel(TextTask):
    """Base of `masked_lm` and `causal_lm`."""

    metric: ClassVar[Metric] = METRICS["perplexity"]
    options_model = LanguageModelOptions
    options: LanguageModelOptions

    head: ClassVar[Literal["masked_lm", "causal_lm"]]
    space: ClassVar[str]
    framed: ClassVar[bool]
    shortest: ClassVar[int]

    def __init__(self, options: Any = None, **context: Any) -> None:
        super().__init__(options, **context)
        self.metric = METRICS[self.options.metric]  # type: ignore[misc]  # the option decides

    @classmethod
    def suggested(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Suggest students that learn the teacher's and the text's next or masked tokens alike."""
        size = teacher.model.get("vocab_size", options.get("vocabulary", 0))
        training: dict[str, Any] = {"batch_size": 32, "lr": 1e-3, "distinct_epochs": 4}
        if isinstance(size, int) and size > LARGE:
            training["teacher_cache"] = False
        return {
            "space": [{"name": cls.space, "options": {}}],
            "proxy": [{"name": "params"}, {"name": "macs"}],
            "objective": {
                "task_weight": 0.5,
                "losses": [{"name": "kd", "weight": 0.5, "options": {"temperature": 2.0}}],
            },
            "training": training,
            "search": {
                "strategy": "funnel",
                "trials": 24,
                "strategy_options": {"short_epochs": 1, "full_epochs": 4},
            },
        }

    def _load(self, folder: Path, progress: Progress, note: Progress) -> None:
        options = self.options
        files = find_files(
            options.data, PLAIN, toy="poems.txt", validation=options.validation_data, test=options.test_data,
            documents=True,
        )  # fmt: skip
        self._encoder = self._open_encoder(
            lambda: (text for p in files["train"] for text in pieces(p)), framed=self.framed
        )
        self._check_encoder()
        stores, content = {}, {split: hashes(paths) for split, paths in files.items()}
        for split, paths in files.items():
            key = {
                "layout": options.layout, "tokenizer": self._encoder.identity, "files": content[split], "piece": PIECE,
                "max_length": options.max_length if options.layout == "lines" else None, "framed": self.framed,
            }  # fmt: skip

            def make(writer: Writer, paths: Sequence[Path] = paths) -> Mapping[str, Any]:
                progress(f"tokenising {', '.join(map(str, paths[:3]))}")
                if options.layout == "lines":
                    return write_lines(writer, paths, self._encoder, options.max_length, self._frame)
                return write_packed(writer, paths, self._encoder, () if self.framed else self._frame[1])

            stores[split] = store_of(folder, key, make, note)
        self._parts: dict[Split, Blocks | Samples] = {}
        self._bytes: dict[Split, float] = {}
        missing: list[Split] = [split for split in ("validation", "test") if split not in files]
        for split, store in stores.items():
            index = np.arange(self._count(store))
            shares = {"validation": options.validation_share, "test": options.test_share}
            taken = {name: max(1, round(shares[name] * len(index))) for name in missing} if split == "train" else {}
            left = len(index) - sum(taken.values())
            if left < 1:
                where = ", ".join(map(str, files[split][:3]))
                raise DataError(
                    f"{where} gives {len(index)} samples of up to {options.max_length} tokens, too few to train and "
                    "judge on",
                    hint="Set a smaller max_length in the task's options, or give more text.",
                )
            begin = 0
            for name, size in {split: left, **taken}.items():
                self._parts[name] = self._part(store, index[begin : begin + size])
                self._bytes[name] = store.facts["bytes"] / max(1, store.facts["tokens"])
                begin += size
        self._fingerprint = content_hash(
            {
                "task": self.head,
                "tokenizer": self._encoder.identity,
                "max_length": options.max_length,
                "multiple": options.pad_to_multiple_of,
                "layout": options.layout,
                "files": content,
                "shares": [options.validation_share, options.test_share] if missing else None,
                **self._also(),
            }
        )

    @property
    def io(self) -> IOSpec:
        """``tokens N -> masked or causal lm``: logits over the vocabulary for every token."""
        self._must_be_ready()
        return self._token_io(self._vocabulary, self.head)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What :class:`TextTask` says, and how text was cut."""
        return {**super().preprocessing, "layout": self.options.layout}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the tokens that have a label; 0 with a gradient when none has."""
        if batch.labels is None:
            return output.sum() * 0
        labels = batch.labels
        if batch.labelled is not None:
            labels = torch.where(batch.labelled[:, None], labels, torch.full_like(labels, IGNORED))
        if not bool((labels != IGNORED).any()):
            return output.sum() * 0
        return F.cross_entropy(output.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def evidence(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood ``(B,)`` of each sample, and its predicted tokens and bytes ``(B, 2)``."""
        assert batch.labels is not None
        each = F.cross_entropy(output.transpose(1, 2), batch.labels, ignore_index=IGNORED, reduction="none")
        count = (batch.labels != IGNORED).sum(1).double()
        size = batch.extra["bytes_per_token"].double() if "bytes_per_token" in batch.extra else torch.ones_like(count)
        return each.double().sum(1), torch.stack([count, count * size], dim=1)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the chosen metric from what `evidence` gave: ``(n,)`` and ``(n, 2)``."""
        total, tokens, size = float(outputs.sum()), float(labels[:, 0].sum()), float(labels[:, 1].sum())
        if self.options.metric == "perplexity":
            return math.exp(min(total / max(tokens, 1.0), 700.0))  # beyond it there is no double
        return total / math.log(2) / max(size, 1e-9)

    def chance(self, split: Split) -> float | None:
        """Return what equal probabilities for all V tokens score: perplexity V, or log2 V bits for a token's bytes."""
        self._must_be_ready()
        size = float(self._vocabulary)
        return size if self.options.metric == "perplexity" else math.log2(size) / max(self._bytes[split], 1e-9)

    # ---- for subclasses -------------------------------------------------------------------------------------------

    def _labels(
        self, rows: Sequence[NDArray[Any]], inputs: dict[str, Tensor], key: int, ids: NDArray[np.int64]
    ) -> Tensor:
        """Return labels ``(B, N)``, -100 where there is none; may change the inputs."""
        raise NotImplementedError

    def _key(self, split: Split, epoch: int, seed: int, train: bool) -> int:
        """Return what random draws of a pass depend on."""
        return 0

    def _check_encoder(self) -> None:
        """Refuse a tokenizer that lacks something."""

    def _also(self) -> dict[str, Any]:
        """Return what else the fingerprint covers."""
        return {}

    # ---- for the base class ---------------------------------------------------------------------------------------

    def _lengths(self, split: Split) -> NDArray[Any]:
        return self._parts[split].lengths

    def _plain_rows(self, split: Split, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
        return self._parts[split].rows(ids)

    def _batch(self, split: Split, ids: NDArray[np.int64], epoch: int, seed: int, train: bool) -> Batch:
        rows = self._parts[split].rows(ids)
        inputs = self._inputs(rows)
        labels = self._labels(rows, inputs, self._key(split, epoch, seed, train), ids)
        size = torch.full((len(ids),), self._bytes[split], dtype=torch.float64)
        return Batch(inputs, labels, torch.from_numpy(ids), None, epoch, {"bytes_per_token": size})

    @property
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after a text of its own."""
        encoder = self._encoder
        end = () if encoder.end_id is None or self.framed else (encoder.end_id,)
        return encoder.prefix, encoder.suffix or end

    @property
    def _body(self) -> int:
        """Tokens of a block without its frame."""
        frame = len(self._frame[0]) + len(self._frame[1]) if self.framed else 0
        return self.options.max_length - frame

    def _count(self, store: Store) -> int:
        if self.options.layout == "lines":
            return len(store.arrays["offsets"]) - 1
        total = len(store.arrays["ids"])
        whole, left = divmod(total, self._body)
        return whole + (left >= self.shortest)

    def _part(self, store: Store, index: NDArray[np.int64]) -> Blocks | Samples:
        if self.options.layout == "lines":
            return Samples(store, index)
        return Blocks(store, index, self._body, *(self._frame if self.framed else ()))


def pieces(path: Path, size: int = PIECE) -> Iterator[str]:
    """Yield a UTF-8 file in pieces of about `size` bytes that end with a line where there is one.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, line, start = "", 1, True
    try:
        with path.open("rb") as stream:
            while raw := stream.read(size):
                try:
                    text = decoder.decode(raw)
                except UnicodeDecodeError as error:
                    raise not_utf8(
                        path, line + rest.count("\n") + error.object[: error.start].count(b"\n"), error
                    ) from None
                text = text.removeprefix("\ufeff") if start else text
                start = False
                text = rest + text
                end = text.rfind("\n") + 1 or (len(text) if len(text) > 4 * size else 0)
                rest = text[end:]
                line += text.count("\n", 0, end)
                if end:
                    yield text[:end]
        try:
            rest += decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise not_utf8(path, line, error) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if rest:
        yield rest


def write_packed(
    writer: Writer, paths: Sequence[Path], encoder: Encoder, end: tuple[int, ...], *, size: int = PIECE
) -> Mapping[str, Any]:
    """Write the tokens of all files behind each other, each file closed with `end`; return the store's facts."""
    count = tokens = 0
    texts = False
    kind = id_type(encoder.size)
    for path in paths:
        for text in pieces(path, size):
            (ids,) = encoder.plain([text])
            count += len(text.encode("utf-8", "surrogatepass"))
            tokens += len(ids)
            texts = texts or not text.isspace()
            writer.append("ids", ids.astype(kind))
        writer.append("ids", np.array(end, dtype=kind))
    if texts and not tokens:
        raise no_tokens(encoder, ", ".join(map(str, paths[:3])))
    if not tokens:
        raise DataError(f"{', '.join(map(str, paths[:3]))}: there is no text")
    return {"bytes": count, "tokens": tokens, "notes": []}


def write_lines(
    writer: Writer,
    paths: Sequence[Path],
    encoder: Encoder,
    max_length: int,
    frame: tuple[tuple[int, ...], tuple[int, ...]],
    *,
    chunk: int = CHUNK,
) -> Mapping[str, Any]:
    """Write every line that is not empty as a framed row, cut to `max_length`; return the store's facts."""
    prefix, suffix = frame
    room = max(1, max_length - len(prefix) - len(suffix))
    size = tokens = cut = 0
    found = False
    writer.append("offsets", np.zeros(1, dtype=np.int64))
    for path in paths:
        lines = (line.rstrip("\r\n") for _, line in numbered_lines(path) if line.strip())
        while texts := [text for _, text in zip(range(chunk), lines, strict=False)]:
            found = True
            rows = [row for row in encoder.plain(texts) if len(row)]
            size += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
            tokens += sum(map(len, rows))
            cut += sum(len(row) > room for row in rows)
            if rows:
                framed = [np.concatenate([prefix, row[:room], suffix]).astype(np.int64) for row in rows]
                append_ids(writer, framed, encoder.size)
    count = writer.count("offsets") - 1
    origin = ", ".join(map(str, paths[:3]))
    if found and not count:
        raise no_tokens(encoder, origin)
    if not count:
        raise DataError(f"{origin}: there is no text")
    return {"bytes": size, "tokens": tokens, "notes": row_notes(origin, count, cut, 0, max_length)}
