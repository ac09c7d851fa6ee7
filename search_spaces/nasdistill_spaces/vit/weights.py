"""Start a vision transformer from the weights of a larger one: which slices, in which order, of which tensors.

AutoFormer's way ("none"): every matrix keeps its top-left part, tables and norms their first C columns, attention its
first heads (of the teacher's size), MLPs their first neurons. Block i starts from the teacher's block
floor(i * depth there / depth here). With ranking by ``importance`` the channels, heads and neurons that are kept are
those that matter most, in the teacher's order: channels once for the whole network, by the norms of the rows and
columns that write and read them; heads and neurons for each block, a head by |W_o^h W_v^h|, a neuron by
|w_in| |w_out|; or all of them by mean absolute activations over calibration images.

Cutting heads and neurons is exact (the student's block equals the teacher's with the cut columns at zero), cutting
channels is not. Positions are resized to another grid by bicubic interpolation, as timm does.

Sources: "AutoFormer: Searching Transformers for Visual Recognition", arXiv 2107.00651, which ranks nothing and takes
the first blocks; ranking as in "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import Batch, InheritReport
from nasdistill_spaces.importance import Order, descending, watch
from nasdistill_spaces.slicing import SliceCopier, row_norms
from nasdistill_spaces.vit.model import VitNet
from nasdistill_spaces.vit.reading import LAYER, Source, axes_of


def rank(source: Source, teacher: nn.Module, calibration: Sequence[Batch] = ()) -> Order:
    """Return the order of importance of a teacher's channels, heads and neurons; see the module.

    Args:
        source: its tensors.
        teacher: the model itself, for activations; left as it was.
        calibration: a few batches; none ranks by weights.
    """
    t = {name: tensor.detach().float() for name, tensor in source.tensors.items()}
    seen = watch(teacher, source.points, source.head_dim, calibration)
    stream = seen.stream
    if stream is None:
        stream = torch.zeros(())
        for name, tensor in t.items():
            axes = axes_of(name)
            if len(axes) == 2 and "stream" in axes:
                stream = stream + row_norms(tensor, axes.index("stream")).cpu()
    order = Order(stream=descending(stream))
    for index in range(source.depth):
        name = LAYER.format(index)
        w_v, w_o = t[f"{name}attention.v_proj.weight"], t[f"{name}attention.o_proj.weight"]
        sizes = (w_v.shape[0] // source.head_dim, source.head_dim)
        pairs = torch.unflatten(w_o, 1, sizes).movedim(1, 0) @ torch.unflatten(w_v, 0, sizes)
        order.heads[index] = descending(seen.heads.get(index, pairs.flatten(1).norm(dim=1)))
        reads = seen.neurons.get(index, t[f"{name}mlp.fc1.weight"].norm(dim=1))
        order.neurons[index] = descending(reads * t[f"{name}mlp.fc2.weight"].norm(dim=0))
    return order


def resized(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Return positions ``(1, h * w, C)`` of a grid on another one, by bicubic interpolation."""
    if old == new:
        return positions
    grid = torch.unflatten(positions.float(), 1, old).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)


def inherit_weights(
    student: VitNet,
    source: Source,
    layers: Sequence[int],
    order: Order | None = None,
    *,
    nested: bool = False,
) -> InheritReport:
    """Copy slices of `source` into `student`, in place.

    Args:
        student: the network.
        source: see :func:`nasdistill_spaces.vit.reading.read_source`.
        layers: for each block of the student the teacher's block it starts from.
        order: what matters most; None keeps what stands first.
        nested: put the most important first (every smaller slice then holds the best, too), instead of leaving what is
            kept in the teacher's order.
    """
    order = order or Order()
    copier, notes = SliceCopier(), [f"blocks {', '.join(map(str, layers))} of {source.depth}", *source.notes]
    shape, missing = student.shape, set()
    heads_fit = source.head_dim == shape.head_dim
    if not heads_fit:
        notes.append(f"attention left fresh: heads of {source.head_dim} there, {shape.head_dim} here")

    def pick(axis: str, size: int, layer: int | None) -> Tensor | None:
        """Return what to keep of an axis with `size` places, None for what stands first."""
        ranked = getattr(order, axis, None)
        chosen: Tensor | None = ranked.get(layer) if isinstance(ranked, dict) else ranked
        if chosen is None:
            return None
        chosen = chosen[: size // shape.head_dim if axis == "heads" else size]
        chosen = chosen if nested else chosen.sort().values
        if axis == "heads":
            return (chosen[:, None] * shape.head_dim + torch.arange(shape.head_dim)).flatten()
        return chosen

    _copy_tables(student, source, pick("stream", shape.embed, None), copier, notes)
    for name, target in student.named_parameters():
        if name.startswith("embeddings.") and ".patch_" not in name:
            continue
        match = re.match(r"layers\.(\d+)\.(.*)", name)
        layer = layers[int(match[1])] if match else None
        tensor, axes = source.tensors.get(f"{LAYER.format(layer)}{match[2]}" if match else name), axes_of(name)
        fixed = [i for i, axis in enumerate(axes) if axis in ("classes", "channels", "height", "width")]
        if tensor is None:
            if name.endswith("_proj.bias"):  # a bias that the teacher does not have
                target.detach().zero_()
            missing.add(match[2] if match else name.partition(".")[0])
        elif ".core." in name:
            if tensor.shape == target.shape:
                copier.tensor(target, tensor)
        elif "heads" in axes and not heads_fit:
            continue
        elif any(tensor.shape[i] != target.shape[i] for i in fixed):
            there, here = (" x ".join(str(t.shape[i]) for i in fixed) for t in (tensor, target))
            notes.append(f"{name} left fresh: {'outputs' if 'classes' in axes else 'patches'} of {there} there, {here}")
        else:
            picks = [pick(axis, size, layer) for axis, size in zip(axes, target.shape, strict=True)]
            copier.tensor(target, tensor, *picks)
    notes += [f"{part} left fresh: the teacher has none" for part in sorted(missing)]
    return InheritReport(copier.copied, sum(p.numel() for p in student.parameters()), tuple(notes))


def _copy_tables(
    student: VitNet, source: Source, channels: Tensor | None, copier: SliceCopier, notes: list[str]
) -> None:
    """Copy positions and the tokens of the prefix, whose positions may be part of the tokens on either side."""
    shape, ours = student.shape, student.embeddings
    if source.grid != shape.grid:
        old, new = ("{} x {}".format(*grid) for grid in (source.grid, shape.grid))
        notes.append(f"positions resized from {old} to {new} patches")
    table = resized(source.positions.detach(), source.grid, shape.grid)
    own = ours.position_embeddings
    copier.tensor(own[:, shape.prefix :] if shape.prefix_positions else own, table, None, None, channels)
    if ours.cls_token is None:
        return
    if source.prefix is None:
        notes.append("tokens before the patches left fresh: the teacher has none")
        return
    there = source.prefix.shape[1]
    if there != shape.prefix:
        notes.append(f"{there} tokens before the patches there, {shape.prefix} here")
    tokens, positions = source.prefix, source.token_positions
    if positions is not None and not shape.prefix_positions:
        tokens = tokens + positions
    copier.tensor(ours.cls_token, tokens, None, None, channels)
    if shape.prefix_positions:
        positions = torch.zeros_like(tokens) if positions is None else positions
        copier.tensor(own[:, : shape.prefix], positions, None, None, channels)
