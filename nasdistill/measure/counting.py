"""Counting what a network has and does: parameters, multiply-accumulates, elements written, operators.

Conventions, the same as in :class:`nasdistill.spec.io.Cost`:

- one multiply-accumulate (MAC) is half a FLOP of ``torch.utils.flop_counter``;
- counted are matrix products, convolutions and attention products; biases, normalisations, activations, pooling and
  element-wise products are not;
- attention counts both products over *all* pairs of queries and keys, whatever the mask (dense kernels compute them);
- the count is for the whole example: give a batch of 1 for the cost of one sample.

torch's counter alone misses what CPU kernels hide: the fused attention of the CPU, matrix-vector products, the
oneDNN recurrent layers and the fused inference path of ``nn.TransformerEncoderLayer``. The first three get formulas
here; the last is switched off while counting.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from nasdistill.measure.outputs import flatten_outputs

aten = torch.ops.aten
Shape = Sequence[int]


@dataclass(frozen=True, slots=True)
class Work:
    """What one forward does.

    Attributes:
        macs: multiply-accumulates.
        activations: elements written by the operators that have multiply-accumulates.
        operators: kernels launched; views and bare allocations not counted.
    """

    macs: int
    activations: int
    operators: int


def count_params(model: nn.Module, *, trainable: bool = False) -> int:
    """Return the number of parameters; shared ones count once.

    Args:
        model: the network.
        trainable: only those that require a gradient.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_macs(model: nn.Module, example: Sequence[Tensor]) -> int:
    """Return the multiply-accumulates of one forward on `example`, counted while it runs in eval mode.

    Args:
        model: the network; its mode is as before afterwards.
        example: positional inputs; the count is for their whole batch.
    """
    return count_work(model, example).macs


def count_work(model: nn.Module, example: Sequence[Tensor]) -> Work:
    """Return MACs, written elements and operators of one forward on `example`; arguments as in `count_macs`."""
    tally = _Tally()
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with evaluating(model), torch.no_grad(), _no_fused_encoder(), counter, tally:
        flatten_outputs(model(*example))
    return Work(counter.get_total_flops() // 2, tally.activations, tally.operators)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put a model into eval mode and every module back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def evaluation_copy(model: nn.Module) -> nn.Module:
    """Return `model` itself when it is in eval mode throughout, else a copy that is: the caller's stays as found."""
    return copy.deepcopy(model).eval() if any(module.training for module in model.modules()) else model


@contextlib.contextmanager
def _no_fused_encoder() -> Iterator[None]:
    """Keep nn.TransformerEncoderLayer from its one opaque inference kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators and the elements that products write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.activations = 0
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        if not getattr(func, "is_view", False) and packet is not aten.empty:
            self.operators += 1
            if packet in _FORMULAS or packet in flop_registry:
                first = result[0] if isinstance(result, tuple | list) else result
                self.activations += first.numel() if isinstance(first, Tensor) else 0
        return result


# ---- formulas that torch lacks; they receive shapes and return FLOPs ------------------------------------------------


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """``q k^T`` and ``p v`` for shapes ``(..., N, D)``, ``(..., M, D)``, ``(..., M, V)``."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _vector_flops(matrix: Shape, *_: Any, **__: Any) -> int:
    """Matrix times vector, or vector times vector."""
    return 2 * math.prod(matrix)


def _add_vector_flops(_: Any, matrix: Shape, *__: Any, **___: Any) -> int:
    """``b + A x``."""
    return 2 * math.prod(matrix)


def _recurrent_flops(inputs: Shape, input_weight: Shape, hidden_weight: Shape, *_: Any, **__: Any) -> int:
    """One layer and direction of a recurrent network on ``(L, B, I)``; weights ``(G H, I)`` and ``(G H, H)``."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(input_weight) + math.prod(hidden_weight))


_FORMULAS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_fused_attention_overrideable: _attention_flops,
    aten.mv: _vector_flops,
    aten.dot: _vector_flops,
    aten.vdot: _vector_flops,
    aten.addmv: _add_vector_flops,
    aten.mkldnn_rnn_layer: _recurrent_flops,
}
