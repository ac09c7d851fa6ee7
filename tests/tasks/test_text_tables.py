"""Reading tables of text: what was written comes back, and what is wrong is named."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.errors import DataError
from nasdistill_tasks.text_files import find_files
from nasdistill_tasks.text_tables import SCORES, SUFFIXES, find_columns, open_saved, open_table

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\t\x00\ufeff"), min_size=1, max_size=20).filter(
    str.strip
)
ROWS = st.lists(st.tuples(TEXT, st.sampled_from(["pos", "neg"])), min_size=1, max_size=8)


def doubled(text):
    return text.replace('"', '""')


def rows(table, *columns):
    return [cells for _, cells in table.rows(columns or range(len(table.columns)))]


@settings(max_examples=30)
@given(ROWS, st.booleans(), st.sampled_from([".csv", ".jsonl"]))
def test_what_is_written_is_read(tmp_path_factory, written, named, suffix):
    path = tmp_path_factory.mktemp("table") / f"data{suffix}"
    with path.open("w", encoding="utf-8", newline="") as stream:
        if suffix == ".csv":
            csv.writer(stream).writerows([("text", "label")] * named + list(written))
        else:
            stream.writelines(json.dumps(dict(zip(("text", "label"), row, strict=True))) + "\n" for row in written)
    table = open_table(path, header=None if suffix == ".jsonl" else named)
    assert rows(table) == [tuple(row) for row in written]
    assert rows(table) == rows(table)


@settings(max_examples=40)
@given(ROWS)
def test_a_tsv_takes_quotes_as_letters_unless_a_field_is_quoted(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("table") / "data.tsv"
    path.write_text("".join(f"{text}\t{label}\n" for text, label in written), encoding="utf-8", newline="")
    plain = [row for row in written if not row[0].startswith('"')]
    found = rows(open_table(path, header=False))
    assert [row for row in found if row in plain] == plain
    path.write_text("".join(f'"{doubled(text)}"\t{label}\n' for text, label in written), newline="")
    assert rows(open_table(path, header=False)) == written


def test_a_header_is_found_and_not_invented(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("Sentence\tLabel\ngood\t1\n")
    assert (open_table(path).columns, open_table(path).named) == (("Sentence", "Label"), True)
    assert len(rows(open_table(path, header=False))) == 2
    path.write_text("the text says label\t1\nfine\t0\n")
    assert (open_table(path).columns, open_table(path).named) == (("0", "1"), False)
    path.write_text("utt\tkind\ngood\t1\n")
    assert not open_table(path).named
    assert open_table(path, asked=("utt", None)).named
    path.write_bytes(b"\xef\xbb\xbftext\tlabel\r\ngood\t1\r\n\r\n")
    assert rows(open_table(path)) == [("good", "1")]
    path.write_text("text;label\ngood;1\n")
    assert rows(open_table(path, delimiter=";")) == [("good", "1")]


@pytest.mark.parametrize(("header", "row", "expected"), [
    ("text,label", "x,1", (0, None, 1)),
    ("idx,sentence,label", "0,x,1", (1, None, 2)),
    ("gold_label,premise,hypothesis", "1,x,y", (1, 2, 0)),
    ("question1,question2,label,id", "x,y,1,7", (0, 1, 2)),
    ("label,utt", "1,x", (1, None, 0)),
    ("Label,Text", "1,x", (1, None, 0)),
])  # fmt: skip
def test_columns_are_found_by_name(tmp_path, header, row, expected):
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n{row}\n")
    found = find_columns(open_table(path))
    assert (found.text, found.pair, found.label) == expected


def short(cells):
    return max(map(len, cells)) < 4


def test_columns_without_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a long text,1\nanother text,0\n")
    assert find_columns(open_table(path), is_label=short).wanted == [0, 1]
    path.write_text("1,a long text\n0,another text\n")
    found = find_columns(open_table(path), is_label=short)
    assert (found.text, found.label) == (1, 0)
    path.write_text("one text,another text,0.5\nthird text,fourth text,2\n")
    assert find_columns(open_table(path), is_label=short, needs_pair=True).wanted == [0, 1, 2]
    found = find_columns(open_table(path), text=1, pair=0, label=2)
    assert (found.text, found.pair, found.label) == (1, 0, 2)


@pytest.mark.parametrize(("content", "how", "says"), [
    ("id,utterance_x,kind\n1,a,b\n", {"header": True}, "cannot tell which column holds the labels.*'utterance_x'"),
    ("label,a,b\n1,x,y\n", {}, "cannot tell which column holds the texts.*'a', 'b'"),
    ("text,label\na,1\n", {"label": "lable"}, "no column 'lable'.*label_column.*'text', 'label'.*mean 'label'"),
    ("text,label\na,1\n", {"label": "foo"}, r"it has 'text', 'label'\.(?!.*Known)"),
    ("a text,1\nb text,0\n", {"text": 5}, r"no column 5.*'0', '1' \(no header\)"),
    ("text,label\na,1\n", {"needs_pair": True}, "second texts"),
])  # fmt: skip
def test_missing_columns_are_named_with_what_is_there(tmp_path, content, how, says):
    path = tmp_path / "a.csv"
    path.write_text(content)
    table = open_table(path, header=how.pop("header", None))
    with pytest.raises(DataError, match=f"(?s){says}"):
        find_columns(table, **how)


@pytest.mark.parametrize(("name", "content", "says"), [
    ("a.tsv", b"good\t1\nb\xe9d\t0\n", "line 2 is not UTF-8 text .byte 0xe9"),
    ("a.csv", b'text,label\n"open,1\n', "line 2 is not valid csv"),
    ("a.tsv", b"text\tlabel\ngood\n", r"line 2 has 1 column\(s\), not 2"),
    ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2 is not JSON"),
    ("a.jsonl", b"[1, 2]\n", "line 1 is list"),
    ("a.csv", b"\n \n", "is empty"),
    ("a.jsonl", b"", "is empty"),
    ("a.parquet", b"PAR1 nonsense", "cannot read"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        rows(open_table(path))


def test_parquet_and_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    datasets.disable_progress_bars()
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    table = open_table(tmp_path / "a.parquet")
    assert rows(table, *find_columns(table).wanted) == [("a", 0), ("b", 1), ("c", 1)]
    DatasetDict({"train": data, "validation": data.select([0])}).save_to_disk(tmp_path / "saved")
    tables, unread = open_saved(tmp_path / "saved")
    assert unread == []
    assert sorted(tables) == ["train", "validation"]
    assert tables["train"].classes == {"label": ("bad", "good")}
    assert rows(tables["train"]) == [("a", 0), ("b", 1), ("c", 1)]
    DatasetDict({"test": data}).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match="no rows in a split 'train'; it has 'test'"):
        open_saved(tmp_path / "other")


def test_files_of_splits(tmp_path):
    for name in ("stsb-en-train.csv", "stsb-en-dev.csv", "stsb-en-test.csv", "LICENSE", "README.md"):
        (tmp_path / name).write_text("a,b,1\n")
    found = find_files(str(tmp_path), SUFFIXES, toy="pairs.csv")
    assert {split: [p.name for p in paths] for split, paths in found.items()} == {
        "train": ["stsb-en-train.csv"], "validation": ["stsb-en-dev.csv"], "test": ["stsb-en-test.csv"]
    }  # fmt: skip
    assert find_columns(
        open_table(found["train"][0]), labels=SCORES, is_label=lambda cells: cells == ["1"], needs_pair=True
    ).wanted == [0, 1, 2]
    with pytest.raises(DataError, match=r"validation data are in .* already"):
        find_files(str(tmp_path), SUFFIXES, toy="", validation=str(tmp_path / "stsb-en-test.csv"))
    with pytest.raises(DataError, match=r"no file .*train.cvs.*stsb-en-train.csv"):
        find_files(str(tmp_path / "stsb-en-train.cvs"), SUFFIXES, toy="")
    with pytest.raises(DataError, match=r"no file 'toyy'.*Did you mean 'toy'"):
        find_files("toyy", SUFFIXES, toy="")
    (tmp_path / "train.tsv").write_text("a\t1\n")
    with pytest.raises(DataError, match="train data twice"):
        find_files(str(tmp_path), SUFFIXES, toy="")
    (tmp_path / "only").mkdir()
    with pytest.raises(DataError, match="no files to read"):
        find_files(str(tmp_path / "only"), SUFFIXES, toy="")
    (tmp_path / "only" / "test.csv").write_text("a\n")
    with pytest.raises(DataError, match=r"no file whose name says 'train'; it has test.csv"):
        find_files(str(tmp_path / "only"), SUFFIXES, toy="")
