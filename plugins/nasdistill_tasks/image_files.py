"""Reading image files: a folder or a ``.zip`` with one folder per class, optionally under ``train/ val/ test/``.

Accepted layouts (file names are free, deeper folders count for their class)::

    root/cat/1.png  root/dog/2.png                     split by us
    root/train/cat/1.png  root/val/cat/2.png  ...      val may be called valid, validation or dev

A zip may have one more folder around everything. Classes are sorted by name.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from nasdistill.errors import DataError, one_line
from nasdistill.interfaces.task import Split
from nasdistill_tasks.sources import SPLIT_NAMES, Form, Images, Source, bring

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"})
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _File:
    """One image file: where it lies below the root, and how to get its bytes."""

    parts: tuple[str, ...]
    read: Callable[[], bytes]
    path: Path | None = None


def read_folder(root: Path, form: Form, progress: Progress | None = None) -> Source:
    """Read an image folder."""
    files = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in EXTENSIONS and not any(part.startswith(".") for part in parts) and path.is_file():
            files.append(_File(parts, path.read_bytes, path))
    folders = {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    return _read(files, str(root), form, progress, folders)


def read_zip(path: Path, form: Form, progress: Progress | None = None) -> Source:
    """Read a zip of an image folder without unpacking it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [PurePosixPath(name) for name in sorted(archive.namelist()) if not name.endswith("/")]
            entries = [entry for entry in entries if not any(p.startswith((".", "__MACOSX")) for p in entry.parts)]
            images = [entry for entry in entries if entry.suffix.lower() in EXTENSIONS]
            # One folder around everything is how archives are often made.
            around = len({e.parts[0] for e in images}) == 1 and all(len(e.parts) > 2 for e in images)
            files = [_File(e.parts[1:] if around else e.parts, lambda e=e: archive.read(str(e))) for e in images]  # type: ignore[misc]
            folders = {file.parts[0] for file in files if len(file.parts) > 1}
            return _read(files, str(path), form, progress, folders)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"cannot read {path}: {error}") from None


def _read(files: list[_File], origin: str, form: Form, progress: Progress | None, folders: set[str]) -> Source:
    """Sort files into splits and classes and decode them."""
    if not files:
        raise DataError(
            f"{origin} has no image files ({', '.join(sorted(EXTENSIONS))})",
            hint="Expected one folder per class, or train/ val/ test/ with one folder per class in each.",
        )
    by_split = {name: SPLIT_NAMES[name.lower()] for name in sorted(folders) if name.lower() in SPLIT_NAMES}
    splitted = "train" in by_split.values()
    if by_split and not splitted and set(by_split) == folders:
        raise DataError(f"{origin} has {', '.join(map(repr, by_split))} but no 'train' folder")
    if splitted:
        if len(set(by_split.values())) < len(by_split):
            raise DataError(f"{origin}: several folders mean the same split: {', '.join(map(repr, by_split))}")
        if stray := folders - set(by_split):
            raise DataError(
                f"{origin}: beside {', '.join(map(repr, by_split))} there is {', '.join(map(repr, sorted(stray)[:5]))}",
                hint="Move it away; only train, val and test folders may stand beside each other.",
            )
    groups: dict[Split, dict[str, list[_File]]] = {}
    for file in files:
        split: Split = by_split[file.parts[0]] if splitted and file.parts[0] in by_split else "train"
        inside = file.parts[1:] if splitted else file.parts
        if len(inside) < 2:
            raise DataError(
                f"{origin}: {'/'.join(file.parts)} lies in no class folder",
                hint="Put the images of each class into a folder with the class's name.",
            )
        groups.setdefault(split, {}).setdefault(inside[0], []).append(file)
    if "train" not in groups:
        raise DataError(f"{origin}: the 'train' folder has no image files")
    classes = sorted(groups["train"])
    notes = []
    for split, found in groups.items():
        if strange := sorted(set(found) - set(classes)):
            raise DataError(
                f"{origin}: the {split} folder has class(es) {', '.join(map(repr, strange[:5]))} that the train folder "
                f"has not; train has {', '.join(map(repr, classes[:20]))}"
            )
        if missing := sorted(set(classes) - set(found)):
            notes.append(f"{origin}: the {split} folder has no image of {', '.join(map(repr, missing[:5]))}")
    if progress is not None:
        progress(f"reading {len(files)} image{'s' * (len(files) != 1)} from {origin}")
    order = {split: [(file, classes.index(c)) for c in sorted(g) for file in g[c]] for split, g in groups.items()}
    lazy = _lazily(order, origin, form)
    if lazy is not None:
        return Source(lazy, tuple(classes), 1 / 255, tuple(notes))
    decoded = decode_all(
        ((f"{origin}: {'/'.join(file.parts)}", file.read) for pairs in order.values() for file, _ in pairs),
        len(files), form, origin,
    )  # fmt: skip
    splits: dict[Split, Images] = {}
    begin = 0
    for split, pairs in order.items():
        labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
        splits[split] = Images(decoded[begin : begin + len(pairs)], labels)
        begin += len(pairs)
    return Source(splits, tuple(classes), 1 / 255, tuple(notes))


