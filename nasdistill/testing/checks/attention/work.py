"""What a layer costs: counted operations against the declared complexity and cost()."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasdistill.errors import one_line
from nasdistill.interfaces import AttentionMask
from nasdistill.measure.counting import count_macs
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.attention.cases import (
    attend,
    convert,
    encoder,
    geometry_of,
    is_layer,
    is_model,
    layer_of,
    modes,
    noise,
    tags_of,
    tensors,
)
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.subject import Subject

SORTS = ("sort", "argsort", "topk", "_fft_c2c", "_fft_r2c", "_fft_c2r")
"""Operations that take n log n steps and multiply nothing that is counted."""


class Call(nn.Module):
    """A layer with a fixed mask, as a module of tensors."""

    def __init__(self, subject: Subject, layer: nn.Module, mask: AttentionMask | None) -> None:
        super().__init__()
        self.subject, self.layer, self.mask = subject, layer, mask

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the layer's output."""
        return attend(self.subject, self.layer, list(inputs), self.mask).out


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the size of the largest tensor that an operation returns, and of the largest that is sorted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = self.sorted = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in (out if isinstance(out, tuple | list) else (out,)) if isinstance(x, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        if func.__name__.partition(".")[0] in SORTS:
            self.sorted = max(self.sorted, *sizes, 0)
        return out


def counted(subject: Subject, n: int, m: int | None, mask: AttentionMask | None, **sizes: Any) -> int:
    """Return the multiply-accumulates of one call on one item."""
    layer = layer_of(subject, dtype=torch.float32, causal=mask is not None, **sizes)
    return count_macs(Call(subject, layer, mask), tensors(subject, n, m, batch=1, dtype=torch.float32, **sizes))


@check(Kind.ATTENTION, hint="Declare how the work really grows; masking n x n scores saves nothing.")
def complexity_is_true(subject: Subject) -> None:
    """The tag `complexity` says how the counted products grow over three doublings of the tokens, and no tensor faster.

    "n" and "n*w" grow alike; a layer of the first reads ever more tokens, one of the second as many as before. Sorting
    and Fourier transforms are no products: a linear count is "n log n" where the tokens are sorted or transformed. What
    grows in between, as n * sqrt(n), has no class of its own. Of converted models the reach is not asked.
    """
    declared = tags_of(subject).complexity
    # What is sub-quadratic may begin to be so only beyond its chunks and tiles.
    lengths = [(128 if declared == "n^2" else 512) << doubling for doubling in range(4)]
    for where, mask in [("", None)] if is_model(subject) else modes(subject):
        works = [_work(subject, n, mask) for n in lengths]
        counts = [work.macs for work in works]
        told = f"{where}{' ' if where else ''}{lengths[0]} to {lengths[-1]} tokens take {_listed(counts)} products"
        if not all(counts):
            fail(f"{where} no multiplication is counted: it is not done with torch's products")
        found = growth([count / n for count, n in zip(counts, lengths, strict=True)])
        if found == "n" and declared == "n log n" and not works[-1].sorts:
            fail(f"complexity={declared!r}, and {told}, which is linear, and no token is sorted or transformed")
        if found != {"n*w": "n", "n log n": found if found == "n" else "n log n"}.get(declared, declared):
            fail(f"complexity={declared!r}, and {told}, which grows as {found}")
        largest = works[2].largest
        if declared != "n^2" and largest > lengths[2] ** 2 // 8:
            fail(f"complexity={declared!r}, and {where} a tensor of {largest} numbers is made for {lengths[2]} tokens")
        if declared in ("n", "n*w") and not is_model(subject):
            few, many = (_reach(subject, n, mask) for n in lengths[:2])
            seen = f"a query reads {few} of {lengths[0]} tokens and {many} of {lengths[1]}"
            if declared == "n" and many < 1.5 * few:
                fail(f"complexity={declared!r}, and {where} {seen}: that is n*w")
            if declared == "n*w" and many > 1.5 * few:
                fail(f"complexity={declared!r}, and {where} {seen}: that is n")


def growth(per_token: Sequence[float]) -> str:
    """Return the class of a work, given what it takes per token at four lengths, each twice the one before.

    What doubling adds per token falls by half for "n" (its edges), stays for "n log n" and doubles for "n^2".
    """
    added = [after - before for before, after in pairwise(per_token)]
    if abs(added[2]) < 0.02 * per_token[3]:
        return "n"
    # Over two doublings 1/4, 1 or 4; over one where another algorithm serves the shortest length.
    ratio = added[2] / added[0] if added[0] > 0 else (added[2] / added[1]) ** 2 if added[1] > 0 else math.inf
    return "n" if ratio < 0.5 else "n log n" if ratio < 2 else "n^2"


class Work(NamedTuple):
    """What one call on some tokens takes."""

    macs: int
    largest: int
    sorts: bool


def _work(subject: Subject, n: int, mask: AttentionMask | None) -> Work:
    """Return what a layer, or a model that it converts, takes for n tokens."""
    if is_model(subject):
        high = 2 ** (n.bit_length() // 2)
        call, inputs = _converted(subject), [torch.randn(1, 1, 2 * high, 2 * n // high)]
        try:
            with torch.no_grad():
                call(*inputs)
        except Exception as error:
            skip(f"the converted model does not run on other numbers of tokens: {one_line(error)}")
    else:
        sizes: dict[str, Any] = {"heads": 1, "head_dim": 8}
        layer = layer_of(subject, dtype=torch.float32, causal=mask is not None, **sizes)
        call, inputs = Call(subject, layer, mask), tensors(subject, n, batch=1, dtype=torch.float32, **sizes)
    with torch.no_grad(), Seen() as seen:
        macs = count_macs(call, inputs)
    return Work(macs, seen.largest, seen.sorted >= n)


def _converted(subject: Subject) -> nn.Module:
    """Return the converted model, made once."""
    return subject.once("converted", lambda: convert(subject, encoder(subject)).model.eval())


def _reach(subject: Subject, n: int, mask: AttentionMask | None) -> int:
    """Return from how many of n tokens something gets to the output of the last one but two."""
    layer = layer_of(subject, causal=mask is not None)
    inputs = [x.requires_grad_() for x in tensors(subject, n, batch=1)]
    row = attend(subject, layer, inputs, mask).out[..., -3, :]
    torch.autograd.backward((row * noise(row, "row")).sum())
    read = torch.zeros(n, dtype=torch.bool)
    for x in inputs[1:] or inputs:  # of a core the keys and values
        if x.grad is not None:
            read |= (x.grad != 0).flatten(0, -3).any(0).any(-1)
    return int(read.sum())


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


@check(Kind.ATTENTION, applies=is_layer, hint="Count every parameter the layer owns, once.")
def cost_counts_the_parameters(subject: Subject) -> None:
    """cost() gives the exact number of the layer's parameters."""
    some: tuple[dict[str, Any], ...] = ({}, {"heads": 4, "head_dim": 3})
    for sizes in some:
        owned = sum(parameter.numel() for parameter in layer_of(subject, **sizes).parameters())
        said = subject.load().cost(geometry_of(subject, **sizes), 16, 16, dict(subject.example.options)).params
        if said != owned:
            fail(f"cost() says {said} parameters, the layer has {owned} ({geometry_of(subject, **sizes)})")


@check(
    Kind.ATTENTION, applies=is_layer, hint="Follow the branches of forward(): what runs for these lengths is the cost."
)
def cost_counts_the_operations(subject: Subject) -> None:
    """cost() gives the multiply-accumulates of a call, to 2 percent, for few and many queries and keys."""
    sizes = {"head_dim": 16, "value_dim": 8} if tags_of(subject).level == "core" else {"head_dim": 16}
    lengths: list[tuple[int, int | None]] = [(1, None), (16, None), (64, None), (200, None)]
    calls = [(n, m, mask) for n, m in lengths for _, mask in modes(subject)]
    if tags_of(subject).cross:
        calls += [(n, m, None) for n, m in ((4, 40), (40, 4), (90, 200))]
    for n, m, mask in calls:
        geometry = geometry_of(subject, causal=mask is not None, **sizes)
        cost = subject.load().cost(geometry, n, m or n, dict(subject.example.options))
        found = counted(subject, n, m, mask, **sizes)
        if abs(cost.macs - found) > 0.02 * found:
            causal = "with" if mask is not None else "without"
            fail(
                f"{n} queries, {m or n} keys, {causal} a causal mask: cost() says {cost.macs} MACs, counted are {found}"
            )
        if cost.activations < 0:
            fail(f"cost() says {cost.activations} activations")
