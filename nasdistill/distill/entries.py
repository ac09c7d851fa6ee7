"""One site of one epoch in the teacher cache: a folder of arrays and a manifest.

:class:`Writer` appends rows batch by batch and gives the folder its name at the end; :class:`Entry` checks a finished
one and puts its rows into traces. What is kept, and where, is decided in :mod:`nasdistill.distill.cache`.

An array has one row per sample, or one value for all, as long as every batch has the same shape. Batches of text are
padded to their own longest sample, so their shapes differ; such an array is kept flat, batch behind batch, beside a
table of where each batch begins and which shape it has. A batch comes back exactly as it was computed, padding
included. A batch of equal lengths has no padding and then no mask: the table says so with a shape of zeros.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from nasdistill.files import read_json, write_json
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.signals import Signal, Site, Trace

FORMAT = "nasdistill.teacher_cache"
FORMAT_VERSION = 2

PARTS = ("tensor", "mask", "bias", "valid")
OPTIONAL = ("mask", "bias")
"""Parts that some batches may lack."""

_HEADER = 256
"""Bytes before the numbers of an ``.npy`` file: always as many, because the shape is known last."""


@dataclass(slots=True)
class _Array:
    """One array of an entry: a row per sample, one value for all, or (flat) batches of different shapes.

    Attributes:
        values: the numbers.
        per_row: whether there is a value per sample.
        blocks: first row of a batch -> where it begins in `values`, and its shape.
    """

    values: Tensor
    per_row: bool
    blocks: dict[int, tuple[int, tuple[int, ...]]] | None = None

    def serves(self, rows: slice) -> bool:
        """Return whether these rows are a batch (or any will do)."""
        if self.blocks is None:
            return True
        block = self.blocks.get(rows.start)
        return block is not None and (not self.per_row or not any(block[1]) or block[1][0] == rows.stop - rows.start)

    def rows(self, rows: slice, device: torch.device) -> Tensor | None:
        # A copy: aligned as a tensor that was just computed, and safe from losses that work in place.
        if self.blocks is None:
            return (self.values[rows] if self.per_row else self.values).clone().to(device)
        begin, shape = self.blocks[rows.start]
        if not any(shape):  # this batch had none
            return None
        return self.values[begin : begin + math.prod(shape)].reshape(shape).clone().to(device)


@dataclass(slots=True)
class _Member:
    """What an entry holds of one network: the teacher itself (prefix ``""``) or a member of an ensemble."""

    prefix: str
    weights: _Array | None
    facts: dict[str, Any] | None
    parts: dict[str, _Array]


@dataclass(slots=True)
class Entry:
    """A finished entry: one site of one epoch."""

    site: Site
    ids: Tensor
    members: list[_Member]
    resident: int

    @classmethod
    def read(cls, path: Path, memory: int) -> Entry:
        """Read and check an entry; files of more than `memory` bytes are mapped.

        Raises:
            OSError, ValueError, KeyError, TypeError, AttributeError: it is damaged, with a word on what is.
        """
        manifest = read_json(path / "manifest.json")
        if manifest["format"] != FORMAT or manifest["format_version"] != FORMAT_VERSION:
            raise ValueError("another format")
        arrays = {}
        resident = 0
        for name, facts in manifest["arrays"].items():
            file = path / f"{name}.npy"
            data = file.read_bytes() if file.stat().st_size <= memory else None
            if (_numbers_hash(file) if data is None else _sha256(data[_HEADER:])) != facts["sha256"]:
                raise ValueError(f"{file.name} does not match its checksum")
            if data is None:
                plain = np.load(file, mmap_mode="c", allow_pickle=False)
            else:
                plain = np.load(io.BytesIO(data), allow_pickle=False)
                resident += len(data)
            if list(plain.shape) != facts["shape"]:
                raise ValueError(f"{file.name} has the shape {plain.shape}, not {facts['shape']}")
            values, blocks = torch.from_numpy(plain).view(getattr(torch, facts["dtype"])), None
            if facts["blocks_sha256"] is not None:
                table = (path / f"{name}.blocks.npy").read_bytes()
                if _sha256(table) != facts["blocks_sha256"]:
                    raise ValueError(f"{name}.blocks.npy does not match its checksum")
                rows = np.load(io.BytesIO(table), allow_pickle=False).tolist()
                blocks = {first: (begin, tuple(shape)) for first, begin, *shape in rows}
            arrays[name] = _Array(values, facts["per_row"], blocks)
        ids = arrays.pop("ids").values
        if ids.shape != (manifest["rows"],):
            raise ValueError("wrong number of rows")
        members = []
        for prefix in manifest["members"]:
            parts = {part: arrays[f"{prefix}{part}"] for part in PARTS if f"{prefix}{part}" in arrays}
            facts = manifest["signals"].get(prefix)
            if facts is not None:
                grid = facts["grid"]
                facts = {**facts, "grid": None if grid is None else tuple(grid)}
            members.append(_Member(prefix, arrays.get(f"{prefix}weights"), facts, parts))
        return cls(Site.parse(manifest["site"]), ids, members, resident)

    def serves(self, rows: slice, ids: Tensor) -> bool:
        """Return whether these rows hold the samples `ids` as one batch."""
        if not torch.equal(self.ids[rows], ids):
            return False
        arrays = [a for m in self.members for a in (*m.parts.values(), *(() if m.weights is None else (m.weights,)))]
        return all(array.serves(rows) for array in arrays)

    def fill(self, root: Trace, rows: slice, device: torch.device) -> None:
        """Put this site's signals into a trace (and into its members, which are made when they are not there)."""
        for member in self.members:
            trace = _member(root, member.prefix) if member.prefix else root
            if member.weights is not None:
                trace.weights = member.weights.rows(rows, device)
            if member.facts is not None:
                parts: dict[str, Any] = {name: array.rows(rows, device) for name, array in member.parts.items()}
                trace.signals[self.site] = Signal(**parts, **member.facts)


