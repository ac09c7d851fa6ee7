"""Which files hold the text of which split.

``data`` is a file, a folder whose file names say the split (``train.tsv``, ``stsb-en-dev.csv``,
``test-00000-of-00001.parquet``; ``dev``, ``val`` and ``valid`` mean validation), or ``toy``: a few dozen lines that
come with the package. ``validation_data`` and ``test_data`` name further files beside one for training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nasdistill.errors import DataError, did_you_mean
from nasdistill.interfaces.task import Split
from nasdistill_tasks.sources import SPLIT_NAMES

TOY = "toy"
"""Name of the data that comes with the package."""

Files = dict[Split, tuple[Path, ...]]


def find_files(
    data: str,
    suffixes: Sequence[str],
    *,
    toy: str,
    validation: str | None = None,
    test: str | None = None,
    documents: bool = False,
) -> Files:
    """Return the files of each split; train is always there.

    Args:
        data: see the module's text.
        suffixes: of the files that are read.
        toy: file name of the toy data.
        validation: file of the validation split.
        test: file of the test split.
        documents: a folder whose file names say no split holds one document per file, all for training.

    Raises:
        DataError: nothing there, or nothing of a known kind.
    """
    if data == TOY:
        files: Files = {"train": (Path(__file__).parent / "toy" / toy,)}
    else:
        path = Path(data).expanduser()
        files = _folder(path, suffixes, documents) if path.is_dir() else {"train": (_file(data, suffixes, data),)}
    given_files: dict[Split, str | None] = {"validation": validation, "test": test}
    for split, given in given_files.items():
        if given is None:
            continue
        if split in files:
            raise DataError(f"{split} data are in {data} already ({files[split][0].name}), and {given} is given too")
        files[split] = (_file(given, suffixes, data),)
    return files


def _file(given: str, suffixes: Sequence[str], data: str) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        raise DataError(f"{given} is a folder; name a file", hint="A folder with all splits is given as `data`.")
    if not path.is_file():
        known = did_you_mean(given, [TOY]) if given == data and "/" not in given and "." not in given else ""
        beside = [p.name for p in path.parent.iterdir() if p.suffix.lower() in suffixes] if path.parent.is_dir() else []
        near = did_you_mean(path.name, beside) if beside else ""
        raise DataError(
            f"there is no file {given!r}. {known or near}".rstrip(),
            hint=f"Give the path of a file ({', '.join(suffixes)}) or of a folder with one per split, or {TOY!r}.",
        )
    if path.suffix.lower() not in suffixes:
        raise DataError(f"cannot tell what {path} is", hint=f"Text is read from {', '.join(suffixes)}.")
    return path


def _folder(folder: Path, suffixes: Sequence[str], documents: bool) -> Files:
    """Return the files of a folder by the split that their names say."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if not found:
        raise DataError(f"{folder} has no files to read ({', '.join(suffixes)})")
    files: Files = {}
    unnamed = []
    for path in found:
        words = re.split(r"[^a-z]+", path.stem.lower())
        words += [part.lower() for part in reversed(path.relative_to(folder).parts[:-1])]
        split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
        if split is None:
            unnamed.append(path)
        else:
            files[split] = (*files.get(split, ()), path)
    if not files and (documents or len(unnamed) == 1):
        return {"train": tuple(unnamed)}
    if "train" not in files:
        names = ", ".join(str(p.relative_to(folder)) for p in found[:8])
        raise DataError(
            f"{folder} has no file whose name says 'train'; it has {names}", hint="Name the file itself as data."
        )
    for split, paths in files.items():
        if len({path.suffix for path in paths}) > 1:
            raise DataError(f"{folder} has {split} data twice: {', '.join(path.name for path in paths[:8])}")
    return files
