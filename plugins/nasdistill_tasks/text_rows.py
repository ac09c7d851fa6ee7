"""From tables to stores: tokenised rows with the cells of a further column, read and written in chunks.

A store of rows has ``ids`` and ``offsets``, ``types`` for pairs, and ``cells``: numbers of the distinct cells of the
label's column, whose texts stand in the facts (``values``). A store of sentences has ``first`` and ``scores`` instead.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasdistill.errors import DataError
from nasdistill.interfaces.task import Split
from nasdistill_tasks.sources import SPLIT_NAMES
from nasdistill_tasks.text_files import find_files
from nasdistill_tasks.text_store import Writer
from nasdistill_tasks.text_tables import SUFFIXES, Columns, Table, is_saved, open_saved, open_table
from nasdistill_tasks.text_task import hashes, id_type
from nasdistill_tasks.text_tokens import CHARS, Encoder

CHUNK = 2048
"""Rows that are tokenised together."""

_MANY = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """The tables of one split, with the columns of interest.

    Attributes:
        tables: read one after the other.
        columns: of each table.
        content: hashes of the files; of all files of a saved data set.
        origin: how messages name it.
    """

    tables: tuple[Table, ...]
    columns: tuple[Columns, ...]
    content: tuple[str, ...]
    origin: str

    def rows(self) -> Iterator[tuple[str, str, str | None, Any]]:
        """Yield where, text, second text and label's cell."""
        for table, columns in zip(self.tables, self.columns, strict=True):
            wanted = columns.wanted
            places = [None if c is None else wanted.index(c) for c in (columns.text, columns.pair, columns.label)]
            for number, cells in table.rows(wanted):
                text, pair, label = (None if place is None else cells[place] for place in places)
                where = f"{table.origin}: {table.unit} {number}"
                yield where, _text(text, where), None if columns.pair is None else _text(pair, where), label

    def texts(self) -> Iterator[str]:
        """Yield all texts."""
        for _, text, pair, _ in self.rows():
            yield text
            if pair is not None:
                yield pair

    @property
    def has_pairs(self) -> bool:
        """Whether there is a second text."""
        return self.columns[0].pair is not None

    @property
    def has_labels(self) -> bool:
        """Whether there is a column of labels."""
        return all(columns.label is not None for columns in self.columns)

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the rows, as JSON.

        The files alone do not: several splits may lie in the same ones, and the same bytes may be read in several ways.
        """
        return {
            "files": list(self.content),
            "reading": [dict(table.reading) for table in self.tables],
            "columns": [[c.text, c.pair, c.label] for c in self.columns],
        }


def find_parts(
    data: str,
    *,
    toy: str,
    suffixes: Sequence[str] = SUFFIXES,
    validation: str | None,
    test: str | None,
    header: bool | None,
    delimiter: str | None,
    asked: Sequence[str | int | None],
    choose: Callable[[Split, Table], Columns],
    note: Callable[[str], None],
) -> dict[Split, Part]:
    """Return the tables of each split with their columns chosen.

    Args:
        data: file or folder; see :mod:`nasdistill_tasks.text_files`.
        toy: file of the toy data.
        suffixes: of the files that are read.
        validation: file of the validation split; of a saved data set, its own name of that split.
        test: the same of the test split.
        header: see :func:`nasdistill_tasks.text_tables.open_table`.
        delimiter: likewise.
        asked: likewise.
        choose: chooses the columns of a table.
        note: told of what is left out.
    """
    found: dict[Split, tuple[list[Table], list[str]]] = {}
    folder = Path(data).expanduser()
    if folder.is_dir() and is_saved(folder):
        named: dict[Split, str | None] = {"validation": validation, "test": test}
        saved, unread = open_saved(folder, {split: name for split, name in named.items() if name is not None})
        content = hashes(sorted(p for p in folder.rglob("*") if p.suffix in (".arrow", ".json")))
        found = {split: ([table], content) for split, table in saved.items()}
        if unread:
            names = ", ".join(map(repr, unread))
            note(f"{data}: not read: {names}; validation_data and test_data may name splits of a saved data set")
            for text in _instead(data, unread, set(found)):
                note(text)
    else:
        for name, given_files in find_files(data, suffixes, toy=toy, validation=validation, test=test).items():
            tables = [open_table(p, header=header, delimiter=delimiter, asked=asked) for p in given_files]
            found[name] = (tables, hashes(given_files))
    parts: dict[Split, Part] = {}
    first = found["train"][0][0]
    usual = choose("train", first)
    for split, (tables, content) in found.items():
        # Files of one form are read alike: what a small one holds may look otherwise.
        alike = [table.columns == first.columns and usual.label is not None for table in tables]
        columns = tuple(usual if same else choose(split, table) for table, same in zip(tables, alike, strict=True))
        if len({(c.pair is None, c.label is None) for c in columns}) > 1:
            raise DataError(f"the {split} files of {data} have different columns")
        origin = ", ".join(table.origin for table in tables)
        parts[split] = Part(tuple(tables), columns, tuple(content), origin)
    return parts


def write_rows(
    writer: Writer, part: Part, encoder: Encoder, max_length: int, *, chunk: int = CHUNK
) -> Mapping[str, Any]:
    """Tokenise a split's rows into a store; return its facts.

    Args:
        writer: of the store.
        part: what to read.
        encoder: the tokenizer.
        max_length: tokens that texts are cut to.
        chunk: rows that are held in memory.

    Raises:
        DataError: no rows, no tokens, a row without a label, too many distinct labels.
    """
    values: dict[str, int] = {}
    cut = empty = 0
    frame = encoder.encode([""], [""] if part.has_pairs else None, max_length).ids[0]
    texts = tokens = False
    writer.append("offsets", np.zeros(1, dtype=np.int64))
    for rows in _chunks(part.rows(), chunk):
        kept = [row for row in rows if row[1].strip() and (row[2] is None or row[2].strip())]
        empty += len(rows) - len(kept)
        if not kept:
            continue
        pairs = [row[2] or "" for row in kept] if part.has_pairs else None
        encoded = encoder.encode([row[1] for row in kept], pairs, max_length)
        cut += encoded.cut
        texts, tokens = True, tokens or any(not np.array_equal(row, frame) for row in encoded.ids)
        some = [i for i, row in enumerate(encoded.ids) if len(row)]  # a tokenizer may see nothing in a strange text
        empty += len(kept) - len(some)
        if not some:
            continue
        kept = [kept[i] for i in some]
        append_ids(writer, [encoded.ids[i] for i in some], encoder.size)
        if encoded.types is not None:
            writer.append("types", np.concatenate([encoded.types[i] for i in some]).astype(np.uint8))
        if part.has_labels:
            cells = [values.setdefault(_cell(row[3], row[0]), len(values)) for row in kept]
            writer.append("cells", np.array(cells, dtype=np.int32))
            if len(values) > _MANY:
                hint = "Is label_column the right one?"
                raise DataError(f"{part.origin}: more than {_MANY} different labels", hint=hint)
    count = writer.count("offsets") - 1
    if texts and not tokens:
        raise no_tokens(encoder, part.origin, max_length - len(frame))
    if not count:
        raise DataError(f"{part.origin} has no rows with text", hint="Is text_column the right one?")
    return {"values": list(values), "notes": row_notes(part.origin, count, cut, empty, max_length)}


def write_sentences(
    writer: Writer, part: Part, encoder: Encoder, max_length: int, *, chunk: int = CHUNK
) -> Mapping[str, Any]:
    """Tokenise a split's sentences one by one into a store, those of a pair behind each other; return its facts.

    ``first`` holds for each sentence the row where the same text stood first, ``scores`` the number of each pair.

    Raises:
        DataError: no rows, no tokens, or a score that is no number.
    """
    seen: dict[bytes, int] = {}
    cut = empty = count = 0
    frame, tokens = encoder.encode([""], None, max_length).ids[0], False
    writer.append("offsets", np.zeros(1, dtype=np.int64))
    for rows in _chunks(part.rows(), chunk):
        kept = [row for row in rows if row[1].strip() and (row[2] is None or row[2].strip())]
        empty += len(rows) - len(kept)
        if not kept:
            continue
        texts = [text for row in kept for text in (row[1:3] if row[2] is not None else row[1:2]) if text is not None]
        encoded = encoder.encode(texts, None, max_length)
        cut += encoded.cut
        tokens = tokens or any(not np.array_equal(row, frame) for row in encoded.ids)
        silent = next((text for text, row in zip(texts, encoded.ids, strict=True) if not len(row)), None)
        if silent is not None and tokens:
            raise DataError(
                f"{part.origin}: the tokenizer {encoder.source} makes no token of the text {silent[:80]!r}",
                hint="Remove the row, or use a tokenizer that knows its characters.",
            )
        if silent is not None:
            raise no_tokens(encoder, part.origin)
        append_ids(writer, encoded.ids, encoder.size)
        first = [seen.setdefault(_digest(text), count + i) for i, text in enumerate(texts)]
        writer.append("first", np.array(first, dtype=np.int64))
        count += len(texts)
        if part.has_labels:
            writer.append("scores", np.array([_number(row[3], row[0]) for row in kept], dtype=np.float64))
    if not count:
        raise DataError(f"{part.origin} has no rows with text", hint="Is text_column the right one?")
    if not tokens:
        raise no_tokens(encoder, part.origin, max_length - len(frame))
    return {"notes": row_notes(part.origin, count, cut, empty, max_length)}


def no_tokens(encoder: Encoder, origin: str, room: int | None = None) -> DataError:
    """Return the error for a tokenizer that makes no tokens of any text.

    Args:
        encoder: the tokenizer.
        origin: of the text.
        room: tokens of `max_length` that its own special tokens leave, where texts are framed.
    """
    if room is not None and room < 1:
        return DataError(
            f"max_length leaves no room for text beside the special tokens of the tokenizer {encoder.source}",
            hint="Set a larger max_length in the task's options.",
        )
    return DataError(
        f"the tokenizer {encoder.source} makes no tokens of the text in {origin}",
        hint="Is it the right one, and was it saved in full? Set `tokenizer` in the task's options to the folder of "
        f"another one, or to {CHARS!r} for characters.",
    )


def append_ids(writer: Writer, rows: Sequence[NDArray[np.int64]], size: int) -> None:
    """Add rows of ids and their ends to a store."""
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64) + writer.count("ids")
    writer.append("ids", np.concatenate(rows).astype(id_type(size)))
    writer.append("offsets", ends)


def row_notes(origin: str, count: int, cut: int, empty: int, max_length: int) -> list[str]:
    """Return what the user should know about a split's texts."""
    notes = []
    if cut:
        notes.append(f"{origin}: {cut} of {count} texts are longer than {max_length} tokens and were cut")
    if empty:
        notes.append(f"{origin}: {empty} rows without text were left out")
    return notes


