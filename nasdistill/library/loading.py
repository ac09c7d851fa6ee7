"""From a path to a run or a student."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nasdistill.errors import UsageError
from nasdistill.files import read_json
from nasdistill.host import Host
from nasdistill.library.runs import Run
from nasdistill.library.students import Student


def load(path: str | os.PathLike[str], *, host: Host | None = None) -> Any:
    """Return what lies in a folder: a :class:`Run` for a run directory, a :class:`Student` for a saved student.

    :func:`load_run` and :func:`load_student` say which one they return.

    Args:
        path: the folder; ``RUN:ID`` is a student of a run.
        host: where components come from; all installed plugins by default.

    Raises:
        UsageError: neither, or damaged.
    """
    return load_run(path, host=host) if (Path(path) / "run.json").exists() else load_student(path, host=host)


def load_run(path: str | os.PathLike[str], *, host: Host | None = None) -> Run:
    """Return a run, finished, running, killed or moved.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    return Run.open(path, host=host)


def load_student(path: str | os.PathLike[str], *, host: Host | None = None) -> Student:
    """Return a saved student by its folder, or one of a run by ``RUN:ID``.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    folder = Path(path)
    if not folder.exists():
        run, colon, identifier = os.fspath(path).rpartition(":")
        if colon and (Path(run) / "run.json").exists():
            return Run.open(run, host=host).student(identifier)
        raise UsageError(f"there is no folder {folder}", hint="Give a run directory, a student's folder, or RUN:ID.")
    if not (folder / "provenance.json").exists() or not (folder / "architecture.json").exists():
        raise UsageError(f"{folder} is neither a run nor a saved student", hint=_advice(folder))
    return Student.open(folder, host=host)


def find_student(path: str | os.PathLike[str], identifier: str | None = None, *, host: Host | None = None) -> Student:
    """Return the student that a command names: a student's folder, ``RUN:ID``, or a run's best or named one.

    Raises:
        UsageError: there is none; says what there is.
    """
    if (Path(path) / "run.json").exists():
        run = load_run(path, host=host)
        return run.best() if identifier is None else run.student(identifier)
    if identifier is not None:
        raise UsageError(f"{path} is one student, so --student {identifier} has nothing to choose from")
    return load_student(path, host=host)


def _advice(folder: Path) -> str:
    """Return what to do with a folder that is something else of ours."""
    if (folder / "students").is_dir() or (folder / "trials").is_dir():
        return "It looks like a run, but has no run.json."
    try:
        facts = read_json(folder / "export.json")
        to = str(facts["to"]).split(":")[-1]
    except (OSError, ValueError, KeyError, TypeError):
        return "A run has run.json, a student architecture.json, model.safetensors and provenance.json."
    if facts.get("opens_with"):
        return f"It is an export to {to}, which opens with {facts['opens_with']}."
    if to == "hf":
        return "It is a Hugging Face folder; its README.md says which class of transformers opens it."
    if to == "onnx":
        return "It holds an ONNX file, which onnxruntime runs."
    return "An export is incomplete; write it again."
