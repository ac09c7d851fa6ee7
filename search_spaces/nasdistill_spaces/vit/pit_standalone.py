"""A `pit` network from plain data: what an exporter copies, with all it uses, to code that stands alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nasdistill_spaces.vit.pit_model import PitNet, PitShape, StageShape


def pit(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network.

    Args:
        config: ``channels patch stride base_dim outputs``; per stage the lists ``heads``, ``depth``, ``mlp``,
            ``attention`` (a name in `parts`), ``attention_options`` and ``grid``.
        parts: name -> class of an attention core.
    """
    per_stage = zip(*(config[key] for key in ("heads", "depth", "mlp", "attention", "grid")), strict=True)
    stages = tuple(StageShape(heads, depth, mlp, name, tuple(grid)) for heads, depth, mlp, name, grid in per_stage)
    sizes = {key: config[key] for key in ("channels", "patch", "stride", "base_dim", "outputs")}
    shape = PitShape(**sizes, stages=stages)
    cores = [
        [parts[stage.attention](options, geometry=shape.geometry(stage)) for _ in range(stage.depth)]
        for stage, options in zip(stages, config["attention_options"], strict=True)
    ]
    return PitNet(shape, cores)
