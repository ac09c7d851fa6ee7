"""Start a `conv_vit` student from a larger member: keep the channels, heads, neurons and blocks that matter most.

- *channels* of the residual stream are ranked once for the whole network (all layers share them);
- *heads* of a block are ranked by the size of what they write: |W_o^h W_v^h|, with calibration images |W_o^h c^h| over
  the contexts c they really produce;
- *neurons* of an MLP by |w_in| |w_out|, with calibration images by their mean absolute activation times |w_out|;
- *blocks* are taken as :func:`source_blocks` says.

Cutting heads (of the teacher's size) and neurons is exact: the student's block equals the teacher's with the columns of
the output matrices that belong to cut parts set to zero. Cutting channels is not (layer norm sees fewer of them). Where
heads differ in size, the dimensions of q and k (and of v) with the largest products of norms are kept, several
teacher heads share a larger student head, and q is scaled so that the kept part of q.k weighs as before.

Ranking by activations follows "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), arXiv
2407.14679; we also rank without data, and keep the order of what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.interfaces import Batch, InheritReport
from nasdistill_spaces.conv_vit.model import Attention, Block, ConvVitNet
from nasdistill_spaces.slicing import SliceCopier, row_norms, top


def source_blocks(depth: int, teacher_depth: int) -> tuple[int, ...]:
    """Return for each of `depth` student blocks the teacher block it starts from: the first, the last, evenly between.

    A single block is the first. Tried on digits with a teacher of 6 blocks, mean accuracy after 6 to 8 epochs over 3
    seeds: one block .982 from the first, .967 from the last, .941 from fresh weights; two blocks of full width .988 so,
    .986 from the first two, .971 ending each even group; at half width the three ways that begin at 0 lie within .008.
    """
    if depth == 1:
        return (0,)
    return tuple((2 * index * (teacher_depth - 1) + depth - 1) // (2 * (depth - 1)) for index in range(depth))


def is_family(model: nn.Module) -> bool:
    """Return whether `model` has the modules of a :class:`ConvVitNet` (whatever its class)."""
    try:
        units = [unit.conv.weight.dim() == 4 for unit in cast(Any, model).stem]
        blocks = [
            (b.norm1.weight, b.attn.qkv.weight, b.attn.heads, b.attn.head_dim, b.attn.proj.weight, b.norm2.weight,
             b.mlp.fc1.weight, b.mlp.fc2.weight)
            for b in cast(Any, model).blocks
        ]  # fmt: skip
        parts = (cast(Any, model).norm.weight, cast(Any, model).head.weight, cast(Any, model).position)
    except (AttributeError, TypeError):
        return False
    return bool(units) and all(units) and bool(blocks) and len(parts) == 3


class Importance:
    """Mean absolute activations of a model over calibration images; empty without images.

    Attributes:
        channels: ``(C,)``, outputs of the layer norms.
        heads: block -> ``(H,)``, norms of what each head writes to the stream.
        neurons: block -> ``(R,)``, activations of the MLP.
    """

    def __init__(self, model: Any, calibration: Sequence[Batch]) -> None:
        self.channels: Tensor | None = None
        self.heads: dict[int, Tensor] = {}
        self.neurons: dict[int, Tensor] = {}
        if not calibration:
            return
        modes = [(module, module.training) for module in model.modules()]
        with ExitStack() as stack:
            for index, block in enumerate(model.blocks):
                for norm in (block.norm1, block.norm2):
                    stack.callback(norm.register_forward_hook(self._see_norm).remove)
                stack.callback(block.attn.proj.register_forward_pre_hook(self._see_heads(index, block.attn)).remove)
                stack.callback(block.mlp.fc2.register_forward_pre_hook(self._see_neurons(index)).remove)
            stack.callback(model.norm.register_forward_hook(self._see_norm).remove)
            device = next(model.parameters()).device
            try:
                model.eval()
                with torch.no_grad():
                    for batch in calibration:
                        model(batch.image.to(device))
            finally:
                for module, training in modes:
                    module.training = training

    def _see_norm(self, module: nn.Module, args: Any, output: Tensor) -> None:
        seen = output.abs().flatten(0, -2).mean(0)
        self.channels = seen if self.channels is None else self.channels + seen

    def _see_heads(self, index: int, attn: Any) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            parts = torch.unflatten(args[0], -1, (attn.heads, attn.head_dim))
            matrix = torch.unflatten(module.weight, -1, (attn.heads, attn.head_dim))
            written = torch.einsum("...hd,chd->...hc", parts, matrix).norm(dim=-1).flatten(0, -2).mean(0)
            self.heads[index] = self.heads.get(index, torch.zeros_like(written)) + written

        return hook

    def _see_neurons(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen = args[0].abs().flatten(0, -2).mean(0)
            self.neurons[index] = self.neurons.get(index, torch.zeros_like(seen)) + seen

        return hook


def inherit_weights(student: ConvVitNet, teacher: nn.Module, calibration: Sequence[Batch] = ()) -> InheritReport | None:
    """Copy slices of `teacher` into `student`, in place.

    Args:
        student: fresh network.
        teacher: same family; may be larger or smaller in any dimension. Left as it was.
        calibration: a few batches for ranking by activations; none ranks by weights.

    Returns:
        What was copied; None when the teacher is no :class:`ConvVitNet` in structure.
    """
    if not is_family(teacher):
        return None
    source = cast(Any, teacher)
    seen = Importance(source, calibration)
    copier = SliceCopier()
    width = student.head.in_features
    channels = top(seen.channels if seen.channels is not None else rank_channels(source), width)
    notes = [
        f"{len(channels)} of {source.head.in_features} channels, ranked by "
        + ("activations" if calibration else "weights")
    ]
    _copy_stem(copier, student, source, channels, notes)
    chosen = source_blocks(len(student.blocks), len(source.blocks))
    notes.append(f"blocks {', '.join(map(str, chosen))} of {len(source.blocks)}")
    for ours, index in zip(student.blocks, chosen, strict=True):
        _copy_block(
            copier, cast(Block, ours), source.blocks[index], channels, seen.heads.get(index), seen.neurons.get(index)
        )
    copier.norm(student.norm, source.norm, channels)
    if student.head.out_features == source.head.out_features:
        copier.linear(student.head, source.head, None, channels)
    else:
        notes.append(f"head left fresh: {source.head.out_features} outputs there, {student.head.out_features} here")
    return InheritReport(copier.copied, sum(p.numel() for p in student.parameters()), tuple(notes))


def rank_channels(model: Any) -> Tensor:
    """Return a score ``(C,)`` per residual channel from the weights that write to it and read from it."""
    scores = row_norms(model.stem[-1].conv.weight, 0) + row_norms(model.head.weight * model.norm.weight, 1)
    for block in model.blocks:
        scores = (
            scores + row_norms(block.attn.qkv.weight * block.norm1.weight, 1) + row_norms(block.attn.proj.weight, 0)
        )
        scores = scores + row_norms(block.mlp.fc1.weight * block.norm2.weight, 1) + row_norms(block.mlp.fc2.weight, 0)
    return scores


def _copy_stem(copier: SliceCopier, student: ConvVitNet, source: Any, channels: Tensor, notes: list[str]) -> None:
    """Copy the stem's convolutions, first from first and last from last, and the positions."""
    count = min(len(student.stem), len(source.stem))
    previous: Tensor | None = None
    for index in range(count):
        at = index if index < count - 1 else -1
        ours, theirs = cast(Any, student.stem)[at], source.stem[at]
        if at == -1 and (len(student.stem), len(source.stem)) != (count, count):
            previous = None  # another convolution stands before it: the leading channels, in no known relation
        if at == -1:
            kept = channels
        else:
            reads = row_norms(source.stem[index + 1].conv.weight, 1)
            kept = top(row_norms(theirs.conv.weight, 0) * reads, ours.conv.out_channels)
        copier.conv(ours.conv, theirs.conv, kept, previous)
        copier.norm(ours.norm, theirs.norm, kept)
        previous = kept
    if len(student.stem) != len(source.stem):
        notes.append(f"stem: {count} of {len(student.stem)} convolutions")
    if isinstance(student.position, nn.Parameter):
        table = cast(Tensor, source.position).detach()
        if student.grid != tuple(source.grid):
            grid = torch.unflatten(table, 1, tuple(source.grid)).permute(0, 3, 1, 2)
            table = F.interpolate(grid, size=student.grid, mode="area").flatten(2).transpose(1, 2)
            notes.append("positions averaged onto another grid")
        copier.tensor(student.position, table, None, None, channels)


