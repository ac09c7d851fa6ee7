"""Does a model fit the data? One trial forward, and a message that names both shapes when it does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError, one_line
from nasdistill.seeds import seeded
from nasdistill.spec.io import IOSpec


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a model returned: the tensor itself, or its ``logits`` (attribute or key).

    Raises:
        MismatchError: there is no such tensor.
    """
    if isinstance(output, Mapping):
        found = output.get("logits")
    else:
        found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise MismatchError(
            f"the model returns {type(output).__name__}, neither a tensor nor something with 'logits'",
            hint="Wrap it in a module whose forward returns (batch, classes) logits.",
        )
    return found


def trial_forward(model: nn.Module, images: Tensor, io: IOSpec, *, label: str) -> None:
    """Run `images` ``(B, C, H, W)`` through `model` in eval mode and without gradients, and compare with `io`.

    The model's modes and the global random state are put back.

    Raises:
        MismatchError: see the module's text.
    """
    wanted = f"the task gives {' x '.join(map(str, io.shape))} images of {io.outputs} classes"
    where = next((t for t in (*model.parameters(), *model.buffers())), images)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), seeded(0, "trial forward"):
            output = model.eval()(images.to(where.device))
    # Whatever a foreign model raises on inputs it was not made for.
    except Exception as error:
        takes = describe_input(model)
        raise MismatchError(
            f"{label} does not take this data: {f'it takes {takes}, ' if takes else ''}{wanted} ({one_line(error)})",
            hint="Choose another model, or set image_size or channels in the task's options.",
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    logits = logits_of(output)
    if tuple(logits.shape) != (len(images), io.outputs):
        takes = " x ".join(map(str, io.shape))
        raise MismatchError(
            f"{label} takes {takes} images and gives {tuple(logits.shape)[1:]} per image, but {wanted}: "
            f"({io.outputs},) per image is needed",
            hint=f"Give the model an output layer of {io.outputs} classes.",
        )


def describe_input(model: nn.Module) -> str:
    """Return what a model's own records, or else its first convolution, say about its input; empty when nothing."""
    record = getattr(model, "pretrained_cfg", None)  # timm
    if isinstance(record, Mapping) and record.get("input_size"):
        patches = getattr(getattr(model, "patch_embed", None), "img_size", None)
        channels = getattr(model, "in_chans", None) or _first_channels(model) or record["input_size"][0]
        size = tuple(patches) if patches else tuple(record["input_size"][1:])
        return " x ".join(map(str, (channels, *size)))
    config = getattr(model, "config", None)  # transformers
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if side and channels:
        size = (side, side) if isinstance(side, int) else tuple(side)
        return " x ".join(map(str, (channels, *size)))
    first = _first_channels(model)
    return f"{first}-channel images" if first else ""


def _first_channels(model: nn.Module) -> int | None:
    """Return the input channels of the first convolution."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), None)
