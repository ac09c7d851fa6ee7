"""Captures: the hooks that record the asked-for sites of one forward, and what they leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasdistill.bridge.fused import fused_branches
from nasdistill.bridge.record import Key, first_float, main_output
from nasdistill.bridge.survey import Tap
from nasdistill.bridge.watching import AttentionCall, Quiet, WatchAttention, core_arguments
from nasdistill.errors import NasdistillError
from nasdistill.interfaces.signals import Signal, Site, Trace

LOGITS = Site("logits")
_MAX_PREFIX = 8  # class token and registers before the image tokens


@dataclass(slots=True)
class _Taken:
    """A captured tensor as the model had it, with its version then."""

    tensor: Tensor
    version: int


class Recorder:
    """Holds what one forward left; `trace` turns it into signals.

    A second forward within the same capture replaces the first.
    """

    def __init__(self, taps: dict[Site, Tap], wants_logits: bool) -> None:
        self._taps = taps
        self._wants_logits = wants_logits
        self._taken: dict[Site, _Taken] = {}
        self._calls: dict[tuple[Key, int], AttentionCall] = {}
        self._ran = not taps

    def trace(self, output: Tensor | None = None, valid: Tensor | None = None) -> Trace:
        """Return the signals of the forward that ran inside the capture.

        Args:
            output: what the forward returned; becomes ``logits`` where that site was asked for.
            valid: ``(B, N)``, nonzero at real tokens; travels with every signal over N tokens.

        Raises:
            NasdistillError: no forward ran, or a site was not reached.
        """
        if not self._ran:
            raise NasdistillError(
                "nothing was captured: no forward of the model ran inside the capture",
                hint="Call the model itself (not one of its parts) between `with plan.capture(...)` and trace().",
            )
        valid = None if valid is None else valid.bool()
        signals = {site: self.signal(site, valid) for site in self._taps}
        if self._wants_logits:
            if output is None:
                raise NasdistillError("the site 'logits' was asked for, so trace() needs the forward's output")
            signals[LOGITS] = output_signal(output, valid)
        return Trace(signals)

    def signal(self, site: Site, valid: Tensor | None = None) -> Signal:
        """Return the signal of one site. Raises NasdistillError when the forward did not reach it."""
        tap = self._taps[site]
        call = self._calls.get(((tap.path, tap.ordinal), tap.index)) if tap.end == "call" else None
        taken = self._taken.get(site)
        if call is not None:
            return _attention_signal(call, tap, valid)
        if taken is not None:
            return _module_signal(taken.tensor, tap, valid)
        raise NasdistillError(
            f"site {site} was not reached: module {tap.path or '(the model)'!r} did not run as in the dry run "
            f"(its call number {tap.ordinal} is missing)",
            hint="The model takes another path for this batch, or was changed since the plan was made; make a new "
            "SitePlan with a batch of the same kind.",
        )

    def overwritten(self) -> set[Site]:
        """Return the sites whose tensors were changed in place after they were captured."""
        return {site for site, taken in self._taken.items() if _version(taken.tensor) != taken.version}

    # ---- called by the hooks ----

    def start(self) -> None:
        """Forget the last forward."""
        self._taken, self._calls, self._ran = {}, {}, True

    def take(self, site: Site, tensor: Tensor) -> None:
        """Keep a module's input or output."""
        tensor = tensor.clone() if self._taps[site].clone else tensor
        self._taken[site] = _Taken(tensor, _version(tensor))

    def take_call(self, key: Key, index: int, call: AttentionCall) -> None:
        """Keep an attention call."""
        self._calls[key, index] = call


def output_signal(output: Tensor, valid: Tensor | None) -> Signal:
    """Return a model's output as the signal ``logits``."""
    if output.ndim == 3:
        return Signal(output, "tokens", valid=_matching(valid, output))
    return Signal(output, "map" if output.ndim == 4 else "vector")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _matching(valid: Tensor | None, tensor: Tensor, axis: int = 1) -> Tensor | None:
    """Return `valid` where it describes the tokens of `tensor` (batch first, tokens at `axis`)."""
    fits = valid is not None and valid.shape == (tensor.shape[0], tensor.shape[axis])
    return valid if fits else None