class Uneven(Exception):
    """The signal has another type, other axes or other facts in this batch than in the first: no array holds it."""


class Writer:
    """Appends one site, batch by batch, to a folder without a name yet."""

    def __init__(self, folder: Path, site: Site, rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = Path(tempfile.mkdtemp(prefix=f".{site}.", suffix=".tmp", dir=folder))
        self._site = site
        self._rows = rows
        self._files: dict[str, _File] = {}
        self._members: list[str] = []
        self._signals: dict[str, dict[str, Any]] = {}
        self._begins: list[int] = []
        self.row = 0

    def append(self, begin: int, batch: Batch, trace: Trace) -> None:
        """Add a batch.

        Raises:
            OSError: the disk is full or gone.
            Uneven: the signal changed its type, the number of its axes or its facts.
        """
        arrays: dict[str, tuple[Tensor, bool]] = {"ids": (batch.ids, True)}
        members, signals = [], {}
        for prefix, part in walk(trace):
            members.append(prefix)
            if part.weights is not None:
                arrays[f"{prefix}weights"] = (part.weights, part.weights.ndim > 1)
            signal = part.signals.get(self._site)
            if signal is None:
                continue
            signals[prefix] = {
                "layout": signal.layout,
                "scale": signal.scale,
                "causal": signal.causal,
                "grid": None if signal.grid is None else list(signal.grid),
            }
            for name in PARTS:
                tensor = getattr(signal, name)
                if tensor is not None:
                    arrays[f"{prefix}{name}"] = (tensor, _is_per_row(name, tensor, signal))
        if begin == 0:
            self._members, self._signals = members, signals
        elif begin != self.row or members != self._members or signals != self._signals:
            raise Uneven("it changes from batch to batch")
        odd = {name for name in {*arrays} ^ {*self._files} if name.rpartition(".")[2] not in OPTIONAL}
        if begin and odd:
            raise Uneven("it changes from batch to batch")
        for name, (tensor, per_row) in arrays.items():
            if name not in self._files:
                file = self._files[name] = _File(self._path / f"{name}.npy", tensor, per_row)
                for row in self._begins:
                    file.skip(row)
            self._files[name].append(begin, tensor)
        for name in {*self._files} - {*arrays}:
            self._files[name].skip(begin)
        self._begins.append(begin)
        self.row += batch.size

    def finish(self, path: Path) -> None:
        """Write the manifest and take the final name, unless another process was first."""
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "site": str(self._site),
            "rows": self._rows,
            "members": self._members,
            "signals": self._signals,
            "arrays": {name: file.close(self._rows) for name, file in self._files.items()},
        }
        write_json(self._path / "manifest.json", manifest)
        self._path.chmod(path.parent.stat().st_mode)  # mkdtemp made it private
        with contextlib.suppress(OSError):  # it exists: the other one's values are the same
            self._path.rename(path)

    def discard(self) -> None:
        """Throw away what was written."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # closing writes what is still buffered
                file.stream.close()
        shutil.rmtree(self._path, ignore_errors=True)


class _File:
    """An ``.npy`` file written batch by batch, with the checksum of its numbers."""

    def __init__(self, path: Path, first: Tensor, per_row: bool) -> None:
        self.dtype, self.axes, self.per_row = first.dtype, first.ndim, per_row
        self._path = path
        self._plain = _numpy(first).dtype
        self._hash = hashlib.sha256()
        self._count = 0
        self._blocks: list[tuple[int, int, tuple[int, ...]]] = []  # first row, where it begins, shape
        self._last: Tensor | None = None
        self.stream: BinaryIO = path.open("wb")
        self.stream.write(bytes(_HEADER))

    def append(self, row: int, tensor: Tensor) -> None:
        """Add a batch that begins at `row`; what has no row per sample is written when it changes."""
        if tensor.dtype != self.dtype or tensor.ndim != self.axes:
            raise Uneven(f"{tensor.dtype} of {tensor.ndim} axes after {self.dtype} of {self.axes}")
        shape = tuple(tensor.shape)
        if self._last is not None and shape == self._blocks[-1][2] and torch.equal(tensor, self._last):
            self._blocks.append((row, *self._blocks[-1][1:]))
            return
        self._blocks.append((row, self._count, shape))
        self._count += math.prod(shape)
        self._last = None if self.per_row else tensor
        self._put(_numpy(tensor).tobytes())

    def skip(self, row: int) -> None:
        """Note that the batch that begins at `row` has none."""
        self._blocks.append((row, self._count, (0,) * self.axes))
        self._last = None

    def close(self, rows: int) -> dict[str, Any]:
        """Write the header, and the table of batches where they differ; return the facts for the manifest."""
        shapes = {shape[self.per_row :] for _, _, shape in self._blocks}
        table = None
        if len(shapes) == 1 and (self.per_row or self._blocks[-1][1] == 0):
            shape = (rows, *shapes.pop()) if self.per_row else shapes.pop()
        else:
            shape, table = (self._count,), io.BytesIO()
            np.save(table, np.array([(row, begin, *sides) for row, begin, sides in self._blocks], dtype=np.int64))
            self._path.with_suffix(".blocks.npy").write_bytes(table.getvalue())
        self.stream.seek(0)
        self.stream.write(_header(self._plain, shape))
        self.stream.close()
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(shape),
            "per_row": self.per_row,
            "sha256": self._hash.hexdigest(),
            "blocks_sha256": None if table is None else _sha256(table.getvalue()),
        }

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self.stream.write(data)


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the first `_HEADER` bytes of an ``.npy`` file, format 1.0."""
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(map(int, shape))}
    text = repr(facts).encode("ascii")
    return np.lib.format.magic(1, 0) + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11) + b"\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _numbers_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of what follows the header of a file."""
    with path.open("rb") as stream:
        stream.seek(_HEADER)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_per_row(name: str, tensor: Tensor, signal: Signal) -> bool:
    """Return whether a part has a value per sample; masks and biases may be broadcast over the batch."""
    if name in ("tensor", "valid"):
        return True
    return tensor.ndim == signal.tensor.ndim and tensor.shape[0] == signal.tensor.shape[0] > 1


