"""One dry run that finds where a model's sites are, by what its modules do and not by what they are called.

Recorded on a tiny batch: which module runs inside which, which leaf modules are linear maps or convolutions, and every
attention call. From this follow, without a list of model names:

- the *output projection* of a call: the linear whose input equals the context;
- the *block* of a call: the innermost member of a list or sequence that contains the call and a linear that is none of
  the attention's own (it lies outside the calling module, or runs after the call and is not the output projection) and
  that works on tokens. Where there is none (U-Nets without FFN) the attention stands for its block.
  The plain rule "innermost member of a list" fails where sub-layers are listed too (T5);
- ``ffn_out``: the last linear of the block, in time, that gives the block's width;
- *stage maps*: for each resolution that some convolution produces, the last 4-D output outside token code and outside
  blocks that leave this resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasdistill.bridge.record import (
    CallRecord,
    ForwardRecord,
    Key,
    ModuleCall,
    first_tensor,
    is_conv,
    is_global_pool,
    is_linear,
)  # fmt: skip
from nasdistill.interfaces.attention import ModuleAttention
from nasdistill.interfaces.signals import Site

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
class Survey:
    """What a dry run found.

    Attributes:
        taps: site -> where to capture it.
        layers: number of blocks.
        stages: number of stage maps.
        calls: for each block its attention calls, in order.
    """

    taps: dict[Site, Tap] = field(default_factory=dict)
    layers: int = 0
    stages: int = 0
    calls: list[list[CallRecord]] = field(default_factory=list)


def survey(
    model: nn.Module, run: Callable[[nn.Module], Any], recorder: ForwardRecord | None = None
) -> tuple[Survey, Any]:
    """Run `model` once under full observation.

    Args:
        model: in the mode in which it is to be observed.
        run: one forward on a tiny real batch, through the model's ``__call__``.
        recorder: of this model, when more than usual is to be recorded.

    Returns:
        What was found, and what `run` returned.
    """
    recorder = recorder or ForwardRecord(model)
    with recorder.watching():
        output = run(model)
    return _Analysis(model, recorder, first_tensor(output)).survey(), output


class _Analysis:
    """From the record of a forward to taps."""

    def __init__(self, model: nn.Module, record: ForwardRecord, output: Tensor | None) -> None:
        self.model = model
        self.done = record.done
        self.calls = record.calls
        self.output = output
        self.linears = [d for d in self.done if is_linear(d.module)]
        self.by_key = {d.key: d for d in self.done}
        self.callers = {call.caller for call in self.calls} | {call.key for call in self.calls}
        self.own = {call.consumer.key for call in self.calls if call.consumer is not None}
        for call in self.calls:  # projections run inside the calling module, before the call
            self.own |= {d.key for d in self.linears if call.caller in d.stack and d.entered < call.time}
            if call.consumer is None:  # something lies between context and projection: take the next linear inside
                inside = (d for d in self.linears if call.caller in d.stack and d.entered > call.time)
                self.own |= {d.key for d in list(inside)[:1]}

    def survey(self) -> Survey:
        found = Survey()
        blocks: dict[Key, list[CallRecord]] = {}
        for call in self.calls:
            blocks.setdefault(self._block(call) or call.caller, []).append(call)
        maps = self._maps()
        for layer, (key, calls) in enumerate(blocks.items()):
            call = calls[0]  # self-attention; a decoder's cross-attention comes second
            whole = self._block(call) is not None
            self._layer(found, layer, call, self.by_key.get(key) if whole else None, maps)
        found.layers = len(blocks)
        found.calls = list(blocks.values())
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

    def _has_other_linear(self, frame: Key, call: CallRecord) -> bool:
        return any(
            frame in d.stack
            and d.key not in self.own
            and not (len(d.input_shape) == 2 and d.input_shape[0] == call.batch and call.tokens > 1)
            for d in self.linears
        )  # one row per sample is no layer over tokens: a projection of the time step, say

    def _block(self, call: CallRecord) -> Key | None:
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

    def _layer(
        self, found: Survey, layer: int, call: CallRecord, block: ModuleCall | None, maps: list[ModuleCall]
    ) -> None:
        grid = call.grid
        if grid is None and block is not None:
            before = [d for d in maps if d.left < block.entered]
            grid = (before[-1].shape[-2], before[-1].shape[-1]) if before else None

        def put(name: str, tap: Tap | None) -> None:
            if tap is not None:
                found.taps[Site(name, layer)] = replace(tap, grid=grid)

        # Attention over channels (XCiT) hands the kernel transposed heads: no map over tokens exists.
        channels = (
            block is not None
            and call.tokens != block.shape[1] == call.value_dim
            and call.heads * call.tokens == block.shape[-1]
        )
        if call.known and not channels:
            for name, part in (("q", "q"), ("k", "k"), ("v", "v"), ("context", "out")):
                tap = Tap(*call.key, "call", "heads", part, call.index, call.core, causal=call.causal)
                put(name, tap)
        hint = call.consumer.shape[-1] if call.consumer is not None else call.heads * call.value_dim
        put("attn_out", self._attn_out(call, hint))
        if block is None:
            caller = self.by_key.get(call.caller)
            if caller is not None and self._is_member(caller.key[0]):  # an attention that stands among other layers
                put("hidden", self._tokens(caller, call, hint))
            return
        put("hidden", self._tokens(block, call, hint))
        width = block.shape[1] if self._form(block.shape, call, hint) == "bchw" else block.shape[-1]
        inside = [d for d in self.done if block.key in d.stack and d.key != block.key]
        linears = [d for d in inside if is_linear(d.module) and d.key not in self.own and d.shape[-1] == width]
        # A block of two joint streams ends each in an FFN of its own: take that of the stream it is known by.
        linears = [d for d in linears if d.shape == block.shape] or linears
        if linears:
            put("ffn_out", self._tokens(max(linears, key=lambda d: d.left), call, width))
        norms = [d for d in inside if "norm" in type(d.module).__name__.lower() and d.shape == block.shape]
        if norms:
            put("norm", self._tokens(min(norms, key=lambda d: d.entered), call, width))
        if layer == 0:
            form = self._form(block.input_shape, call, hint)
            if form is not None:
                found.taps[Site("embedding")] = Tap(*block.key, "input", form, grid=grid)

    def _attn_out(self, call: CallRecord, hint: int) -> Tap | None:
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

    def _tokens(self, done: ModuleCall, call: CallRecord, width: int) -> Tap | None:
        form = self._form(done.shape, call, width)
        return None if form is None else Tap(*done.key, "output", form)

    def _form(self, shape: tuple[int, ...], call: CallRecord, width: int) -> Form | None:
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

    def _maps(self) -> list[ModuleCall]:
        """Return the 4-D outputs outside token code at resolutions that some convolution produces, in time order."""
        outside = [
            d
            for d in self.done
            if d.key[0] and len(d.shape) == 4 and not d.tokens_around and not self.callers & set(d.stack)
        ]
        sizes = {d.shape[-2:] for d in outside if is_conv(d.module)}
        return [d for d in outside if d.shape[-2:] in sizes and not is_global_pool(d)]

    def _stages(self, maps: list[ModuleCall]) -> list[ModuleCall]:
        """Return the last map of each resolution (number of pixels), the finest first.

        A block that changes the resolution may still widen its input first; such inner maps come later than the stage
        they read and are passed over. One pixel is a stage only where a layer with weights came down to it at the end
        of the trunk: elsewhere it is a gate (squeeze and excitation) or a head behind global pooling.
        """
        last: dict[int, ModuleCall] = {}
        for done in sorted(maps, key=lambda d: (-self._resizing(d), d.left)):
            last[done.shape[-2] * done.shape[-1]] = done
        came_down = any(d.shape[-2:] == (1, 1) != d.input_shape[-2:] for d in maps)
        if 1 in last and len(last) > 1 and not (came_down and last[1].left == max(d.left for d in last.values())):
            del last[1]
        return [last[pixels] for pixels in sorted(last, reverse=True)]

    def _resizing(self, done: ModuleCall) -> int:
        """Return how many modules around a map take this resolution in and give another one out."""
        around = (self.by_key[key] for key in done.stack[1:-1] if key in self.by_key)
        return sum(
            len(a.input_shape) == 4 and a.input_shape[-2:] == done.shape[-2:] and a.shape[2:] != done.shape[2:]
            for a in around
        )

    def _head(self) -> ModuleCall | None:
        """Return the layer whose output is the model's: by value, else the last one of the output's shape."""
        if self.output is None or self.output.ndim != 2:
            return None
        heads = [d for d in self.done if d.small is not None and len(d.input_shape) in (2, 4)]
        same = [d for d in heads if d.small is not None and d.small.flatten(1).shape == self.output.shape]
        equal = [d for d in same if d.small is not None and torch.equal(d.small.flatten(1), self.output)]
        return (equal or same)[-1] if same else None
