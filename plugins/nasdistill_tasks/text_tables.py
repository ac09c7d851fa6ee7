"""Tables of text, read row by row: tsv, csv, JSON lines, parquet, and folders that ``datasets`` saved.

A table is never held in memory: :meth:`Table.rows` opens the file, yields the asked columns of one row after the other,
and can be called again. Whether a tsv or csv file has a header is found from its first row (a header names columns that
are known or were asked for); without one, columns are called ``0``, ``1``, ...

In a tsv a quote is a letter like any other, unless a whole field is quoted as programs write it: quotes at both ends,
and doubled inside.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nasdistill.errors import DataError, MissingExtraError, did_you_mean, one_line
from nasdistill.files import read_json
from nasdistill.interfaces.task import Split
from nasdistill_tasks.sources import SPLIT_NAMES

SUFFIXES = (".tsv", ".csv", ".jsonl", ".ndjson", ".parquet")
"""Files that are tables."""

PLAIN = (".txt", ".text", ".md", ".raw", ".tokens")
"""Files of plain text; as a table, one column and a row per line."""

PAIRS = (
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("text1", "text2"),
    ("text_a", "text_b"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "answer"), ("query", "passage"), ("s1", "s2"),
)  # fmt: skip
"""Names of two columns that belong together."""

TEXTS = ("text", "sentence", "content", "review", "comment", "document", "tweet", "utterance", "question", "query")
"""Names of a column of single texts."""

LABELS = ("label", "labels", "class", "target", "category", "sentiment", "intent", "gold_label", "y")
"""Names of a column of classes."""

SCORES = ("score", "similarity", "similarity_score", "relatedness_score", "label", "target")
"""Names of a column of similarities."""

_KNOWN = frozenset({*itertools.chain(*PAIRS), *TEXTS, *LABELS, *SCORES})
_PREVIEW = 200

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One file, or one split of a saved data set.

    Attributes:
        origin: how messages name it.
        columns: names; ``"0"``, ``"1"``, ... without a header.
        named: whether the file names its columns.
        unit: what messages count: ``"line"`` or ``"row"``.
        reading: JSON of all that decides the rows beside the content of the files: form, delimiter, header, split.
        read: yields every row with its number.
        classes: column -> names of its numbers, where the file says them.
    """

    origin: str
    columns: tuple[str, ...]
    named: bool
    unit: str
    reading: Mapping[str, Any]
    read: Callable[[], Iterator[tuple[int, Row]]]
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def rows(self, columns: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """Yield the number and the cells at `columns` of every row that is not blank.

        Raises:
            DataError: a row has fewer columns than the first one.
        """
        needed = max(columns, default=-1)
        for number, cells in self.read():
            if len(cells) <= needed:
                raise DataError(
                    f"{self.origin}: {self.unit} {number} has {len(cells)} column(s), not {len(self.columns)}",
                    hint="Is the delimiter inside the text? Quote such fields, or set `delimiter` in the options.",
                )
            yield number, tuple(cells[column] for column in columns)

    def preview(self) -> list[Row]:
        """Return the first rows."""
        return [cells for _, cells in itertools.islice(self.rows(range(len(self.columns))), _PREVIEW)]

    def find(self, column: str | int, what: str) -> int:
        """Return the position of a column given by name or position.

        Raises:
            DataError: there is none; names those there are.
        """
        if isinstance(column, int) and 0 <= column < len(self.columns):
            return column
        if column in self.columns:
            return self.columns.index(str(column))
        close = did_you_mean(column, self.columns) if isinstance(column, str) else ""
        close = close if close.startswith("Did") else ""  # all columns are listed anyway
        raise DataError(
            f"{self.origin} has no column {column!r} ({what}_column); it has {self.shown()}. {close}".rstrip(". ")
            + ".",
            hint="" if self.named else "It has no header: give the column's position, counted from 0.",
        )

    def shown(self) -> str:
        """Return the columns for messages."""
        return ", ".join(map(repr, self.columns)) + ("" if self.named else " (no header)")


@dataclass(frozen=True, slots=True)
class Columns:
    """Positions of the columns of interest; None where there is none."""

    text: int
    pair: int | None
    label: int | None

    @property
    def wanted(self) -> list[int]:
        """Those that are there, text first and label last."""
        return [column for column in (self.text, self.pair, self.label) if column is not None]


def open_table(
    path: Path, *, header: bool | None = None, delimiter: str | None = None, asked: Iterable[str | int | None] = ()
) -> Table:
    """Return the table in a file.

    Args:
        path: the file; its suffix says what it is.
        header: whether a tsv or csv file has one; None finds out.
        delimiter: of a tsv or csv file, instead of tab and comma.
        asked: names of columns that the user gave.

    Raises:
        DataError: unreadable, or empty.
        MissingExtraError: parquet without ``pyarrow``.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(path)
    if suffix in PLAIN:
        return Table(str(path), ("0",), False, "line", {"form": "lines"}, lambda: _plain(path))
    delimiter, quoted = delimiter or ("," if suffix == ".csv" else "\t"), suffix == ".csv"

    def read() -> Iterator[tuple[int, Row]]:
        return _delimited(path, delimiter, quoted=quoted)

    first = next(read(), None)
    if first is None:
        raise DataError(f"{path} is empty", hint="Was it written in full?")
    cells = [str(cell).strip() for cell in first[1]]
    if header is None:
        names = {name for name in asked if isinstance(name, str)}
        header = any(cell in names or cell.lower() in _KNOWN for cell in cells)
    how = {"form": "delimited", "delimiter": delimiter, "quoted": quoted, "header": header}  # as found, not as asked
    if not header:
        return Table(str(path), tuple(map(str, range(len(cells)))), False, "line", how, read)
    return Table(str(path), tuple(cells), True, "line", how, lambda: itertools.islice(read(), 1, None))


def is_saved(folder: Path) -> bool:
    """Return whether ``datasets`` saved this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def open_saved(folder: Path, given: Mapping[Split, str] | None = None) -> tuple[dict[Split, Table], list[str]]:
    """Return the tables of a folder that ``datasets`` saved, by split, and the names of its splits that nobody reads.

    Args:
        folder: of the data set.
        given: split -> the data set's own name of it, where that is not the usual one (``"validation_matched"``).

    Raises:
        DataError: unreadable, without a split ``train`` or one of `given`, or with two of one meaning.
        MissingExtraError: ``datasets`` is not installed.
    """
    from nasdistill.bridge import prepare_imports

    prepare_imports()  # `datasets` looks for torchvision
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"reading {folder} needs the package 'datasets', which is not installed",
            hint="pip install 'nasdistill[data]'",
        ) from error
    try:
        named: dict[str, Any] = {
            name: datasets.load_from_disk(str(part)) if read_json(part / "state.json")["_data_files"] else ()
            for name, part in _saved_splits(folder).items()
        }
    except Exception as error:  # pyarrow and datasets raise many kinds
        raise DataError(f"cannot read {folder}: {one_line(error)}") from error
    chosen = {name: split for split, name in (given or {}).items()}
    if len(chosen) < len(given or {}):
        raise DataError(f"{folder}: split {next(iter(chosen))!r} is named twice")
    absent = sorted(set(chosen) - set(named))
    if absent:
        raise DataError(f"{folder} has no split {absent[0]!r}; it has {', '.join(map(repr, named)) or 'nothing'}")
    empty = [name for name, data in named.items() if not len(data) and (name in chosen or name.lower() == "train")]
    if empty:
        raise DataError(f"{folder}: split {empty[0]!r} has no rows", hint="Save it again with its rows.")
    tables: dict[Split, Table] = {}
    unread = []
    for name, data in named.items():
        split = chosen.get(name) or SPLIT_NAMES.get(name.lower())
        if split is None or not len(data) or (split in chosen.values() and name not in chosen):
            unread += [name] if len(data) else []
            continue
        if split in tables:
            raise DataError(f"{folder}: several splits mean {split!r}: {', '.join(named)}")
        classes = {k: tuple(f.names) for k, f in data.features.items() if isinstance(f, datasets.ClassLabel)}
        read, how = functools.partial(_saved_rows, data), {"form": "saved", "split": name}
        tables[split] = Table(f"{folder} ({name})", tuple(data.features), True, "row", how, read, classes)
    if "train" not in tables:
        raise DataError(f"{folder} has no rows in a split 'train'; it has {', '.join(map(repr, named)) or 'nothing'}")
    return tables, unread


