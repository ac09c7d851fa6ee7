"""A snapshot of what foreign code must leave alone: a caller's models, random states and global switches.

Components are trusted to do their work, not to be careful. The guard finds out afterwards what they touched, names it
and puts it back, so that one careless plugin cannot falsify the results of the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
# name -> (read, write)
_SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (
        torch.get_default_device,
        # "cpu" is what an unset default reads as; None unsets it.
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "cudnn.benchmark": (
        lambda: torch.backends.cudnn.benchmark,
        lambda value: setattr(torch.backends.cudnn, "benchmark", value),
    ),
    "cudnn.deterministic": (
        lambda: torch.backends.cudnn.deterministic,
        lambda value: setattr(torch.backends.cudnn, "deterministic", value),
    ),
}


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same bytes (NaN equals itself)."""
    if first.shape != second.shape or first.dtype != second.dtype or first.device != second.device:
        return False
    return torch.equal(first.contiguous().view(-1).view(torch.uint8), second.contiguous().view(-1).view(torch.uint8))


_MEMBERS = ("_parameters", "_buffers", "_modules")


@dataclass(slots=True)
class _TensorState:
    """One parameter or buffer: itself, and copies of its value and gradient."""

    tensor: Tensor
    value: Tensor
    requires_grad: bool
    gradient: Tensor | None
    gradient_value: Tensor | None

    @classmethod
    def capture(cls, tensor: Tensor) -> _TensorState:
        gradient = tensor.grad
        return cls(
            tensor,
            tensor.detach().clone(),
            tensor.requires_grad,
            gradient,
            None if gradient is None else gradient.detach().clone(),
        )

    @torch.no_grad()
    def settle(self, where: str) -> list[str]:
        """Return what changed and put it back."""
        found = []
        if not _same(self.tensor.detach(), self.value):
            found.append(f"the values of {where}")
            self.tensor.data = self.value
        now = self.tensor.grad
        same = now is self.gradient and (
            now is None or self.gradient_value is None or _same(now.detach(), self.gradient_value)
        )
        if not same:
            found.append(f"the gradient of {where}")
            self.tensor.grad = self.gradient_value
        if self.tensor.requires_grad != self.requires_grad:
            found.append(f"requires_grad of {where}")
            self.tensor.requires_grad_(self.requires_grad)
        return found


@dataclass(slots=True)
class _ModuleState:
    """One module: mode, members, hooks and the names of its attributes."""

    module: nn.Module
    training: bool
    attributes: frozenset[str]
    tables: dict[str, dict[Any, Any]]

    @classmethod
    def capture(cls, module: nn.Module) -> _ModuleState:
        tables = {name: dict(getattr(module, name)) for name in (*_MEMBERS, *_HOOKS)}
        return cls(module, module.training, frozenset(vars(module)), tables)

    def settle(self, where: str) -> list[str]:
        """Return what changed and put it back."""
        found = []
        if self.module.training != self.training:
            found.append(f"the train/eval mode of {where}")
            self.module.training = self.training
        extra = sorted(set(vars(self.module)) - self.attributes)
        if extra:
            found.append(f"new attributes of {where} ({', '.join(extra)})")
            for name in extra:
                delattr(self.module, name)
        for name, saved in self.tables.items():
            current = getattr(self.module, name)
            if current.keys() != saved.keys() or any(current[key] is not saved[key] for key in saved):
                found.append(f"the {name.strip('_').replace('_', ' ')} of {where}")
                current.clear()
                current.update(saved)
        return found


@dataclass(slots=True)
class _ModelState:
    """One tree of modules with all its tensors."""

    label: str
    modules: dict[str, _ModuleState]
    tensors: dict[str, _TensorState]
    forwards: dict[type[nn.Module], Any]

    @classmethod
    def capture(cls, label: str, model: nn.Module) -> _ModelState:
        return cls(
            label,
            {name: _ModuleState.capture(module) for name, module in model.named_modules()},
            {
                name: _TensorState.capture(tensor)
                for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            },
            {type(module): type(module).forward for module in model.modules()},
        )

    def settle(self) -> list[str]:
        """Return what changed and put it back; the tree first, so that the tensors are the old ones again."""
        found = []
        for name, module in self.modules.items():
            found += module.settle(f"module {name!r} of the {self.label}" if name else f"the {self.label}")
        for name, tensor in self.tensors.items():
            found += tensor.settle(f"{name} of the {self.label}")
        for kind, forward in self.forwards.items():
            if kind.forward is not forward:
                found.append(f"{kind.__name__}.forward (it was replaced)")
                kind.forward = forward
        return found


class Guard:
    """Everything the caller owns, as it was at construction.

    Args:
        models: label -> module (None is skipped); values, gradients, modes, hooks, attributes and the classes'
            ``forward`` are watched.

    Random states are compared as they are: take the snapshot after seeding, and do not use it around code that may
    draw from them.
    """

    def __init__(self, models: Mapping[str, nn.Module | None]) -> None:
        self._models = [_ModelState.capture(label, model) for label, model in models.items() if model is not None]
        self._switches = {name: read() for name, (read, _) in _SWITCHES.items()}
        self._global_hooks = {name: dict(getattr(_module, name)) for name in _GLOBAL_HOOKS}
        self._functions = {name: value for name, value in vars(F).items() if callable(value)}
        self._call = nn.Module.__call__

    def settle(self) -> list[str]:
        """Return what changed, as short phrases, and put back everything that can be put back."""
        found: list[str] = []
        for name, (read, write) in _SWITCHES.items():
            if read() != self._switches[name]:
                found.append(f"the {name} ({self._switches[name]} became {read()})")
                write(self._switches[name])
        for name, saved in self._global_hooks.items():
            current = getattr(_module, name)
            if dict(current) != saved:
                found.append("the global module hooks")
                current.clear()
                current.update(saved)
        for name, value in self._functions.items():
            if getattr(F, name, None) is not value:
                found.append(f"torch.nn.functional.{name} (it was replaced)")
                setattr(F, name, value)
        if nn.Module.__call__ is not self._call:
            found.append("nn.Module.__call__ (it was replaced)")
            nn.Module.__call__ = self._call  # type: ignore[method-assign]
        for model in self._models:
            found.extend(model.settle())
        return found


class RandomGuard:
    """Global random states, as they were at construction.

    torch's generator may be drawn from (dropout does) but not seeded again; Python's and NumPy's may not be touched:
    a component has its own generator.
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = _numpy_state()
        self._torch = torch.initial_seed()

    def changes(self) -> list[str]:
        """Return which states were touched; the caller restores them (`nasdistill.seeds.seeded`)."""
        found = []
        if random.getstate() != self._python:
            found.append("Python's random state")
        if _numpy_state() != self._numpy:
            found.append("NumPy's random state")
        if torch.initial_seed() != self._torch:
            found.append("the seed of torch's generator")
        return found


def _numpy_state() -> tuple[Any, ...]:
    """NumPy's legacy global state in a form that compares."""
    state: Any = np.random.get_state()
    return (state[0], state[1].tobytes(), *state[2:])
