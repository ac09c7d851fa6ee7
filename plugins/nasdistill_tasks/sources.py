"""Reading labelled images: what every reader returns, and the readers of arrays (embedded digits, ``.npz``).

A reader returns pixels as they are stored, one tensor per split; resizing to one size is the only change. Files and
tables have readers of their own (:mod:`nasdistill_tasks.image_files`, :mod:`nasdistill_tasks.tables`).
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nasdistill.errors import DataError, one_line
from nasdistill.interfaces.task import Split

if TYPE_CHECKING:
    from nasdistill_tasks.lazy_images import Pictures

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
"""Names of splits in folders and tables, and what they mean here."""


@dataclass(frozen=True, slots=True)
class Form:
    """What the images are brought to while they are read.

    Attributes:
        size: ``(height, width)``; None keeps the stored size, which must then be the same for all.
        channels: 1 or 3; None keeps what is stored.
        max_bytes: largest memory the pixels may take.
        decode: ``memory`` decodes at once, ``lazy`` when a batch needs an image; ``auto`` at once where it fits.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    max_bytes: int = 4 << 30
    decode: str = "auto"

    def fits(self, count: int, sample: Tensor | np.ndarray) -> bool:
        """Return whether `count` images like `sample` fit into `max_bytes`."""
        return count * _bytes(sample) <= self.max_bytes

    def check_memory(self, count: int, sample: Tensor | np.ndarray, origin: str) -> None:
        """Refuse `count` images like `sample` when they would not fit into `max_bytes`."""
        needed = count * _bytes(sample)
        if needed > self.max_bytes:
            raise DataError(
                f"{origin}: {count} images of {' x '.join(map(str, sample.shape))} take {needed / 2**30:.1f} GiB of "
                f"memory, more than the allowed {self.max_bytes / 2**30:.1f}",
                hint="Set a smaller image_size, or raise max_gigabytes, in the task's options.",
            )


@dataclass(frozen=True, slots=True)
class Images:
    """Labelled images of one split.

    Attributes:
        pixels: ``(n, C, H, W)``, uint8 or float32; or the files that hold them.
        labels: ``(n,)`` int64 in ``[0, K)``.
    """

    pixels: Tensor | Pictures
    labels: Tensor

    def select(self, index: Tensor) -> Images:
        """Return the images at `index` ``(k,)``."""
        chosen = self.pixels[index] if isinstance(self.pixels, Tensor) else self.pixels.select(index)
        return Images(chosen, self.labels[index])


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader returns.

    Attributes:
        splits: always ``"train"``; the others where the data has them.
        classes: K names, by label.
        scale: factor that brings stored pixels to [0, 1] (1.0 for floats, which are taken as they are).
        notes: what the user should know, one line each.
    """

    splits: Mapping[Split, Images]
    classes: tuple[str, ...]
    scale: float
    notes: tuple[str, ...] = ()


def read_digits(form: Form) -> Source:
    """Read scikit-learn's digits: 1,797 real handwritten digits of 8 x 8 pixels with 17 grey levels, embedded."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(data.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(data.target.astype(np.int64))
    return Source({"train": Images(bring(pixels, form), labels)}, tuple(str(i) for i in range(10)), 1 / 16)


def read_npz(path: Path, form: Form) -> Source:
    """Read arrays ``x, y`` or ``x_train, y_train`` with, optionally, ``x_val, y_val`` and ``x_test, y_test``.

    Images are ``(n, H, W)``, ``(n, H, W, C)`` or ``(n, C, H, W)`` with C of 1 or 3; integers in [0, 255], or floats,
    which are taken as they are. Labels are integers 0 ... K-1 or strings. An array ``classes`` may name the classes.
    """
    try:
        with path.open("rb") as stream:  # numpy leaves what it opens itself open where the archive is broken
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                hint = "Use numpy.savez(path, x=..., y=...)."
                raise DataError(f"{path} holds one array, not named arrays", hint=hint)
            with archive:
                arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, MemoryError) as error:
        raise DataError(
            f"cannot read {path}: {one_line(error)}", hint="Write it with numpy.savez(path, x=images, y=labels)."
        ) from None
    pairs = {"x": "train", "x_train": "train", "x_val": "validation", "x_validation": "validation", "x_test": "test"}
    found: dict[Split, tuple[str, str]] = {}
    for image_key, split in pairs.items():
        if image_key in arrays:
            label_key = "y" + image_key[1:]
            if label_key not in arrays:
                raise DataError(f"{path} has {image_key!r} but no {label_key!r}; it has {_names(arrays)}")
            if SPLIT_NAMES[split] in found:
                raise DataError(f"{path} has both {found[SPLIT_NAMES[split]][0]!r} and {image_key!r}; keep one of them")
            found[SPLIT_NAMES[split]] = (image_key, label_key)
    if "train" not in found:
        raise DataError(
            f"{path} has no training images: expected arrays 'x' and 'y', or 'x_train' and 'y_train' (and x_val, "
            f"y_val, x_test, y_test); it has {_names(arrays)}",
            hint="numpy.savez(PATH, x=images, y=labels) writes such a file.",
        )
    texts, scales = [], set()
    pixels, labels = {}, {}
    for split, (image_key, label_key) in found.items():
        pixels[split], scale = _pixels(arrays[image_key], f"{path}: {image_key}", form)
        scales.add(scale)
        labels[split] = _labels(arrays[label_key], len(arrays[image_key]), f"{path}: {label_key}")
        texts.append(labels[split].dtype.kind == "U")
    if len(scales) > 1:
        raise DataError(f"{path}: some image arrays are integers (0 ... 255), others floats; use one kind for all")
    if any(texts) and not all(texts):
        raise DataError(f"{path}: some label arrays are numbers, others texts; use one kind for all")
    classes = [str(name) for name in arrays["classes"].ravel()] if "classes" in arrays else None
    if texts[0]:
        classes = sorted(set(labels["train"].tolist())) if classes is None else classes
    splits: dict[Split, Images] = {}
    for split in found:
        splits[split] = Images(pixels[split], to_index(labels[split], classes, f"{path}: {found[split][1]}"))
    if classes is None:
        classes = number_classes(splits["train"].labels, f"{path}: {found['train'][1]}")
    return Source(splits, tuple(classes), scales.pop())


