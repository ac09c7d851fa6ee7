"""Analytic costs equal counted operations, and what is called linear grows linearly (counted, not timed)."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nasdistill.host import Host
from nasdistill.interfaces import AttentionContext, AttentionGeometry, AttentionMask, TokenLayout
from nasdistill.spec.component import Kind

HOST = Host.load(third_party=False)
CORES = [record.id for record in HOST.specs(Kind.ATTENTION) if record.spec.tags.level == "core"]


def counted(name, n, *, m=None, geometry, mask=None, options=None):
    """Multiply-accumulates of the matrix products that one call runs, with softmax attention unfused."""
    core = HOST.create(Kind.ATTENTION, name, options, geometry=geometry)
    heads, dim = geometry.heads, geometry.head_dim
    q, k = torch.randn(1, heads, n, dim), torch.randn(1, heads, m or n, dim)
    v = torch.randn(1, heads, m or n, geometry.value_dim)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        core(q, k, v, AttentionContext(mask=mask))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("n", [1, 16, 64, 200])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("layout", [None, "grid"])
def test_cost_equals_the_count(name, n, causal, layout):
    if layout is not None:
        side = {1: 1, 16: 4, 64: 8, 200: 14}[n]
        layout = TokenLayout(grid=(side, side), prefix=n - side * side)
    geometry = AttentionGeometry(32, 2, 16, value_dim=8, layout=layout, causal=causal)
    mask = AttentionMask(causal=True) if causal else None
    for options in (None, {"window": 3}) if name.endswith("window") else (None,):
        cost = HOST.load(Kind.ATTENTION, name).cost(geometry, n, n, options)
        assert cost.macs == counted(name, n, geometry=geometry, mask=mask, options=options)
        assert cost.activations > 0
        assert cost.params == sum(
            p.numel() for p in HOST.create(Kind.ATTENTION, name, options, geometry=geometry).parameters()
        )


@pytest.mark.parametrize("name", [name for name in CORES if HOST.tags(Kind.ATTENTION, name).cross])
@pytest.mark.parametrize(("n", "m"), [(4, 40), (40, 4), (90, 200)])
def test_cost_of_cross_attention(name, n, m):
    geometry = AttentionGeometry(32, 2, 16)
    cost = HOST.load(Kind.ATTENTION, name).cost(geometry, n, m)
    assert cost.macs == counted(name, n, m=m, geometry=geometry)


@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("causal", [False, True])
def test_four_times_the_tokens(name, causal):
    """Sixteen times the products where the cost is quadratic, about four times where it is declared linear."""
    geometry = AttentionGeometry(32, 2, 16, causal=causal)
    mask = AttentionMask(causal=True) if causal else None
    short, long = (counted(name, n, geometry=geometry, mask=mask) for n in (512, 2048))
    if HOST.tags(Kind.ATTENTION, name).complexity == "n^2":
        assert long / short > 15
    else:
        assert long / short < 4.5


@pytest.mark.parametrize("name", [n for n in CORES if HOST.tags(Kind.ATTENTION, n).complexity != "n^2"])
@pytest.mark.parametrize("causal", [False, True])
def test_no_tensor_is_quadratic_in_the_length(name, causal):
    """Watch every operation's result: with 2048 tokens nothing has 2048 x 2048 elements."""
    n, largest = 2048, []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.extend(x.numel() for x in (out if isinstance(out, tuple | list) else (out,)) if torch.is_tensor(x))
            return out

    core = HOST.create(Kind.ATTENTION, name, geometry=AttentionGeometry(8, 1, 8))
    q, k, v = (torch.randn(1, 1, n, 8) for _ in range(3))
    with torch.no_grad(), Watch():
        core(q, k, v, AttentionContext(mask=AttentionMask(causal=True) if causal else None))
    assert 0 < max(largest) <= n * n // 8
