"""A `conv_vit` network from plain data: what an exporter copies, with all it uses, to code that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nasdistill.interfaces import AttentionGeometry, TokenLayout
from nasdistill_spaces.conv_vit.model import BlockShape, ConvVitNet, StemLayer


def conv_vit(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network.

    Args:
        config: ``stem`` (one entry per convolution: inputs, outputs, stride, height, width); per block the lists
            ``heads``, ``head_dim``, ``mlp_hidden``, ``attention`` (a name in `parts`) and ``attention_options``;
            ``position`` and ``outputs``.
        parts: name -> class of an attention core.
    """
    stem = [StemLayer(**layer) for layer in config["stem"]]
    last = stem[-1]
    blocks, cores = [], []
    per_block = (config[key] for key in ("heads", "head_dim", "mlp_hidden", "attention", "attention_options"))
    for heads, head_dim, hidden, attention, options in zip(*per_block, strict=True):
        geometry = AttentionGeometry(
            dim=last.outputs,
            heads=heads,
            head_dim=head_dim,
            tokens=last.height * last.width,
            layout=TokenLayout(grid=(last.height, last.width)),
        )
        blocks.append(BlockShape(geometry, hidden, attention))
        cores.append(parts[attention](options, geometry=geometry))
    return ConvVitNet(stem, blocks, cores, config["outputs"], config["position"])