def is_unknown(value: Any) -> bool:
    """Return whether a label is -1, as public data sets write those of a test split that they keep to themselves."""
    try:
        return float(value) == -1
    except (TypeError, ValueError):
        return False


def unknown_note(origin: str, split: Split, what: str) -> str:
    """Return what to tell of a split whose labels (`what`) are all -1."""
    told = f"{origin}: all {what} are -1, which says that they are not known; "
    if split == "test":
        return told + "it counts as a test split without labels, and nothing is scored on it"
    return told + f"it is left out, and {split} data are taken from the training data"


def _instead(data: str, unread: Sequence[str], found: Set[Split]) -> Iterator[str]:
    """Yield what to tell where a split is cut out of train though the data set has one whose name begins like it."""
    split: Split
    for split in ("validation", "test"):
        alike = [name for name in unread if SPLIT_NAMES.get(re.split(r"[^a-z]", name.lower())[0]) == split]
        if alike and split not in found:
            yield (
                f"{data} has no split {split!r}, so {split} data are taken from train; to use {alike[0]!r}: "
                f"--set task.options.{split}_data={alike[0]}"
            )


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: the text is {value!r}, a {type(value).__name__}", hint="Is text_column right?")
    return value


def _cell(value: Any, where: str) -> str:
    """Return a label as text; whole numbers without a decimal point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(int(value)) if isinstance(value, bool) else "" if value is None else str(value).strip()
    if not text or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where} has no label", hint="Remove the row, or give the file without labels as test data.")
    return text


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the score {value!r} is no number", hint="Is label_column right?") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: the score is {value}")
    return number
