"""Attention cores inside timm vision transformers, block by block.

The attention module of a block keeps its projections, norms and name; only its class is swapped for a subclass whose
forward hands q, k and v to a core. So the state dict gains the core's own parameters and loses nothing, and the change
survives deepcopy, pickle, gradient checkpointing and export. What was changed is a record of plain data: store it
beside the weights and apply it to a fresh model before loading them. What works for any library, by a dry run, is in
:mod:`nasdistill.bridge.attention`; here the structure of timm's ViT is known, so nothing has to be run::

    record = set_attention(model, {0: "flow", 2: ("window", {"window": 5})}, factory)
    ...
    apply_attention(timm.create_model(name), record, factory).load_state_dict(weights)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from nasdistill.bridge._torchvision import ensure
from nasdistill.bridge.attention import (
    AttentionRecord,
    Choice,
    VariantSpec,
    attention_record,
    clear_attention,
    verify_attention,
)
from nasdistill.bridge.masks import MaskNature
from nasdistill.bridge.swapping import Swap, SwappedAttention, swapped_class
from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    AttentionContext,
    AttentionGeometry,
    AttentionMask,
    AttentionView,
    ComponentFactory,
    TokenLayout,
    static_shape,
)
from nasdistill.spec.component import AttentionTags, Kind

if TYPE_CHECKING:
    from nasdistill.spec.options import ComponentOptions

__all__ = [
    "AttentionRecord",
    "Choice",
    "SwappedAttention",
    "TimmAttention",
    "VariantSpec",
    "apply_attention",
    "attention_record",
    "attention_view",
    "clear_attention",
    "random_vit",
    "set_attention",
    "verify_attention",
]


def set_attention(
    model: nn.Module, choice: Choice | Mapping[int, Choice], factory: ComponentFactory
) -> AttentionRecord:
    """Replace softmax attention in some or all blocks of a timm ViT, in place.

    Args:
        model: a timm model with `blocks` of plain `Attention` (ViT, DeiT and their relatives).
        choice: one variant for all blocks, or a variant per block index; negative indices count from the end. Blocks
            that are not named stay as they are.
        factory: makes the cores (the host).

    Returns:
        The record of this call, in the order of the blocks; :func:`attention_record` gives that of the whole model.

    Raises:
        MismatchError: the model has no such blocks, an index does not exist, or the variant cannot serve here; the
            message names the module's class. The model is then unchanged.
    """
    modules = _attention_modules(model)
    if not isinstance(choice, Mapping):
        choice = dict.fromkeys(range(len(modules)), choice)
    outside = [index for index in choice if not -len(modules) <= index < len(modules)]
    if outside:
        raise MismatchError(f"block {outside[0]} does not exist: {type(model).__name__} has {len(modules)} blocks")
    wanted: dict[int, tuple[str, Any]] = {}
    for index, one in choice.items():
        wanted[index % len(modules)] = (one, None) if isinstance(one, str) else (one[0], one[1])
    layout, tokens = _layout(model)
    paths = list(modules)
    # All cores are made before the first module changes: a refused one leaves the model as it was.
    cores = {
        index: _core(modules[paths[index]], name, options, layout, tokens, factory)
        for index, (name, options) in sorted(wanted.items())
    }
    for index, core in cores.items():
        name = wanted[index][0]
        exact = cast("AttentionTags", factory.tags(Kind.ATTENTION, name)).exact
        _swap(modules[paths[index]], core, index, factory.canonical(Kind.ATTENTION, name), exact=exact)
    changed = {paths[index] for index in cores}
    return [entry for entry in attention_record(model) if entry[0] in changed]


def apply_attention(
    model: nn.Module, record: Sequence[Sequence[Any]] | AttentionRecord, factory: ComponentFactory
) -> nn.Module:
    """Repeat the changes of a record on another instance of the model, in place, before its weights are loaded.

    Args:
        model: a model as it was before the record was made.
        record: what :func:`set_attention` returned, also after a round trip through JSON.
        factory: makes the cores.

    Returns:
        The same model.

    Raises:
        MismatchError: a path of the record is no attention module of the model.
    """
    paths = list(_attention_modules(model))
    choice: dict[int, Choice] = {}
    for path, spec in record:
        if path not in paths:
            raise MismatchError(f"{type(model).__name__} has no attention module {path!r}; it has {', '.join(paths)}")
        choice[paths.index(path)] = (spec["variant"], spec["options"])
    if choice:
        set_attention(model, choice, factory)
    return model


def random_vit(*, side: int = 32, width: int = 32, depth: int = 2, heads: int = 2, classes: int = 10) -> nn.Module:
    """Return a small timm vision transformer with random weights, in eval mode: something to try a core in.

    Args:
        side: images are ``(3, side, side)``; its patches are 8 x 8.
        width: channels C.
        depth: number of blocks.
        heads: heads of each block.
        classes: size of the output.
    """
    ensure()
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=side, patch_size=8, embed_dim=width, depth=depth, num_heads=heads, num_classes=classes
    ).eval()


def attention_view(module: nn.Module, path: str = "") -> AttentionView:
    """Return a timm ViT attention module, swapped or not, in canonical form.

    Args:
        module: the `attn` of a block.
        path: its dotted path, for messages and the view.

    Raises:
        MismatchError: the module is of another class, or has a gate or a norm behind the attention.
    """
    _check_supported(module, path)
    attention = cast("Any", module)
    if getattr(attention, "gate", None) is not None or not isinstance(attention.norm, nn.Identity):
        raise MismatchError(f"{path or type(module).__name__}: a gate or a norm follows the attention; it has no view")
    w_q, w_k, w_v = attention.qkv.weight.detach().chunk(3)
    b_q, b_k, b_v = (None,) * 3 if attention.qkv.bias is None else attention.qkv.bias.detach().chunk(3)
    q_norm, k_norm = (None if isinstance(norm, nn.Identity) else norm for norm in (attention.q_norm, attention.k_norm))
    return AttentionView(
        w_q=w_q,
        w_k=w_k,
        w_v=w_v,
        w_o=attention.proj.weight.detach(),
        geometry=_geometry(module, None, None),
        b_q=b_q,
        b_k=b_k,
        b_v=b_v,
        b_o=None if attention.proj.bias is None else attention.proj.bias.detach(),
        scale=attention.head_dim**-0.5,
        q_norm=q_norm,
        k_norm=k_norm,
        path=path,
    )


def _attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return path -> attention module of each block, in order, or refuse."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks):
        raise MismatchError(
            f"{type(model).__name__} has no list `blocks` of transformer blocks{_own_attention(model)}",
            hint="Attention can be replaced in timm ViT and DeiT models.",
        )
    found: dict[str, nn.Module] = {}
    for index, block in enumerate(blocks):
        attention = getattr(block, "attn", None)
        if not isinstance(attention, nn.Module):
            raise MismatchError(
                f"blocks.{index} of {type(model).__name__} is a {type(block).__name__} without a module `attn`",
                hint="Attention can be replaced in timm ViT and DeiT models.",
            )
        _check_supported(attention, f"blocks.{index}.attn of {type(model).__name__}")
        found[f"blocks.{index}.attn"] = attention
    return found


def _own_attention(model: nn.Module) -> str:
    """Name the attention class that the model does have."""
    names = (type(module).__name__ for module in model.modules())
    name = next((name for name in names if "attention" in name.lower() or "attn" in name.lower()), None)
    return "" if name is None else f"; its attention is {name}"


def _check_supported(module: nn.Module, where: str) -> None:
    """Refuse what does not compute attention exactly as timm's `Attention`."""
    if isinstance(module, SwappedAttention):
        return
    attention = _timm_attention()
    if not isinstance(module, attention) or type(module).forward is not attention.forward:
        raise MismatchError(
            f"{where or 'the module'} is a {type(module).__module__}.{type(module).__name__}, not timm's Attention",
            hint="Attention can be replaced in timm ViT and DeiT models.",
        )


