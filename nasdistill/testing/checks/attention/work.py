"""What a layer costs: counted operations against the declared complexity and cost()."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasdistill.interfaces import AttentionMask
from nasdistill.measure.counting import count_macs
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.attention.cases import (
    attend,
    geometry_of,
    is_layer,
    layer_of,
    modes,
    tags_of,
    tensors,
)
from nasdistill.testing.registry import check, fail
from nasdistill.testing.subject import Subject

GROWTH = {"n": 4.6, "n*w": 4.6, "n log n": 5.6}
"""At most so many times the products for four times the tokens, from 512 on: 4, and 4 * 11 / 9, with room for edges."""


class Call(nn.Module):
    """A layer with a fixed mask, as a module of tensors."""

    def __init__(self, subject: Subject, layer: nn.Module, mask: AttentionMask | None) -> None:
        super().__init__()
        self.subject, self.layer, self.mask = subject, layer, mask

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the layer's output."""
        return attend(self.subject, self.layer, list(inputs), self.mask).out


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the size of the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            self.elements = max(self.elements, x.numel() if isinstance(x, Tensor) else 0)
        return out


def counted(subject: Subject, n: int, m: int | None, mask: AttentionMask | None, **sizes: Any) -> int:
    """Return the multiply-accumulates of one call on one item."""
    layer = layer_of(subject, dtype=torch.float32, causal=mask is not None, **sizes)
    return count_macs(Call(subject, layer, mask), tensors(subject, n, m, batch=1, dtype=torch.float32, **sizes))


@check(Kind.ATTENTION, applies=is_layer, hint="Declare how the work really grows; masking n x n scores saves nothing.")
def complexity_is_true(subject: Subject) -> None:
    """Four times the tokens take as much more work as the tag `complexity` says, and no larger tensors."""
    declared = tags_of(subject).complexity
    sizes: dict[str, Any] = {"heads": 1, "head_dim": 8}
    n = 128 if declared == "n^2" else 512  # what is sub-quadratic may begin so only beyond its chunks and tiles
    for where, mask in modes(subject):
        short, long = (counted(subject, size, None, mask, **sizes) for size in (n, 4 * n))
        if not short:
            fail(f"{where} no multiplication is counted: it is not done with torch's products")
        ratio = long / short
        if declared in GROWTH and ratio > GROWTH[declared]:
            fail(f"complexity={declared!r}, and {where} {4 * n} tokens take {ratio:.1f} times the products of {n}")
        if declared == "n^2" and ratio < 8:
            fail(f"complexity='n^2', and {where} {4 * n} tokens take only {ratio:.1f} times the products of {n}")
        if declared != "n^2":
            layer = layer_of(subject, dtype=torch.float32, causal=mask is not None, **sizes)
            inputs = tensors(subject, 2048, batch=1, dtype=torch.float32, **sizes)
            with torch.no_grad(), Largest() as seen:
                attend(subject, layer, inputs, mask)
            if seen.elements > 2048 * 2048 // 8:
                fail(
                    f"complexity={declared!r}, and {where} a tensor of {seen.elements} numbers is made for 2048 tokens"
                )


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
