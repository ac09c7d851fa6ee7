"""Which rows a split has: those of its own, however they lie on disk and whatever was read from there before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys_text import tokenizer_folder

from nasdistill.errors import DataError
from nasdistill_tasks.causal_lm import CausalLM
from nasdistill_tasks.masked_lm import MaskedLM
from nasdistill_tasks.sentence_similarity import SentenceSimilarity
from nasdistill_tasks.text_classification import TextClassification

SPLITS = ("train", "validation", "test")
TABLES = (TextClassification, SentenceSimilarity)
SIZES = {"train": 60, "validation": 20, "test": 30}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return str(tokenizer_folder(tmp_path_factory.mktemp("words")))


def prepared(kind, cache: Path, note=None, **options):
    task = kind(options)
    task.prepare(cache, note)
    return task


def texts(task, split):
    """Return the texts of a split, as the characters say them; of pairs both."""
    letters = {i: char for char, i in task._encoder.vocabulary.items()}
    found = []
    for batch in task.batches(split, batch_size=16):
        ids, mask = (batch.inputs[name].flatten(0, -2) for name in ("input_ids", "attention_mask"))
        found += ["".join(letters[int(i)] for i in row[m.bool()][1:-1]) for row, m in zip(ids, mask, strict=True)]
    return found


def columns(kind, split, size, label=None):
    """Return the columns of a split whose texts name it; letters are those of every split."""
    first = [f"{split} {i} validation train test" for i in range(size)]
    labels = [i % 2 if label is None else label for i in range(size)]
    if kind is TextClassification:
        return {"text": first, "label": labels}
    return {"sentence1": first, "sentence2": [f"{text} too" for text in first], "score": [float(x) for x in labels]}


def saved(folder: Path, kind, names=None, **labels) -> str:
    """Save a data set; `names` says what it calls its splits."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {
        (names or {}).get(s, s): datasets.Dataset.from_dict(columns(kind, s, n, labels.get(s)))
        for s, n in SIZES.items()
    }
    datasets.DatasetDict(parts).save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("kind", TABLES)
def test_splits_of_a_saved_data_set_can_be_named(tmp_path, kind):
    data = saved(tmp_path / "saved", kind, {"validation": "validation_matched", "test": "validation_mismatched"})
    notes = []
    task = prepared(kind, tmp_path / "cache", notes.append, data=data, validation_data="validation_matched")
    assert {text.split()[0] for text in texts(task, "validation")} == {"validation"}
    assert sum("not read: 'validation_mismatched'" in note for note in notes) == 1
    notes.clear()
    named = {"validation_data": "validation_matched", "test_data": "validation_mismatched"}
    task = prepared(kind, tmp_path / "cache", notes.append, data=data, **named)
    assert {text.split()[0] for text in texts(task, "test")} == {"test"}
    assert not [note for note in notes if "not read" in note]
    with pytest.raises(DataError, match="has no split 'dev'; it has 'train', 'validation_matched'"):
        prepared(kind, tmp_path / "cache", data=data, validation_data="dev")
    with pytest.raises(DataError, match="is named twice"):
        prepared(kind, tmp_path / "cache", data=data, validation_data="train", test_data="train")


