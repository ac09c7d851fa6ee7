"""What a module does whose attention was replaced: a subclass, made at run time, whose forward calls another one.

The module keeps its object, its name, its attributes and its parameters; only its class changes. So the state dict
gains the new attention's own keys and the model survives deepcopy, pickle, gradient checkpointing and export.
Patching ``instance.forward`` would not: a deep copy then calls the original's weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasdistill.bridge.masks import MaskNature, kernel_arguments, read_mask
from nasdistill.bridge.watching import opened_multi_head
from nasdistill.errors import MismatchError
from nasdistill.interfaces import AttentionContext, AttentionGeometry, AttentionMask, static_shape


class SharedStore(dict[str, Any]):
    """What the replaced layers of one model share during one forward; a copy starts empty and is shared by the copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedStore:
        found: SharedStore = memo.setdefault(id(self), SharedStore())
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedStore, ()


@dataclass(slots=True)
class Swap:
    """What is known of a replaced layer.

    Attributes:
        variant: canonical id of the variant.
        level: ``"core"`` or ``"module"``.
        layer: index of the layer, as in the sites ``q.i``.
        geometry: sizes of the layer.
        nature: of its masks and of the variant.
        cross: keys come from another sequence.
        store: shared by the layers of one forward.
        first: the layer that empties the store.
        entry: the layer's entry of the record.
        undo: (module, attribute, value) to give back when the replacement is taken back.
        returns: module level: how many values the module returned beside its output; -1 for the output alone.
        token_first: module level: the module's input is ``(N, B, C)``.
    """

    variant: str
    level: str
    layer: int
    geometry: AttentionGeometry
    nature: MaskNature
    cross: bool = False
    store: SharedStore = field(default_factory=SharedStore)
    first: bool = True
    entry: dict[str, Any] = field(default_factory=dict)
    undo: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    returns: int = -1
    token_first: bool = False


class SwappedAttention(nn.Module):
    """A module whose attention was replaced; mixed in before its own class.

    Attributes:
        swapped_from: its own class.
        core: the attention that took the place.
        swap: what is known of the layer.
    """

    swapped_from: ClassVar[type[nn.Module]]
    mixed_in: ClassVar[type[SwappedAttention]]
    core: nn.Module
    swap: Swap

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle through the base class; a class made at run time cannot be found by its name."""
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _rebuild, (type(self).mixed_in, type(self).swapped_from), state


_classes: dict[tuple[type[nn.Module], type[nn.Module]], type[SwappedAttention]] = {}


def swapped_class(mixin: type[SwappedAttention], base: type[nn.Module]) -> type[SwappedAttention]:
    """Return the subclass of a module's class that attends in another way; one per pair of classes."""
    if (mixin, base) not in _classes:
        attributes = {"swapped_from": base, "mixed_in": mixin, "__module__": __name__, "__doc__": base.__doc__}
        _classes[mixin, base] = cast(
            "type[SwappedAttention]", type(f"Swapped{base.__name__}", (mixin, base), attributes)
        )
    return _classes[mixin, base]


def _rebuild(mixin: type[SwappedAttention], base: type[nn.Module]) -> nn.Module:
    """Return an empty instance for copy and pickle."""
    cls = swapped_class(mixin, base)
    return cls.__new__(cls)


class CoreAttention(SwappedAttention):
    """A module that projects as ever and hands q, k and v to a core instead of the fused kernel."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward; its attention calls reach the core.

        Raises:
            MismatchError: it made no attention call, so that the core was passed by.
        """
        mode = _CoreCalls(self, _first_tokens(args, kwargs))
        if self.swap.first:
            self.swap.store.clear()
        with _fused(self), mode:
            out = type(self).swapped_from.forward(self, *args, **kwargs)
        if not mode.calls:
            raise MismatchError(
                f"layer {self.swap.layer} ({type(self).swapped_from.__name__}) did not reach its {self.swap.variant}: "
                "it made no call of scaled_dot_product_attention",
                hint="Use the library's implementation 'sdpa' for this model.",
            )
        return out