def to_index(labels: np.ndarray, classes: Sequence[str] | None, where: str) -> Tensor:
    """Return ``(n,)`` int64 labels; texts become their position in `classes`.

    Raises:
        DataError: a text that is no class; a negative number.
    """
    if labels.dtype.kind == "U":
        position = {name: i for i, name in enumerate(classes or ())}
        strange = sorted({str(name) for name in labels if name not in position})
        if strange:
            raise DataError(
                f"{where}: class(es) {', '.join(map(repr, strange[:5]))} are not among the training classes "
                f"{', '.join(map(repr, list(position)[:20]))}"
            )
        return torch.tensor([position[str(name)] for name in labels], dtype=torch.int64)
    values = torch.from_numpy(labels.astype(np.int64))
    if int(values.min()) < 0:
        raise DataError(
            f"{where}: labels must be 0 ... K-1, but {int((values < 0).sum())} of {len(values)} are negative "
            f"(the smallest is {int(values.min())})"
        )
    return values


def number_classes(labels: Tensor, where: str) -> list[str]:
    """Return ``"0" ... "K-1"`` for training labels ``(n,)``.

    Raises:
        DataError: the largest label is out of range: each class needs at least one image.
    """
    largest = int(labels.max())
    if largest >= len(labels):
        raise DataError(
            f"{where}: the largest label is {largest}, but there are only {len(labels)} training images",
            hint="Number the classes 0 ... K-1 without gaps.",
        )
    return [str(i) for i in range(largest + 1)]


def bring(pixels: Tensor, form: Form) -> Tensor:
    """Return ``(n, C, H, W)`` pixels with the channels and the size of `form`, in their own dtype.

    Grey becomes colour by repetition, colour grey by luma (ITU-R 601). A new size covers the old image and is cut at
    the centre, so shapes keep their proportions; interpolation is bilinear with antialiasing.
    """
    channels = pixels.shape[1]
    if form.channels == 3 and channels == 1:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    elif form.channels == 1 and channels == 3:
        luma = (pixels.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        pixels = luma.round().to(torch.uint8) if pixels.dtype == torch.uint8 else luma
    if form.size is None or tuple(pixels.shape[-2:]) == form.size:
        return pixels
    high, wide = form.size
    old_high, old_wide = pixels.shape[-2:]
    factor = max(high / old_high, wide / old_wide)
    cover = (max(high, math.ceil(old_high * factor - 1e-6)), max(wide, math.ceil(old_wide * factor - 1e-6)))
    resized = F.interpolate(pixels.float(), size=cover, mode="bilinear", antialias=True, align_corners=False)
    top, left = (cover[0] - high) // 2, (cover[1] - wide) // 2
    resized = resized[..., top : top + high, left : left + wide]
    return resized.round().clamp(0, 255).to(torch.uint8) if pixels.dtype == torch.uint8 else resized.contiguous()


def _pixels(array: np.ndarray, where: str, form: Form) -> tuple[Tensor, float]:
    """Return ``(n, C, H, W)`` pixels and their scale."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise DataError(
            f"{where} has shape {array.shape}; images are (n, height, width), (n, height, width, channels) or "
            "(n, channels, height, width) with 1 or 3 channels"
        )
    if 0 in array.shape:
        raise DataError(f"{where} is empty: shape {array.shape}")
    kind = array.dtype.kind
    if kind in "ui":
        if array.min() < 0 or array.max() > 255:
            raise DataError(
                f"{where}: integer pixels must lie in 0 ... 255, found {array.min()} ... {array.max()}",
                hint="Store other ranges as floats.",
            )
        array = array.astype(np.uint8)
    elif kind == "f":
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite in it, and refused as such
            array = array.astype(np.float32)
        bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if bad.any():
            raise DataError(
                f"{where}: {int(bad.sum())} of {len(array)} images have pixels that are NaN or infinite, first image "
                f"{int(bad.argmax())}"
            )
    else:
        raise DataError(f"{where} has dtype {array.dtype}; pixels are integers (0 ... 255) or floats")
    form.check_memory(len(array), array[0], where)
    return bring(torch.from_numpy(np.ascontiguousarray(array)), form), 1 / 255 if kind in "ui" else 1.0


def _labels(array: np.ndarray, count: int, where: str) -> np.ndarray:
    """Return ``(n,)`` labels, integers or texts."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != count:
        raise DataError(f"{where} has shape {array.shape}, but there are {count} images; expected ({count},)")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.round(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "uiU":
        raise DataError(f"{where}: labels must be integers 0 ... K-1 or texts, not {array.dtype}")
    return array


def _bytes(sample: Tensor | np.ndarray) -> int:
    return sample.nbytes if isinstance(sample, np.ndarray) else sample.numel() * sample.element_size()


def _names(arrays: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, sorted(arrays))) or "nothing"
