"""Saved students: architecture, weights and where they come from, as JSON and safetensors."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nasdistill.errors import UsageError
from nasdistill.files import atomic_path, content_hash, file_hash, read_json, write_json
from nasdistill.interfaces.transform import Applied
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import IOSpec

ASSETS = "assets"
"""Folder of a run and of a student for what serving needs beside the weights (a tokenizer)."""


def save_weights(model: nn.Module, path: Path) -> str:
    """Write a model's state to a safetensors file, atomically, and return the file's SHA-256.

    Tensors that share memory are written once each; the model's structure ties them again on loading.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; an old file is untouched.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        # Not save_file: its error on a full disk is not an OSError, so nobody could tell it from a bad model.
        temporary.write_bytes(save(state))
    return file_hash(path)


def load_weights(path: Path, expected_hash: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        UsageError: unreadable, damaged, or not the file that was recorded.
    """
    try:
        if expected_hash is not None and file_hash(path) != expected_hash:
            raise UsageError(f"{path} is not the file that was recorded (its hash differs)")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read weights {path}: {error}") from None


def weights_hash(model: nn.Module) -> str:
    """Return a hash of a model's tensors: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(value.shape)}|{value.dtype}".encode())
        digest.update(value.flatten().view(dtype=_bytes()).numpy().tobytes())
    return digest.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def save_student(
    folder: Path,
    model: nn.Module,
    architecture: Architecture,
    io: IOSpec,
    provenance: dict[str, Any],
    *,
    space_options: Mapping[str, Any] | None = None,
    assets: Path | None = None,
    transforms: Sequence[Applied] = (),
) -> None:
    """Write a student folder; `provenance.json` comes last, so a folder that has it is complete.

    Args:
        folder: where.
        model: the student.
        architecture: its architecture.
        io: its input and output.
        provenance: where it comes from, JSON-able.
        space_options: options of its space where they are not the defaults of this version; they decide what is built
            as the architecture does.
        assets: a folder of what serving it needs beside the weights, copied; None or missing when there is none.
        transforms: what the model went through after its space had built it.
    """
    described = {**architecture.to_json(), "io": io.to_json(), "space_options": dict(space_options or {})}
    if transforms:
        described["transforms"] = [step.to_json() for step in transforms]
    write_json(folder / "architecture.json", described)
    if assets is not None and assets.is_dir():
        shutil.copytree(assets, folder / ASSETS, dirs_exist_ok=True)
    digest = save_weights(model, folder / "model.safetensors")
    facts = {**provenance, "architecture_sha256": content_hash(described), "weights_sha256": digest}
    write_json(folder / "provenance.json", facts)


@dataclass(frozen=True, slots=True)
class StudentRecord:
    """What a saved student's folder says, but for the weights.

    Attributes:
        architecture, io: what was built.
        space_options: with which options of the space.
        provenance: where it comes from.
        transforms: what it went through after that.
    """

    architecture: Architecture
    io: IOSpec
    space_options: Mapping[str, Any]
    provenance: Mapping[str, Any]
    transforms: tuple[Applied, ...] = ()


def read_record(folder: Path) -> StudentRecord:
    """Return a saved student's record. Torch tensors are not read.

    Raises:
        UsageError: incomplete, damaged, or its architecture was changed after the weights were trained.
    """
    provenance, raw = (_read(folder, name) for name in ("provenance.json", "architecture.json"))
    where = folder / "architecture.json"
    arch = Architecture.from_json(raw, where=str(where))
    if not isinstance(provenance, dict):
        raise UsageError(f"{folder / 'provenance.json'} is damaged: it holds no JSON object")
    recorded = provenance.get("architecture_sha256")
    if raw.get("fingerprint", arch.fingerprint) != arch.fingerprint or recorded not in (None, content_hash(raw)):
        raise UsageError(
            f"{where} was changed after the student was saved, so the weights beside it belong to another network",
            hint="nasdistill.build(FILE) builds the changed architecture with fresh weights; nasdistill distill "
            "trains it.",
        )
    options = raw.get("space_options", {})
    if not isinstance(options, dict):
        raise UsageError(f"{where}: 'space_options' must be an object")
    io, transforms = read_io(raw.get("io"), where=str(where)), read_transforms(raw, where=str(where))
    return StudentRecord(arch, io, options, provenance, transforms)


def read_transforms(value: Mapping[str, Any], *, where: str) -> tuple[Applied, ...]:
    """Return what a network went through after its space had built it, by its parsed ``architecture.json``.

    Raises:
        UsageError: incomplete.
    """
    try:
        return tuple(Applied.from_json(step) for step in value.get("transforms") or ())
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{where}: each of 'transforms' must give 'name', 'options' and 'config'") from None


def _read(folder: Path, name: str) -> Any:
    try:
        return read_json(folder / name)
    except (OSError, ValueError, RecursionError) as error:
        problem = error.strerror or "unreadable" if isinstance(error, OSError) else f"not valid JSON ({error})"
        raise UsageError(f"{folder} is not a complete saved student: {name}: {problem}") from None


def read_io(value: Any, *, where: str) -> IOSpec:
    """Return the input and output of a parsed JSON file.

    Raises:
        UsageError: missing or incomplete.
    """
    try:
        return IOSpec.from_json(value)
    except (TypeError, KeyError, AttributeError):
        raise UsageError(f"{where}: 'io' must give 'kind', 'shape' and 'outputs' of the network") from None


def read_student(folder: Path) -> tuple[Architecture, IOSpec, dict[str, Tensor], dict[str, Any]]:
    """Return a saved student's architecture, input/output, weights and provenance.

    Raises:
        UsageError: incomplete or damaged.
    """
    record = read_record(folder)
    weights = load_weights(folder / "model.safetensors", record.provenance.get("weights_sha256"))
    return record.architecture, record.io, weights, dict(record.provenance)
