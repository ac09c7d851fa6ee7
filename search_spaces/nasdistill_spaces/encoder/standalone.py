"""An encoder from plain data: what an exporter copies, with all it uses, to code that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nasdistill.interfaces import AttentionGeometry
from nasdistill_spaces.encoder.model import EncoderNet, EncoderShape
from nasdistill_spaces.layers import LayerShape

PER_LAYER = ("heads", "mlp", "attention")


def encoder(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network.

    Args:
        config: the fields of :class:`EncoderShape`, but for `layers` the lists ``heads``, ``mlp``, ``attention`` (a
            name in `parts`) and ``attention_options``.
        parts: name -> class of an attention core.
    """
    shared = {key: value for key, value in config.items() if key not in (*PER_LAYER, "attention_options")}
    layers = tuple(LayerShape(*sizes) for sizes in zip(*(config[key] for key in PER_LAYER), strict=True))
    shape = EncoderShape(**shared, layers=layers)
    cores = []
    for layer, options in zip(layers, config["attention_options"], strict=True):
        geometry = AttentionGeometry(dim=shape.hidden, heads=layer.heads, head_dim=shape.head_dim)
        cores.append(parts[layer.attention](options, geometry=geometry))
    return EncoderNet(shape, cores)
