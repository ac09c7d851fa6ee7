"""Remembering the teacher's side: the same for every student of a pool, and often the larger part of the work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch

_Value = TypeVar("_Value")


class LastResult(Generic[_Value]):
    """Keeps one result under the content that it was computed from.

    The copies that a proxy receives are new objects every time, so identity says nothing: the key is a hash of all
    weights, buffers and inputs. What is computed must depend on these alone, not on the candidate's generator.
    """

    def __init__(self) -> None:
        self._key = ""
        self._value: list[_Value] = []

    def get(self, model: nn.Module, batch: Batch, compute: Callable[[], _Value]) -> _Value:
        """Return the kept result for this model and batch, or compute (and keep) it."""
        key = _digest(model, batch)
        if key != self._key or not self._value:
            self._value = [compute()]
            self._key = key
        return self._value[0]


def _digest(model: nn.Module, batch: Batch) -> str:
    """Hash of everything a deterministic function of these depends on."""
    digest = hashlib.blake2b(type(model).__qualname__.encode(), digest_size=16)
    tensors: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers(), *batch.inputs.items()]
    if batch.labels is not None:
        tensors.append(("labels", batch.labels))
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
