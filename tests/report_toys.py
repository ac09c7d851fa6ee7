"""A teacher made of blocks, which can be cut."""

from __future__ import annotations

from torch import nn

from nasdistill.host import Host
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec


def blocks() -> nn.Module:
    """A transformer with three blocks of random weights, for 8x8 digits."""
    choices = {"stem_width": [8], "width": [32], "depth": [3], "reduction": [0], "heads": [1], "mlp_ratio": [1],
               "attention": ["softmax"]}  # fmt: skip
    space = Host.load(third_party=False).create(Kind.SEARCH_SPACE, "conv_vit", choices)
    return space.build(space.default(), IOSpec("image", (1, 8, 8), 10))
