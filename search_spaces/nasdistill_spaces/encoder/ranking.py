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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch
from nasdistill_spaces.encoder.reading import LAYER, TABLE, Source, axes_of
from nasdistill_spaces.importance import LayerPoints, Order, descending, watch
from nasdistill_spaces.slicing import row_norms


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
    seen = watch(teacher, _points(source), head_dim, calibration)
    order = Order(stream=descending(_channel_scores(t) if seen.stream is None else seen.stream))
    for index in range(source.depth):
        name = LAYER.format(index)
        w_v, w_o = t[f"{name}attention.self.value.weight"], t[f"{name}attention.output.dense.weight"]
        heads = w_v.shape[0] // head_dim
        pairs = torch.unflatten(w_o, 1, (heads, head_dim)).movedim(1, 0) @ torch.unflatten(w_v, 0, (heads, head_dim))
        order.heads[index] = descending(seen.heads.get(index, pairs.flatten(1).norm(dim=1)))
        reads = seen.neurons.get(index, t[f"{name}intermediate.dense.weight"].norm(dim=1))
        order.neurons[index] = descending(reads * t[f"{name}output.dense.weight"].norm(dim=0))
    if "head.out_proj.weight" in t and "head.dense.weight" in t:
        order.pooled = descending(t["head.dense.weight"].norm(dim=1) * t["head.out_proj.weight"].norm(dim=0))
    return order


def _channel_scores(t: Mapping[str, Tensor]) -> Tensor:
    """Return ``(H,)``: norms of all rows and columns of layers that write to or read from each channel."""
    total = torch.zeros(())
    for name, tensor in t.items():
        axes = axes_of(name)
        if len(axes) == 2 and "stream" in axes:
            total = total + row_norms(tensor, axes.index("stream")).cpu()
    return total


def _points(source: Source) -> list[LayerPoints]:
    paths = source.paths
    return [
        LayerPoints(
            (paths[f"{name}attention.output.LayerNorm"], paths[f"{name}output.LayerNorm"]),
            paths[f"{name}attention.output.dense"],
            paths[f"{name}output.dense"],
        )
        for name in map(LAYER.format, range(source.depth))
    ]
