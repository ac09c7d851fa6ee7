"""Sharing attention maps between the layers of any model: leaders, followers, and what followers no longer need.

A layer keeps its module, of whichever library, under its name: only its class changes to one whose forward answers the
call of ``F.scaled_dot_product_attention`` in it. A leader forms the map explicitly and leaves it in a slot; a follower
multiplies the map in the slot with its own values. The slot is shared by the layers of one group and by nothing else: a
deep copy or an unpickled model has slots of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasdistill.errors import MismatchError
from nasdistill.interfaces import AttentionView
from nasdistill_attention._shared import as_dtype, masked_softmax

Role = Literal["leader", "follower", "observer"]
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class Slot:
    """Where a leader leaves its map for its followers.

    Without gradients the last follower empties it; with them it stays until the next forward, because a follower that
    is checkpointed is computed again on the way back. Copies start empty.

    Attributes:
        followers: how many layers read each map.
    """

    def __init__(self, followers: int) -> None:
        self.followers = followers
        self._map: Tensor | None = None
        self._left = 0
        self._graded = False

    def put(self, weights: Tensor) -> None:
        """Leave a map ``(B, H, N, M)``."""
        self._map, self._left, self._graded = weights, self.followers, torch.is_grad_enabled()

    def take(self) -> Tensor:
        """Return the map of this forward.

        Raises:
            RuntimeError: the leader has not run, or ran where no gradient could reach it.
        """
        if self._map is None or (torch.is_grad_enabled() and not self._graded):
            raise RuntimeError(
                "a layer that follows another one's attention map runs, and that layer has not run before it, or ran "
                "without gradients; under checkpointing use use_reentrant=False, or its weights would not be trained"
            )
        found, self._left = self._map, self._left - 1
        if self._left <= 0 and not torch.is_grad_enabled():
            self._map = None
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        found: Slot = memo.setdefault(id(self), Slot(self.followers))
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return Slot, (self.followers,)


class Sharing:
    """What one layer does with its attention call.

    Attributes:
        role: leader, follower, or observer, which only shows its map.
        slot: of the layer's group.
        mix: lambda of a follower's own map in ``lambda own + (1 - lambda) leader's``; 0 = the leader's alone.
        sink: gets an observer's map and the pairs that count, ``(B, H, N, M)`` and bool.
        calls: attention calls answered.
    """

    def __init__(
        self, role: Role, slot: Slot | None, mix: float = 0.0, sink: Callable[[Tensor, Tensor], None] | None = None
    ) -> None:
        self.role, self.slot, self.mix, self.sink, self.calls = role, slot, mix, sink, 0

    def attend(self, given: Mapping[str, Any]) -> Tensor:
        """Answer a call of the kernel, given its arguments by name."""
        self.calls += 1
        v = given["value"]
        own = self.role != "follower" or self.mix > 0
        weights = _softmax_map(given) if own else cast("Slot", self.slot).take()
        if self.role == "observer" and self.sink is not None:
            self.sink(weights, _allowed(given, weights.shape))
        if self.role == "leader":
            cast("Slot", self.slot).put(weights)
        if self.role == "follower" and own:
            weights = self.mix * weights + (1 - self.mix) * cast("Slot", self.slot).take()
        return _apply(weights, v)


def _softmax_map(given: Mapping[str, Any]) -> Tensor:
    """Return the map ``(..., H, N, M)`` that the kernel would use, dropout included; rows without any key are 0."""
    q, k = given["query"], given["key"]
    scale, mask = given.get("scale"), given.get("attn_mask")
    if k.shape[-3] != q.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    if given.get("is_causal"):  # the kernel's triangle starts at the first key
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype != torch.bool:
        scores, mask = scores + mask, mask > float("-inf")
    weights: Tensor = as_dtype(masked_softmax(scores, mask), q)
    dropped = given.get("dropout_p") or 0.0
    return F.dropout(weights, float(dropped)) if dropped else weights


def _allowed(given: Mapping[str, Any], shape: torch.Size) -> Tensor:
    """Return which pairs count, bool, of the map's shape; very low biases mean never."""
    mask: Tensor | None = given.get("attn_mask")
    device = given["query"].device
    if given.get("is_causal"):
        mask = torch.ones(shape[-2:], dtype=torch.bool, device=device).tril()
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    if mask.dtype != torch.bool:
        mask = mask > torch.finfo(mask.dtype).min / 2
    return mask.expand(shape)


