"""What the exporters write alike: weights, and inputs to compare with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from nasdistill.files import file_hash
from nasdistill.interfaces import ExportRequest
from nasdistill.seeds import torch_generator

BATCHES = (1, 2, 7)
"""Batch sizes that an exported network is compared at."""


def write_tensors(state: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors to a safetensors file that transformers reads too, and return its SHA-256.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    # Not save_file: its error on a full disk is not an OSError.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))
    return file_hash(path)


def copy_assets(request: ExportRequest, folder: Path) -> bool:
    """Copy what serving needs beside the weights into a folder; return whether there was anything."""
    if request.assets is None:
        return False
    shutil.copytree(request.assets, folder, dirs_exist_ok=True)
    return True


@contextlib.contextmanager
def complete_or_empty(folder: Path) -> Iterator[None]:
    """Empty a folder again when what writes into it fails."""
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def trial_inputs(
    request: ExportRequest, *, lengths: bool = False, padding: int | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the example, and noise at several batch sizes: normal for images; for text, tokens with padding after them.

    Args:
        request: the student.
        lengths: text of other lengths too.
        padding: id behind a text's end, for networks that find the end by it; None: any id.
    """
    yield request.example
    for size in BATCHES:
        generator = torch_generator(0, "export", size)
        if request.io.kind == "tokens":
            count = request.example[0].shape[1]
            ids, *mask = tokens(request, size, max(2, count - size) if lengths else count, generator)
            yield (ids if padding is None or not mask else ids.masked_fill(mask[0] == 0, padding), *mask)
        else:
            yield tuple(torch.randn(size, *x.shape[1:], generator=generator) for x in request.example)


def tokens(request: ExportRequest, size: int, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return ids ``(size, count)`` and their mask; all samples but the first end in padding."""
    ids = torch.randint(request.io.vocabulary or 2, (size, count), generator=generator)
    real = torch.randint(1, count + 1, (size, 1), generator=generator)
    real[0] = count
    mask = (torch.arange(count)[None] < real).long()
    return (ids, mask)[: len(request.example)]


def answer(network: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the network's output tensor, without gradients."""
    with torch.no_grad():
        output = network(*inputs)
    assert isinstance(output, Tensor)
    return output


def told(request: ExportRequest, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Return what of an output counts: logits of padding are whatever a runtime makes of a row without keys."""
    if request.io.head not in ("masked_lm", "causal_lm") or len(inputs) < 2:
        return output
    return output * inputs[1].to(output.dtype)[..., None]