def _lazily(order: dict[Split, list[tuple[_File, int]]], origin: str, form: Form) -> dict[Split, Images] | None:
    """Return images that stay in their files, where they should; None where all are decoded at once."""
    from nasdistill_tasks.lazy_images import Pictures

    every = [file for pairs in order.values() for file, _ in pairs]
    if form.decode == "memory" or any(file.path is None for file in every):
        return None
    named = {file: f"{origin}: {'/'.join(file.parts)}" for file in every}
    first = bring(_decode(named[every[0]], every[0].read).unsqueeze(0), form)[0]
    if form.decode == "auto" and form.fits(len(every), first):
        return None
    channels, high, wide = first.shape
    if form.size is None:
        for file in every:
            found = _stored_size(file)
            if found is not None and found != (wide, high):
                raise DataError(
                    f"images differ in size: {named[every[0]]} has {_size(first)} pixels, {named[file]} has "
                    f"{found[1]} x {found[0]}",
                    hint="Set image_size in the task's options, for example image_size = 224.",
                )
    splits = {}
    for split, pairs in order.items():
        files = tuple((named[file], file.path) for file, _ in pairs if file.path is not None)
        labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
        splits[split] = Images(Pictures(files, form, (channels, high, wide), _decode), labels)
    return splits


def _stored_size(file: _File) -> tuple[int, int] | None:
    """Return width and height as a file's head says them; None where it is damaged, which shows when it is decoded."""
    from PIL import Image

    try:
        assert file.path is not None  # only folders are read lazily
        with Image.open(file.path) as image:
            return image.size
    except Exception:  # decoders raise nearly anything on a damaged file
        return None


def decode_all(items: Iterable[tuple[str, Callable[[], object]]], count: int, form: Form, origin: str) -> Tensor:
    """Decode `count` images into one ``(n, C, H, W)`` uint8 tensor.

    Args:
        items: pairs of a name for messages and a function that returns the encoded bytes or a PIL image.
        count: how many.
        form: see :class:`Form`.
        origin: name of the whole for messages.

    Raises:
        DataError: an unreadable image, or images of different sizes or channels; names the file.
    """
    pixels: Tensor | None = None
    first = ""
    for i, (name, read) in enumerate(items):
        image = bring(_decode(name, read).unsqueeze(0), form)[0]
        if pixels is None:
            form.check_memory(count, image, origin)
            pixels = torch.empty((count, *image.shape), dtype=torch.uint8)
            first = name
        if image.shape[1:] != pixels.shape[2:]:
            raise DataError(
                f"images differ in size: {first} has {_size(pixels[0])} pixels, {name} has {_size(image)}",
                hint="Set image_size in the task's options, for example image_size = 32.",
            )
        if image.shape[0] != pixels.shape[1]:
            raise DataError(
                f"images differ in channels: {first} has {pixels.shape[1]}, {name} has {image.shape[0]}",
                hint="Set channels = 1 or channels = 3 in the task's options.",
            )
        pixels[i] = image
    assert pixels is not None  # callers refuse empty data
    return pixels


def _decode(name: str, read: Callable[[], object]) -> Tensor:
    """Return one image as ``(C, H, W)`` uint8, C of 1 for grey files and 3 for all others; transparency is dropped."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = read()
        image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
        if not isinstance(image, Image.Image):
            raise DataError(f"expected an image, got {type(content).__name__}")
        mode = image.mode
        array = None if mode[0] in "IF" else np.array(image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB"))
    except UnidentifiedImageError as error:  # its own text names an object in memory
        raise DataError(
            f"cannot read image {name}: not a known image format, or damaged", hint="Remove or replace it."
        ) from error
    # Decoders raise nearly anything on a damaged file (struct.error, SyntaxError, zlib.error ...).
    except Exception as error:
        raise DataError(f"cannot read image {name}: {one_line(error)}") from error
    if array is None:
        raise DataError(
            f"{name} has {mode} pixels; only 8-bit images are read",
            hint="Convert the images to 8 bits, or store them as floats in an .npz file.",
        )
    return torch.from_numpy(array).unsqueeze(0) if array.ndim == 2 else torch.from_numpy(array).permute(2, 0, 1)


def _size(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"
