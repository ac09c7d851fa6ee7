"""Analytic costs equal counted operations exactly, also on a grid and with options."""

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


def counted(name, n, *, geometry, mask=None, options=None):
    """Multiply-accumulates of the matrix products that one call runs, with softmax attention unfused."""
    core = HOST.create(Kind.ATTENTION, name, options, geometry=geometry)
    heads, dim = geometry.heads, geometry.head_dim
    q, k, v = (torch.randn(1, heads, n, size) for size in (dim, dim, geometry.value_dim))
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
