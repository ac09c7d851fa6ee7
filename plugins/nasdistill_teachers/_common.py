"""What the providers of single networks share."""

from __future__ import annotations

from torch import nn

from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import SingleTeacher
from nasdistill.weights import model_hash


def single(model: nn.Module, task: Task, *, label: str, device: str, checked: bool = False) -> SingleTeacher:
    """Check that `model` fits `task`, put it on `device`, and open it under the hash of its weights and structure.

    Raises:
        MismatchError: it does not fit; both shapes are named.
    """
    model = model.eval().requires_grad_(False)
    if not checked:
        task.check(model, label)
    fingerprint = model_hash(model)
    return SingleTeacher(model.to(device), label=label, fingerprint=fingerprint)
