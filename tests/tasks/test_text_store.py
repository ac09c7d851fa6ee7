"""Tokenised text on disk: found again, checked, made anew when damaged, and written in constant memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.errors import DataError
from nasdistill_tasks.causal_lm import CausalLM
from nasdistill_tasks.text_classification import TextClassification
from nasdistill_tasks.text_lm import pieces, write_lines, write_packed
from nasdistill_tasks.text_rows import find_parts, write_rows
from nasdistill_tasks.text_store import Writer, open_store
from nasdistill_tasks.text_tables import find_columns
from nasdistill_tasks.text_tokens import Characters, letters_of


def make(writer):
    writer.append("ids", np.arange(5, dtype=np.uint16))
    writer.append("ids", np.arange(3))
    return {"words": 2}


def flip(path: Path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_store_is_written_once_and_mapped(tmp_path):
    notes, calls = [], []

    def counted(writer):
        calls.append(1)
        return make(writer)

    for _ in range(2):
        store = open_store(tmp_path, {"a": 1}, counted, notes.append)
        assert store.arrays["ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
        assert store.arrays["ids"].dtype == np.uint16
        assert isinstance(store.arrays["ids"], np.memmap)
        assert store.facts == {"words": 2}
    assert (len(calls), notes) == (1, [])
    open_store(tmp_path, {"a": 2}, counted, notes.append)
    assert len(calls) == 2
    assert len([path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == 2


@pytest.mark.parametrize("damage", [
    lambda folder: flip(folder / "ids.npy"),
    lambda folder: (folder / "ids.npy").unlink(),
    lambda folder: (folder / "manifest.json").unlink(),
    lambda folder: (folder / "manifest.json").write_text("[1]"),
    lambda folder: (folder / "manifest.json").write_text('{"format": "x", "format_version": 1}'),
])  # fmt: skip
def test_a_damaged_store_is_made_again(tmp_path, damage):
    open_store(tmp_path, {}, make, lambda text: None)
    (folder,) = tmp_path.iterdir()
    damage(folder)
    notes = []
    assert open_store(tmp_path, {}, make, notes.append).arrays["ids"][-1] == 2
    assert "is damaged" in notes[0]
    notes.clear()
    open_store(tmp_path, {}, make, notes.append)
    assert notes == []


def test_nothing_half_written_stays_and_a_locked_folder_is_no_end(tmp_path):
    def broken(writer):
        make(writer)
        raise DataError("line 7 is wrong")

    with pytest.raises(DataError, match="line 7"):
        open_store(tmp_path / "new", {}, broken, lambda text: None)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    notes = []
    store = open_store(tmp_path / "file" / "below", {}, make, notes.append)
    assert store.arrays["ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert "cannot be kept" in notes[0]


def test_who_comes_second_takes_what_is_there(tmp_path):
    def slow(writer):
        open_store(tmp_path, {}, make, lambda text: None)  # another process, in between
        return make(writer)

    assert open_store(tmp_path, {}, slow, lambda text: None).facts == {"words": 2}
    assert len(list(tmp_path.iterdir())) == 1


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=200), st.integers(1, 40))
def test_pieces_are_the_text_whatever_their_size(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    found = list(pieces(path, size))
    assert "".join(found) == text
    assert all(piece.endswith("\n") or len(piece) > 4 * size for piece in found[:-1])


def test_a_strange_byte_is_found_in_any_piece(tmp_path):
    path = tmp_path / "a.txt"
    for tail in (b"\xe9 more\n", b"\xe9"):
        path.write_bytes(b"one line\n" * 500 + tail)
        for size in (7, 1 << 16):
            with pytest.raises(DataError, match=r"line 501 is not UTF-8 text \(byte 0xe9\)"):
                list(pieces(path, size))


def peak(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_files_are_tokenised_in_constant_memory(tmp_path):
    """Ten times the text takes no more memory: blocks, lines and rows alike, and the ids are those of one piece."""
    encoder = Characters(letters_of("0123456789 abcdefghijklmnopqrstuvwxyz\t\n"), framed=False)
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    for path, count in ((small, 500), (large, 5_000)):
        with path.open("w") as stream:
            stream.writelines(f"line {i} of a text that is long\tx{i % 2}\n" for i in range(count))
    table = tmp_path / "large.tsv"
    table.write_bytes(large.read_bytes())

    def packed(path):
        writer = Writer(tmp_path)
        write_packed(writer, [path], encoder, (), size=4096)
        writer.close()

    def lines(path):
        writer = Writer(tmp_path)
        write_lines(writer, [path], encoder, 64, ((), ()), chunk=64)
        writer.close()

    def rows(path):
        path = path.rename(path.with_suffix(".tsv")) if path.suffix == ".txt" else path
        part = find_parts(
            str(path), toy="", validation=None, test=None, header=False, delimiter=None, asked=(),
            choose=lambda split, table: find_columns(table, text=0, label=1), note=print,
        )["train"]  # fmt: skip
        writer = Writer(tmp_path)
        write_rows(writer, part, encoder, 64, chunk=64)
        writer.close()

    for work in (packed, lines, rows):
        work(small if small.exists() else small.with_suffix(".tsv"))  # what is imported and cached on first use
        little = peak(lambda work=work: work(small if small.exists() else small.with_suffix(".tsv")))
        much = peak(lambda work=work: work(large if large.exists() else large.with_suffix(".tsv")))
        assert much < 1.3 * little + 30_000, work.__name__
    task = CausalLM({"data": str(_again(table, tmp_path / "again.txt")), "max_length": 100})
    task.prepare(tmp_path / "cache")
    text = table.read_text()
    letters = {i: c for c, i in task._encoder.vocabulary.items()}
    (batch,) = task.batches("train", batch_size=task.size("train"))
    assert "".join(letters[int(i)] for i in batch.inputs["input_ids"].flatten()) == text[: 100 * task.size("train")]


def _again(path: Path, name: Path) -> Path:
    name.write_bytes(path.read_bytes())
    return name


def test_text_is_tokenised_once(tmp_path):
    said = []

    def prepared(**options):
        task = TextClassification(options)
        task.prepare(tmp_path, said.append)
        return task

    first = prepared()
    assert len(said) == 1
    assert said[0].startswith("tokenising")
    again = prepared(metric="mcc", split_seed=1)
    assert len(said) == 1
    assert again.fingerprint != first.fingerprint
    assert prepared(metric="mcc").fingerprint == first.fingerprint  # how students are judged changes no batch
    prepared(max_length=16)
    assert [text.split()[0] for text in said] == ["tokenising", "tokenising", "note:"]
    assert "of 72 texts are longer than 16 tokens and were cut" in said[2]
    prepared(max_length=16)
    assert said[-1] == said[2]  # told again, though nothing was tokenised
