"""Text classification: one label per text or pair of texts.

Data: a tsv, csv, JSON lines or parquet file, a folder with one per split, or a folder that ``datasets`` saved
(:mod:`nasdistill_tasks.text_tables` finds the columns). One file is split stratified by class. Texts are tokenised once
(:mod:`nasdistill_tasks.text_store`); batches hold texts of similar length, padded to their longest one.

Classes have the teacher's order where it names them (option ``classes``), else the data's names sorted, numbers by
value. A test file without labels is allowed, or with -1 for all of them: it is then never scored. Validation data whose
labels are all -1 are left out.

Metrics: ``accuracy``; ``f1``, of the second of two classes or of `positive`; ``f1_macro``, the mean over the classes;
``mcc`` (:mod:`nasdistill_tasks.text_metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from nasdistill.errors import ConfigError, DataError, MismatchError
from nasdistill.files import content_hash
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.task import Metric, Split
from nasdistill.spec.io import IOSpec
from nasdistill_tasks.splitting import divide
from nasdistill_tasks.text_metrics import best_constant, counts, f1, mcc
from nasdistill_tasks.text_rows import Part, find_parts, is_unknown, unknown_note, write_rows
from nasdistill_tasks.text_store import Store
from nasdistill_tasks.text_tables import LABELS, Columns, Table, find_columns
from nasdistill_tasks.text_task import IGNORED, Progress, Samples, TextOptions, TextTask, store_of

_SCORES = 20
"""More different labels than this, of which some are fractions, are scores: half stars still count as classes."""

METRICS = {
    "accuracy": Metric("accuracy"),
    "f1": Metric("f1"),
    "f1_macro": Metric("f1_macro"),
    "mcc": Metric("mcc", unit=""),
}


class TextClassificationOptions(TextOptions):
    """Options of `text_classification`."""

    text_column: str | int | None = Field(None, description="Column of the texts, by name or position from 0.")
    pair_column: str | int | None = Field(None, description="Column of second texts, for pairs.")
    label_column: str | int | None = Field(None, description="Column of the labels.")
    header: bool | None = Field(None, description="Whether a tsv or csv file names its columns; found when not given.")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="Of a tsv or csv file.")
    classes: tuple[str, ...] | None = Field(
        None, min_length=2, description="Names of the classes in the order of the outputs; the teacher's where it has."
    )
    metric: Literal["accuracy", "f1", "f1_macro", "mcc"] = Field("accuracy", description="What students are judged by.")
    positive: str | None = Field(None, description="Class whose F1 is taken; the second of two when not given.")
    split_seed: int = Field(0, ge=0, lt=2**32, description="Seed of the split, where we split.")


class TextClassification(TextTask):
    """See the module's text."""

    metric: ClassVar[Metric] = METRICS["accuracy"]
    examples: ClassVar[tuple[Example, ...]] = (
        Example(name="toy", context={"other_options": {"split_seed": 1}}),
        Example(
            {"metric": "mcc", "pad_to_multiple_of": 8, "max_length": 32}, {"other_options": {"max_length": 24}}, "mcc"
        ),
    )
    options_model = TextClassificationOptions
    options: TextClassificationOptions

    def __init__(self, options: Any = None, **context: Any) -> None:
        super().__init__(options, **context)
        self.metric = METRICS[self.options.metric]  # type: ignore[misc]  # the option decides

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return what :class:`TextTask` adapts, and the names of the teacher's classes."""
        found = super().adapted(options, teacher)
        if len(teacher.labels) > 1 and "classes" not in options:
            found["classes"] = list(teacher.labels)
        return found

    @classmethod
    def suggested(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Suggest encoders, or decoders of a decoder, that learn from logits, labels and the last layer's relations."""
        return {
            "space": [{"name": "decoder" if _decodes(teacher) else "encoder", "options": {}}],
            "proxy": [{"name": "params"}, {"name": "macs"}],
            "objective": {
                "task_weight": 0.5,
                "losses": [
                    {"name": "kd", "weight": 0.5, "options": {"temperature": 4.0}},
                    {"name": "minilmv2", "weight": 1.0, "optional": True},
                ],
            },
            "training": {"batch_size": 32, "lr": 5e-4, "distinct_epochs": 4},
            "search": {
                "strategy": "funnel",
                "trials": 24,
                "strategy_options": {"short_epochs": 1, "full_epochs": 4},
            },
        }

    def _load(self, folder: Path, progress: Progress, note: Progress) -> None:
        options = self.options
        parts = find_parts(
            options.data, toy="reviews.tsv", validation=options.validation_data, test=options.test_data,
            header=options.header, delimiter=options.delimiter,
            asked=(options.text_column, options.pair_column, options.label_column), choose=self._choose,
            note=note,
        )  # fmt: skip
        pairs = {split: part.has_pairs for split, part in parts.items()}
        if len(set(pairs.values())) > 1:
            raise DataError(f"{options.data}: some splits have pairs of texts, others single ones: {pairs}")
        self._encoder = self._open_encoder(parts["train"].texts, framed=True)
        stores = {}
        for split, part in parts.items():
            key = {"tokenizer": self._encoder.identity, "max_length": options.max_length, **part.key}

            def make(writer: Any, part: Part = part) -> Mapping[str, Any]:
                progress(f"tokenising {part.origin}")
                return write_rows(writer, part, self._encoder, options.max_length)

            stores[split] = store_of(folder, key, make, note)
        named = {name for part in parts.values() for table in part.tables for name in table.classes.items()}
        self._classes = self._order(stores["train"], parts["train"], named)
        labels = {split: self._numbers(split, store, parts[split].origin) for split, store in stores.items()}
        for split, store in list(stores.items()):
            if labels[split] is None and "cells" in store.arrays:
                if split == "train":
                    raise DataError(
                        f"{parts[split].origin}: all labels are -1, which says that they are not known",
                        hint="Is label_column the right one? Training takes labelled texts.",
                    )
                note(unknown_note(parts[split].origin, split, "labels"))
                if split == "validation":
                    del parts[split], stores[split], labels[split]
        train = labels["train"]
        assert train is not None  # its column is required
        self._judge(train, parts["train"].origin, note)
        index: dict[Split, NDArray[np.int64]] = {s: np.arange(len(x.arrays["offsets"]) - 1) for s, x in stores.items()}
        source: dict[Split, Split] = {split: split for split in parts}
        missing: list[Split] = [split for split in ("validation", "test") if split not in parts]
        source.update(dict.fromkeys(missing, "train"))
        index |= divide(
            train, list(parts), validation=options.validation_share, test=options.test_share, seed=options.split_seed,
            origin=options.data, classes=self._classes, what="texts",
            hint="give files of the missing data: validation_data and test_data in the task's options.",
        )  # fmt: skip
        self._parts: dict[Split, Samples] = {s: Samples(stores[source[s]], index[s]) for s in index}
        self._labels: dict[Split, Tensor | None] = {}
        for split in self._parts:
            found = labels[source[split]]
            self._labels[split] = None if found is None else torch.from_numpy(found[self._parts[split].index])
        self._fingerprint = content_hash(
            {
                "task": "text_classification",
                "tokenizer": self._encoder.identity,
                "max_length": options.max_length,
                "multiple": options.pad_to_multiple_of,
                "classes": list(self._classes),
                "parts": {split: part.key for split, part in parts.items()},
                "shares": [options.validation_share, options.test_share, options.split_seed] if missing else None,
            }
        )

    def _choose(self, split: Split, table: Table) -> Columns:
        options, label = self.options, self.options.label_column
        # Test files often come without labels.
        absent = split == "test" and label is not None and label not in (*table.columns, *range(len(table.columns)))
        return find_columns(
            table, text=options.text_column, pair=options.pair_column, label=None if absent else label,
            labels=() if absent else LABELS, is_label=None if absent else _may_be_labels, needs_label=split != "test",
        )  # fmt: skip

    def _order(self, store: Store, part: Part, named: set[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
        """Return the classes in their order, and check them against those that are given."""
        values = [str(value) for value in store.facts["values"]]
        whole = all(_is_whole(value) for value in values)
        if len(values) > _SCORES and all(map(_is_number, values)) and not all(float(v).is_integer() for v in values):
            raise DataError(
                f"{part.origin}: the labels are {len(values)} different numbers, such as {values[0]}, which looks like "
                "scores, not classes",
                hint="Name the column of the classes in label_column, or cut the scores into classes. Scored pairs of "
                "sentences are for --task sentence_similarity.",
            )
        column = part.columns[0].label
        own = next((n for c, n in sorted(named) if column is not None and c == part.tables[0].columns[column]), None)
        if own is not None and whole:  # the data set names its numbers
            self._alias = {str(i): name for i, name in enumerate(own)}
            values, whole = list(own), False
        else:
            self._alias = {}
        given = self.options.classes
        if given is None:
            return tuple(own or sorted(values, key=int if whole else None))
        if "-1" not in given:
            values = [value for value in values if not is_unknown(value)]  # told of later, with their number
        if set(values) <= set(given):
            return tuple(given)
        if whole and all(0 <= int(value) < len(given) for value in values):  # positions, as many data sets have them
            self._alias = {value: given[int(value)] for value in (str(i) for i in range(len(given)))}
            return tuple(given)
        data = own or sorted(values, key=int if whole else None)
        raise MismatchError(
            f"the labels of {part.origin} are {_listed(data)}, but the classes of the teacher (or of the option "
            f"`classes`) are {_listed(given)}",
            hint="Rename the labels, number them in the order of the classes, or use a teacher of these classes.",
        )

    def _numbers(self, split: Split, store: Store, origin: str) -> NDArray[np.int64] | None:
        """Return the labels ``(n,)`` of a store's rows as positions among the classes; None where none is known."""
        if "cells" not in store.arrays:
            return None
        position = {name: i for i, name in enumerate(self._classes)}
        names = [self._alias.get(str(value), str(value)) for value in store.facts["values"]]
        if all(is_unknown(name) and name not in position for name in names):
            return None
        strange = sorted({name for name in names if name not in position})
        if strange:
            count = int(np.isin(store.arrays["cells"], [i for i, x in enumerate(names) if x not in position]).sum())
            rows = f"{count} of {len(store.arrays['cells'])} labels"
            hint = f"Remove these rows from the {split} data: every text there needs a label that is known."
            if split == "test":
                hint = "Remove these rows from the test data, or give all of it without labels (or with -1 for each)."
            if all(map(is_unknown, strange)):
                raise DataError(f"{origin}: {rows} are -1, which says that they are not known", hint=hint)
            raise DataError(
                f"{origin}: {rows} are not among the classes {_listed(self._classes)}: {_listed(strange)}", hint=hint
            )
        found: NDArray[np.int64] = np.array([position[name] for name in names])[store.arrays["cells"]]
        return found

    def _judge(self, labels: NDArray[np.int64], origin: str, note: Progress) -> None:
        """Refuse training data of one class; name classes without a text."""
        present = np.bincount(labels, minlength=len(self._classes))
        if (present > 0).sum() < 2:
            name = self._classes[int(present.argmax())]
            raise DataError(
                f"{origin}: all texts are of the class {name!r}; there is nothing to tell apart",
                hint="Add texts of the other classes. Is label_column the right one?",
            )
        absent = [name for name, count in zip(self._classes, present, strict=True) if not count]
        if absent:
            note(f"{origin} has no text of {_listed(absent)}")
        options = self.options
        if options.metric == "f1" and options.positive is None and len(self._classes) != 2:
            raise ConfigError(
                f"{self.id}: f1 is of one class, and there are {len(self._classes)}",
                hint='Set `positive` to a class, or metric = "f1_macro".',
            )
        if options.positive is not None and options.positive not in self._classes:
            raise ConfigError(f"{self.id}: positive is {options.positive!r}; classes are {_listed(self._classes)}")

    @property
    def io(self) -> IOSpec:
        """``tokens N -> K``."""
        return self._token_io(len(self.classes), "classes")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes, by label."""
        self._must_be_ready()
        return self._classes

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What :class:`TextTask` says, whether texts come in pairs, and the classes."""
        pairs = "types" in self._parts["train"].store.arrays
        return {**super().preprocessing, "pairs": pairs, "classes": list(self.classes)}

    def has_labels(self, split: Split) -> bool:
        """Return whether a split has labels; a test file may have none."""
        self._must_be_ready()
        return self._labels[split] is not None

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the labelled texts; 0 with a gradient when there is none."""
        if batch.labels is None or (batch.labelled is not None and not bool(batch.labelled.any())):
            return output.sum() * 0
        labels = batch.labels
        if batch.labelled is not None:
            labels = labels.where(batch.labelled, torch.full_like(labels, IGNORED))
        return F.cross_entropy(output, labels, ignore_index=IGNORED)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the chosen metric over ``(n, K)`` outputs."""
        predicted, kind = outputs.argmax(1), self.options.metric
        if kind == "accuracy":
            return float((predicted == labels).double().mean())
        table = counts(predicted, labels, outputs.shape[1])
        if kind == "mcc":
            return mcc(table)
        each = f1(table)
        if kind == "f1_macro":
            return float(each.mean())
        return float(each[self._positive])

    def chance(self, split: Split) -> float | None:
        """Return what the best single class for all texts scores."""
        self._must_be_ready()
        labels = self._labels[split]
        return None if labels is None else best_constant(self.options.metric, labels, self.io.outputs, self._positive)

    @property
    def _positive(self) -> int:
        """The class that `f1` is of."""
        return 1 if self.options.positive is None else self._classes.index(self.options.positive)

    def _lengths(self, split: Split) -> NDArray[Any]:
        return self._parts[split].lengths

    def _plain_rows(self, split: Split, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
        return self._parts[split].rows(ids)

    def _batch(self, split: Split, ids: NDArray[np.int64], epoch: int, seed: int, train: bool) -> Batch:
        part, chosen = self._parts[split], torch.from_numpy(ids)
        types = part.rows(ids, "types") if "types" in part.store.arrays else None
        labels = self._labels[split]
        inputs = self._inputs(part.rows(ids), types)
        return Batch(inputs, None if labels is None else labels[chosen], chosen, None, epoch)


def _decodes(teacher: TeacherInfo) -> bool:
    """Return whether a teacher is a decoder, such as a GPT-2 with a classifier."""
    if teacher.library != "transformers":
        return False
    from nasdistill.bridge.sizes import decodes_only

    return decodes_only(teacher.model)


def _may_be_labels(cells: Sequence[str]) -> bool:
    """Return whether the first cells of a column without a name look like labels: short, and few different ones."""
    different = {cell.strip() for cell in cells}
    return max(map(len, different)) <= 40 and len(different) <= max(2, len(cells) // 2)


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit() and text.lstrip("-").isascii()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, list(names)[:20])) + (" ..." if len(names) > 20 else "")
