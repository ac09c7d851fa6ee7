"""A vision transformer from plain data: what an exporter copies, with all it uses, to code that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nasdistill_spaces.layers import LayerShape
from nasdistill_spaces.vit.model import VitNet, VitShape

PER_LAYER = ("heads", "mlp", "attention")


def vit(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network.

    Args:
        config: the fields of :class:`VitShape`, but for `layers` the lists ``heads``, ``mlp``, ``attention`` (a name in
            `parts`) and ``attention_options``.
        parts: name -> class of an attention core.
    """
    shared = {key: value for key, value in config.items() if key not in (*PER_LAYER, "attention_options")}
    shared |= {key: tuple(config[key]) for key in ("patch", "grid")}
    layers = tuple(LayerShape(*sizes) for sizes in zip(*(config[key] for key in PER_LAYER), strict=True))
    shape = VitShape(**shared, layers=layers)
    cores = [
        parts[layer.attention](options, geometry=shape.geometry(layer))
        for layer, options in zip(layers, config["attention_options"], strict=True)
    ]
    return VitNet(shape, cores)