class _CoreCalls(TorchFunctionMode):
    """Sends attention calls to a module's core."""

    def __init__(self, module: CoreAttention, layer_input: Tensor | None) -> None:
        super().__init__()
        self._module = module
        self._input = layer_input
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call; replace attention."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            # Asked for weights it would write its softmax out. A core has none to give, as other fused kernels.
            with self:
                return opened_multi_head()(*args, **{**kwargs, "need_weights": False})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        return self._attend(**kernel_arguments(args, kwargs))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attend with the core; attention dropout does not exist there."""
        swap, q, k, v = self._module.swap, query, key, value
        single = q.ndim == 3  # one head without an axis for it
        if single:
            q, k, v = (x.unsqueeze(1) for x in (q, k, v))
            attn_mask = attn_mask.unsqueeze(1) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
        geometry, nature = swap.geometry, swap.nature
        (_, heads, n, _), (_, kv_heads, m, _) = static_shape(q), static_shape(k)
        if kv_heads == geometry.heads > geometry.kv_heads:  # the library repeated them; the core takes one per group
            k, v = (x[:, :: geometry.heads // geometry.kv_heads] for x in (k, v))
        if not swap.cross and n != m and nature.causal and not nature.exact:
            raise ValueError(
                f"{swap.variant} does not decode through the library's cache of keys ({n} queries, {m} keys): its "
                "queries depend on all tokens before; call the model with use_cache=False"
            )
        if heads != geometry.heads:  # one token decoded, the queries of a group laid along the sequence
            nature = replace(nature, causal=False)
        mask, bias = read_mask(attn_mask, bool(is_causal), q, k, nature, swap.variant)
        layout = geometry.layout if n == m == geometry.tokens else None
        ctx = AttentionContext(
            mask=mask,
            bias=bias,
            scale=scale,
            layer=swap.layer,
            layout=layout,
            layer_input=self._input,
            store=swap.store,
        )
        out: Tensor = self._module.core(q, k, v, ctx).out
        out = out if out.dtype == query.dtype else out.to(query.dtype)
        return out.squeeze(1) if single else out


class OwnAttention(SwappedAttention):
    """A module that keeps its call and what it returns, and leaves all the rest to a module with own projections."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend from the first tensor given to itself, or to the second one, under the masks given."""
        swap, given = self.swap, _named(type(self).swapped_from, args, kwargs)
        tensors = [x for x in given.values() if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3]
        if not tensors:
            raise MismatchError(f"layer {swap.layer}: the replaced attention got no tokens (B, N, C)")
        x, source = tensors[0], tensors[1] if swap.cross and len(tensors) > 1 else None
        if swap.token_first:
            x, source = x.transpose(0, 1), None if source is None else source.transpose(0, 1)
        if swap.first:
            swap.store.clear()
        own = getattr(self, "attention_context", None)  # a module around a core of ours knows its masks
        ctx = self._context(given, x, x if source is None else source) if own is None else own(*args, **kwargs)
        out = self.core(x, ctx, source).out
        out = out.transpose(0, 1) if swap.token_first else out
        return out if swap.returns < 0 else (out, *(None,) * swap.returns)

    def _context(self, given: dict[str, Any], x: Tensor, keys: Tensor) -> AttentionContext:
        """Turn the library's arguments into data."""
        swap = self.swap
        cache = self._cache(given, x)
        mask = given.get("attention_mask", given.get("attn_mask"))
        causal = bool(given.get("is_causal") or False)
        q, k = x.unsqueeze(1), keys.unsqueeze(1)
        if cache is not None:  # the mask is over the earlier tokens too
            k = k[:, :, :1, :1].expand(-1, -1, cache.tokens + static_shape(x)[1], -1)
        if issubclass(type(self).swapped_from, nn.MultiheadAttention):
            mask, causal = _multi_head_mask(given, mask), causal and given.get("key_padding_mask") is None
        elif mask is None and swap.nature.causal:
            causal = True
        if causal and mask is not None:
            causal = False  # a hint: the mask says it
        read, bias = read_mask(mask, causal and cache is None, q, k, swap.nature, swap.variant)
        if causal and cache is not None:  # the last token sees all; the kernel's triangle would start at the first key
            read = AttentionMask(causal=True)
        positions = given.get("position_ids")
        if isinstance(positions, Tensor):
            positions = positions[0] if positions.ndim == 2 and static_shape(positions)[0] == 1 else positions
        else:
            positions = None
        layout = swap.geometry.layout if static_shape(x)[1] == swap.geometry.tokens else None
        return AttentionContext(
            mask=read, bias=bias, layer=swap.layer, layout=layout, positions=positions, layer_input=x, store=swap.store,
            cache=cache,
        )  # fmt: skip

    def _cache(self, given: dict[str, Any], x: Tensor) -> LibraryCache | None:
        """Return the library's cache where the attention can keep in it what it needs; else refuse to decode.

        Where it cannot, the cache gets one number per token, so that the next step finds out how many there were.
        """
        cache = given.get("past_key_values", given.get("past_key_value"))
        index = getattr(self, "layer_idx", None)
        if cache is None or index is None or not hasattr(cache, "update") or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        if getattr(self.core, "pair_cache", False) and self.swap.nature.causal:
            return LibraryCache(cache, index)
        mark = x.new_zeros(x.shape[0], 1, x.shape[1], 1)
        seen, _ = cache.update(mark, mark, index)
        if seen.shape[-2] != x.shape[1]:
            raise MismatchError(
                f"layer {self.swap.layer}: {self.swap.variant} does not decode through the library's cache of keys and "
                "values, which has no place for what it keeps",
                hint="Generate with use_cache=False.",
            )
        return None


