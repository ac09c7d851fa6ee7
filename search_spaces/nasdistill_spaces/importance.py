"""What matters most in a transformer, by its activations over calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch


@dataclass
class Order:
    """What matters most first, as indices; None = as it stands.

    Attributes:
        stream: channels ``(H,)``.
        pooled: outputs of the first layer of a classes head.
        heads: per teacher layer.
        neurons: per teacher layer.
    """

    stream: Tensor | None = None
    pooled: Tensor | None = None
    heads: dict[int, Tensor] = field(default_factory=dict)
    neurons: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerPoints:
    """Where the activations of one layer are seen: paths of modules.

    Attributes:
        norms: layer norms, over channels of the residual stream.
        writes: output projection of the attention, which reads the heads.
        reads: second linear layer of the MLP, which reads the neurons.
    """

    norms: tuple[str, ...]
    writes: str
    reads: str


@dataclass
class Activations:
    """Mean absolute activations over calibration data; empty without data.

    Attributes:
        stream: ``(H,)``, outputs of the layers' norms.
        heads: layer -> ``(A,)``, norms of what each head writes.
        neurons: layer -> ``(M,)``.
    """

    stream: Tensor | None = None
    heads: dict[int, Tensor] = field(default_factory=dict)
    neurons: dict[int, Tensor] = field(default_factory=dict)


_TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def descending(scores: Tensor) -> Tensor:
    """Return indices, the highest score first."""
    return torch.argsort(scores, descending=True, stable=True).cpu()


def watch(
    teacher: nn.Module,
    points: Sequence[LayerPoints],
    head_dim: int,
    calibration: Sequence[Batch],
) -> Activations:
    """Run a teacher on a few batches, in eval mode and without gradients; it is left as it was.

    Args:
        teacher: the model.
        points: of each layer.
        head_dim: size of a head.
        calibration: batches of images or token ids; none runs nothing.
    """
    seen = Activations()
    if not calibration:
        return seen
    modules = dict(teacher.named_modules())
    modes = [(module, module.training) for module in teacher.modules()]
    device = next(teacher.parameters()).device
    mask: Tensor | None = None

    def keep(key: Any, value: Tensor) -> None:
        _add(seen, key, _total(value, mask))

    def norm(module: nn.Module, args: Any, output: Tensor) -> None:
        keep("stream", output.abs())

    def written(layer: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            parts = torch.unflatten(args[0], -1, (-1, head_dim))
            matrix = torch.unflatten(module.weight, -1, (-1, head_dim))
            keep(("heads", layer), torch.einsum("...hd,chd->...hc", parts, matrix).norm(dim=-1))

        return hook

    def read(layer: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda module, args: keep(("neurons", layer), args[0].abs())

    with ExitStack() as stack:
        for layer, at in enumerate(points):
            for path in at.norms:
                stack.callback(modules[path].register_forward_hook(norm).remove)
            stack.callback(modules[at.writes].register_forward_pre_hook(written(layer)).remove)
            stack.callback(modules[at.reads].register_forward_pre_hook(read(layer)).remove)
        try:
            teacher.eval()
            with torch.no_grad():
                for batch in calibration:
                    given = {name: value.to(device) for name, value in batch.inputs.items()}
                    mask = given.get("attention_mask")
                    if "image" in given:
                        teacher(given["image"])
                    else:
                        teacher(**{name: value for name, value in given.items() if name in _TOKENS})
        finally:
            for module, training in modes:
                module.training = training
    return seen


def _total(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the sum over real tokens of ``(B, N, C)``."""
    weight = 1.0 if mask is None else mask.to(x.dtype).unsqueeze(-1)
    return (x * weight).float().flatten(0, -2).sum(0).cpu()


def _add(seen: Activations, key: Any, total: Tensor) -> None:
    if key == "stream":
        seen.stream = total if seen.stream is None else seen.stream + total
    else:
        name, layer = key
        table: dict[int, Tensor] = getattr(seen, name)
        table[layer] = table.get(layer, torch.zeros_like(total)) + total
