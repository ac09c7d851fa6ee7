"""Sentence similarity: a vector per sentence, judged by how well cosines rank pairs as people do.

Data: tables of two sentences and a score (csv without a header as STS-B comes, or named columns). Validation and test
are such pairs; the metric is Spearman's rank correlation of the cosine of the two vectors with the score. Training
needs no scores: the sentences of the training file, pairs taken apart, duplicates dropped, are what a student hears the
teacher's vectors of. So ``has_labels("train")`` is False and the loss on training labels is 0. A training file may also
hold single sentences, one per line. Scores of test pairs may be missing, or all be -1: nothing is scored on them then.

The loss on pairs, reported beside the metric, is the mean of (cosine - s)^2 with s the score brought to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from nasdistill.errors import DataError
from nasdistill.files import content_hash
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.task import Metric, Split
from nasdistill.seeds import torch_generator
from nasdistill.spec.io import IOSpec
from nasdistill_tasks.fit import logits_of
from nasdistill_tasks.text_metrics import spearman
from nasdistill_tasks.text_rows import Part, find_parts, is_unknown, unknown_note, write_sentences
from nasdistill_tasks.text_store import Store
from nasdistill_tasks.text_tables import PLAIN, SCORES, SUFFIXES, Columns, Table, find_columns
from nasdistill_tasks.text_task import Progress, Samples, TextOptions, TextTask, masked_mean, store_of


class SentenceSimilarityOptions(TextOptions):
    """Options of `sentence_similarity`."""

    text_column: str | int | None = Field(None, description="Column of the first sentences, by name or position.")
    pair_column: str | int | None = Field(None, description="Column of the second sentences.")
    label_column: str | int | None = Field(None, description="Column of the scores.")
    header: bool | None = Field(None, description="Whether a tsv or csv file names its columns; found when not given.")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="Of a tsv or csv file.")
    score_range: tuple[float, float] | None = Field(
        None, description="Lowest and highest score; those of the validation pairs when not given. Changes no metric."
    )
    split_seed: int = Field(0, ge=0, lt=2**32, description="Seed of the split, where we split.")

    @model_validator(mode="after")
    def _range(self) -> SentenceSimilarityOptions:
        if self.score_range is not None and self.score_range[0] >= self.score_range[1]:
            raise ValueError("score_range must rise")
        return self


class SentenceSimilarity(TextTask):
    """See the module's text."""

    metric: ClassVar[Metric] = Metric("spearman", unit="")
    examples: ClassVar[tuple[Example, ...]] = (Example(name="toy", context={"other_options": {"split_seed": 1}}),)
    options_model = SentenceSimilarityOptions
    options: SentenceSimilarityOptions

    @classmethod
    def suggested(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Suggest encoders that learn how the teacher's vectors, and its last layer's relations, lie to each other."""
        sites = {"student_site": "logits", "teacher_site": "logits"}
        return {
            "space": [{"name": "encoder", "options": {}}],
            "proxy": [{"name": "params"}, {"name": "macs"}],
            "objective": {
                "task_weight": 0.0,
                "losses": [
                    {"name": "relation", "weight": 1.0, "options": {"form": "similarity", **sites}},
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
            options.data, toy="pairs.csv", suffixes=(*SUFFIXES, *PLAIN), validation=options.validation_data,
            test=options.test_data, header=options.header, delimiter=options.delimiter,
            asked=(options.text_column, options.pair_column, options.label_column), choose=self._choose,
            note=note,
        )  # fmt: skip
        self._encoder = self._open_encoder(parts["train"].texts, framed=True)
        stores = {}
        for split, part in parts.items():
            key = {"sentences": True, "tokenizer": self._encoder.identity, "max_length": options.max_length, **part.key}

            def make(writer: Any, part: Part = part) -> Mapping[str, Any]:
                progress(f"tokenising {part.origin}")
                return write_sentences(writer, part, self._encoder, options.max_length)

            stores[split] = store_of(folder, key, make, note)
        self._unscored: set[Split] = set()
        for split in [split for split in parts if split != "train"]:
            if all(map(is_unknown, stores[split].arrays.get("scores", (0,)))):
                note(unknown_note(parts[split].origin, split, "scores"))
                if split == "validation":
                    del parts[split], stores[split]
                else:
                    self._unscored.add(split)
        missing: list[Split] = [split for split in ("validation", "test") if split not in parts]
        pairs = self._split(parts, stores, missing)
        source: dict[Split, Split] = {s: "train" if s in missing else s for s in ("train", "validation", "test")}
        train, rows = stores["train"], pairs["train"]
        if parts["train"].has_pairs:
            rows = np.stack([2 * rows, 2 * rows + 1], axis=1).reshape(-1)
        self._train = Samples(train, np.unique(train.arrays["first"][rows]))
        self._pairs: dict[Split, tuple[Store, NDArray[np.int64]]] = {
            split: (stores[source[split]], pairs[split]) for split in ("validation", "test")
        }
        scores = self._scores("validation")
        assert scores is not None  # its column is required
        if len(scores) < 2 or scores.min() == scores.max():
            raise DataError(f"{options.data}: all validation pairs have the same score, so nothing can be ranked")
        self._range = options.score_range or (float(scores.min()), float(scores.max()))
        self._fingerprint = content_hash(
            {
                "task": "sentence_similarity",
                "tokenizer": self._encoder.identity,
                "max_length": options.max_length,
                "multiple": options.pad_to_multiple_of,
                "parts": {split: part.key for split, part in parts.items()},
                "shares": [options.validation_share, options.test_share, options.split_seed] if missing else None,
            }
        )

    def _choose(self, split: Split, table: Table) -> Columns:
        options = self.options
        asked = (options.text_column, options.pair_column, options.label_column)
        if split == "train" and len(table.columns) < 3 and all(column is None for column in asked[1:]):
            single = len(table.columns) == 1
            if single or self._apart():  # sentences alone, or pairs without scores
                return find_columns(table, text=asked[0], labels=(), needs_label=False, needs_pair=not single)
        return find_columns(
            table, text=asked[0], pair=asked[1], label=asked[2], labels=SCORES, is_label=_are_numbers,
            needs_label=split == "validation" or (split == "train" and not self._apart()), needs_pair=True,
        )  # fmt: skip

    def _apart(self) -> bool:
        """Return whether validation pairs have a file of their own, so that training needs no scores."""
        return self.options.validation_data is not None or Path(self.options.data).expanduser().is_dir()

    def _split(
        self, parts: Mapping[Split, Part], stores: Mapping[Split, Store], missing: Sequence[Split]
    ) -> dict[Split, NDArray[np.int64]]:
        """Return the rows (pairs, or single training sentences) of every split."""
        options = self.options

        def count(split: Split) -> int:
            return (len(stores[split].arrays["offsets"]) - 1) // (2 if parts[split].has_pairs else 1)

        found = {split: np.arange(count(split)) for split in parts}
        if not missing:
            return found
        if not (parts["train"].has_pairs and parts["train"].has_labels):
            raise DataError(
                f"{options.data} has no scored pairs for {' and '.join(missing)}",
                hint="Name files of scored pairs as validation_data and test_data.",
            )
        shares = {"validation": options.validation_share, "test": options.test_share}
        order = torch.randperm(count("train"), generator=torch_generator(options.split_seed, "split")).numpy()
        for split in missing:
            size = round(shares[split] * count("train"))
            if size < 2 or size > len(order) - 1:
                raise DataError(f"{options.data} has too few pairs ({count('train')}) to split off {split}")
            found[split], order = np.sort(order[:size]), order[size:]
        found["train"] = np.sort(order)
        return found

    @property
    def io(self) -> IOSpec:
        """``tokens N -> embedding``, as wide as the model."""
        return self._token_io(0, "embedding")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What :class:`TextTask` says, and how vectors are compared."""
        return {**super().preprocessing, "similarity": "cosine"}

    def has_labels(self, split: Split) -> bool:
        """Return whether a split has scores: training never, a test file may have none."""
        self._must_be_ready()
        return split != "train" and self._scores(split) is not None

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return vectors ``(B, D)``; for pairs, whose inputs are ``(B, 2, N)``, both vectors ``(B, 2, D)``."""
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        if ids.ndim == 2:
            return super().forward(model, batch)
        both = logits_of(model(ids.flatten(0, 1), mask.flatten(0, 1)))
        return both.reshape(*ids.shape[:2], *both.shape[1:])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared distance of cosines from scores in [0, 1]; 0 with a gradient without scores."""
        if batch.labels is None:
            return output.sum() * 0
        low, high = self._range
        wanted = ((batch.labels - low) / (high - low)).to(output.dtype)
        return masked_mean((_cosines(output) - wanted).square(), batch)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the rank correlation of the cosines of ``(n, 2, D)`` with scores ``(n,)``."""
        return spearman(_cosines(outputs.double()).numpy(), labels.double().numpy())

    def chance(self, split: Split) -> float | None:
        """Return 0, the correlation of equal cosines with anything."""
        return 0.0 if self.has_labels(split) else None

    def _scores(self, split: Split) -> NDArray[Any] | None:
        if split in self._unscored:
            return None
        store, rows = self._pairs[split]
        found: NDArray[Any] | None = store.arrays["scores"][rows] if "scores" in store.arrays else None
        return found

    def _lengths(self, split: Split) -> NDArray[Any]:
        if split == "train":
            return self._train.lengths
        store, rows = self._pairs[split]
        longer: NDArray[Any] = np.maximum(Samples(store, 2 * rows).lengths, Samples(store, 2 * rows + 1).lengths)
        return longer

    def _plain_rows(self, split: Split, ids: NDArray[np.int64]) -> list[NDArray[Any]]:
        return self._train.rows(ids)

    def _batch(self, split: Split, ids: NDArray[np.int64], epoch: int, seed: int, train: bool) -> Batch:
        chosen = torch.from_numpy(ids)
        if split == "train":
            return Batch(self._inputs(self._train.rows(ids)), None, chosen, None, epoch)
        store, rows = self._pairs[split]
        both = np.stack([2 * rows[ids], 2 * rows[ids] + 1], axis=1).reshape(-1)
        flat = self._inputs(Samples(store, both).rows(np.arange(len(both))))
        inputs = {name: values.reshape(len(ids), 2, -1) for name, values in flat.items()}
        scores = self._scores(split)
        labels = None if scores is None else torch.from_numpy(np.array(scores[ids], dtype=np.float64)).float()
        return Batch(inputs, labels, chosen, None, epoch)


def _cosines(pairs: Tensor) -> Tensor:
    """Return ``(n,)`` cosines of vectors ``(n, 2, D)``."""
    return F.cosine_similarity(pairs[:, 0], pairs[:, 1], dim=-1)


def _are_numbers(cells: Sequence[str]) -> bool:
    try:
        return all(np.isfinite(float(cell)) for cell in cells)
    except ValueError:
        return False
