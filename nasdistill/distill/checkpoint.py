"""Checkpoints of a training: one file, tensors and facts together, never half of it.

The tensors (student, losses' own parts, optimiser, averaged weights, a teacher that changes) stand in a safetensors
file, everything else as JSON in its header, so one rename publishes both. There is no random state in it: every epoch
draws from a generator seeded by (seed, epoch), and a checkpoint is only written between epochs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nasdistill.files import atomic_path, canonical_json

FORMAT = "nasdistill.checkpoint"
FORMAT_VERSION = 1


def save_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        modules: name -> module whose parameters and persistent buffers are kept.
        optimizer: its per-parameter state is kept; learning rate and decay come from the configuration.
        facts: JSON-able; floats come back bit-equal.

    Raises:
        OSError: the folder cannot be written to; an older checkpoint is untouched.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    # Cloned, because safetensors refuses tensors that share memory (tied weights, views).
    flat = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "facts": canonical_json(dict(facts)),
        "sha256": _digest(flat),
    }
    with atomic_path(path) as temporary:
        try:
            save_file(flat, temporary, metadata=header)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error  # so that a full disk is known for what it is


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and facts of a checkpoint, or None when there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT or header.get("format_version") != str(FORMAT_VERSION):
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if header["sha256"] != _digest(tensors):
                return None
            return tensors, json.loads(header["facts"])
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def restore(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors back in place."""
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, entry = key.split("/", 2)
            state.setdefault(int(index), {})[entry] = value
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})
