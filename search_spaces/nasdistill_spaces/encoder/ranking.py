"""Which channels, heads and neurons of an encoder matter most.

What is kept is chosen once for all: channels of the residual stream for the whole network (they are the same in all
tables, norms and layers), heads and neurons for each layer. Without data by weights: a channel by the norms of the rows
and columns that write and read it, a head by |W_o^h W_v^h|, a neuron by |w_in| |w_out|. With calibration data by mean
absolute activations over real tokens: a channel by the outputs of the layers' norms, a head by what it writes,
|W_o^h c^h|, a neuron by its activation times |w_out|.

Sources: ranking once before weights are shared as in "DynaBERT: Dynamic BERT with Adaptive Width and Depth", arXiv
2004.04037; by activations as in "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679. We
rank by norms of weights rather than by gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch
from nasdistill_spaces.encoder.reading import LAYER, TABLE, Source, axes_of
from nasdistill_spaces.slicing import row_norms

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


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


def rank(source: Source, head_dim: int, teacher: nn.Module, calibration: Sequence[Batch] = ()) -> Order:
    """Return the order of importance of a teacher's channels, heads and neurons; see the module.

    Args:
        source: its tensors.
        head_dim: size of its heads, where its source does not say it.
        teacher: the model itself, for activations; left as it was.
        calibration: a few batches; none ranks by weights.
    """
    head_dim = source.head_dim or head_dim
    t = {name: tensor.detach().float() for name, tensor in source.tensors.items() if name != TABLE}
    seen = _Activations(teacher, source, head_dim)
    if calibration:
        seen.run(calibration)
    order = Order(stream=_descending(_channel_scores(t) if seen.stream is None else seen.stream))
    for index in range(source.depth):
        name = LAYER.format(index)
        w_v, w_o = t[f"{name}attention.self.value.weight"], t[f"{name}attention.output.dense.weight"]
        heads = w_v.shape[0] // head_dim
        pairs = torch.unflatten(w_o, 1, (heads, head_dim)).movedim(1, 0) @ torch.unflatten(w_v, 0, (heads, head_dim))
        order.heads[index] = _descending(seen.heads.get(index, pairs.flatten(1).norm(dim=1)))
        reads = seen.neurons.get(index, t[f"{name}intermediate.dense.weight"].norm(dim=1))
        order.neurons[index] = _descending(reads * t[f"{name}output.dense.weight"].norm(dim=0))
    if "head.out_proj.weight" in t and "head.dense.weight" in t:
        order.pooled = _descending(t["head.dense.weight"].norm(dim=1) * t["head.out_proj.weight"].norm(dim=0))
    return order


def _descending(scores: Tensor) -> Tensor:
    return torch.argsort(scores, descending=True, stable=True).cpu()


def _channel_scores(t: Mapping[str, Tensor]) -> Tensor:
    """Return ``(H,)``: norms of all rows and columns of layers that write to or read from each channel."""
    total = torch.zeros(())
    for name, tensor in t.items():
        axes = axes_of(name)
        if len(axes) == 2 and "stream" in axes:
            total = total + row_norms(tensor, axes.index("stream")).cpu()
    return total


class _Activations:
    """Mean absolute activations over calibration data; empty until `run`.

    Attributes:
        stream: ``(H,)``, outputs of the layers' norms.
        heads: layer -> ``(A,)``, norms of what each head writes.
        neurons: layer -> ``(M,)``.
    """

    def __init__(self, teacher: nn.Module, source: Source, head_dim: int) -> None:
        self.stream: Tensor | None = None
        self.heads: dict[int, Tensor] = {}
        self.neurons: dict[int, Tensor] = {}
        self._teacher, self._source, self._head_dim = teacher, source, head_dim
        self._mask: Tensor | None = None

    def run(self, calibration: Sequence[Batch]) -> None:
        """Run the teacher, in eval mode and without gradients; it is left as it was."""
        modules, paths = dict(self._teacher.named_modules()), self._source.paths
        modes = [(module, module.training) for module in self._teacher.modules()]
        device = next(self._teacher.parameters()).device
        with ExitStack() as stack:
            for index in range(self._source.depth):
                name = LAYER.format(index)
                for part in ("attention.output.LayerNorm", "output.LayerNorm"):
                    stack.callback(modules[paths[name + part]].register_forward_hook(self._see_norm).remove)
                writes, reads = modules[paths[f"{name}attention.output.dense"]], modules[paths[f"{name}output.dense"]]
                stack.callback(writes.register_forward_pre_hook(self._see_heads(index)).remove)
                stack.callback(reads.register_forward_pre_hook(self._see_neurons(index)).remove)
            try:
                self._teacher.eval()
                with torch.no_grad():
                    for batch in calibration:
                        inputs = {name: value.to(device) for name, value in batch.inputs.items() if name in _INPUTS}
                        self._mask = inputs.get("attention_mask")
                        self._teacher(**inputs)
            finally:
                for module, training in modes:
                    module.training = training

    def _sum(self, x: Tensor) -> Tensor:
        """Return the sum over real tokens of ``(B, N, C)``."""
        weight = 1.0 if self._mask is None else self._mask.to(x.dtype).unsqueeze(-1)
        return (x * weight).float().flatten(0, -2).sum(0).cpu()

    def _see_norm(self, module: nn.Module, args: Any, output: Tensor) -> None:
        seen = self._sum(output.abs())
        self.stream = seen if self.stream is None else self.stream + seen

    def _see_heads(self, index: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            parts = torch.unflatten(args[0], -1, (-1, self._head_dim))
            matrix = torch.unflatten(module.weight, -1, (-1, self._head_dim))
            seen = self._sum(torch.einsum("...hd,chd->...hc", parts, matrix).norm(dim=-1))
            self.heads[index] = self.heads.get(index, torch.zeros_like(seen)) + seen

        return hook

    def _see_neurons(self, index: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen = self._sum(args[0].abs())
            self.neurons[index] = self.neurons.get(index, torch.zeros_like(seen)) + seen

        return hook
