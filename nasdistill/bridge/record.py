"""What happens in one forward: which module runs inside which, with what shapes, and every attention call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.bridge.watching import AttentionCall, WatchAttention, core_arguments
from nasdistill.interfaces.attention import AttentionCore, AttentionResult, ModuleAttention

Key = tuple[str, int]
"""A module call: dotted path, and how many times that module had been called before in this forward."""


@dataclass(slots=True)
class _Frame:
    """A module call that is running."""

    key: Key
    module: nn.Module
    entered: int
    input: Tensor | None
    calls: int = 0


@dataclass(slots=True)
class ModuleCall:
    """A module call that has returned; `stack` are the calls around it, outermost first, itself last."""

    key: Key
    module: nn.Module
    stack: tuple[Key, ...]
    entered: int
    left: int
    input_shape: tuple[int, ...]
    shape: tuple[int, ...]
    tokens_around: bool
    small: Tensor | None = None


@dataclass(slots=True)
class CallRecord:
    """An attention call."""

    key: Key
    index: int
    stack: tuple[Key, ...]
    time: int
    heads: int
    value_dim: int
    batch: int
    tokens: int
    causal: bool
    grid: tuple[int, int] | None
    core: bool
    known: bool
    merged: Tensor | None
    consumer: ModuleCall | None = None
    consumer_swapped: bool = False

    @property
    def caller(self) -> Key:
        """The module that makes the call; for a core, the module around it."""
        return self.stack[-2] if self.core and len(self.stack) > 1 else self.stack[-1]


def first_tensor(value: Any) -> Tensor | None:
    """Return the tensor that a module's output stands for: itself, `out`, or the first of a tuple or mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, AttentionResult):
        return value.out
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def main_output(value: Any, given: Tensor | None) -> Tensor | None:
    """Return the tensor that a module's output stands for, given its first input.

    Of several (joint transformers return the text stream beside the image stream) the one of the input's shape.
    """
    if given is not None and isinstance(value, tuple | list):
        alike = [item for item in value if isinstance(item, Tensor) and item.shape == given.shape]
        if alike and sum(isinstance(item, Tensor) for item in value) > 1:
            return alike[0]
    return first_tensor(value)


def first_float(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first floating-point tensor among a call's arguments."""
    values = [*args, *kwargs.values()]
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


class ForwardRecord:
    """Hooks on every module plus the attention watch, for one forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack: list[_Frame] = []
        self.done: list[ModuleCall] = []
        self.calls: list[CallRecord] = []
        self._ordinals: Counter[str] = Counter()
        self._time = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the forward that runs inside; no hook is left behind."""
        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                before = module.register_forward_pre_hook(self._enter(path), with_kwargs=True)
                after = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.enter_context(WatchAttention(self._attention))
            yield

    def _tick(self) -> int:
        self._time += 1
        return self._time

    def _enter(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            key = (path, self._ordinals[path])
            self._ordinals[path] += 1
            self.stack.append(_Frame(key, module, self._tick(), first_float(args, kwargs)))

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        frame = self.stack[-1]
        if isinstance(module, AttentionCore):
            q, k, v, ctx = core_arguments(args, kwargs)
            out = first_tensor(output)
            if out is not None:
                self._note(AttentionCall.from_core(q, k, v, ctx, out), core=True)
        elif isinstance(module, ModuleAttention) and not any(frame.key in call.stack for call in self.calls):
            self._note(None, core=False)
        keys = tuple(f.key for f in self.stack)
        around = any(f.input is not None and f.input.ndim == 3 for f in self.stack[1:-1])
        self.stack.pop()
        tensor = main_output(output, frame.input)
        if tensor is None or not tensor.is_floating_point():
            return
        shape_in = () if frame.input is None else tuple(frame.input.shape)
        done = ModuleCall(
            frame.key, module, keys, frame.entered, self._tick(), shape_in, tuple(tensor.shape), around,
            small=tensor if is_head(module, tensor) else None,
        )  # fmt: skip
        self.done.append(done)
        if is_linear(module) and frame.input is not None:
            self._match(done, frame.input)

    def _attention(self, call: AttentionCall) -> None:
        if self.stack and not any(isinstance(f.module, AttentionCore) for f in self.stack):
            self._note(call, core=False)

    def _note(self, call: AttentionCall | None, core: bool) -> CallRecord:
        frame = self.stack[-1]
        stack = tuple(f.key for f in self.stack)
        if call is None:
            shape = (0, 0, 0, 0) if frame.input is None else (frame.input.shape[0], 1, *frame.input.shape[1:3])
            batch, heads, tokens, dim = (*shape, 0, 0, 0, 0)[:4]
        else:
            batch, heads, tokens, dim = call.out.shape
        merged = None if call is None else call.out.transpose(1, 2).flatten(2)
        self.calls.append(
            CallRecord(
                frame.key,
                frame.calls,
                stack,
                self._tick(),
                heads,
                dim,
                batch,
                tokens,
                causal=call is not None and call.looks_causal(),
                grid=None if call is None else call.grid,
                core=core,
                known=call is not None,
                merged=merged,
            )
        )
        frame.calls += 1
        for old in self.calls[:-3]:
            old.merged = None  # the projection of a call follows soon; keeping every context would cost memory
        return self.calls[-1]

    def _match(self, done: ModuleCall, given: Tensor) -> None:
        """Note the linear as output projection of a recent call when its input is that call's context."""
        flat = given.reshape(-1, given.shape[-1])
        for call in reversed(self.calls):
            if call.merged is None or call.consumer is not None or call.merged.numel() != flat.numel():
                continue
            for swapped in (False, True):
                rows = call.merged.transpose(0, 1) if swapped else call.merged
                rows = rows.reshape(-1, rows.shape[-1])
                if rows.shape == flat.shape and torch.equal(rows, flat):
                    call.consumer, call.consumer_swapped, call.merged = done, swapped, None
                    return


def _leaf_weight(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and not any(True for _ in module.children()) else None


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a leaf with a weight matrix (``nn.Linear``, transformers' ``Conv1D``)."""
    weight = _leaf_weight(module)
    return weight is not None and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def is_conv(module: nn.Module) -> bool:
    """Return whether a module is a 2-D convolution."""
    weight = _leaf_weight(module)
    return weight is not None and weight.ndim == 4


def is_global_pool(done: ModuleCall) -> bool:
    """Return whether a module without parameters turned a map into one pixel."""
    pooled = done.shape[-2:] == (1, 1) and done.input_shape[-2:] != (1, 1)
    return pooled and not any(True for _ in done.module.parameters())


def is_head(module: nn.Module, output: Tensor) -> bool:
    """Return whether a module could be the classifier: a linear map, or a convolution on one pixel."""
    return (is_linear(module) and output.ndim == 2) or (
        is_conv(module) and output.ndim == 4 and output.shape[-2:] == (1, 1)
    )
