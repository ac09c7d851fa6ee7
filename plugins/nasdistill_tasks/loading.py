"""From the option `data` to pixels and labels: choosing the reader, and refusing what cannot be learnt from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from nasdistill.errors import DataError, did_you_mean
from nasdistill_tasks import image_files, sources, tables


def read_source(
    data: str,
    form: sources.Form,
    progress: Callable[[str], None] | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> sources.Source:
    """Choose the reader by what `data` is: ``"digits"``, a folder (of images or of a table), or a file by its suffix.

    Raises:
        DataError: nothing there, or it cannot be read.
        MissingExtraError: the reader's package is not installed.
    """
    if data == "digits":
        return sources.read_digits(form)
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            if tables.is_table(path):
                return tables.read_table(path, form, progress, image_column=image_column, label_column=label_column)
            return image_files.read_folder(path, form, progress)
        if path.is_file():
            suffix = path.suffix.lower()
            if suffix == ".npz":
                return sources.read_npz(path, form)
            if suffix == ".zip":
                return image_files.read_zip(path, form, progress)
            if suffix == ".parquet":
                return tables.read_table(path, form, progress, image_column=image_column, label_column=label_column)
            text = suffix in (".tsv", ".csv", ".jsonl", ".ndjson", ".txt")
            raise DataError(
                f"cannot tell what {path} is",
                hint="Images are read from a folder, or a .zip, .npz or .parquet file."
                + (" For text say what the models do, such as --task text_classification." if text else ""),
            )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from None
    known = did_you_mean(data, ["digits"]) if "/" not in data else ""
    raise DataError(
        f"there is no data at {data!r}. {known}".rstrip(),
        hint="Give 'digits' (embedded) or the path of a folder, .zip, .npz or .parquet file.",
    )


def check_source(source: sources.Source, origin: str) -> None:
    """Refuse data that cannot be learnt from.

    Raises:
        DataError: splits of different shapes, labels that name no class, a class without training images, one class
            only.
    """
    shapes = {split: tuple(part.pixels.shape[1:]) for split, part in source.splits.items()}
    for split, shape in shapes.items():
        if shape[0] != shapes["train"][0]:
            raise DataError(
                f"{origin}: training images have {shapes['train'][0]} channel(s), {split} images {shape[0]}",
                hint="Set channels = 1 or channels = 3 in the task's options.",
            )
        if shape != shapes["train"]:
            raise DataError(
                f"{origin}: training images have {' x '.join(map(str, shapes['train'][1:]))} pixels, {split} images "
                f"{' x '.join(map(str, shape[1:]))}",
                hint="Set image_size in the task's options.",
            )
    count = len(source.classes)
    for split, part in source.splits.items():
        if int(part.labels.max()) >= count:
            raise DataError(
                f"{origin}: {split} labels go up to {int(part.labels.max())}, but there are only {count} classes "
                "(counted from the training labels, or named in the data)"
            )
    present = torch.bincount(source.splits["train"].labels, minlength=count)
    absent = [source.classes[i] for i in torch.nonzero(present == 0).flatten().tolist()]
    if count - len(absent) < 2:
        raise DataError(f"{origin}: all training images are of one class; there is nothing to tell apart")
    if absent:
        raise DataError(
            f"{origin}: {len(absent)} of {count} classes have no training image: {', '.join(absent[:10])}",
            hint="Number the labels 0 ... K-1 without gaps, and give every class training images.",
        )
