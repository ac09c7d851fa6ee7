"""One dry run that finds where a model's sites are, by what its modules do and not by what they are called.

Recorded on a tiny batch: which module runs inside which, which leaf modules are linear maps or convolutions, and every
attention call. From this follow, without a list of model names:

- the *output projection* of a call: the linear whose input equals the context;
- the *block* of a call: the innermost member of a list or sequence that contains the call and a linear that is none of
  the attention's own (it lies outside the calling module, or runs after the call and is not the output projection).
  The plain rule "innermost member of a list" fails where sub-layers are listed too (T5);
- ``ffn_out``: the last linear of the block, in time, that gives the block's width;
- *stage maps*: for each resolution that some convolution produces, the last 4-D output outside token code and outside
  blocks that leave this resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasdistill.interfaces.attention import AttentionCore, AttentionResult, ModuleAttention
from nasdistill.interfaces.signals import Site
from nasdistill.trace.attention import AttentionCall, WatchAttention, core_arguments

Key = tuple[str, int]
"""A module call: dotted path, and how many times that module had been called before in this forward."""
Form = Literal["bnc", "nbc", "bhwc", "bchw", "map", "vector", "heads", "as_is"]
"""How a captured tensor is laid out in the model."""


@dataclass(frozen=True, slots=True)
class Tap:
    """Where one site is captured.

    Attributes:
        path: module, dotted; the empty path is the model itself.
        ordinal: which call of this module within one forward.
        end: the module's input, its output, or an attention call made directly inside it.
        form: layout of the tensor in the model.
        part: for calls: ``"q"``, ``"k"``, ``"v"`` or ``"out"``.
        index: for calls: which call inside this module call.
        core: the module is an :class:`AttentionCore`, whose own input and output are the call.
        clone: a later module overwrites the tensor in place, so it must be copied.
        causal: no query sees a later key.
        grid: ``(h, w)`` of the tokens.
    """

    path: str
    ordinal: int
    end: Literal["input", "output", "call"]
    form: Form
    part: str = ""
    index: int = 0
    core: bool = False
    clone: bool = False
    causal: bool = False
    grid: tuple[int, int] | None = None


@dataclass(slots=True)
class _Frame:
    """A module call that is running."""

    key: Key
    module: nn.Module
    entered: int
    input: Tensor | None
    calls: int = 0


@dataclass(slots=True)
class _Done:
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
class _Call:
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
    consumer: _Done | None = None
    consumer_swapped: bool = False

    @property
    def caller(self) -> Key:
        """The module that makes the call; for a core, the module around it."""
        return self.stack[-2] if self.core and len(self.stack) > 1 else self.stack[-1]


@dataclass(slots=True)
class Survey:
    """What a dry run found: site -> where to capture it, and the number of blocks and stages."""

    taps: dict[Site, Tap] = field(default_factory=dict)
    layers: int = 0
    stages: int = 0


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


def first_float(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first floating-point tensor among a call's arguments."""
    values = [*args, *kwargs.values()]
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


