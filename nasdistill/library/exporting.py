"""Exports: a temporary folder that takes its name when everything in it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nasdistill.errors import NasdistillError, TrialFailure, one_line
from nasdistill.files import atomic_folder, file_hash, free_folder, write_json
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
    place = free_folder(folder)
    space = student.space()
    model = student.model()
    with atomic_folder(place) as temporary:
        request = ExportRequest(
            model, student.architecture, student.io, example_inputs(student.io), student.provenance, temporary, space,
            student.id, student.assets, student.transforms,
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
    return {"folder": str(folder), **record}


def example_inputs(io: IOSpec) -> tuple[Tensor, ...]:
    """Return one sample of noise in the form of a network's input."""
    generator = torch_generator(0, "example")
    if io.kind == "tokens":
        ids = torch.randint(io.vocabulary or 2, (1, *io.shape), generator=generator)
        return ids, torch.ones_like(ids)
    return (torch.randn(1, *io.shape, generator=generator),)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
