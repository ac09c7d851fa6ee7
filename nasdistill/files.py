"""Atomic writes and content hashes: a reader sees the old file or folder or the new one, never half of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nasdistill.errors import UsageError, one_line


def cache_folder() -> Path:
    """Return the user's cache folder, which need not exist yet.

    ``NASDISTILL_CACHE`` when set, else ``nasdistill`` in ``XDG_CACHE_HOME``, else ``~/.cache/nasdistill``. What lies
    there can be deleted at any time and is made again.
    """
    own = os.environ.get("NASDISTILL_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "nasdistill"


def config_folder() -> Path:
    """Return the folder of the user's settings, which need not exist yet.

    ``NASDISTILL_CONFIG_HOME`` when set, else ``nasdistill`` in ``XDG_CONFIG_HOME``, else ``~/.config/nasdistill``.

    Raises:
        RuntimeError: the user has no home.
    """
    own = os.environ.get("NASDISTILL_CONFIG_HOME")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CONFIG_HOME")
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".config"
    return base / "nasdistill"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name, on an error it is removed.

    The file is flushed to disk before the rename, so a power cut leaves the old content or the new.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def free_folder(path: Path, *, hint: str = "Choose another one.") -> Path:
    """Return where a folder is that may be written as a whole: missing or empty, and nobody's working directory.

    Args:
        path: the folder.
        hint: what to do where it is not free.

    Raises:
        UsageError: it is not; says why.
    """
    try:
        folder = path.resolve()
        working = folder == Path.cwd()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UsageError(f"{path} is no place for a folder: {one_line(error)}", hint=hint) from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{path} exists and is not an empty folder; nothing was written", hint=hint)
    if working:  # whoever is in it would be left in a folder that is gone
        raise UsageError(
            f"{path} is the working directory, whose place the new folder would take; nothing was written",
            hint="Name a folder in it.",
        )
    return folder


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the name, on an error it is removed.

    Args:
        path: missing or empty (see :func:`free_folder`).

    Raises:
        OSError: the folder above cannot be written to, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    """Return the permissions that new files and folders are not given."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically as JSON with sorted keys, one key a line (diffs stay readable)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def canonical_json(value: Any) -> str:
    """Return the one JSON text that equal values share: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
