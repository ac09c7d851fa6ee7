"""Atomic writes and content hashes: a reader sees the old file or the new one, never half of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
        # mkstemp makes files private; give the file the permissions an ordinary open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