class LibraryCache:
    """One layer of a transformers cache, for attention that keeps two vectors per token instead of keys and values.

    Attributes:
        tokens: how many tokens there are.
    """

    def __init__(self, cache: Any, layer: int) -> None:
        self._cache, self._layer = cache, layer
        self.tokens = int(cache.get_seq_length(layer))

    def append(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens, ``(B, N, X)`` and ``(B, N, Y)``, and return all of them.

        Raises:
            MismatchError: the cache does not hold all tokens so far and nothing else (a fixed length, a window).
        """
        kept = self._cache.update(first.unsqueeze(1), second.unsqueeze(1), self._layer)
        self.tokens += static_shape(first)[1]
        if any(static_shape(x)[-2] != self.tokens for x in kept):
            raise MismatchError(
                f"layer {self._layer}: this {type(self._cache).__name__} does not keep the tokens one after the other",
                hint="Use a DynamicCache, or generate with use_cache=False.",
            )
        return kept[0].squeeze(1), kept[1].squeeze(1)


def _multi_head_mask(given: dict[str, Any], mask: Tensor | None) -> Tensor | None:
    """Return the two masks of ``nn.MultiheadAttention`` (True = leave out) as one (True = attend)."""
    padding = given.get("key_padding_mask")
    parts: list[Tensor] = []
    if mask is not None:
        parts.append(~mask if mask.dtype == torch.bool else mask)
    if padding is not None:
        padding = ~padding if padding.dtype == torch.bool else padding
        parts.append(padding[:, None, None])
    if len(parts) < 2:
        return parts[0] if parts else None
    first, second = parts
    if first.dtype == second.dtype == torch.bool:
        return first & second
    wide = [
        part if part.dtype != torch.bool else torch.zeros(part.shape).masked_fill(~part, float("-inf"))
        for part in parts
    ]
    return wide[0] + wide[1]


def _as_float(mask: Tensor) -> Tensor:
    """Return a bool mask as 0 and -inf."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))


def _named(base: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name, in the order of the signature."""
    bound = inspect.signature(base.forward).bind(None, *args, **kwargs)
    found: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        found.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return found


def _first_tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the first ``(B, N, C)`` among a call's arguments."""
    values = (*args, *kwargs.values())
    return next((x for x in values if isinstance(x, Tensor) and x.ndim == 3 and x.is_floating_point()), None)


@contextmanager
def _fused(module: nn.Module) -> Iterator[None]:
    """Let a transformers module that is set to eager attention call the fused kernel; its setting stays as it is."""
    config = getattr(module, "config", None)
    if getattr(config, "_attn_implementation", None) != "eager":
        yield
        return
    setattr(config, "_attn_implementation", "sdpa")  # noqa: B010 - a property of a foreign class
    try:
        yield
    finally:
        setattr(config, "_attn_implementation", "eager")  # noqa: B010