def _saved_splits(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits that ``datasets`` saved. It writes no rows of an empty one, and then it cannot
    open the whole.
    """
    if not (folder / "dataset_dict.json").is_file():
        return {"train": folder}
    return {name: folder / name for name in read_json(folder / "dataset_dict.json")["splits"]}


def find_columns(
    table: Table,
    *,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    labels: tuple[str, ...] = LABELS,
    is_label: Callable[[Sequence[str]], bool] | None = None,
    needs_label: bool = True,
    needs_pair: bool = False,
) -> Columns:
    """Choose the columns: those asked for, then those with known names, then those that are left.

    Args:
        table: the table.
        text: column of the (first) text, by name or position.
        pair: column of the second text.
        label: column of the label or score.
        labels: names that a label's column usually has.
        is_label: whether the cells of a column without a name may be labels.
        needs_label: refuse a table without labels.
        needs_pair: refuse a table without a second text.

    Raises:
        DataError: a column is missing or cannot be told; names those there are.
    """
    lower = [name.lower() for name in table.columns]
    found = {
        what: None if column is None else table.find(column, what)
        for what, column in (("text", text), ("pair", pair), ("label", label))
    }
    if found["label"] is None:
        taken = {found["text"], found["pair"]}
        if table.named:
            found["label"] = next((lower.index(n) for n in labels if n in lower and lower.index(n) not in taken), None)
        elif is_label is not None and len(lower) > 1 + needs_pair:
            rows = table.preview()
            order = [i for i in dict.fromkeys((len(lower) - 1, 0)) if i not in taken]
            found["label"] = next((i for i in order if is_label([str(row[i]) for row in rows])), None)
    if needs_label and found["label"] is None:
        raise DataError(
            f"{table.origin}: cannot tell which column holds the labels; it has {table.shown()}",
            hint="Set label_column in the task's options"
            + (", or header = true or false where the first line is misread." if table.unit == "line" else "."),
        )
    if found["text"] is None and table.named:
        for one, other in PAIRS:
            if one in lower and other in lower and found["pair"] in (None, lower.index(other)):
                found["text"], found["pair"] = lower.index(one), lower.index(other)
                break
        else:
            free = [n for n in TEXTS if n in lower and lower.index(n) not in (found["pair"], found["label"])]
            found["text"] = lower.index(free[0]) if free else None
    left = [i for i in range(len(lower)) if i not in found.values()]
    if found["text"] is None and (not table.named or len(left) == 1):
        if len(left) == 1:
            found["text"] = left[0]
        elif len(left) == 2 and found["pair"] is None:
            found["text"], found["pair"] = left
    if found["text"] is None or (needs_pair and found["pair"] is None):
        missing = "text" if found["text"] is None else "pair"
        raise DataError(
            f"{table.origin}: cannot tell which column holds the {'second ' if missing == 'pair' else ''}texts; it has "
            f"{table.shown()}",
            hint=f"Set {missing}_column in the task's options.",
        )
    return Columns(found["text"], found["pair"], found["label"])


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers, line ends included.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                yield number, decoded(raw, path, number)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def decoded(raw: bytes, path: Path, number: int) -> str:
    """Return a line as text; the first one may begin with a byte order mark. Raises DataError."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, number, error) from None


def not_utf8(path: Path, number: int, error: UnicodeDecodeError) -> DataError:
    """Return the error for bytes that are no text."""
    return DataError(
        f"{path}: line {number} is not UTF-8 text (byte 0x{error.object[error.start]:02x})",
        hint="Save the file in UTF-8: iconv -f latin1 -t utf-8 FILE, or whatever its encoding is.",
    )


def _plain(path: Path) -> Iterator[tuple[int, Row]]:
    return ((number, (line.rstrip("\r\n"),)) for number, line in numbered_lines(path) if line.strip())


def _delimited(path: Path, delimiter: str, *, quoted: bool) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a tsv or csv file."""
    if not quoted:
        for number, line in numbered_lines(path):
            text = line.rstrip("\r\n")
            if text.strip():
                yield number, tuple(_unquoted(cell) for cell in text.split(delimiter))
        return
    reader = csv.reader((line for _, line in numbered_lines(path)), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, tuple(cells)
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is not valid csv: {error}",
            hint="Quote fields with commas or quotes, and double the quotes inside; or save it as .tsv.",
        ) from None


def _unquoted(cell: str) -> str:
    """Return what a quoted field says; anything else as it is."""
    if len(cell) >= 2 and cell[0] == cell[-1] == '"':
        inside = cell[1:-1].replace('""', "")
        if '"' not in inside:
            return cell[1:-1].replace('""', '"')
    return cell


def _json_lines(path: Path) -> Table:
    def read() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in numbered_lines(path):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}: line {number} is not JSON: {error}") from None
            if not isinstance(value, dict):
                raise DataError(f"{path}: line {number} is {type(value).__name__}, not an object with columns")
            yield number, value

    first = next(read(), None)
    if first is None:
        raise DataError(f"{path} is empty", hint="Was it written in full?")
    columns = tuple(first[1])

    def rows() -> Iterator[tuple[int, Row]]:
        return ((number, tuple(value.get(name) for name in columns)) for number, value in read())

    return Table(str(path), columns, True, "line", {"form": "json lines"}, rows)


def _parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError(
            f"reading {path} needs the package 'pyarrow', which is not installed", hint="pip install 'nasdistill[data]'"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = tuple(file.schema_arrow.names)
            if file.metadata.num_rows == 0:
                raise DataError(f"{path} is empty", hint="Was it written in full?")
    except DataError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise DataError(f"cannot read {path}: {one_line(error)}") from error

    def read() -> Iterator[tuple[int, Row]]:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    yield number, cells

    return Table(str(path), columns, True, "row", {"form": "parquet"}, read)


def _saved_rows(data: Any) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in data.with_format(None).iter(batch_size=1024):
        for cells in zip(*batch.values(), strict=True):
            number += 1
            yield number, cells
