"""A `decoder` network from plain data: what an exporter copies, with all it uses, to code that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nasdistill_spaces.decoder.model import DecoderNet, DecoderShape


def decoder(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network.

    Args:
        config: the fields of :class:`DecoderShape`, and ``attention_options``, one entry per layer.
        parts: name -> class of an attention core.
    """
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    options = fields.pop("attention_options")
    shape = DecoderShape(**fields)
    cores = [
        parts[name](chosen, geometry=shape.geometry(layer))
        for layer, (name, chosen) in enumerate(zip(shape.attention, options, strict=True))
    ]
    return DecoderNet(shape, cores)