def _apply(weights: Tensor, v: Tensor) -> Tensor:
    """Multiply a map with values, whose heads are repeated for the query heads of their group."""
    heads, groups = weights.shape[-3], v.shape[-3]
    if weights.shape[-1] != v.shape[-2] or heads % groups:
        raise MismatchError(
            f"a map of {heads} heads over {weights.shape[-1]} keys cannot serve values of {groups} heads and "
            f"{v.shape[-2]} tokens"
        )
    if heads != groups:
        v = v.repeat_interleave(heads // groups, dim=-3)
    out: Tensor = as_dtype(weights, v) @ v
    return out


class _Answer(TorchFunctionMode):
    """Lets a layer answer the attention calls that are made while it is open."""

    def __init__(self, sharing: Sharing) -> None:
        super().__init__()
        self._sharing = sharing

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call, or answer it."""
        if func is F.scaled_dot_product_attention:
            return self._sharing.attend({**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})})
        return func(*args, **(kwargs or {}))


class SharedAttention(nn.Module):
    """What a changed module does; mixed in before its own class.

    Attributes:
        sharing: what becomes of its attention call.
    """

    sharing: Sharing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward with its attention call answered."""
        before = self.sharing.calls
        with _Answer(self.sharing):
            out = super().forward(*args, **kwargs)
        if self.sharing.calls == before:
            raise MismatchError(
                f"{type(self).__mro__[2].__name__} computed its attention without "
                "torch.nn.functional.scaled_dot_product_attention, so its map cannot be shared",
                hint='Load a transformers model with attn_implementation="sdpa".',
            )
        return out

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle through the module's own class."""
        return _revive, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[no-untyped-call]


_classes: dict[type[nn.Module], type[SharedAttention]] = {}


def _shared_class(base: type[nn.Module]) -> type[SharedAttention]:
    if base not in _classes:
        _classes[base] = type(f"Shared{base.__name__}", (SharedAttention, base), {})
    return _classes[base]


def _revive(base: type[nn.Module]) -> nn.Module:
    cls = _shared_class(base)
    return cls.__new__(cls)


def give_role(module: nn.Module, sharing: Sharing) -> None:
    """Change a module's class, in place; the names and values of its parameters stay."""
    if not isinstance(module, SharedAttention):
        module.__class__ = _shared_class(type(module))
    module.sharing = sharing  # type: ignore[assignment]


# -- what followers do without ----------------------------------------------------------------------------------------


class Nothing(nn.Module):
    """Stands where a projection was that nobody reads: zeros that take no memory and no time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.out_features = size

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros ``(..., size)``."""
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


class Remainder(nn.Module):
    """The outputs that are left of a fused projection, in their old places; the others are 0."""

    def __init__(self, linear: nn.Linear, kept: Sequence[int], size: int) -> None:
        super().__init__()
        self.linear, self.out_features = linear, size
        self.kept = list(kept)
        self._run = self.kept == list(range(self.kept[0], self.kept[-1] + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., size)``."""
        y: Tensor = self.linear(x)
        if self._run:
            return F.pad(y, (self.kept[0], self.out_features - self.kept[-1] - 1))
        index = torch.tensor(self.kept, device=y.device)
        return y.new_zeros(*y.shape[:-1], self.out_features).index_copy(-1, index, y)


def drop_plan(model: nn.Module, view: AttentionView) -> list[dict[str, Any]]:
    """Return, as JSON-able values, what of a model only serves the queries and keys of one layer.

    Each entry names a module, and which of its outputs are `kept` (`null` for a norm: it becomes the identity).

    Raises:
        MismatchError: queries or keys do not come from modules of their own.
    """
    dropped: dict[str, set[int]] = {}
    for role, weight in (("q", view.w_q), ("k", view.w_k)):
        if role in view.sources:
            source = view.sources[role]
            name, rows = source.weight, source.index.tolist()
        else:
            name, rows = _find(model, view, role, weight), list(range(len(weight)))
        owner, _, leaf = name.rpartition(".")
        if leaf != "weight" or not owner:
            raise MismatchError(f"the {role} projection of {view.path} is no module of its own but {name}")
        dropped.setdefault(owner, set()).update(rows)
    plan: list[dict[str, Any]] = []
    for owner, rows_ in dropped.items():
        weight = _rows_first(model.get_submodule(owner))
        plan.append({"module": owner, "kept": [row for row in range(len(weight)) if row not in rows_]})
    holder = model.get_submodule(view.path)
    for norm, names in ((view.q_norm, ("q_norm", "q_layernorm")), (view.k_norm, ("k_norm", "k_layernorm"))):
        if norm is None:
            continue
        found = [name for name, module in holder.named_modules() if module is norm]
        found = found or [name for name in names if isinstance(getattr(holder, name, None), nn.Module)]
        if not found:
            raise MismatchError(f"the norm of queries or keys of {view.path} is not found in it")
        plan.append({"module": f"{view.path}.{found[0]}", "kept": None})
    return plan


def drop(model: nn.Module, plan: Sequence[Mapping[str, Any]]) -> None:
    """Carry out plans of `drop_plan`, in place."""
    for entry in plan:
        parent, _, name = entry["module"].rpartition(".")
        holder, old = model.get_submodule(parent), model.get_submodule(entry["module"])
        setattr(holder, name, nn.Identity() if entry["kept"] is None else _without(old, entry["kept"]))


def _without(old: nn.Module, kept: Sequence[int]) -> nn.Module:
    weight, bias = _rows_first(old), cast("Tensor | None", getattr(old, "bias", None))
    if not kept:
        return Nothing(len(weight))
    made = nn.Linear(weight.shape[1], len(kept), bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight[list(kept)])
        if bias is not None:
            made.bias.copy_(bias[list(kept)])
    made.requires_grad_(weight.requires_grad)
    return Remainder(made, kept, len(weight)).train(old.training)


def _rows_first(module: nn.Module) -> Tensor:
    """Return a projection's weight as ``(out, in)``; transformers' ``Conv1D`` keeps it the other way round."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise MismatchError(f"{type(module).__name__} is no linear projection")
    if isinstance(module, nn.Linear):
        return weight
    if type(module).__name__ == "Conv1D":
        return weight.T
    raise MismatchError(f"a projection is a {type(module).__name__}; only Linear and Conv1D can be shortened")


def _find(model: nn.Module, view: AttentionView, role: str, weight: Tensor) -> str:
    """Return the name of the parameter that a matrix of the view is; for views that do not say it."""
    holder = model.get_submodule(view.path)
    for name, parameter in holder.named_parameters():
        if parameter.shape == weight.shape and torch.equal(parameter.detach(), weight):
            return f"{view.path}.{name}"
    raise MismatchError(f"the {role} projection of {view.path} is not found among its parameters")
