"""Start a `pit` from a larger one, of this space or of timm (``pit_*``).

In every stage the heads, the dimensions of heads, the neurons and the channels are kept that have the largest norms of
weights around them, in their order; block i starts from block floor(i * depth there / depth here). Heads get smaller
with base_dim: the dimensions of q and k (and of v) with the largest products of norms are kept, and q is scaled so that
what is kept of q.k weighs as before. A pooling lets every channel make m channels of the next stage; the channels kept
there are those made from channels kept here, as far as m is not larger than the teacher's.

Source of the networks: "Rethinking Spatial Dimensions of Vision Transformers", arXiv 2103.16302, which cuts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasdistill.interfaces import InheritReport
from nasdistill_spaces.choices import source_layers
from nasdistill_spaces.slicing import SliceCopier, row_norms, top
from nasdistill_spaces.vit.model import Layer
from nasdistill_spaces.vit.pit_model import PitNet
from nasdistill_spaces.vit.reading import TIMM
from nasdistill_spaces.vit.weights import resized


@dataclass(frozen=True)
class PitSource:
    """The tensors of a teacher.

    Attributes:
        projection: the convolution of the patches.
        cls_token: ``(1, 1 or 2, C)``.
        positions: ``(1, h * w, C)``.
        grid: (h, w).
        pools: per stage the pooling that leads to it (``conv``, ``fc``); None for the first.
        blocks: per stage and block, our name of a tensor -> tensor.
        heads: per stage.
        norm, head: the last layers.
    """

    projection: nn.Conv2d
    cls_token: Tensor
    positions: Tensor
    grid: tuple[int, int]
    pools: tuple[Any, ...]
    blocks: tuple[tuple[Mapping[str, Tensor], ...], ...]
    heads: tuple[int, ...]
    norm: nn.Module
    head: nn.Module


def read_pit(teacher: nn.Module) -> PitSource | None:
    """Find a `pit` of ours or of timm inside `teacher`; None when there is none."""
    for module in teacher.modules():
        if isinstance(module, PitNet):
            stages = [cast(Any, stage) for stage in module.stages]
            return PitSource(
                module.projection, module.cls_token, module.position_embeddings, module.shape.stages[0].grid,
                tuple(stage.pool for stage in stages),
                tuple(tuple(dict(layer.named_parameters()) for layer in stage.layers) for stage in stages),
                tuple(stage.heads for stage in module.shape.stages), module.layernorm, module.classifier,
            )  # fmt: skip
        if type(module).__name__ == "PoolingVisionTransformer":
            theirs: Any = module
            return PitSource(
                theirs.patch_embed.conv, theirs.cls_token, theirs.pos_embed.flatten(2).transpose(1, 2),
                tuple(theirs.pos_embed.shape[2:]), tuple(stage.pool for stage in theirs.transformers),
                tuple(tuple(_timm_block(block) for block in stage.blocks) for stage in theirs.transformers),
                tuple(stage.blocks[0].attn.num_heads for stage in theirs.transformers), theirs.norm, theirs.head,
            )  # fmt: skip
    return None


def _timm_block(block: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = dict(block.named_parameters())
    found = {f"{ours}.{kind}": state[f"{name}.{kind}"] for ours, name in TIMM.items() for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        parts = zip("qkv", state[f"attn.qkv.{kind}"].chunk(3), strict=True)
        found |= {f"attention.{part}_proj.{kind}": tensor for part, tensor in parts}
    return found


def inherit_pit(student: PitNet, source: PitSource) -> InheritReport:
    """Copy slices of `source` into `student`, in place; nothing where it is larger than the teacher in some part."""
    shape, total = student.shape, sum(p.numel() for p in student.parameters())
    larger = _larger(student, source)
    if larger:
        return InheritReport(0, total, (f"left fresh: {larger} than the teacher's",))
    copier = SliceCopier()
    notes: list[str] = []
    channels: list[Tensor] = []
    for index, own in enumerate(shape.stages):
        stage = cast(Any, student.stages)[index]
        kept = top(_scores(source, index), own.heads * shape.base_dim)
        if index:
            kept = _copy_pool(
                copier, stage.pool, source.pools[index], channels[-1], kept, _scores(source, index), notes
            )
        channels.append(kept)
        chosen = source_layers(own.depth, len(source.blocks[index]))
        notes.append(f"stage {index}: blocks {', '.join(map(str, chosen))} of {len(source.blocks[index])}")
        for layer, place in zip(stage.layers, chosen, strict=True):
            _copy_block(copier, layer, source.blocks[index][place], source.heads[index], kept)
    if student.projection.weight.shape[1:] == source.projection.weight.shape[1:]:
        copier.conv(student.projection, source.projection, channels[0], None)
    else:
        notes.append("patches left fresh: of another size or number of colours there")
    if source.grid != shape.stages[0].grid:
        notes.append("positions resized from {} x {} to {} x {} patches".format(*source.grid, *shape.stages[0].grid))
    table = resized(source.positions.detach(), source.grid, shape.stages[0].grid)
    copier.tensor(student.position_embeddings, table, None, None, channels[0])
    if source.cls_token.shape[1] > 1:
        notes.append("a distillation token and its head have no place here")
    copier.tensor(student.cls_token, source.cls_token, None, None, channels[0])
    copier.norm(student.layernorm, source.norm, channels[-1])
    if isinstance(source.head, nn.Linear) and source.head.out_features == shape.outputs:
        copier.linear(student.classifier, source.head, None, channels[-1])
    else:
        notes.append(f"classifier left fresh: {shape.outputs} outputs here, another number there")
    return InheritReport(copier.copied, total, tuple(notes))


def _larger(student: PitNet, source: PitSource) -> str:
    """Return what is larger here than there, empty when nothing is."""
    shape = student.shape
    if len(shape.stages) != len(source.heads):
        return f"{len(shape.stages)} stages, another number"
    for index, own in enumerate(shape.stages):
        block = source.blocks[index][0]
        there = {"heads": source.heads[index], "base_dim": len(block["attention.q_proj.weight"]) // source.heads[index],
                 "neurons": len(block["mlp.fc1.weight"])}  # fmt: skip
        here = {"heads": own.heads, "base_dim": shape.base_dim, "neurons": own.mlp}
        found = [name for name, size in here.items() if size > there[name]]
        if found:
            return f"{found[0]} of stage {index} are {here[found[0]]}, more"
    return ""


def _scores(source: PitSource, index: int) -> Tensor:
    """Return ``(C,)``: norms of what writes to and reads from each channel of a stage."""
    total = torch.zeros(())
    for block in source.blocks[index]:
        for part, axis in (("attention.o_proj", 0), ("mlp.fc2", 0), ("mlp.fc1", 1),
                           *((f"attention.{p}_proj", 1) for p in "qkv")):  # fmt: skip
            total = total + row_norms(block[f"{part}.weight"], axis).cpu()
    return total


def _copy_pool(
    copier: SliceCopier, ours: Any, theirs: Any, inputs: Tensor, kept: Tensor, scores: Tensor, notes: list[str]
) -> Tensor:
    """Copy a pooling; returns the channels that the stage after it keeps."""
    each, there = (conv.out_channels // conv.in_channels for conv in (ours.conv, theirs.conv))
    depthwise = ours.conv.weight.shape[1] == theirs.conv.weight.shape[1] == 1
    if depthwise and each <= there:
        parts = [there * int(i) + top(scores[there * int(i) : there * (int(i) + 1)], each) for i in inputs]
        kept = torch.cat(parts)
        copier.conv(ours.conv, theirs.conv, kept, None)
    else:
        notes.append("a pooling left fresh: it makes more channels of one than the teacher's")
    copier.linear(ours.fc, theirs.fc, kept, inputs)
    return kept


def _copy_block(copier: SliceCopier, ours: Layer, theirs: Mapping[str, Tensor], heads: int, channels: Tensor) -> None:
    """Copy one block: the strongest heads, within these the strongest dimensions, and the strongest neurons."""
    attention = ours.attention
    w_q, w_k, w_v = (torch.unflatten(theirs[f"attention.{p}_proj.weight"].detach(), 0, (heads, -1)) for p in "qkv")
    size = w_q.shape[1]
    w_o = torch.unflatten(theirs["attention.o_proj.weight"].detach(), 1, (heads, size)).movedim(1, 0)  # (H, C, D)
    best = top((w_o @ w_v).flatten(1).norm(dim=1), attention.heads)
    strong = {"q": w_q.norm(dim=-1) * w_k.norm(dim=-1), "v": w_v.norm(dim=-1) * w_o.norm(dim=1)}
    rows = {
        part: torch.cat([int(h) * size + top(strength[h], attention.head_dim) for h in best])
        for part, strength in strong.items()
    }
    for part, pick, scale in (("q", "q", (attention.head_dim / size) ** 0.5), ("k", "q", 1.0), ("v", "v", 1.0)):
        target: nn.Linear = getattr(attention, f"{part}_proj")
        copier.tensor(target.weight, theirs[f"attention.{part}_proj.weight"], rows[pick], channels, scale=scale)
        copier.tensor(target.bias, theirs[f"attention.{part}_proj.bias"], rows[pick], scale=scale)
    neurons = top(
        theirs["mlp.fc1.weight"].norm(dim=1) * theirs["mlp.fc2.weight"].norm(dim=0), ours.mlp.fc1.out_features
    )
    own = dict(ours.named_parameters())
    picks = {
        "attention.o_proj": (channels, rows["v"]), "mlp.fc1": (neurons, channels), "mlp.fc2": (channels, neurons),
        "layernorm_before": (channels,), "layernorm_after": (channels,),
    }  # fmt: skip
    for name, (first, *rest) in picks.items():
        copier.tensor(own[f"{name}.weight"], theirs[f"{name}.weight"], first, *rest)
        copier.tensor(own[f"{name}.bias"], theirs[f"{name}.bias"], first)
    for name, parameter in own.items():
        if ".core." in name and name in theirs and theirs[name].shape == parameter.shape:
            copier.tensor(parameter, theirs[name])
