"""Checks of exporters: complete files in their folder and nowhere else, which say nothing of the machine they are from.

A student of :class:`nasdistill.testing.kit.space.TinySpace` for digits is exported, unless an example names another.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import pickletools
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nasdistill
from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Exporter, ExportRequest, SearchSpace
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.models import DIGITS
from nasdistill.testing.kit.space import TinySpace
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import few
from nasdistill.testing.subject import Subject

CONTEXT = {
    "space": "name of the student's search space; a tiny one, of the kit, unless given",
    "space_options": "its options",
    "params": "parameters of the architecture; the defaults unless given",
    "io": "the student's `IOSpec`; that of digits unless given",
}
"""What an example's context may name."""

REASONS = ("export_failed", "parity")


class Raising(nn.Module):
    """Mixed into a student's class: it cannot be run."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Raise."""
        raise RuntimeError("this student does not run")


class Drifting(nn.Module):
    """Mixed into a student's class: it answers differently every time, so nothing that is written can agree with it."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the student's output plus the number of calls so far."""
        self.calls = getattr(self, "calls", 0) + 1
        output: Tensor = super().forward(*inputs)
        return output + float(self.calls)


def request_for(subject: Subject, folder: Path, mixed: type[nn.Module] | None = None) -> ExportRequest:
    """Return a request for the example's student; with `mixed` its class is changed as that says."""
    name, io = subject.context("space"), subject.context("io") or DIGITS
    if name is None:
        space: SearchSpace = TinySpace(dict(subject.context("space_options", {})), host=subject.host)
    else:
        space = subject.host.create(Kind.SEARCH_SPACE, name, dict(subject.context("space_options", {})))
    arch = space.architecture(dict(subject.context("params", {})))
    with seeded(subject.seed, "student"):
        model = space.build(arch, io).eval()
        high = io.vocabulary or 2
        x = torch.randint(high, (1, *io.shape)) if io.kind == "tokens" else torch.randn(1, *io.shape)
    if mixed is not None:
        model.__class__ = type(type(model).__name__, (mixed, type(model)), {})
    provenance = {
        "teacher": {"name": "torch:a.teacher", "fingerprint": "0" * 64}, "seed": 3, "epochs": 2,
        "task": {"name": "tasks:some", "fingerprint": "1" * 64, "preprocessing": {"mean": [0.5], "std": [0.25]}},
    }  # fmt: skip
    return ExportRequest(model, arch, io, (x,), provenance, folder, space, "0001-abcdef")


@contextlib.contextmanager
def exported(
    subject: Subject, *, folder: str = "export", state: int = 0
) -> Iterator[tuple[ExportRequest, dict[str, Any]]]:
    """Export the example's student into a new folder; yield the request and the facts."""
    with empty(folder) as place:
        request = request_for(subject, place)
        with seeded(state, "export"):
            exporter: Exporter = subject.create()
            facts = exporter.export(request)
        yield request, facts


@contextlib.contextmanager
def empty(name: str = "export") -> Iterator[Path]:
    """Yield a new empty folder of this name."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer).resolve() / name
        folder.mkdir()
        yield folder


def files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder, by relative name."""
    found = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): path for path in found}


@exercise(Kind.EXPORTER)
def use(subject: Subject) -> list[Any]:
    """Export a small student and list what was written."""
    with empty() as folder:
        request = request_for(subject, folder)
        with subject.seeded():
            exporter: Exporter = subject.create()
            facts = exporter.export(request)
        return [list(files(folder)), sorted(facts)]


@check(Kind.EXPORTER, gate=True, hint="Write into request.folder and return a dict of facts.")
def writes_files(subject: Subject) -> None:
    """An export leaves at least one file in its folder, none of them empty or a link, and returns its facts."""
    with exported(subject) as (request, facts):
        found = files(request.folder)
        if not found:
            fail("the folder is empty after the export")
        for name, path in found.items():
            if path.is_symlink() or not path.is_file():
                fail(f"{name} is no ordinary file")
        if all(not path.stat().st_size for path in found.values()):
            fail(f"{', '.join(found)}: all files are empty")
        if not isinstance(facts, dict):
            fail(f"export returned {type(facts).__name__}, not a dict of facts")


@check(Kind.EXPORTER, hint="Derive every path from request.folder; use temporary files that are removed.")
def writes_nowhere_else(subject: Subject) -> None:
    """Nothing is written beside the folder or into the working directory."""
    with tempfile.TemporaryDirectory() as here:
        before = os.getcwd()
        os.chdir(here)
        try:
            with exported(subject) as (request, _):
                beside = [path.name for path in request.folder.parent.iterdir() if path != request.folder]
                local = sorted(path.name for path in Path(here).rglob("*"))
        finally:
            os.chdir(before)
    if beside or local:
        where = "beside its folder" if beside else "in the working directory"
        fail(f"it leaves {', '.join((beside or local)[:3])} {where}")


