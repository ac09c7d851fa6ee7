"""A dry run that keeps the numbers: every product with a weight, every leaf module and every attention call.

It happens on a copy of the model whose parameters got some noise, because zero biases, gates of one and heads that
start equal would make different things look the same.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasdistill.bridge.fused import fused_branches
from nasdistill.bridge.record import CallRecord, ForwardRecord, Key, first_tensor
from nasdistill.bridge.survey import Survey, survey
from nasdistill.bridge.watching import AttentionCall

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


@dataclass(slots=True, eq=False)
class Product:
    """A linear map that ran: ``output = input @ weight.T + bias``.

    Attributes:
        path: dotted path of the module it ran in.
        stack: the module calls around it.
        time: when it ran, on the record's clock.
        input: ``(..., in)``; `output`: ``(..., out)``.
        weight: ``(out, in)``; None for a convolution.
        bias: ``(out,)`` or None.
        node: its place in the graph of gradients.
    """

    path: str
    stack: tuple[Key, ...]
    time: int
    input: Tensor
    output: Tensor
    weight: Tensor | None
    bias: Tensor | None
    node: Any


@dataclass(slots=True, eq=False)
class Leaf:
    """A module without children that gave a tensor of its input's shape (a norm, an activation)."""

    key: Key
    stack: tuple[Key, ...]
    time: int
    input: Tensor
    output: Tensor


@dataclass(slots=True, eq=False)
class CallerRun:
    """One run of a module that makes attention calls: what it was given and what it returned."""

    key: Key
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(slots=True)
class DryRun:
    """What one forward of the noisy copy did.

    Attributes:
        model: the copy.
        found: sites and blocks, as for the model itself.
        tensors: attention calls (by identity) -> their tensors; None for what is no softmax attention.
        products, leaves: in the order in which they ran.
        runs: the runs of all modules that are the caller of some attention call.
        by_hand: modules in which a softmax over at least three axes was written out.
    """

    model: nn.Module
    found: Survey
    tensors: dict[int, AttentionCall | None]
    products: list[Product]
    leaves: list[Leaf]
    runs: dict[Key, CallerRun]
    by_hand: list[str] = field(default_factory=list)


def dry_run(model: nn.Module, run: Callable[[nn.Module], Any]) -> DryRun:
    """Run a noisy copy of the model once in eval mode and keep what happened.

    Args:
        model: left as it is.
        run: one forward on a tiny real batch, through ``model(...)``.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)
        noisy = copy.deepcopy(model)
        for module in noisy.modules():
            module.training = False
        with torch.no_grad():
            for parameter in noisy.parameters():
                if parameter.is_floating_point():
                    parameter.requires_grad_(True)
                    size = 0.02 + 0.05 * float(parameter.detach().float().square().mean().sqrt())
                    parameter.add_(torch.randn_like(parameter) * size)
        record = _DetailedRecord(noisy)
        with fused_branches(noisy), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library has to say it says to the model, not to the copy
            found, _ = survey(noisy, run, record)
    return DryRun(noisy, found, record.tensors, record.products, record.leaves, record.runs, record.by_hand)


class _DetailedRecord(ForwardRecord):
    """A record that keeps tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.tensors: dict[int, AttentionCall | None] = {}
        self.products: list[Product] = []
        self.leaves: list[Leaf] = []
        self.runs: dict[Key, CallerRun] = {}
        self.by_hand: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the forward that runs inside."""
        with _WatchProducts(self), super().watching():
            yield

    def _note(self, call: AttentionCall | None, core: bool) -> CallRecord:
        noted = super()._note(call, core)
        self.tensors[id(noted)] = call
        return noted

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        frame = self.stack[-1]
        keys = tuple(f.key for f in self.stack)
        super()._leave(module, args, kwargs, output)
        if any(call.caller == frame.key for call in self.calls):
            self.runs[frame.key] = CallerRun(frame.key, args, kwargs, output)
        given, taken = frame.input, first_tensor(output)
        if given is None or taken is None or next(module.children(), None) is not None:
            return
        if given.shape == taken.shape and given is not taken:
            self.leaves.append(Leaf(frame.key, keys, self._tick(), given, taken))

    def product(self, given: Tensor, weight: Tensor | None, bias: Tensor | None, output: Tensor) -> None:
        """Keep a product."""
        if self.stack:
            keys = tuple(f.key for f in self.stack)
            self.products.append(
                Product(keys[-1][0], keys, self._tick(), given, output, weight, bias, output.grad_fn)
            )  # fmt: skip

    def softmax(self, given: Tensor) -> None:
        """Note a softmax written out."""
        if self.stack and given.ndim >= 3:
            self.by_hand.append(self.stack[-1].key[0])


class _WatchProducts(TorchFunctionMode):
    """Hands products with a weight to the record."""

    def __init__(self, record: _DetailedRecord) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call; look at products."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is F.linear:
            given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
            self._record.product(given["input"], given["weight"], given.get("bias"), out)
        elif func is torch.addmm and len(args) == 3 and not kwargs and args[0].ndim == 1:
            self._record.product(args[1], args[2].t(), args[0], out)
        elif func in _CONVOLUTIONS:
            self._record.product(args[0] if args else kwargs["input"], None, None, out)
        elif func in _SOFTMAX:
            self._record.softmax(args[0] if args else kwargs["input"])
        return out
