"""Tokenised text on disk: written once, checked and memory-mapped from then on.

    FOLDER/<key>/manifest.json     format; facts; type, shape and SHA-256 of each array
    FOLDER/<key>/*.npy             ids (all texts behind each other), offsets, labels ...

The key is a hash of all that the numbers depend on: content of the files, tokenizer, options. A folder appears under
its name only when it is complete; a damaged one is thrown away and made again. Where nothing can be written, a
temporary folder serves.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nasdistill.files import atomic_folder, content_hash, file_hash, read_json, write_json

FORMAT = "nasdistill.tokens"
FORMAT_VERSION = 1

_HEADER = 128


class Writer:
    """Arrays that grow at their end, whose length is known last.

    Args:
        folder: where to; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, tuple[BinaryIO, np.dtype[Any]]] = {}
        self._counts: dict[str, int] = {}

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Add numbers ``(n,)`` to an array; its type is that of the first ones."""
        if name not in self._files:
            self._files[name] = ((self._folder / f"{name}.npy").open("wb"), values.dtype)
            self._files[name][0].write(bytes(_HEADER))
            self._counts[name] = 0
        stream, dtype = self._files[name]
        stream.write(np.ascontiguousarray(values, dtype=dtype).tobytes())
        self._counts[name] += len(values)

    def count(self, name: str) -> int:
        """Return how many numbers an array has so far."""
        return self._counts.get(name, 0)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the headers and the manifest."""
        arrays = {}
        for name, (stream, dtype) in self._files.items():
            header = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": (self.count(name),),
            }
            stream.seek(0)
            stream.write(np.lib.format.magic(1, 0) + (_HEADER - 10).to_bytes(2, "little"))
            stream.write(repr(header).encode("ascii").ljust(_HEADER - 11) + b"\n")
            stream.close()
            arrays[name] = {"count": self.count(name), "sha256": file_hash(self._folder / f"{name}.npy")}
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "facts": dict(facts), "arrays": arrays}
        write_json(self._folder / "manifest.json", manifest)

    def close(self) -> None:
        """Close what is open."""
        for stream, _ in self._files.values():
            stream.close()


@dataclass(frozen=True, slots=True)
class Store:
    """Mapped arrays and what was written down beside them.

    Attributes:
        arrays: read-only, one axis each.
        facts: JSON.
        holder: keeps a temporary folder alive.
    """

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]
    holder: object = None


def open_store(
    folder: Path,
    key: Mapping[str, Any],
    make: Callable[[Writer], Mapping[str, Any]],
    note: Callable[[str], None],
) -> Store:
    """Return what `make` writes, from an earlier time where it is there and sound.

    Args:
        folder: of all stores.
        key: JSON of all that the content depends on.
        make: writes the arrays and returns the facts.
        note: told when something is made again, or cannot be kept.
    """
    path = folder / content_hash({"format_version": FORMAT_VERSION, **key})[:32]
    if path.is_dir():
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            note(f"tokenised text in {path} is damaged ({error}); it is made again")
            shutil.rmtree(path, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".probe."):
            pass
    except OSError as error:
        note(f"tokenised text cannot be kept: {error}")
        holder = _Scratch()
        _write(holder.path, make)
        store = _read(holder.path)
        return Store(store.arrays, store.facts, holder)
    # Another process may have been faster: its content is the same, and a full folder cannot be replaced.
    with contextlib.suppress(_Taken), atomic_folder(path) as temporary:
        _write(temporary, make)
        if path.exists():
            raise _Taken
    return _read(path)


class _Scratch:
    """A temporary folder that goes when nobody holds this any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="nasdistill-tokens-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class _Taken(Exception):
    """Another process has written the same."""


def _write(folder: Path, make: Callable[[Writer], Mapping[str, Any]]) -> None:
    writer = Writer(folder)
    try:
        writer.finish(make(writer))
    finally:
        writer.close()


def _read(path: Path) -> Store:
    """Return a store after checking it. Raises OSError, ValueError, KeyError, TypeError or AttributeError."""
    manifest = read_json(path / "manifest.json")
    if manifest["format"] != FORMAT or manifest["format_version"] != FORMAT_VERSION:
        raise ValueError("another format")
    arrays = {}
    for name, facts in manifest["arrays"].items():
        file = path / f"{name}.npy"
        if file_hash(file) != facts["sha256"]:
            raise ValueError(f"{file.name} does not match its checksum")
        array = np.load(file, mmap_mode="r" if facts["count"] else None, allow_pickle=False)
        if array.shape != (facts["count"],):
            raise ValueError(f"{file.name} has the shape {array.shape}")
        arrays[name] = array
    return Store(arrays, manifest["facts"])
