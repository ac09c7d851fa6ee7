"""What a proxy sees, made by hand, and a count of the passes that it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from nasdistill.interfaces import Batch, ProxyInput
from nasdistill.seeds import torch_generator
from nasdistill.testing.kit.models import DIGITS, call, digits, digits_loss


def candidate(model: nn.Module, *batches: Batch, teacher: nn.Module | None = None, **changes: Any) -> ProxyInput:
    """Return what a proxy sees, with the model itself (not a copy): for looking into a proxy's work.

    Args:
        model: the student.
        batches: two batches of digits unless given.
        teacher: the teacher.
        changes: other fields of :class:`nasdistill.interfaces.ProxyInput`.
    """
    values: dict[str, Any] = {
        "model": model, "teacher": teacher, "batches": batches or (digits(), digits(start=100)), "forward": call,
        "loss": digits_loss, "io": DIGITS, "cost": None, "generator": torch_generator(0, "candidate"),
    }  # fmt: skip
    return ProxyInput(**{**values, **changes})


@dataclass(slots=True)
class Passes:
    """What was run inside :func:`count_passes`.

    Attributes:
        forwards: calls of any module.
        backwards: backward passes. Those of torch.func cannot be watched: they count as one, and end the count.
        watched: False when they were met.
        norm_modes: the modes in which batch normalisation ran: True for training.
    """

    forwards: int = 0
    backwards: int = 0
    watched: bool = True
    norm_modes: set[bool] = field(default_factory=set)


@contextlib.contextmanager
def count_passes() -> Iterator[Passes]:
    """Count what is run inside, by whichever function it is started."""
    passes = Passes()
    tasks: set[int] = set()

    def forward(module: nn.Module, inputs: Any) -> None:
        passes.forwards += 1
        if isinstance(module, _BatchNorm):
            passes.norm_modes.add(module.training)

    def backward(tensor: Tensor) -> Tensor:
        tasks.add(torch._C._current_graph_task_id())
        return tensor

    handle = register_module_forward_pre_hook(forward)
    try:
        # A forward stores tensors for the backward pass, which is the only one to ask for them again.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, backward):
            yield passes
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        passes.watched = False  # torch.func's gradients refuse to be watched, which says that they were asked for
    finally:
        passes.backwards = len(tasks) + (not passes.watched)
        handle.remove()


@contextlib.contextmanager
def forwards_kept(models: Sequence[nn.Module | None]) -> Iterator[None]:
    """Give the models' classes back the ``forward`` that they had, whatever happens inside."""
    kinds = {type(module) for model in models if model is not None for module in model.modules()}
    before = {kind: kind.forward for kind in kinds}
    try:
        yield
    finally:
        for kind, forward in before.items():
            if kind.forward is not forward:
                kind.forward = forward
