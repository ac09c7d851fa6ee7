"""Exports: a temporary folder that takes its name when everything in it is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nasdistill.errors import NasdistillError, TrialFailure, UsageError, one_line
from nasdistill.files import file_hash, write_json
from nasdistill.host import Host
from nasdistill.interfaces import Exporter, ExportRequest
from nasdistill.seeds import torch_generator
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

if TYPE_CHECKING:
    from nasdistill.library.students import Student


def export_student(
    student: Student, to: str, folder: Path, *, options: Mapping[str, Any] | None = None, host: Host
) -> dict[str, Any]:
    """Write a student; see :meth:`nasdistill.library.Student.export`."""
    exporter: Exporter = host.create(Kind.EXPORTER, to, options)
    given = folder
    try:
        folder = folder.resolve()
        working = folder == Path.cwd()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise UsageError(f"{given} is no place for a folder: {one_line(error)}", hint="Choose another one.") from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{given} exists and is not an empty folder; nothing was written", hint="Choose another one.")
    if working:  # whoever is in it would be left in a folder that is gone
        raise UsageError(
            f"{given} is the working directory, and an export takes the place of its folder; nothing was written",
            hint="Name a folder in it, or call this from elsewhere.",
        )
    space = student.space()
    model = student.model()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        request = ExportRequest(
            model, student.architecture, student.io, example_inputs(student.io), student.provenance, temporary, space,
            student.id,
        )  # fmt: skip
        try:
            facts = exporter.export(request)
        except (NasdistillError, OSError):
            raise
        except Exception as error:  # whatever a plugin's exporter did not foresee
            raise TrialFailure("export_failed", f"exporter {exporter.id} failed: {one_line(error)}") from error
        record = {
            "format": "nasdistill.export",
            "format_version": 1,
            "to": exporter.id,
            "student": student.id,
            "architecture": student.architecture.fingerprint,
            "files": {p.relative_to(temporary).as_posix(): file_hash(p) for p in _files(temporary)},
            **facts,
        }
        write_json(temporary / "export.json", record)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders private
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return {"folder": str(given), **record}


def example_inputs(io: IOSpec) -> tuple[Tensor, ...]:
    """Return one sample of noise in the form of a network's input."""
    generator = torch_generator(0, "example")
    if io.kind == "tokens":
        return (torch.randint(io.vocabulary or 2, (1, *io.shape), generator=generator),)
    return (torch.randn(1, *io.shape, generator=generator),)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
