"""The tensors of a vision transformer under our names: of timm's, of transformers' ViT and DeiT, and of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill_spaces.importance import LayerPoints

LAYER = "layers.{}."
PATCHES = "embeddings.patch_embeddings.projection"
TIMM = {
    "layernorm_before": "norm1", "attention.o_proj": "attn.proj", "layernorm_after": "norm2", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
"""Parts of a block that timm names otherwise; q, k and v are one there."""

AXES: dict[str, tuple[str, ...]] = {
    PATCHES: ("stream", "channels", "height", "width"),
    "layernorm_before": ("stream",),
    "attention.q_proj": ("heads", "stream"),
    "attention.k_proj": ("heads", "stream"),
    "attention.v_proj": ("heads", "stream"),
    "attention.o_proj": ("stream", "heads"),
    "layernorm_after": ("stream",),
    "mlp.fc1": ("neurons", "stream"),
    "mlp.fc2": ("stream", "neurons"),
    "layernorm": ("stream",),
    "classifier": ("classes", "stream"),
}
"""What the axes of each weight are; a bias has the first."""
PARTS = tuple(name for name in AXES if name.startswith(("layernorm_", "attention", "mlp")))


def axes_of(name: str) -> tuple[str, ...]:
    """Return what the axes of one of our tensors are; empty for tables and for tensors of attention variants."""
    part = re.sub(r"^layers\.\d+\.", "", name)
    return AXES.get(part.removesuffix(".weight"), ()) or AXES.get(part.removesuffix(".bias"), ())[:1]


@dataclass(frozen=True)
class Source:
    """The tensors of a teacher under our names, without its tables.

    Attributes:
        tensors: our name -> tensor; not copied where nothing had to be computed.
        points: where activations are seen.
        depth: blocks.
        head_dim: size of a head.
        prefix: ``(1, P, C)`` tokens before the patches, with their positions; None without.
        token_positions: ``(1, P, C)``, what of this are positions; None where they have none.
        positions: ``(1, h * w, C)``.
        grid: (h, w).
        notes: what of the teacher has no place here.
    """

    tensors: Mapping[str, Tensor]
    points: tuple[LayerPoints, ...]
    depth: int
    head_dim: int
    prefix: Tensor | None
    token_positions: Tensor | None
    positions: Tensor
    grid: tuple[int, int]
    notes: tuple[str, ...] = ()


def read_source(teacher: nn.Module) -> Source | None:
    """Find a vision transformer inside `teacher` by the names and shapes of its tensors.

    Args:
        teacher: a model of timm or transformers, something that holds one, or a network of ours.

    Returns:
        None when there is no such transformer.
    """
    state = teacher.state_dict(keep_vars=False)
    for key in state:
        for mark, read in ((f"{PATCHES}.weight", _read_ours), ("patch_embed.proj.weight", _read_timm)):
            if key == mark or key.endswith(f".{mark}"):
                found = read(teacher, state, key.removesuffix(mark))
                if found is not None:
                    return found
    return None


def _read_ours(teacher: nn.Module, state: Mapping[str, Tensor], inner: str) -> Source | None:
    """Read a network with the names of transformers, which are ours, too."""
    depth = _count(state, f"{inner}layers.")
    paths = {name: f"{inner}{name}" for name in (PATCHES, "layernorm")}
    for index in range(depth):
        paths |= {LAYER.format(index) + part: f"{inner}{LAYER.format(index)}{part}" for part in PARTS}
    outer = re.sub(r"[^.]+\.$", "", inner)
    paths["classifier"] = f"{outer}classifier" if f"{outer}classifier.weight" in state else f"{inner}classifier"
    module: Any = teacher.get_submodule(inner.rstrip("."))
    tokens = [state.get(f"{inner}embeddings.{name}_token") for name in ("cls", "distillation")]
    shape = getattr(module, "shape", None)
    config = getattr(module, "config", None)
    if shape is not None and hasattr(shape, "grid"):
        grid, head_dim = shape.grid, shape.head_dim
    elif config is not None and depth:
        patches = module.embeddings.patch_embeddings
        grid = tuple(a // b for a, b in zip(patches.image_size, patches.patch_size, strict=True))
        head_dim = module.layers[0].attention.head_dim
    else:
        return None
    cores = {name.removeprefix(inner): t for name, t in state.items() if ".attention.core." in name}
    table = state[f"{inner}embeddings.position_embeddings"]
    return _source(_tensors(state, paths) | cores, paths, depth, head_dim, tokens, table, grid)


def _read_timm(teacher: nn.Module, state: Mapping[str, Tensor], inner: str) -> Source | None:
    """Read a VisionTransformer of timm; scales of its layers become part of what they scale."""
    depth = _count(state, f"{inner}blocks.")
    module: Any = teacher.get_submodule(inner.rstrip("."))
    if not depth or f"{inner}pos_embed" not in state or not hasattr(module.blocks[0], "attn"):
        return None
    paths = {PATCHES: f"{inner}patch_embed.proj", "classifier": f"{inner}head"}
    paths["layernorm"] = next((p for p in (f"{inner}norm", f"{inner}fc_norm") if f"{p}.weight" in state), "")
    for index in range(depth):
        paths |= {LAYER.format(index) + ours: f"{inner}blocks.{index}.{theirs}" for ours, theirs in TIMM.items()}
    tensors = _tensors(state, paths)
    for index in range(depth):
        name, there = LAYER.format(index), f"{inner}blocks.{index}."
        for suffix in ("weight", "bias"):
            fused = state.get(f"{there}attn.qkv.{suffix}")
            if fused is not None:
                parts = zip("qkv", fused.chunk(3), strict=True)
                tensors |= {f"{name}attention.{part}_proj.{suffix}": t for part, t in parts}
            for scale, scaled in (("ls1", "attention.o_proj"), ("ls2", "mlp.fc2")):
                gamma, ours = state.get(f"{there}{scale}.gamma"), f"{name}{scaled}.{suffix}"
                if gamma is not None and ours in tensors:
                    tensors[ours] = gamma.view(-1, *[1] * (tensors[ours].dim() - 1)) * tensors[ours]
    tokens = [state.get(f"{inner}{name}") for name in ("cls_token", "dist_token", "reg_token")]
    attention = module.blocks[0].attn
    head_dim = int(getattr(attention, "head_dim", 0)) or int(attention.qkv.out_features) // 3 // attention.num_heads
    source = _source(
        tensors, paths, depth, head_dim, tokens, state[f"{inner}pos_embed"], tuple(module.patch_embed.grid_size)
    )
    if source is not None and f"{inner}head_dist.weight" in state:
        object.__setattr__(source, "notes", ("the head of its distillation token has no place here",))
    return source


def _count(state: Mapping[str, Tensor], stem: str) -> int:
    depth = 0
    while any(name.startswith(f"{stem}{depth}.") for name in state):
        depth += 1
    return depth


def _tensors(state: Mapping[str, Tensor], paths: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{name}.{suffix}": state[f"{path}.{suffix}"]
        for name, path in paths.items()
        for suffix in ("weight", "bias")
        if path and f"{path}.{suffix}" in state
    }


def _source(
    tensors: Mapping[str, Tensor],
    paths: Mapping[str, str],
    depth: int,
    head_dim: int,
    tokens: list[Tensor | None],
    table: Tensor,
    grid: tuple[int, ...],
) -> Source | None:
    """Return the source when all blocks are there; the tokens of the prefix get their positions."""
    if not depth or any(f"{LAYER.format(i)}{part}.weight" not in tensors for i in range(depth) for part in PARTS):
        return None
    found = [token for token in tokens if token is not None]
    prefix = torch.cat(found, dim=1) if found else None
    count = 0 if prefix is None else prefix.shape[1]
    height, width = grid
    if table.shape[1] not in (height * width, height * width + count):  # another grid than it says: a square
        height = width = isqrt(table.shape[1] - count)
        if height * width + count != table.shape[1]:
            return None
    own = table[:, :count] if count and table.shape[1] == height * width + count else None
    points = tuple(
        LayerPoints(
            (paths[f"{name}layernorm_before"], paths[f"{name}layernorm_after"]),
            paths[f"{name}attention.o_proj"],
            paths[f"{name}mlp.fc2"],
        )
        for name in map(LAYER.format, range(depth))
    )
    positions = table[:, table.shape[1] - height * width :]
    return Source(tensors, points, depth, head_dim, prefix, own, positions, (height, width))