@check(Kind.EXPORTER, hint="Return numbers, texts, lists and dicts; convert tensors with .item() or .tolist().")
def facts_are_json(subject: Subject) -> None:
    """The facts are JSON, without NaN."""
    with exported(subject) as (_, facts):
        try:
            json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            fail(f"the facts are not JSON: {error}")


@check(Kind.EXPORTER, hint="Work on a deep copy of the model; put back what a library's exporter changes.")
def leaves_the_student_alone(subject: Subject) -> None:
    """The model, the example and the provenance are as they were."""
    with empty() as folder:
        request = request_for(subject, folder)
        guard = Guard({"model": request.model})
        example, provenance = [x.clone() for x in request.example], copy.deepcopy(dict(request.provenance))
        with seeded(subject.seed, "export"):
            subject.create().export(request)
    changed = guard.settle()
    changed += ["the example"] * any(
        not torch.equal(x, y) for x, y in zip(example, request.example, strict=True)
    ) + ["the provenance"] * (dict(request.provenance) != provenance)  # fmt: skip
    if changed:
        fail(f"it changes {few(changed)}")


@check(Kind.EXPORTER, hint="Name files for what they are: the folder takes its final name after the export.")
def same_files_again(subject: Subject) -> None:
    """Exported again, into a folder of another name, a student gives files of the same names."""
    with exported(subject) as (request, _):
        one = list(files(request.folder))
    with exported(subject, folder="elsewhere", state=1) as (request, _):
        other = list(files(request.folder))
    if one != other:
        fail(f"exported twice it writes {', '.join(one)} and {', '.join(other)}")


@check(Kind.EXPORTER, hint="Strip debug information; write names relative to the folder.")
def no_paths_of_this_machine(subject: Subject) -> None:
    """Neither files nor facts contain absolute paths of this machine."""
    folders = {Path.cwd(), Path.home(), Path(sys.prefix), Path(nasdistill.__file__).resolve().parents[1]}
    private = [f"{folder}{os.sep}" for folder in sorted(folders) if len(folder.parts) > 1]
    with exported(subject) as (request, facts):
        contents = {name: path.read_bytes() for name, path in files(request.folder).items()}
        contents["the facts"] = json.dumps(facts, default=str).encode()
        for name, content in contents.items():
            for text in (str(request.folder), *private):
                if text.encode() in content:
                    fail(f"there is {text} in {name}")


@check(Kind.EXPORTER, hint="Write weights as safetensors, and structures as JSON.")
def no_pickles(subject: Subject) -> None:
    """No file is a pickle, or an archive with one: loading it could run anything."""
    with exported(subject) as (request, _):
        for name, path in files(request.folder).items():
            if _is_pickle(path.read_bytes()):
                fail(f"{name} is a pickle")
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    inside = [item for item in archive.namelist() if _is_pickle(archive.read(item))]
                if inside:
                    fail(f"{name} is an archive with a pickle, {inside[0]}")


@check(Kind.EXPORTER, hint='Raise TrialFailure("export_failed", ...), and remove what was begun before that.')
def refuses_in_order(subject: Subject) -> None:
    """A student that cannot be run is refused with a TrialFailure, and the folder is left empty.

    An exporter that writes weights without running them may write these, too.
    """
    _refused(subject, Raising, "that does not run")


@check(Kind.EXPORTER, hint='Run what was written, compare it with the model, and raise TrialFailure("parity", ...).')
def parity_is_compared(subject: Subject) -> None:
    """A parity among the facts is a finite `max_abs` that was measured: a student that answers differently is refused.

    An exporter whose facts have no `parity` is not asked.
    """
    with exported(subject) as (_, facts):
        parity = facts.get("parity")
        if parity is None:
            skip("its facts have no parity")
    value = parity.get("max_abs") if isinstance(parity, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        fail(f"the fact parity is {parity!r}, without a finite max_abs")
    written = _refused(subject, Drifting, "whose answers change from call to call")
    if written is not None:
        fail(f"a student whose answers change from call to call is exported with the parity {written.get('parity')}")


# -- details ----------------------------------------------------------------------------------------------------------


def _refused(subject: Subject, mixed: type[nn.Module], what: str) -> dict[str, Any] | None:
    """Export a student that is at fault: return None when it is refused in order, the facts when it is not."""
    with empty() as folder:
        request = request_for(subject, folder, mixed)
        try:
            with seeded(subject.seed, "export"):
                facts: dict[str, Any] = subject.create().export(request)
        except TrialFailure as error:
            if error.reason not in REASONS:
                fail(f"a student {what} is refused for the reason {error.reason!r}; known are {', '.join(REASONS)}")
            left = list(files(folder))
            if left:
                fail(f"it refused a student {what}, and left {', '.join(left[:3])} in the folder")
            return None
        except Exception as error:
            fail(f"exporting a student {what} raised {type(error).__name__} instead of TrialFailure: {error}")
        return facts


def _is_pickle(content: bytes) -> bool:
    """Return whether bytes are a whole pickle of protocol 2 or later."""
    if content[:1] != b"\x80":
        return False
    try:
        for _ in pickletools.genops(content):
            pass
    except Exception:  # whatever it stumbles over in bytes that are something else
        return False
    return True
