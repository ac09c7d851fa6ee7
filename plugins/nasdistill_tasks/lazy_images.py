"""Images that stay in their files until a batch needs them, and timm's transforms for large ones.

Training: random resized crop, mirrored half of the time, colours changed (timm's defaults); otherwise: resized, centre
crop. The random numbers of an image belong to (seed, epoch, split, image): neither batch size nor order changes it, so
a teacher's answers can be kept.

The fingerprint covers every file's name, size, first and last 4 KiB: reading all of a large data set would take longer
than the rest of the preparation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasdistill.errors import DataError, one_line
from nasdistill.seeds import seeded
from nasdistill_tasks.sources import Form, bring

_END = 4096

LARGE = 64
"""Images whose shorter side has more pixels are large: they are worth a crop."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Image files of one split, decoded when they are asked for; takes the place of a tensor of pixels.

    Attributes:
        files: name for messages and path of each image.
        form: what they are brought to.
        size: ``(C, H, W)`` of each.
        decode: makes ``(C, H, W)`` uint8 of a name and a file's bytes.
    """

    files: tuple[tuple[str, Path], ...]
    form: Form
    size: tuple[int, int, int]
    decode: Callable[[str, Callable[[], object]], Tensor]

    @property
    def shape(self) -> torch.Size:
        """``(n, C, H, W)``."""
        return torch.Size((len(self.files), *self.size))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return ``(k, C, H, W)`` uint8."""
        return torch.stack([self._one(int(i)) for i in index])

    def select(self, index: Tensor) -> Pictures:
        """Return the images at `index` ``(k,)``."""
        return Pictures(tuple(self.files[int(i)] for i in index), self.form, self.size, self.decode)

    def fingerprint(self) -> str:
        """Return a hash of the files; see the module's text."""
        digest = hashlib.sha256()
        for name, path in self.files:
            try:
                with path.open("rb") as stream:
                    size = stream.seek(0, os.SEEK_END)
                    stream.seek(0)
                    head = stream.read(_END)
                    stream.seek(max(0, size - _END))
                    digest.update(
                        f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape") + head + stream.read(_END)
                    )
            except OSError as error:
                raise DataError(f"cannot read image {name}: {error.strerror or error}") from None
        return digest.hexdigest()

    def transformed(self, index: Tensor, transform: Callable[[Any], Tensor], *draws: int | str) -> Tensor:
        """Return ``(k, 3, H, W)`` float32 inputs.

        Args:
            index: which images.
            transform: from a PIL image to an input.
            draws: what the random numbers depend on besides the image: seed, epoch, split; none for plain images.
        """
        found = []
        for i in index.tolist():
            image = self._picture(i)
            if draws:
                with seeded(int(draws[0]), "augment", *draws[1:], i):
                    found.append(transform(image))
            else:
                found.append(transform(image))
        return torch.stack(found)

    def _one(self, i: int) -> Tensor:
        name, path = self.files[i]
        image = bring(self.decode(name, path.read_bytes).unsqueeze(0), self.form)[0]
        if tuple(image.shape) != self.size:
            raise DataError(
                f"images differ: {name} has {' x '.join(map(str, image.shape))} pixels, others "
                f"{' x '.join(map(str, self.size))}",
                hint="Set image_size and channels in the task's options.",
            )
        return image

    def _picture(self, i: int) -> Any:
        from PIL import Image

        name, path = self.files[i]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise DataError(f"cannot read image {name}: {one_line(error)}", hint="Remove or replace it.") from error


def timm_transforms(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float], interpolation: str, crop: float
) -> tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """Return timm's transforms for training and for everything else.

    Args:
        size: height and width.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        interpolation: as timm names it.
        crop: share of the shorter side that a plain image keeps.
    """
    from nasdistill.bridge import prepare_imports

    prepare_imports()
    from timm.data.transforms_factory import create_transform

    how: dict[str, Any] = {
        "input_size": (3, *size), "mean": tuple(mean), "std": tuple(std), "interpolation": interpolation,
    }  # fmt: skip
    return create_transform(**how, is_training=True), create_transform(**how, is_training=False, crop_pct=crop)


def first_side(folder: Path, suffixes: frozenset[str]) -> int | None:
    """Return the shorter side of the first readable image of a folder, in pixels; None without one."""
    from PIL import Image

    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in suffixes:
                try:
                    with Image.open(Path(where, name)) as image:
                        return min(image.size)
                except Exception:  # a damaged file is reported when the data are read
                    return None
    return None
