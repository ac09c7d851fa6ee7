"""The teacher cache: a teacher's signals for augmented training batches, computed once and shared by all students.

Order and augmentation of a task are functions of ``(seed, epoch, sample)``, so the n-th batch of an epoch is the same
for every student that trains on the same data seed and batch size. What the teacher says to it is written down on the
first pass and read on all others. A cached value was computed on exactly the batch that it is used for, so training
with and without the cache gives the same weights, bit for bit.

Layout, one folder per signal and epoch, which appears under its name only when it is complete::

    FOLDER/<key>/key.json                      what the numbers depend on: teacher, task, seed, batch size, device ...
    FOLDER/<key>/<epoch>/<site>/manifest.json  rows, layout, scale, causality; type, shape and SHA-256 of each array
    FOLDER/<key>/<epoch>/<site>/*.npy          ids; tensor; mask, bias, valid where the signal has them; where batches
                                               differ in shape (padded text), a table *.blocks.npy beside each

Rows are appended in the order of training. An ordinary append, unlike a store into a mapped file, fails with an error
and not with a signal when the disk is full, and the checksum is computed on the way. Files are read whole into a
bounded memory (recent epochs stay for the next student) or mapped when they are larger than it.

Nothing here ever fails a training: unreadable or damaged entries are removed and computed again; when the disk is full
or the size limit reached, one warning is given and the teacher is asked as if there were no cache.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nasdistill.distill.entries import PARTS, Entry, Uneven, Writer, bytes_per_row, walk
from nasdistill.files import content_hash, write_json
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.signals import Site, Trace

_MEGABYTE = 2**20
_OVERHEAD = 4096  # manifest and headers of an entry
_IN_USE = 3600.0  # seconds after its last use in which nobody removes a key


class TeacherCache:
    """A folder of teacher signals.

    Several processes may use one folder at the same time: whoever finishes an entry first gives it its name, the others
    throw theirs away.

    Args:
        folder: where; made when missing.
        max_gb: largest size of the folder; entries of other teachers or data that were not used for an hour make room,
            the longest unused first. Where that is not enough, nothing new is written. None = no limit.
        min_free_gb: no new entry is begun when the disk would be left with less than this.
        memory_mb: entries kept in memory, most recently used first; larger ones are mapped from their files.

    Attributes:
        hits, misses: batches answered from the cache, and by the teacher.
        rebuilt: damaged entries that were thrown away.
    """

    def __init__(
        self, folder: Path, *, max_gb: float | None = 10.0, min_free_gb: float = 1.0, memory_mb: float = 256
    ) -> None:
        self.folder = Path(folder)
        self.hits = self.misses = self.rebuilt = 0
        self._max_bytes = None if max_gb is None else int(max_gb * 1024 * _MEGABYTE)
        self._min_free = int(min_free_gb * 1024 * _MEGABYTE)
        self._memory = int(memory_mb * _MEGABYTE)
        self._loaded: OrderedDict[Path, Entry] = OrderedDict()
        self._loaded_bytes = 0
        self._size: int | None = None
        self._writable = True
        self._told: set[str] = set()

    @contextlib.contextmanager
    def epoch(self, key: Mapping[str, Any], epoch: int, rows: int, sites: frozenset[Site]) -> Iterator[EpochCache]:
        """Open one epoch; entries it lacked are written when the block has passed over all `rows` without an error.

        Args:
            key: JSON-able record of all that the values depend on besides epoch, site and order position.
            epoch: number of the pass.
            rows: samples of the pass.
            sites: what will be asked for.
        """
        folder = self.folder / content_hash(dict(key))[:32]
        with contextlib.suppress(OSError):
            os.utime(folder)  # the time of last use
        opened = EpochCache(self, key, folder / f"{epoch:05d}", rows, sites)
        try:
            yield opened
        except BaseException:
            opened.discard()
            raise
        opened.finish()

    def size(self) -> int:
        """Return the bytes of all files in the folder."""
        total = 0
        for path in self.folder.rglob("*") if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):
                total += path.stat().st_size if path.is_file() else 0
        return total

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._loaded.clear()
        self._loaded_bytes, self._size = 0, None

    # ---- for EpochCache -----------------------------------------------------------------------------------------

    def room_for(self, size: int, key: Path) -> bool:
        """Return whether an entry of `size` bytes may be written under `key`; says once why not."""
        if not self._writable:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            self.give_up(error)
            return False
        if free - size < self._min_free:
            self.warn(f"would leave {max(0, free - size) / 2**30:.2f} GB on the disk; free some or name another folder")
            return False
        if self._max_bytes is not None:
            if self._size is None or self._size + size > self._max_bytes:  # others may have written or removed since
                self._size = self._make_room(self._max_bytes - size, key)
            if self._size + size > self._max_bytes:
                self.warn(f"has reached its limit of {self._max_bytes / 2**30:.2f} GB")
                return False
            self._size += size
        return True

    def _make_room(self, limit: int, key: Path) -> int:
        """Remove keys that are out of use until at most `limit` bytes are left, never `key`; return what is left."""
        total = self.size()
        keys = [path for path in self.folder.iterdir() if path.is_dir() and path != key]
        for path in sorted(keys, key=_last_use):
            if total <= limit or time.time() - _last_use(path) < _IN_USE:
                break
            _remove(path)
            total = self.size()
        return total

    def warn(self, why: str) -> None:
        """Warn once a reason; training goes on with the teacher itself."""
        if why not in self._told:
            self._told.add(why)
            warnings.warn(f"teacher cache {self.folder} {why}; the teacher is asked directly", stacklevel=3)

    def give_up(self, error: OSError) -> None:
        """Write nothing more; what is there is still read."""
        self._writable = False
        self.warn(f"cannot be written to: {error}")

    def load(self, path: Path) -> Entry | None:
        """Return a finished entry after checking its hashes, or None; a damaged one is removed."""
        if path in self._loaded:
            self._loaded.move_to_end(path)
            return self._loaded[path]
        if not path.is_dir():
            return None
        try:
            entry = Entry.read(path, self._memory)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.rebuilt += 1
            warnings.warn(f"teacher cache entry {path} is damaged ({error}); it is computed again", stacklevel=2)
            _remove(path)
            return None
        self._loaded[path] = entry
        self._loaded_bytes += entry.resident
        while self._loaded_bytes > self._memory and len(self._loaded) > 1:
            _, oldest = self._loaded.popitem(last=False)
            self._loaded_bytes -= oldest.resident
        return entry

    def forget(self, path: Path) -> None:
        """Drop an entry from memory and disk."""
        entry = self._loaded.pop(path, None)
        if entry is not None:
            self._loaded_bytes -= entry.resident
        _remove(path)


class EpochCache:
    """One pass over the data. Batches must come in order, every sample once."""

    def __init__(
        self, cache: TeacherCache, key: Mapping[str, Any], folder: Path, rows: int, sites: frozenset[Site]
    ) -> None:
        self._cache = cache
        self._key = dict(key)
        self._folder = folder
        self._rows = rows
        self._sites = sites
        self._row = 0
        self._entries: list[Entry] = []
        self._missing: set[Site] = set()
        self._writers: dict[Site, Writer] | None = None
        for site in sorted(sites):
            found = self._find(site)
            self._entries += found
            if not found:
                self._missing.add(site)

    @property
    def complete(self) -> bool:
        """Whether every site asked for is there already."""
        return not self._missing

    def trace(self, batch: Batch, compute: Callable[[], Trace]) -> Trace:
        """Return the teacher's signals for the next batch.

        Args:
            batch: the next samples of the pass.
            compute: asks the teacher for all sites of this pass.
        """
        begin, self._row = self._row, self._row + batch.size
        if not self._missing:
            trace = self._read(begin, batch)
            if trace is not None:
                self._cache.hits += 1
                return trace
            # The order of samples is not the one that was cached: the task broke its promise. Never guess.
            self._cache.warn("was filled in another order of samples: the task's batches depend on more than its seed")
            self._missing, self._writers = set(self._sites), {}
        trace = settled(compute())
        self._cache.misses += 1
        try:
            self._write(begin, batch, trace)
        except OSError as error:
            self._cache.give_up(error)
            self.discard()
        return trace

    def finish(self) -> None:
        """Give complete entries their names; a pass that was cut short leaves nothing."""
        for site, writer in (self._writers or {}).items():
            try:
                if self._row == self._rows and writer.row == self._rows:
                    writer.finish(self._folder / str(site))
            except OSError as error:
                self._cache.give_up(error)
        self.discard()

    def discard(self) -> None:
        """Throw away what was being written."""
        for writer in (self._writers or {}).values():
            writer.discard()
        self._writers = {}

    def _find(self, site: Site) -> list[Entry]:
        """Return the entries that hold a site: itself, or q and k where a map is recomputed from them."""
        entry = self._cache.load(self._folder / str(site))
        if entry is not None:
            return [entry]
        if site.name in ("scores", "attention"):
            pair = [self._cache.load(self._folder / str(Site(name, site.layer))) for name in ("q", "k")]
            return [entry for entry in pair if entry is not None] if all(pair) else []
        return []

    def _read(self, begin: int, batch: Batch) -> Trace | None:
        """Return rows `begin` and following on the batch's device, or None when they are of other samples."""
        rows = slice(begin, begin + batch.size)
        ids = batch.ids.cpu()
        if not all(entry.serves(rows, ids) for entry in self._entries):
            return None
        root = Trace()
        for entry in self._entries:
            entry.fill(root, rows, batch.ids.device)
        return root

    def _write(self, begin: int, batch: Batch, trace: Trace) -> None:
        if self._writers is None:
            self._writers = {}
            self._begin(batch, trace, self._writers)
        for site, writer in list(self._writers.items()):
            try:
                writer.append(begin, batch, trace)
            except Uneven as error:
                self._cache.warn(f"cannot keep {site} of this teacher ({error})")
                self._writers.pop(site).discard()

    def _begin(self, batch: Batch, trace: Trace, writers: dict[Site, Writer]) -> None:
        """Open a writer for each signal that is missing and fits on the disk."""
        wanted: set[Site] = set()
        for site in self._missing:
            pair = {Site("q", site.layer), Site("k", site.layer)} if site.name in ("scores", "attention") else set()
            wanted |= {site} if any(site in part.signals for _, part in walk(trace)) else pair
        for site in sorted(wanted):
            needed = bytes_per_row(trace, site, batch.size) * self._rows + _OVERHEAD
            if (self._folder / str(site)).exists() or not self._cache.room_for(needed, self._folder.parent):
                continue
            if not (self._folder.parent / "key.json").exists():
                write_json(self._folder.parent / "key.json", self._key)
            writers[site] = Writer(self._folder, site, self._rows)


def settled(trace: Trace) -> Trace:
    """Return a trace cut from autograd and contiguous, as it would come out of the cache.

    A captured signal may be a transposed view, and a matrix product may add in another order for it; with the strides
    fixed, cached and fresh values give the same student.
    """
    signals = {}
    for site, signal in trace.signals.items():
        parts = {part: getattr(signal, part) for part in PARTS}
        flat: dict[str, Any] = {k: None if v is None else v.detach().contiguous() for k, v in parts.items()}
        signals[site] = replace(signal, **flat)
    weights = None if trace.weights is None else trace.weights.detach().contiguous()
    return Trace(signals, tuple(settled(member) for member in trace.members), weights)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    """Remove an entry so that nobody sees half of it: first its name, then its files."""
    doomed = Path(tempfile.mkdtemp(prefix=".removed.", dir=path.parent)) if path.exists() else None
    if doomed is not None:
        with contextlib.suppress(OSError):
            path.rename(doomed / "entry")
        shutil.rmtree(doomed, ignore_errors=True)
