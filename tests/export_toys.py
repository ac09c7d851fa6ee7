"""Networks of the bundled spaces with weights that no initialisation gives, and a run made by a real small search."""

from __future__ import annotations

import torch
from torch import nn

from nasdistill.interfaces import ExportRequest, SearchSpace
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

DIGITS = IOSpec("image", (1, 8, 8), 10)
PHOTOS = IOSpec("image", (3, 32, 32), 4)
VARIANTS = ("softmax", "flow", "sigmoid", "linear", "window")

CASES = {
    **{name: ("conv_vit", {"width": 32, "depth": 1, "block00.attention": name}, {}, DIGITS) for name in VARIANTS},
    # Enough tokens that the linear-time forms and the tiles of the window run.
    **{
        f"{name}-64": ("conv_vit", {"width": 32, "depth": 2, "block01.attention": name}, {}, PHOTOS)
        for name in ("flow", "linear", "window")
    },
    "sincos": (
        "conv_vit",
        {"width": 64, "depth": 2, "block00.attention": "window", "block01.attention": "sigmoid"},
        {
            "position": "sincos", "head_dim": 0,
            "attention_options": {"window": {"window": 3}, "sigmoid": {"normalise": True}},
        },
        DIGITS,
    ),
    "pit": (
        "pit",
        {"base_dim": 4, "mlp_ratio": 1.0, "stage0.heads": 2, "stage1.depth": 2, "stage1.heads": 3,
         "stage1.attention": "flow"},
        {"base_dim": [4, 6], "mlp_ratio": [1.0, 2.0], "depth": [[1], [1, 2]], "heads": [[1, 2], [2, 3]],
         "attention": ["softmax", "flow"]},
        DIGITS,
    ),
    "resnet": ("resnet_s0", {"width": 8, "stages": 2, "stage0.blocks": 1}, {}, DIGITS),
    "resnet-pad": ("resnet_s0", {"width": 8, "stages": 3, "stage1.blocks": 1}, {"shortcut": "pad"}, PHOTOS),
}  # fmt: skip


def scramble(model: nn.Module, seed: int = 3) -> nn.Module:
    """Fill every parameter and saved buffer with numbers of its own, so that one that is forgotten shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise + 0.5 if name.endswith("running_var") else (noise - 0.5) * 0.6)
    return model.eval()


def request(host, folder, name="case", case="softmax", provenance=None) -> ExportRequest:
    """Return a request for one of the cases."""
    space_name, params, options, io = CASES[case]
    space: SearchSpace = host.create(Kind.SEARCH_SPACE, space_name, options)
    arch = space.architecture(params)
    model = scramble(space.build(arch, io))
    folder.mkdir(parents=True, exist_ok=True)
    return ExportRequest(model, arch, io, (torch.randn(1, *io.shape),), provenance or {}, folder, space, name)
