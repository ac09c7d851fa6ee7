"""Reading tables of images with the ``datasets`` package (extra ``data``): saved folders and parquet files.

Accepted: a folder written by ``save_to_disk`` (one split or several), a folder with parquet files as downloaded from a
hub (``data/train-00000-of-00002.parquet``), and a single parquet file. Images are an image column, encoded bytes, or
nested lists of 8-bit pixels; labels are a class column, integers or texts.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nasdistill.errors import DataError, MissingExtraError, one_line
from nasdistill.interfaces.task import Split
from nasdistill_tasks.image_files import decode_all
from nasdistill_tasks.sources import SPLIT_NAMES, Form, Images, Source, number_classes, to_index

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "pixels", "x")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "y")


def is_table(folder: Path) -> bool:
    """Return whether a folder is a saved data set or holds parquet files (and so is no image folder)."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return True
    return any(True for pattern in ("*.parquet", "*/*.parquet") for _ in folder.glob(pattern))


def read_table(
    path: Path,
    form: Form,
    progress: Callable[[str], None] | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Read a saved data set, a folder of parquet files, or one parquet file.

    Args:
        path: the folder or file.
        form: see :class:`Form`.
        progress: told what is read.
        image_column: column of the images; None finds it by type, then by name.
        label_column: column of the labels; None finds it by type, then by name.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: unreadable, or without such columns.
    """
    from nasdistill.bridge import prepare_imports

    prepare_imports()  # `datasets` looks for torchvision
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"reading {path} needs the package 'datasets', which is not installed",
            hint="pip install 'nasdistill[data]'",
        ) from error
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            tables = _open(datasets, path, scratch)
        except DataError:
            raise
        except Exception as error:  # pyarrow and datasets raise many kinds
            raise DataError(f"cannot read {path}: {one_line(error)}") from error
        finally:
            if not quiet:
                datasets.enable_progress_bars()
        if progress is not None:
            progress(f"reading {sum(len(t) for t in tables.values())} images from {path}")
        return _read(datasets, tables, path, form, image_column, label_column)


def _open(datasets: Any, path: Path, scratch: str) -> dict[Split, Any]:
    """Return the tables by split; unknown splits are left out."""
    if path.is_file() or (not (path / "dataset_info.json").is_file() and not (path / "dataset_dict.json").is_file()):
        files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
        by_name: dict[str, list[str]] = {}
        for file in files:
            words = [re.split(r"[-_.]", file.name)[0].lower(), file.parent.name.lower()]
            name = next((word for word in words if word in SPLIT_NAMES), "train")
            by_name.setdefault(name if path.is_dir() else "train", []).append(str(file))
        named = {
            name: datasets.Dataset.from_parquet(paths, cache_dir=scratch, keep_in_memory=True)
            for name, paths in by_name.items()
        }
    else:
        loaded = datasets.load_from_disk(str(path))
        named = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    tables: dict[Split, Any] = {}
    for name, table in named.items():
        if name.lower() in SPLIT_NAMES and len(table):
            if SPLIT_NAMES[name.lower()] in tables:
                raise DataError(f"{path}: several splits mean {SPLIT_NAMES[name.lower()]!r}: {', '.join(named)}")
            tables[SPLIT_NAMES[name.lower()]] = table.with_format(None)
    if "train" not in tables:
        raise DataError(f"{path} has no rows in a split 'train'; it has {', '.join(map(repr, named)) or 'nothing'}")
    return tables


def _read(
    datasets: Any, tables: dict[Split, Any], path: Path, form: Form, image_column: str | None, label_column: str | None
) -> Source:
    """Find the columns and decode."""
    features = tables["train"].features
    image_name = _column(features, image_column, IMAGE_COLUMNS, datasets.Image, "image", path)
    label_name = _column(features, label_column, LABEL_COLUMNS, datasets.ClassLabel, "label", path)
    classes: list[str] | None = None
    if isinstance(features[label_name], datasets.ClassLabel):
        classes = list(features[label_name].names)
    raw = {}
    for split, table in tables.items():
        values = table[label_name][:]
        if any(value is None for value in values):
            raise DataError(f"{path}: column {label_name!r} of split {split!r} has rows without a label")
        raw[split] = np.array(values)
        if raw[split].ndim != 1 or raw[split].dtype.kind not in "iuU":
            raise DataError(
                f"{path}: column {label_name!r} must hold integers 0 ... K-1 or texts, not {features[label_name]}"
            )
    if classes is None and raw["train"].dtype.kind == "U":
        classes = sorted(set(raw["train"].tolist()))
    labels = {split: to_index(raw[split], classes, f"{path}: {label_name} of {split}") for split in tables}
    if classes is None:
        classes = number_classes(labels["train"], f"{path}: {label_name}")

    def items() -> Iterator[tuple[str, Callable[[], object]]]:
        for split, table in tables.items():
            column = table.select_columns([image_name])
            for i in range(len(column)):
                yield f"{path}: {split} row {i}", lambda column=column, i=i: _image(column[i][image_name])  # type: ignore[misc]

    pixels = decode_all(items(), sum(map(len, tables.values())), form, str(path))
    splits: dict[Split, Images] = {}
    begin = 0
    for split, table in tables.items():
        splits[split] = Images(pixels[begin : begin + len(table)], labels[split])
        begin += len(table)
    return Source(splits, tuple(classes), 1 / 255)


def _column(features: Any, asked: str | None, names: tuple[str, ...], feature: type, what: str, path: Path) -> str:
    """Return the column to read: the one asked for, else the only one of a type, else the first known name."""
    have = list(features)
    if asked is not None:
        if asked not in have:
            raise DataError(f"{path} has no column {asked!r} ({what}_column); it has {', '.join(map(repr, have))}")
        return asked
    typed = [name for name in have if isinstance(features[name], feature)]
    candidates = typed if len(typed) == 1 else [name for name in names if name in have]
    if not candidates:
        raise DataError(
            f"{path}: cannot tell which column holds the {what}s; columns: {', '.join(map(repr, have))}",
            hint=f"Set {what}_column in the task's options.",
        )
    return candidates[0]


def _image(value: Any) -> object:
    """Return encoded bytes or a PIL image from what a row holds."""
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return value["bytes"]
        raise DataError("the row has no image bytes (a path outside the table is not followed)")
    if isinstance(value, list):
        from PIL import Image

        array = np.array(value)
        if array.dtype.kind not in "ui" or array.min() < 0 or array.max() > 255:
            raise DataError("pixels in lists must be integers 0 ... 255")
        if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
            array = array.transpose(1, 2, 0)
        return Image.fromarray(array.astype(np.uint8).squeeze(-1) if array.shape[-1] == 1 else array.astype(np.uint8))
    if value is None:
        raise DataError("the row is empty")
    return value
