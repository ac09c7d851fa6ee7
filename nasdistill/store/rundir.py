"""The run directory: one folder per search, written atomically, movable, readable at any time.

```
run.json         format and version                  status.json   running, finished, interrupted or failed
config.json      the complete configuration          config.toml   the user's file, as given
environment.json versions, machine, plugins          study.db      the Optuna study
task.json        input, output, preprocessing        events.jsonl  what happened when
teacher.json     scores, size, latency
seconds.json     time spent per rung                 final.json    test scores
calibration.json latency scale                  frozen.json    what a resumed run must share
owner.json       who works on it (run.lock)          clock.json     seconds it took so far, all processes
trials/0007/     architecture.json  outcome.json (measurements, losses)  weights-EPOCHS.safetensors
students/ID/     architecture.json  model.safetensors  provenance.json
result.json      the result object, once finished
```
No pickles, no absolute paths of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nasdistill.errors import UsageError
from nasdistill.files import read_json, write_json, write_text

FORMAT = "nasdistill.run"
FORMAT_VERSION = 1


class RunDirectory:
    """Paths and records of one run.

    Args:
        path: the folder; use :meth:`create` for a new run and :meth:`open` for an old one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """Make a new run folder.

        Raises:
            UsageError: the path is a file, a folder with something in it, or cannot be written to.
        """
        if path.exists() and not path.is_dir():
            raise UsageError(f"output {path} is a file", hint="Choose another folder with --out.")
        if path.is_dir() and any(path.iterdir()):
            known = (path / "run.json").exists()
            raise UsageError(
                f"output folder {path} is not empty" + (" (it holds a run)" if known else ""),
                hint=f"Choose another folder with --out{f', or look at it: nasdistill show {path}' if known else ''}.",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path)
            write_json(path / "run.json", {"format": FORMAT, "format_version": FORMAT_VERSION, "created": time.time()})
        except OSError as error:
            raise UsageError(
                f"cannot write to output folder {path}: {error.strerror or error}",
                hint="Choose another folder with --out.",
            ) from None
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run, finished or not.

        Raises:
            UsageError: no run there, or one of another format version.
        """
        marker = path / "run.json"
        try:
            head = read_json(marker)
        except (OSError, ValueError):
            raise UsageError(
                f"{path} is not a run directory (no readable run.json)",
                hint="nasdistill search --out DIR makes one.",
            ) from None
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise UsageError(f"{marker} does not describe a nasdistill run")
        if head.get("format_version") != FORMAT_VERSION:
            raise UsageError(
                f"{path} was written in run format {head.get('format_version')}, this version reads {FORMAT_VERSION}",
                hint="Open it with the version of nasdistill named in its environment.json.",
            )
        return cls(path)

    @staticmethod
    def next_free(base: Path) -> Path:
        """Return `base`, or ``base-2``, ``base-3`` ... : the first that does not exist or is empty."""
        number = 1
        while True:
            path = base if number == 1 else base.with_name(f"{base.name}-{number}")
            if not path.exists() or (path.is_dir() and not any(path.iterdir())):
                return path
            number += 1

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Own the run for a block: only one process may write to it.

        Raises:
            UsageError: another process owns it, or the folder cannot be written to.
        """
        from filelock import FileLock, Timeout

        # Whoever asks for the state holds the lock for a moment.
        lock = FileLock(self.path / "run.lock", timeout=1.0)
        try:
            lock.acquire()
            write_json(self.path / "owner.json", {"pid": os.getpid(), "host": socket.gethostname()})
        except Timeout:
            owner = self.read("owner.json") or {}
            raise UsageError(
                f"{self.path} is being worked on by process {owner.get('pid')} on {owner.get('host')}",
                hint=f"Look at it: nasdistill show {self.path}. Stop that process first to go on from here.",
            ) from None
        except OSError as error:
            lock.release()
            raise UsageError(
                f"cannot write to {self.path}: {error.strerror or error}",
                hint="Make room where the disk is full; copy the run to a folder of yours where you may not write.",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def state(self) -> str:
        """Return ``running``, ``finished``, ``interrupted``, ``failed``, or ``killed``: running by its own account,
        but no process is at it.
        """
        from filelock import FileLock, Timeout

        said = str((self.read("status.json") or {}).get("state", "running"))
        if said != "running":
            return said
        lock = FileLock(self.path / "run.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return said
        except OSError:  # a read-only medium has no locks
            return said if self._owner_is_up() else "killed"
        lock.release()
        return "killed"

    def _owner_is_up(self) -> bool:
        """Return whether the process that last owned the run may still be at it; that of another host may."""
        import psutil

        owner = self.read("owner.json") or {}
        return owner.get("host") != socket.gethostname() or psutil.pid_exists(int(owner.get("pid", 0)))

    # ---- records --------------------------------------------------------------------------------------------------

    @property
    def study_url(self) -> str:
        """SQLAlchemy URL of the study; characters that mean something in a URL are quoted."""
        from sqlalchemy import URL

        return URL.create("sqlite", database=str(self.path / "study.db")).render_as_string(hide_password=False)

    def trial(self, number: int) -> Path:
        """Return a trial's folder."""
        return self.path / "trials" / f"{number:04d}"

    def weights(self, number: int, epochs: int) -> Path:
        """Return the file with a trial's weights after so many epochs; each rung has its own, none is overwritten."""
        return self.trial(number) / f"weights-{epochs:04d}.safetensors"

    def student(self, identifier: str) -> Path:
        """Return a student's folder."""
        return self.path / "students" / identifier

    def write(self, name: str, value: Any) -> None:
        """Write one of the top-level JSON files."""
        write_json(self.path / name, value)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return one of the top-level JSON files, None where it is missing.

        Raises:
            UsageError: it is there, but is no JSON object.
        """
        path = self.path / name
        try:
            value = read_json(path)
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, got {type(value).__name__}")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(
                f"{path} is damaged: {error}", hint="Put it back from a copy; what other files say is not lost."
            ) from None
        return value

    def write_text(self, name: str, text: str) -> None:
        """Write one of the top-level text files."""
        write_text(self.path / name, text)

    def write_trial(self, number: int, outcome: dict[str, Any]) -> None:
        """Write a trial's record (architecture and outcome)."""
        folder = self.trial(number)
        if outcome.get("architecture") is not None and not (folder / "architecture.json").exists():
            write_json(folder / "architecture.json", outcome["architecture"])
        write_json(folder / "outcome.json", outcome)

    def outcomes(self) -> Iterator[dict[str, Any]]:
        """Yield the records of all trials by number; a damaged one is left out."""
        folders = (self.path / "trials").glob("[0-9]*")
        for folder in sorted(folders, key=lambda path: (len(path.name), path.name)):
            try:
                value = read_json(folder / "outcome.json")
            except (OSError, ValueError):
                continue
            if isinstance(value, dict) and isinstance(value.get("number"), int):
                yield value

    def event(self, kind: str, **facts: Any) -> None:
        """Append a line to the event log."""
        line = json.dumps({"time": time.time(), "event": kind, **facts}, sort_keys=True)
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Return the event log; a torn last line is left out."""
        try:
            text = (self.path / "events.jsonl").read_text(encoding="utf-8")
        except OSError:
            return []
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found