def written(folder: Path, kind, suffix: str, pieces: int) -> str:
    """Write each split into so many files."""
    pandas = pytest.importorskip("pandas")
    folder.mkdir()
    for split, size in SIZES.items():
        frame = pandas.DataFrame(columns(kind, split, size))
        for i in range(pieces):
            path = folder / f"{split}-{i}-of-{pieces}{suffix}"
            piece = frame.iloc[i * size // pieces : (i + 1) * size // pieces]
            if suffix == ".parquet":
                piece.to_parquet(path)
            elif suffix == ".jsonl":
                piece.to_json(path, orient="records", lines=True)
            else:
                piece.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return str(folder)


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("layout", ["saved", (".parquet", 1), (".parquet", 3), (".csv", 2), (".tsv", 1), (".jsonl", 2)])
def test_every_split_has_its_own_rows(tmp_path, kind, layout):
    data = saved(tmp_path / "data", kind) if layout == "saved" else written(tmp_path / "data", kind, *layout)
    for _ in range(2):  # tokenised, and found again
        task = prepared(kind, tmp_path / "cache", data=data)
        pairs = kind is SentenceSimilarity
        for split, size in SIZES.items():
            found = texts(task, split)
            wanted = columns(kind, split, size)
            expected = [text for row in zip(*list(wanted.values())[: 1 + pairs], strict=True) for text in row]
            assert found == expected
            assert task.size(split) == size * (2 if pairs and split == "train" else 1)


@pytest.mark.parametrize("kind", [MaskedLM, CausalLM])
def test_every_split_of_running_text_has_its_own(tmp_path, kind):
    for split, size in SIZES.items():
        lines = columns(TextClassification, split, size)["text"]
        for i in range(2):
            (tmp_path / f"{split}-{i}.txt").write_text("".join(f"{line}\n" for line in lines[i::2]))
    task = prepared(kind, tmp_path / "cache", data=str(tmp_path), layout="lines", max_length=64)
    rows = {split: [tuple(row) for row in task._plain_rows(split, range(task.size(split)))] for split in SPLITS}
    assert {split: len(found) for split, found in rows.items()} == SIZES
    assert not set(rows["train"]) & (set(rows["validation"]) | set(rows["test"]))
    datasets = saved(tmp_path / "saved", TextClassification)
    with pytest.raises(DataError, match="no files to read"):
        prepared(kind, tmp_path / "cache", data=datasets)


@pytest.mark.parametrize("kind", TABLES)
def test_a_test_split_of_unknown_labels_is_not_scored(tmp_path, kind):
    what = "labels" if kind is TextClassification else "scores"
    said: list[str] = []
    task = prepared(kind, tmp_path / "cache", said.append, data=saved(tmp_path / "a", kind, test=-1))
    assert [task.has_labels(s) for s in ("validation", "test")] == [True, False]
    assert (task.size("validation"), task.size("test"), task.chance("test")) == (20, 30, None)
    assert all(batch.labels is None for batch in task.batches("test", batch_size=8))
    (told,) = [text for text in said if "-1" in text]
    assert f"(test): all {what} are -1, which says that they are not known; it counts as a test split" in told
    said.clear()
    task = prepared(kind, tmp_path / "cache", said.append, data=saved(tmp_path / "b", kind, validation=-1))
    assert task.has_labels("validation")
    assert (task.size("validation"), task.size("test")) == (7 if kind is TextClassification else 6, 30)
    assert {text.split()[0] for split in ("train", "validation") for text in texts(task, split)} == {"train"}
    assert not set(texts(task, "train")) & set(texts(task, "validation"))
    (told,) = [text for text in said if "-1" in text]
    assert "(validation)" in told
    assert "it is left out, and validation data are taken from the training data" in told


def test_minus_one_may_be_a_class(tmp_path):
    for split in SPLITS:
        rows = [(f"text {split} {i}", -1 if split == "test" else (-1, 1)[i % 2]) for i in range(20)]
        (tmp_path / f"{split}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    task = prepared(TextClassification, tmp_path / "cache", data=str(tmp_path))
    assert task.classes == ("-1", "1")
    (batch,) = task.batches("test", batch_size=20)
    assert torch.equal(batch.labels, torch.zeros(20, dtype=torch.long))


def test_unknown_training_labels_are_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"text {i}" for i in range(9)], "label": [-1] * 9}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="all labels are -1, which says that they are not known"):
        prepared(TextClassification, tmp_path / "cache", data=str(tmp_path / "saved"))


@pytest.mark.parametrize("split", SPLITS)
def test_a_few_unknown_labels_are_counted_and_the_split_is_named(tmp_path, split):
    for name, size in SIZES.items():
        rows = [f"text {i}\t{-1 if name == split and i < 2 else i % 2}" for i in range(size)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows, ""]))
    with pytest.raises(DataError, match=rf"{split}.tsv: 2 of {SIZES[split]} labels are -1") as caught:
        prepared(TextClassification, tmp_path / "cache", data=str(tmp_path), classes=["no", "yes"])
    assert f"Remove these rows from the {split} data" in str(caught.value.hint)
    assert ("without labels" in str(caught.value.hint)) == (split == "test")


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_taken_from_train_though_there_is_more_is_said(tmp_path, kind):
    data = saved(tmp_path / "saved", kind, {"validation": "validation_matched"})
    said: list[str] = []
    prepared(kind, tmp_path / "cache", said.append, data=data)
    (told,) = [text for text in said if "taken from train" in text]
    assert "has no split 'validation', so validation data are taken from train" in told
    assert told.endswith("--set task.options.validation_data=validation_matched")


def test_an_empty_split_of_a_saved_data_set_is_named_or_left_out(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {s: datasets.Dataset.from_dict(columns(TextClassification, s, n)) for s, n in SIZES.items()}
    datasets.DatasetDict({**parts, "train": parts["train"].select([])}).save_to_disk(tmp_path / "a")
    with pytest.raises(DataError, match="a: split 'train' has no rows"):
        prepared(TextClassification, tmp_path / "cache", data=str(tmp_path / "a"))
    datasets.DatasetDict({**parts, "test": parts["test"].select([])}).save_to_disk(tmp_path / "b")
    task = prepared(TextClassification, tmp_path / "cache", data=str(tmp_path / "b"))
    assert {text.split()[0] for text in texts(task, "test")} == {"train"}
    with pytest.raises(DataError, match="b: split 'test' has no rows"):
        prepared(TextClassification, tmp_path / "cache", data=str(tmp_path / "b"), test_data="test")