def _timm_attention() -> Any:
    ensure()
    from timm.layers import Attention  # type: ignore[attr-defined]

    return Attention


def _layout(model: nn.Module) -> tuple[TokenLayout | None, int | None]:
    """Return the token layout and the number of tokens, as far as the model fixes them."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    dropped = not isinstance(getattr(model, "patch_drop", nn.Identity()), nn.Identity)
    # With images of any size the tokens no longer say which grid they come from.
    if grid is None or dropped or getattr(model, "dynamic_img_size", False):
        return (TokenLayout(prefix=prefix) if prefix else None), None
    rows, columns = int(grid[0]), int(grid[1])
    return TokenLayout(grid=(rows, columns), prefix=prefix), prefix + rows * columns


def _geometry(module: nn.Module, layout: TokenLayout | None, tokens: int | None) -> AttentionGeometry:
    attention = cast("Any", module)
    return AttentionGeometry(
        dim=attention.qkv.in_features,
        heads=attention.num_heads,
        head_dim=attention.head_dim,
        tokens=tokens,
        layout=layout,
    )


def _core(
    module: nn.Module,
    name: str,
    options: Mapping[str, Any] | ComponentOptions | None,
    layout: TokenLayout | None,
    tokens: int | None,
    factory: ComponentFactory,
) -> nn.Module:
    """Make a core that fits the module, or refuse."""
    tags = cast("AttentionTags", factory.tags(Kind.ATTENTION, name))
    if tags.level != "core" or tags.stateful or not tags.bidirectional:
        trait = f"works on the {tags.level} level" if tags.level != "core" else "keeps state"
        trait = "is causal only" if not tags.bidirectional else trait
        raise MismatchError(f"attention variant {name!r} {trait}; a timm block takes stateless bidirectional cores")
    dropped = cast("Any", module).attn_drop.p
    if dropped > 0:
        raise MismatchError(
            f"the model drops attention weights in training (p = {dropped}), which cores do not",
            hint="Create the model with attn_drop_rate=0.",
        )
    chosen = dict(options) if isinstance(options, Mapping) else options
    core = factory.create(Kind.ATTENTION, name, chosen, geometry=_geometry(module, layout, tokens))
    weight = cast("Any", module).qkv.weight
    return cast("nn.Module", core).to(device=weight.device, dtype=weight.dtype).train(module.training)


def _swap(module: nn.Module, core: nn.Module, layer: int, variant: str, *, exact: bool) -> None:
    """Put the core in and change the class, or replace the core of a module that was swapped before."""
    if not isinstance(module, SwappedAttention):
        module.__class__ = swapped_class(TimmAttention, type(module))
    changed = cast("TimmAttention", module)
    geometry: AttentionGeometry = cast("Any", core).geometry
    changed.core = core
    changed.swap = Swap(variant, "core", layer, geometry, MaskNature(exact=exact), entry={"options": {}})


class TimmAttention(SwappedAttention):
    """What a swapped module does; mixed in before timm's `Attention`, whose projections and norms it uses.

    Unlike :class:`nasdistill.bridge.swapping.CoreAttention` it keeps no watch over its calls, because what timm's
    forward does is known here: this saves time per block, and one dry run.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Project, attend with the core, project back: ``(B, N, C)`` to ``(B, N, C)``."""
        own = cast("Any", self)
        heads, head_dim = own.num_heads, own.head_dim
        _, n, _ = x.shape
        q, k, v = own.qkv(x).reshape(-1, n, 3, heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        ctx = self._context(x, attn_mask, is_causal)
        out = self.core(own.q_norm(q), own.k_norm(k), v, ctx).out
        out = own.norm(out.transpose(1, 2).reshape(-1, n, heads * head_dim))
        gate = getattr(own, "gate", None)
        if gate is not None:
            out = out * gate(x).sigmoid()
        return cast("Tensor", own.proj_drop(own.proj(out)))

    def _context(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> AttentionContext:
        """Turn timm's mask arguments into data; a core that cannot use them refuses."""
        ctx = AttentionContext(layer=self.swap.layer, layer_input=x)
        if attn_mask is None:
            if is_causal:
                ctx.mask = AttentionMask(causal=True)
            return ctx
        if is_causal:
            raise ValueError("attn_mask and is_causal exclude each other")
        mask = attn_mask.reshape((1,) * (4 - attn_mask.ndim) + tuple(attn_mask.shape))
        samples, head_count, rows, _ = static_shape(mask)
        if mask.dtype != torch.bool:
            ctx.bias = mask
        elif head_count == 1 and rows == 1:
            valid = mask[:, 0, 0].expand(x.shape[0], -1)
            # A padded key is a padded query too. Exact attention keeps computing such rows, as timm does.
            ctx.mask = AttentionMask(key_valid=valid, query_valid=None if self.swap.nature.exact else valid)
        elif head_count == 1 and samples == 1:
            ctx.mask = AttentionMask(predicate=lambda i, j: mask[0, 0][i, j])
        else:
            ctx.bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, float("-inf"))
        return ctx