def _copy_block(
    copier: SliceCopier, ours: Block, theirs: Any, channels: Tensor, heads: Tensor | None, neurons: Tensor | None
) -> None:
    copier.norm(ours.norm1, theirs.norm1, channels)
    _copy_attention(copier, ours.attn, theirs.attn, channels, heads)
    copier.norm(ours.norm2, theirs.norm2, channels)
    writes = theirs.mlp.fc2.weight.detach().norm(dim=0)
    reads = theirs.mlp.fc1.weight.detach().norm(dim=1) if neurons is None else neurons
    kept = top(reads * writes, ours.mlp.fc1.out_features)
    copier.linear(ours.mlp.fc1, theirs.mlp.fc1, kept, channels)
    copier.linear(ours.mlp.fc2, theirs.mlp.fc2, channels, kept)


def _copy_attention(
    copier: SliceCopier, ours: Attention, theirs: Any, channels: Tensor, written: Tensor | None
) -> None:
    """Copy projections: whole heads where their size allows, the strongest dimensions of heads otherwise."""
    count, size = int(theirs.heads), int(theirs.head_dim)
    w_q, w_k, w_v = torch.unflatten(theirs.qkv.weight.detach(), 0, (3, count, size))
    w_o = torch.unflatten(theirs.proj.weight.detach(), 1, (count, size)).movedim(1, 0)  # (H, C, D)
    if written is None:
        written = torch.matmul(w_o, w_v).flatten(1).norm(dim=1)
    strength_qk = w_q.norm(dim=-1) * w_k.norm(dim=-1)  # (H, D)
    strength_vo = w_v.norm(dim=-1) * w_o.norm(dim=1)
    scale = (ours.head_dim / size) ** 0.5
    matrix, bias = (
        torch.unflatten(ours.qkv.weight, 0, (3, ours.heads, -1)),
        torch.unflatten(ours.qkv.bias, 0, (3, ours.heads, -1)),
    )
    output = torch.unflatten(ours.proj.weight, 1, (ours.heads, -1))
    for head, sources in enumerate(_share_heads(written, ours.heads, -(-ours.head_dim // size))):
        picks_qk = _dimensions(sources, strength_qk, ours.head_dim)
        picks_vo = _dimensions(sources, strength_vo, ours.head_dim)
        for part, (picks, factor) in enumerate(((picks_qk, scale), (picks_qk, 1.0), (picks_vo, 1.0))):
            rows = part * count * size + picks
            copier.tensor(matrix[part, head], theirs.qkv.weight, rows, channels, scale=factor)
            copier.tensor(bias[part, head], theirs.qkv.bias, rows, scale=factor)
        copier.tensor(output[:, head], theirs.proj.weight, channels, picks_vo)
    copier.tensor(ours.proj.bias, theirs.proj.bias, channels)
    if type(ours.core) is type(theirs.core):
        for name, parameter in ours.core.named_parameters():
            other = dict(theirs.core.named_parameters()).get(name)
            if other is not None and other.shape == parameter.shape:
                copier.tensor(parameter, other)


def _share_heads(written: Tensor, heads: int, each: int) -> list[list[int]]:
    """Return for each student head the teacher heads it is made of.

    Args:
        written: ``(H,)`` importance of the teacher's heads.
        heads: student heads.
        each: how many teacher heads fit into one student head (1 when it is not larger).
    """
    kept = [int(index) for index in top(written, heads * each)]
    if len(kept) >= heads:
        bounds = [round(i * len(kept) / heads) for i in range(heads + 1)]
        return [kept[start:stop][:each] for start, stop in pairwise(bounds)]
    return [[kept[head]] if head < len(kept) else [] for head in range(heads)]


def _dimensions(sources: Sequence[int], strength: Tensor, size: int) -> Tensor:
    """Return flat indices of the strongest dimensions of the heads in `sources`, ascending, at most `size`."""
    width = strength.shape[1]
    flat = torch.tensor([head * width + d for head in sources for d in range(width)], dtype=torch.long)
    return flat[top(strength.flatten()[flat], size)] if len(flat) else flat