def walk(trace: Trace, prefix: str = "") -> Iterator[tuple[str, Trace]]:
    """Yield a trace and all members under it with prefixes ``""``, ``"m0."``, ``"m0.m1."``."""
    yield prefix, trace
    for index, member in enumerate(trace.members):
        yield from walk(member, f"{prefix}m{index}.")


def _member(root: Trace, prefix: str) -> Trace:
    """Return the member of a prefix; `walk` gave the prefixes, so parents and lower indices come first."""
    trace = root
    for name in prefix.split(".")[:-1]:
        index = int(name[1:])
        if index == len(trace.members):
            trace.members = (*trace.members, Trace())
        trace = trace.members[index]
    return trace


def bytes_per_row(trace: Trace, site: Site, rows: int) -> int:
    """Return about how many bytes a sample of this site takes."""
    total = 8
    for _, part in walk(trace):
        signal = part.signals.get(site)
        for tensor in [] if signal is None else [getattr(signal, name) for name in PARTS]:
            total += 0 if tensor is None else math.ceil(tensor.numel() * tensor.element_size() / rows)
    return total


def _numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor's bytes as an array; types that NumPy lacks (bfloat16) as integers of the same width."""
    plain = tensor.detach().cpu().contiguous()
    try:
        return plain.numpy()
    except TypeError:
        same_width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[plain.element_size()]
        return plain.view(same_width).numpy()