def _grid_of(tokens: int, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return `grid` where the tokens are its cells, possibly after a few prefix tokens."""
    if grid is None or not 0 <= tokens - grid[0] * grid[1] <= _MAX_PREFIX:
        return None
    return grid


def _attention_signal(call: AttentionCall, tap: Tap, valid: Tensor | None) -> Signal:
    tensor = {"q": call.q, "k": call.k, "v": call.v, "out": call.out}[tap.part]
    return Signal(
        tensor, "heads", mask=call.mask, bias=call.bias, scale=call.scale, causal=call.causal or tap.causal,
        valid=_matching(call.key_valid if valid is None else valid, tensor, axis=2),
        grid=_grid_of(tensor.shape[2], tap.grid),
    )  # fmt: skip


def _module_signal(tensor: Tensor, tap: Tap, valid: Tensor | None) -> Signal:
    if tap.form == "map":
        return Signal(tensor, "map")
    if tap.form == "vector":
        return Signal(tensor.flatten(1), "vector")
    grid = tap.grid
    if tap.form == "nbc":
        tensor = tensor.transpose(0, 1)
    elif tap.form == "bhwc":
        grid = (tensor.shape[1], tensor.shape[2])
        tensor = tensor.flatten(1, 2)
    elif tap.form == "bchw":
        grid = (tensor.shape[2], tensor.shape[3])
        tensor = tensor.flatten(2).transpose(1, 2)
    return Signal(tensor, "tokens", valid=_matching(valid, tensor), grid=_grid_of(tensor.shape[1], grid))


class Capture:
    """Context manager around forwards; hooks are set on entry and gone on exit, whatever happened in between.

    Captures nest. Nothing is hooked when `taps` is empty.

    Args:
        model: where to hook.
        taps: site -> where it is.
        wants_logits: the forward's output is asked for too.
        fuse: modules with a fused attention branch are sent through it meanwhile.
        encoders: paths of the ``nn.TransformerEncoder`` modules, kept from their nested-tensor path meanwhile.
    """

    def __init__(
        self, model: nn.Module, taps: dict[Site, Tap], wants_logits: bool, fuse: bool, encoders: tuple[str, ...] = ()
    ) -> None:
        self._model = model
        self._taps = taps
        self._wants_logits = wants_logits
        self._fuse = fuse
        self._encoders = encoders
        self._undo: list[ExitStack] = []

    def __enter__(self) -> Recorder:
        recorder = Recorder(self._taps, self._wants_logits)
        with ExitStack() as stack:  # undone if setting up fails half-way
            if self._taps:
                if self._fuse and any(tap.end == "call" and not tap.core for tap in self._taps.values()):
                    stack.enter_context(fused_branches(self._model))
                hooks = _Hooks(self._model, recorder, self._taps, self._encoders)
                stack.callback(hooks.close)
                hooks.open()
            self._undo.append(stack.pop_all())
        return recorder

    def __exit__(self, *error: object) -> None:
        self._undo.pop().close()


class _Hooks:
    """The hooks of one capture.

    They act only while the model's own forward runs, so that code outside it (a loss that multiplies matrices, a
    checkpoint that recomputes a block during backward) is not taken for another forward.
    """

    def __init__(self, model: nn.Module, recorder: Recorder, taps: dict[Site, Tap], encoders: tuple[str, ...]) -> None:
        self._model = model
        self._recorder = recorder
        self._taps = taps
        self._encoders = encoders
        self._handles: list[Any] = []
        self._modes: list[TorchFunctionMode] = []
        self._ordinals: Counter[str] = Counter()
        self._depth = 0
        self._grad_outside = False
        self._watched: list[_Watched] = []
        self._watch = WatchAttention(self._attention)

    def open(self) -> None:
        """Set all hooks."""
        by_path: dict[str, list[Site]] = {}
        for site, tap in self._taps.items():
            by_path.setdefault(tap.path, []).append(site)
        modules = {path: self._find(path) for path in (*by_path, *self._encoders)}
        self._pre(self._model, self._begin)
        for path, sites in by_path.items():
            self._module(path, modules[path], sites)
        for path in self._encoders:
            self._quiet(modules[path])
        self._post(self._model, self._end)

    def close(self) -> None:
        """Remove all hooks, and modes that an interrupt left open."""
        for handle in self._handles:
            handle.remove()
        while self._modes:
            self._pop(self._modes[-1])

    def _find(self, path: str) -> nn.Module:
        try:
            return self._model.get_submodule(path)
        except AttributeError:
            raise NasdistillError(
                f"the model has no module {path!r}, which the plan names", hint="Make a new SitePlan for it."
            ) from None

    def _pre(self, module: nn.Module, hook: Callable[..., None]) -> None:
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _post(self, module: nn.Module, hook: Callable[..., None]) -> None:
        # always_call: modes must be closed and counters kept when the forward raises
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=True))

    def _push(self, mode: TorchFunctionMode) -> None:
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._modes.append(mode)

    def _pop(self, mode: TorchFunctionMode) -> None:
        if self._modes and self._modes[-1] is mode:
            self._modes.pop()
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self._ordinals.clear()
            self._grad_outside = torch.is_grad_enabled()
            self._recorder.start()

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)

    def _quiet(self, module: nn.Module) -> None:
        mode = Quiet()

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._depth:
                self._push(mode)

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._pop(mode)

        self._pre(module, enter)
        self._post(module, leave)

    def _module(self, path: str, module: nn.Module, sites: list[Site]) -> None:
        """Hook one module for all its sites."""
        taps = {site: self._taps[site] for site in sites}
        watched = any(tap.end == "call" and not tap.core for tap in taps.values())
        core = any(tap.core for tap in taps.values())
        running: list[int] = []  # numbers of this module's calls that have not returned

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self._depth:
                return
            ordinal = self._ordinals[path]
            self._ordinals[path] += 1
            running.append(ordinal)
            if watched:
                self._watched.append(_Watched((path, ordinal)))
                if len(self._watched) == 1:
                    self._push(self._watch)
            if self._grad_outside and not torch.is_grad_enabled():
                self._refuse_reentrant(path)
            for site, tap in taps.items():
                tensor = first_float(args, kwargs) if tap.end == "input" and tap.ordinal == ordinal else None
                if tensor is not None:
                    self._recorder.take(site, tensor)

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not running:
                return
            ordinal = running.pop()
            if watched:
                self._watched.pop()
                if not self._watched:
                    self._pop(self._watch)
            tensor = main_output(output, first_float(args, kwargs))  # None when the forward raised
            if tensor is None:
                return
            for site, tap in taps.items():
                if tap.end == "output" and tap.ordinal == ordinal:
                    self._recorder.take(site, tensor)
            if core:
                call = AttentionCall.from_core(*core_arguments(args, kwargs), tensor)
                self._recorder.take_call((path, ordinal), 0, call)

        self._pre(module, enter)
        self._post(module, leave)

    def _attention(self, call: AttentionCall) -> None:
        watched = self._watched[-1]
        self._recorder.take_call(watched.key, watched.calls, call)
        watched.calls += 1

    def _refuse_reentrant(self, path: str) -> None:
        """Raise when the nearest module at or above `path` that has parameters is trained, though gradients are off."""
        parameters = list(self._find(path).parameters())
        while not parameters and path:
            path = path.rpartition(".")[0]
            parameters = list(self._find(path).parameters())
        if any(parameter.requires_grad for parameter in parameters):
            raise NasdistillError(
                f"module {path!r} is trained but runs without gradients inside a forward with them: reentrant gradient "
                "checkpointing. Captured tensors would carry no gradient, and the loss would train nothing",
                hint="Use checkpoint(..., use_reentrant=False), or turn checkpointing off.",
            )


@dataclass(slots=True)
class _Watched:
    """A watched module call that is running, and how many attention calls it has made."""

    key: Key
    calls: int = 0
