"""Saved students: architecture, weights and where they come from, as JSON and safetensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from nasdistill.errors import UsageError
from nasdistill.files import atomic_path, file_hash, read_json, write_json
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import IOSpec


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
    folder: Path, model: nn.Module, architecture: Architecture, io: IOSpec, provenance: dict[str, Any]
) -> None:
    """Write a student folder; `provenance.json` comes last, so a folder that has it is complete."""
    write_json(folder / "architecture.json", {**architecture.to_json(), "io": io.to_json()})
    digest = save_weights(model, folder / "model.safetensors")
    write_json(folder / "provenance.json", {**provenance, "weights_sha256": digest})


def read_student(folder: Path) -> tuple[Architecture, IOSpec, dict[str, Tensor], dict[str, Any]]:
    """Return a saved student's architecture, input/output, weights and provenance.

    Raises:
        UsageError: incomplete or damaged.
    """
    try:
        provenance = read_json(folder / "provenance.json")
        raw = read_json(folder / "architecture.json")
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} is not a complete saved student: {error}") from None
    arch = Architecture.from_json(raw, where=str(folder / "architecture.json"))
    weights = load_weights(folder / "model.safetensors", provenance.get("weights_sha256"))
    return arch, IOSpec.from_json(raw["io"]), weights, provenance