class _Recorder:
    """Hooks on every module plus the attention watch, for one forward."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stack: list[_Frame] = []
        self.done: list[_Done] = []
        self.calls: list[_Call] = []
        self._ordinals: Counter[str] = Counter()
        self._time = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
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
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point():
            return
        shape_in = () if frame.input is None else tuple(frame.input.shape)
        done = _Done(
            frame.key, module, keys, frame.entered, self._tick(), shape_in, tuple(tensor.shape), around,
            small=tensor if _is_head(module, tensor) else None,
        )  # fmt: skip
        self.done.append(done)
        if is_linear(module) and frame.input is not None:
            self._match(done, frame.input)

    def _attention(self, call: AttentionCall) -> None:
        if self.stack and not any(isinstance(f.module, AttentionCore) for f in self.stack):
            self._note(call, core=False)

    def _note(self, call: AttentionCall | None, core: bool) -> None:
        frame = self.stack[-1]
        stack = tuple(f.key for f in self.stack)
        if call is None:
            shape = (0, 0, 0, 0) if frame.input is None else (frame.input.shape[0], 1, *frame.input.shape[1:3])
            batch, heads, tokens, dim = (*shape, 0, 0, 0, 0)[:4]
        else:
            batch, heads, tokens, dim = call.out.shape
        merged = None if call is None else call.out.transpose(1, 2).flatten(2)
        self.calls.append(
            _Call(
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

    def _match(self, done: _Done, given: Tensor) -> None:
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


def _is_conv(module: nn.Module) -> bool:
    weight = _leaf_weight(module)
    return weight is not None and weight.ndim == 4


def _is_global_pool(done: _Done) -> bool:
    """Return whether a module without parameters turned a map into one pixel."""
    pooled = done.shape[-2:] == (1, 1) and done.input_shape[-2:] != (1, 1)
    return pooled and not any(True for _ in done.module.parameters())


def _is_head(module: nn.Module, output: Tensor) -> bool:
    """Return whether a module could be the classifier: a linear map, or a convolution on one pixel."""
    return (is_linear(module) and output.ndim == 2) or (
        _is_conv(module) and output.ndim == 4 and output.shape[-2:] == (1, 1)
    )


def survey(model: nn.Module, run: Callable[[nn.Module], Any]) -> tuple[Survey, Any]:
    """Run `model` once under full observation.

    Args:
        model: in the mode in which it is to be observed.
        run: one forward on a tiny real batch, through the model's ``__call__``.

    Returns:
        What was found, and what `run` returned.
    """
    recorder = _Recorder(model)
    with recorder.watching():
        output = run(model)
    return _Analysis(model, recorder, first_tensor(output)).survey(), output


class _Analysis:
    """From the record of a forward to taps."""

    def __init__(self, model: nn.Module, record: _Recorder, output: Tensor | None) -> None:
        self.model = model
        self.done = record.done
        self.calls = record.calls
        self.output = output
        self.linears = [d for d in self.done if is_linear(d.module)]
        self.by_key = {d.key: d for d in self.done}
        self.callers = {call.caller for call in self.calls} | {call.key for call in self.calls}
        self.own = {call.consumer.key for call in self.calls if call.consumer is not None}
        for call in self.calls:
            if call.consumer is None:  # something lies between context and projection: take the next linear inside
                inside = (d for d in self.linears if call.caller in d.stack and d.entered > call.time)
                self.own |= {d.key for d in list(inside)[:1]}

    def survey(self) -> Survey:
        found = Survey()
        blocks: dict[Key, list[_Call]] = {}
        for call in self.calls:
            blocks.setdefault(self._block(call) or call.caller, []).append(call)
        maps = self._maps()
        for layer, (key, calls) in enumerate(blocks.items()):
            call = calls[0]  # self-attention; a decoder's cross-attention comes second
            whole = self._block(call) is not None
            self._layer(found, layer, call, self.by_key.get(key) if whole else None, maps)
        found.layers = len(blocks)
        for stage, done in enumerate(self._stages(maps)):
            found.taps[Site("features", stage)] = Tap(*done.key, "output", "map")
            found.stages = stage + 1
        head = self._head()
        if head is not None:
            found.taps[Site("pooled")] = Tap(*head.key, "input", "vector")
        return found

    # ---- blocks -------------------------------------------------------------------------------------------------

    def _is_member(self, path: str) -> bool:
        """Return whether a module is an item of a list, sequence or dict of modules."""
        if not path:
            return False
        parent = self.model.get_submodule(path.rpartition(".")[0])
        return isinstance(parent, nn.ModuleList | nn.Sequential | nn.ModuleDict)

    def _has_other_linear(self, frame: Key, call: _Call) -> bool:
        return any(
            frame in d.stack and d.key not in self.own and (call.caller not in d.stack or d.entered > call.time)
            for d in self.linears
        )

    def _block(self, call: _Call) -> Key | None:
        """Return the block around a call, or None when no module is one."""
        around = [key for key in reversed(call.stack) if key[0]]
        for need_member in (True, False):
            for key in around:
                if need_member and not self._is_member(key[0]):
                    continue
                if not self._has_other_linear(key, call):
                    continue
                # Without a list, a module that holds many calls is a whole network, not a block.
                if need_member or sum(key in other.stack for other in self.calls) <= 1:
                    return key
                break
        return None

    def _layer(self, found: Survey, layer: int, call: _Call, block: _Done | None, maps: list[_Done]) -> None:
        grid = call.grid
        if grid is None and block is not None:
            before = [d for d in maps if d.left < block.entered]
            grid = (before[-1].shape[-2], before[-1].shape[-1]) if before else None

        def put(name: str, tap: Tap | None) -> None:
            if tap is not None:
                found.taps[Site(name, layer)] = replace(tap, grid=grid)

        # Attention over channels (XCiT) hands the kernel transposed heads: no map over tokens exists.
        channels = block is not None and call.tokens != block.shape[1] == call.value_dim
        if call.known and not channels:
            for name, part in (("q", "q"), ("k", "k"), ("v", "v"), ("context", "out")):
                tap = Tap(*call.key, "call", "heads", part, call.index, call.core, causal=call.causal)
                put(name, tap)
        hint = call.consumer.shape[-1] if call.consumer is not None else call.heads * call.value_dim
        put("attn_out", self._attn_out(call, hint))
        if block is None:
            return
        put("hidden", self._tokens(block, call, hint))
        width = block.shape[1] if self._form(block.shape, call, hint) == "bchw" else block.shape[-1]
        inside = [d for d in self.done if block.key in d.stack and d.key != block.key]
        linears = [d for d in inside if is_linear(d.module) and d.key not in self.own and d.shape[-1] == width]
        if linears:
            put("ffn_out", self._tokens(max(linears, key=lambda d: d.left), call, width))
        norms = [d for d in inside if "norm" in type(d.module).__name__.lower() and d.shape == block.shape]
        if norms:
            put("norm", self._tokens(min(norms, key=lambda d: d.entered), call, width))
        if layer == 0:
            form = self._form(block.input_shape, call, hint)
            if form is not None:
                found.taps[Site("embedding")] = Tap(*block.key, "input", form, grid=grid)

    def _attn_out(self, call: _Call, hint: int) -> Tap | None:
        if call.consumer is not None:
            form = self._form(call.consumer.shape, call, hint)
            if form == "bnc" and call.consumer_swapped and call.batch == call.tokens:
                form = "nbc"
            return None if form is None else Tap(*call.consumer.key, "output", form)
        caller = self.by_key.get(call.caller)
        if (
            caller is None
            or not caller.key[0]
            or not isinstance(caller.module, nn.MultiheadAttention | ModuleAttention)
        ):
            return None  # no projection, or one that cannot be told from its surroundings
        return self._tokens(caller, call, hint)

    def _tokens(self, done: _Done, call: _Call, width: int) -> Tap | None:
        form = self._form(done.shape, call, width)
        return None if form is None else Tap(*done.key, "output", form)

    def _form(self, shape: tuple[int, ...], call: _Call, width: int) -> Form | None:
        """Return how tokens of this shape are laid out, seen from an attention call over them."""
        if len(shape) == 3:
            sequence_first = shape[:2] == (call.tokens, call.batch)
            if sequence_first and call.tokens == call.batch:  # only the module can tell
                parents = [self.by_key[key].module for key in call.stack if key in self.by_key]
                sequence_first = any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in parents)
            return "nbc" if sequence_first else "bnc"
        if len(shape) == 4:
            return "bhwc" if shape[-1] == width else "bchw" if shape[1] == width else None
        return None

    # ---- maps and the head --------------------------------------------------------------------------------------

    def _maps(self) -> list[_Done]:
        """Return the 4-D outputs outside token code at resolutions that some convolution produces, in time order."""
        outside = [
            d
            for d in self.done
            if d.key[0] and len(d.shape) == 4 and not d.tokens_around and not self.callers & set(d.stack)
        ]
        sizes = {d.shape[-2:] for d in outside if _is_conv(d.module)}
        return [d for d in outside if d.shape[-2:] in sizes and not _is_global_pool(d)]

    def _stages(self, maps: list[_Done]) -> list[_Done]:
        """Return the last map of each resolution (number of pixels), the finest first.

        A block that changes the resolution may still widen its input first; such inner maps come later than the stage
        they read and are passed over. One pixel is a stage only where a layer with weights came down to it at the end
        of the trunk: elsewhere it is a gate (squeeze and excitation) or a head behind global pooling.
        """
        last: dict[int, _Done] = {}
        for done in sorted(maps, key=lambda d: (-self._resizing(d), d.left)):
            last[done.shape[-2] * done.shape[-1]] = done
        came_down = any(d.shape[-2:] == (1, 1) != d.input_shape[-2:] for d in maps)
        if 1 in last and len(last) > 1 and not (came_down and last[1].left == max(d.left for d in last.values())):
            del last[1]
        return [last[pixels] for pixels in sorted(last, reverse=True)]

    def _resizing(self, done: _Done) -> int:
        """Return how many modules around a map take this resolution in and give another one out."""
        around = (self.by_key[key] for key in done.stack[1:-1] if key in self.by_key)
        return sum(
            len(a.input_shape) == 4 and a.input_shape[-2:] == done.shape[-2:] and a.shape[2:] != done.shape[2:]
            for a in around
        )

    def _head(self) -> _Done | None:
        """Return the layer whose output is the model's: by value, else the last one of the output's shape."""
        if self.output is None or self.output.ndim != 2:
            return None
        heads = [d for d in self.done if d.small is not None and len(d.input_shape) in (2, 4)]
        same = [d for d in heads if d.small is not None and d.small.flatten(1).shape == self.output.shape]
        equal = [d for d in same if d.small is not None and torch.equal(d.small.flatten(1), self.output)]
        return (equal or same)[-1] if same else None
