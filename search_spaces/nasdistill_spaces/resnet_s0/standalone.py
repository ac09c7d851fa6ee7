"""A `resnet_s0` network from plain data: what an exporter copies, with all it uses, to code that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nasdistill_spaces.resnet_s0.model import BasicShape, ConvShape, ResNetS0Net


def resnet_s0(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network.

    Args:
        config: ``stem`` (one entry per convolution), ``stages`` (a list of blocks each, with ``conv1``, ``conv2`` and
            ``shortcut``, the latter null where it has no parameters) and ``outputs``. A convolution gives inputs,
            outputs, kernel, stride, height and width.
        parts: not used.
    """
    stages = [
        [
            BasicShape(
                ConvShape(**block["conv1"]),
                ConvShape(**block["conv2"]),
                None if block["shortcut"] is None else ConvShape(**block["shortcut"]),
            )
            for block in stage
        ]
        for stage in config["stages"]
    ]
    return ResNetS0Net([ConvShape(**layer) for layer in config["stem"]], stages, config["outputs"])
