"""Attention variants at three levels, and everything a variant may ask about the call it serves.

*core*: computes from q, k, v; the projections stay with the host model, so one file serves timm, transformers and
diffusers. *module*: owns its projections and starts from a softmax layer's weights. *model*: needs several layers at
once. What a variant does not support it refuses; it never ignores a mask, a bias or causality.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nasdistill.interfaces.base import Component, ComponentFactory, Example, HostReference
from nasdistill.spec.component import AttentionTags
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions, parse_options

if TYPE_CHECKING:
    from nasdistill.interfaces.batch import Batch
    from nasdistill.interfaces.transform import Transformed


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Where tokens come from.

    Attributes:
        grid: ``(h, w)`` for image patches, row by row after the prefix; None otherwise.
        prefix: tokens before the grid (class token, registers).
        frames: number of frames for video (tokens are frame-major); None otherwise.
        text: number of text tokens (after the image tokens in joint attention); None otherwise.
        prompt: number of prompt tokens before generated ones (diffusion language models); None otherwise.
    """

    grid: tuple[int, int] | None = None
    prefix: int = 0
    frames: int | None = None
    text: int | None = None
    prompt: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionGeometry:
    """Fixed sizes of one attention layer.

    Attributes:
        dim: width C of the layer's input and output.
        heads: query heads H.
        kv_heads: key and value heads G; G divides H.
        head_dim: D of q and k.
        value_dim: D of v.
        tokens: expected sequence length, where fixed (image models).
        layout: token layout, where fixed.
        causal: whether the layer is used causally.
    """

    dim: int
    heads: int
    head_dim: int
    kv_heads: int = 0
    value_dim: int = 0
    tokens: int | None = None
    layout: TokenLayout | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "value_dim", self.value_dim or self.head_dim)
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.kv_heads} key/value heads do not divide {self.heads} query heads")


@dataclass(frozen=True, slots=True)
class AttentionMask:
    """Which (query, key) pairs count, as data: one predicate, from which every other form derives.

    Pair (i, j) counts when all the given conditions allow it.

    Attributes:
        causal: j <= i + (M - N), i.e. aligned at the end, as with a cache.
        window: ``(left, right)``: i' - left <= j <= i' + right with i' = i + (M - N); None = no limit.
        key_valid: ``(B, M)`` bool, False at padding.
        query_valid: ``(B, N)`` bool; rows of padded queries count nothing.
        predicate: function of index tensors i' ``(N, 1)`` and j ``(1, M)`` to bool ``(N, M)``, for anything else
            (tiles, strides).
    """

    causal: bool = False
    window: tuple[int, int] | None = None
    key_valid: Tensor | None = None
    query_valid: Tensor | None = None
    predicate: Callable[[Tensor, Tensor], Tensor] | None = None

    def pattern(self, n: int, m: int, device: torch.device | str = "cpu") -> Tensor | None:
        """Return the part that is equal for all samples, ``(N, M)`` bool, or None when everything is allowed."""
        if not self.causal and self.window is None and self.predicate is None:
            return None
        i = torch.arange(n, device=device)[:, None] + (m - n)
        j = torch.arange(m, device=device)[None, :]
        allowed = torch.ones(n, m, dtype=torch.bool, device=device)
        if self.causal:
            allowed = allowed & (j <= i)
        if self.window is not None:
            left, right = self.window
            allowed = allowed & (j >= i - left) & (j <= i + right)
        if self.predicate is not None:
            allowed = allowed & self.predicate(i, j)
        return allowed

    def dense(self, n: int, m: int, device: torch.device | str = "cpu") -> Tensor | None:
        """Return the bool mask, broadcastable to ``(B, 1, N, M)``, True = attend; None when everything is allowed."""
        allowed = self.pattern(n, m, device)
        mask = None if allowed is None else allowed[None, None]
        if self.key_valid is not None:
            keys = self.key_valid.to(device)[:, None, None, :]
            mask = keys.expand(-1, 1, n, -1) if mask is None else mask & keys
        if self.query_valid is not None:
            queries = self.query_valid.to(device)[:, None, :, None]
            mask = queries.expand(-1, 1, -1, m) if mask is None else mask & queries
        return mask

    def blocks(self, n: int, m: int, block_q: int, block_k: int) -> Tensor:
        """Return ``(B or 1, ceil(N/block_q), ceil(M/block_k))`` int8: 0 no pair counts, 1 some, 2 all."""
        dense = self.dense(n, m)
        full = torch.ones(1, n, m, dtype=torch.bool) if dense is None else dense[:, 0]
        rows, columns = -(-n // block_q), -(-m // block_k)
        out = torch.zeros(full.shape[0], rows, columns, dtype=torch.int8)
        for r in range(rows):
            for c in range(columns):
                tile = full[:, r * block_q : (r + 1) * block_q, c * block_k : (c + 1) * block_k].flatten(1)
                out[:, r, c] = tile.any(1).to(torch.int8) + tile.all(1).to(torch.int8)
        return out

    def intervals(self, n: int, m: int) -> Tensor:
        """Return ``(B or 1, N, 2)`` int64: first key and one past the last key that counts for each query.

        Raises:
            ValueError: some row's keys are not one contiguous run.
        """
        dense = self.dense(n, m)
        full = torch.ones(1, n, m, dtype=torch.bool) if dense is None else dense[:, 0]
        count = full.sum(-1)
        start = full.to(torch.int8).argmax(-1)
        stop = torch.where(count > 0, m - full.flip(-1).to(torch.int8).argmax(-1), start)
        if not torch.equal(stop - start, count):
            raise ValueError("the mask is not one run of keys per query; use blocks() or dense()")
        return torch.stack([start, stop], dim=-1)

    def pairs(self, n: int, m: int) -> float:
        """Return how many pairs count, per sample on average: what honest operation counts multiply with."""
        dense = self.dense(n, m)
        return float(n * m) if dense is None else float(dense.sum() / dense.shape[0])


@dataclass(slots=True)
class AttentionContext:
    """Everything about one call that is not q, k, v.

    Attributes:
        mask: which pairs count; None = all.
        bias: additive score bias, broadcastable to ``(B, H, N, M)``.
        scale: factor on q.k; None = ``D ** -0.5``. Variants without a dot-product scale say so.
        layer: index of the layer in the model.
        layout: token layout of this call.
        positions: ``(N,)`` or ``(B, N)`` int64 positions; None = 0..N-1.
        layer_input: ``(B, N, C)``, the input of the projections (routers look at it).
        step, total_steps: denoising or training step, where the caller has one.
        generator: randomness for sampling variants.
        need_map: the caller wants ``AttentionResult.map``.
        store: shared by the layers of one forward, emptied by the model before the first layer.
        session: kept over the forwards of one generation (denoising steps, decoding), emptied when it starts.
        cache: keys and values of earlier tokens when decoding; its type belongs to the variant.
    """

    mask: AttentionMask | None = None
    bias: Tensor | None = None
    scale: float | None = None
    layer: int = 0
    layout: TokenLayout | None = None
    positions: Tensor | None = None
    layer_input: Tensor | None = None
    step: int | None = None
    total_steps: int | None = None
    generator: torch.Generator | None = None
    need_map: bool = False
    store: MutableMapping[str, Any] = field(default_factory=dict)
    session: MutableMapping[str, Any] = field(default_factory=dict)
    cache: Any = None


@dataclass(slots=True)
class AttentionResult:
    """Output of one call.

    Attributes:
        out: ``(B, H, N, Dv)``.
        lse: ``(B, H, N)`` log of the normaliser, where the variant has one (merging partial results needs it).
        map: ``(B, H, N, M)`` if asked for and declared; rows need not sum to 1 (the variant says so).
        aux: named scalars or tensors for losses and reports (router loads, kept share).
    """

    out: Tensor
    lse: Tensor | None = None
    map: Tensor | None = None
    aux: dict[str, Tensor] = field(default_factory=dict)


class AttentionCore(nn.Module, ABC):
    """A core-level variant: from q, k, v to the context, with or without parameters of its own.

    Contract (checked for every core): shapes as documented for any N >= 1 and any D; items of a batch are
    independent; a padded key changes nothing; with a strict causal mask a later token changes nothing earlier,
    bitwise; rows that may attend to nothing are 0, not NaN; gradients reach q, k and v; the same inputs and generator
    give the same output; what the tags do not declare raises ``ValueError`` naming the variant and the feature.

    Attributes:
        options_model: pydantic model of the options.
        examples, expected_failures: as in :class:`nasdistill.interfaces.Component`.
        geometry: sizes of the layer served.
        options: validated options.
        id: canonical id, set by the host.
    """

    options_model: ClassVar[type[ComponentOptions]] = ComponentOptions
    examples: ClassVar[tuple[Example, ...]] = (Example(),)
    expected_failures: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self, options: Any = None, *, geometry: AttentionGeometry, host: ComponentFactory | None = None
    ) -> None:
        super().__init__()
        self.id = type(self).__name__
        self.geometry = geometry
        self.options: Any = parse_options(self.options_model, options, where=self.id)
        self._host = HostReference(host)

    @property
    def host(self) -> ComponentFactory:
        """The factory that made this core; RuntimeError when it was built by hand without one."""
        return self._host.get(self.id)

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> AttentionResult:
        """Attend.

        Args:
            q: ``(B, H, N, D)``.
            k: ``(B, G, M, D)``; G = H unless the variant declares ``gqa``.
            v: ``(B, G, M, Dv)``.
            ctx: mask and everything else.
        """

    def start_cache(self) -> Any:
        """Return an empty decoding cache for ``AttentionContext.cache``.

        With a cache, k and v hold the new tokens only; the call reads the earlier ones from the cache and adds the new
        ones to it in place. A mask is then over all keys, earlier ones first, and is causal.

        Raises:
            ValueError: this variant does not decode.
        """
        raise ValueError(f"{self.id} does not support decoding with a cache")

    @classmethod
    @abstractmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the analytic cost of one call on one sample, for N queries and M keys (own parameters included)."""


def static_shape(x: Tensor) -> tuple[int, ...]:
    """Return the sizes of `x` as plain ints, also while ``torch.jit.trace`` records.

    While tracing, ``x.shape`` holds tensors and every decision on them warns. A size read here is fixed in the traced
    graph; read only the sizes that a decision needs (tokens, heads), never the batch.
    """
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return tuple(x.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return tuple(int(size) for size in x.shape)


def refuse_undeclared(name: str, tags: AttentionTags, q: Tensor, k: Tensor, ctx: AttentionContext) -> None:
    """Refuse a call that asks for something the variant's tags do not declare; the first line of a core's forward.

    Args:
        name: how the variant is named in the message.
        tags: its tags.
        q: ``(B, H, N, D)``.
        k: ``(B, G, M, D)``.
        ctx: the call.

    Raises:
        ValueError: naming the variant and the feature.
    """
    (_, heads, n, _), (_, kv_heads, m, _) = static_shape(q), static_shape(k)
    mask = ctx.mask or AttentionMask()
    if heads % kv_heads:
        raise ValueError(f"{name}: {kv_heads} key/value heads do not divide {heads} query heads")
    asked = {
        "a causal mask": mask.causal and tags.causal == "no",
        "attention without a causal mask": not mask.causal and not tags.bidirectional,
        f"cross attention ({n} queries, {m} keys)": n != m and ctx.cache is None and not tags.cross,
        f"grouped heads ({heads} query, {kv_heads} key/value heads)": heads != kv_heads and not tags.gqa,
        "padding": (mask.key_valid is not None or mask.query_valid is not None) and not tags.padding,
        "a window mask": mask.window is not None and not tags.patterns,
        "a predicate mask": mask.predicate is not None and not tags.patterns,
        "an additive score bias": ctx.bias is not None and not tags.bias,
        "an attention map": ctx.need_map and not tags.returns_map,
        "decoding with a cache": ctx.cache is not None and not tags.decodes,
    }
    for feature, refused in asked.items():
        if refused:
            raise ValueError(f"{name} does not support {feature}")


@dataclass(frozen=True, slots=True)
class RotaryEmbedding:
    """A rotation of pairs of channels of q and k by angles that grow with the position.

    Channel pair p of a token at position t turns by ``t * inv_freq[p]``:
    ``(a, b) -> scaling * (a cos - b sin, b cos + a sin)``.

    Attributes:
        style: ``"half"`` pairs channel p with ``p + dim / 2``, ``"interleaved"`` pairs ``2p`` with ``2p + 1``.
        dim: how many of the D channels of a head turn, the first ones; the others stay.
        inv_freq: ``(dim / 2,)`` angles at position 1; None where the angles are no multiples of the position (image
            patches turn by row and column) and only `cos` and `sin` are known.
        scaling: factor on the rotated channels.
        cos, sin: ``(N, dim / 2)`` tables without the factor, where `inv_freq` is None.
    """

    style: Literal["half", "interleaved"]
    dim: int
    inv_freq: Tensor | None = None
    scaling: float = 1.0
    cos: Tensor | None = None
    sin: Tensor | None = None

    def tables(self, positions: Tensor | int) -> tuple[Tensor, Tensor]:
        """Return cos and sin ``(..., N, dim / 2)`` for positions ``(..., N)``, or for the first N tokens.

        Raises:
            ValueError: only tables are known, and they do not reach that far or positions are asked for.
        """
        if self.inv_freq is not None:
            if isinstance(positions, int):
                positions = torch.arange(positions, device=self.inv_freq.device)
            angles = positions[..., None].to(self.inv_freq) * self.inv_freq
            return angles.cos(), angles.sin()
        if self.cos is None or self.sin is None:
            raise ValueError("this rotary embedding has neither frequencies nor tables")
        if not isinstance(positions, int) or positions > self.cos.shape[0]:
            raise ValueError(f"this rotary embedding is a table of {self.cos.shape[0]} tokens, not a rule of positions")
        return self.cos[:positions], self.sin[:positions]

    def rotate(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rotate heads ``(B, H, N, D)``; `positions` are ``(N,)`` or ``(B, N)``, 0..N-1 by default."""
        cos, sin = self.tables(x.shape[-2] if positions is None else positions)
        if cos.ndim == 3:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        cos, sin = cos.to(x) * self.scaling, sin.to(x) * self.scaling
        turned, rest = x[..., : self.dim], x[..., self.dim :]
        if self.style == "half":
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        else:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Which entries of a model's parameters a matrix of a view is made of.

    Attributes:
        weight: dotted name of the parameter in the model.
        bias: dotted name of the bias; None without.
        index: ``(rows,)`` int64: row r of the view's matrix (for ``w_o``: column r) is entry ``index[r]`` along `axis`.
        axis: of the parameter: 0 where it is ``(out, in)`` as in ``nn.Linear`` (for ``w_o``: 1), the other one where it
            is ``(in, out)`` as in transformers' ``Conv1D``.
    """

    weight: str
    bias: str | None
    index: Tensor
    axis: int


@dataclass(frozen=True, slots=True)
class AttentionView:
    """A softmax attention layer in canonical form, whatever the library that holds it.

    Attributes:
        w_q: ``(H * D, C)``, row = output. `w_k`, `w_v`: ``(G * D, C)``. `w_o`: ``(C, H * D)``.
        b_q, b_k, b_v, b_o: biases or None.
        geometry: sizes; `causal` says whether a query sees later keys.
        scale: factor on q.k.
        rotary: a :class:`RotaryEmbedding` of q and k (after the norms), None without.
        q_norm, k_norm: per-head norms on q and k, modules over the last axis of ``(B, H, N, D)``; None without.
        cross: keys come from another sequence.
        path: dotted path of the module in its model.
        layer: index of the layer, as in the sites ``q.i``.
        score_bias: the model adds a bias to the scores (relative positions), which is not part of the view.
        sources: role (``"q"``, ``"k"``, ``"v"``, ``"o"``) -> where the matrix stands in the model; empty when the view
            was not read off a model.
        norm_paths: dotted paths of `q_norm` and `k_norm` in the model.
    """

    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_o: Tensor
    geometry: AttentionGeometry
    b_q: Tensor | None = None
    b_k: Tensor | None = None
    b_v: Tensor | None = None
    b_o: Tensor | None = None
    scale: float = 1.0
    rotary: Any = None
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    cross: bool = False
    path: str = ""
    layer: int = 0
    score_bias: bool = False
    sources: Mapping[str, WeightSource] = field(default_factory=dict)
    norm_paths: tuple[str | None, str | None] = (None, None)


class ModuleAttention(nn.Module, ABC):
    """A module-level variant: owns its projections (latent attention, head routing, state-space mixers).

    Attributes:
        options_model: pydantic model of the options.
        examples, expected_failures: as in :class:`nasdistill.interfaces.Component`.
        pair_cache: its decoding cache holds two vectors per token, and is used through nothing but ``tokens`` (how many
            there are) and ``append(first, second)``, ``(B, N, X)`` and ``(B, N, Y)``, which returns those of all
            tokens: then a library's own cache of keys and values can take its place.
    """

    options_model: ClassVar[type[ComponentOptions]] = ComponentOptions
    examples: ClassVar[tuple[Example, ...]] = (Example(),)
    expected_failures: ClassVar[Mapping[str, str]] = {}
    pair_cache: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_softmax(
        cls, view: AttentionView, options: Any = None, *, host: ComponentFactory | None = None
    ) -> ModuleAttention:
        """Return a module that starts from a softmax layer's weights.

        Raises:
            MismatchError: this layer cannot be converted (rotary, cross, sizes); the message says which feature.
        """

    @abstractmethod
    def forward(self, x: Tensor, ctx: AttentionContext, source: Tensor | None = None) -> AttentionResult:
        """Attend from ``x (B, N, C)`` to itself or to ``source (B, M, C)``; `out` is ``(B, N, C)``, projected."""

    def start_cache(self) -> Any:
        """Return an empty decoding cache for ``AttentionContext.cache``; x then holds the new tokens only.

        Raises:
            ValueError: this variant does not decode.
        """
        raise ValueError(f"{type(self).__name__} does not support decoding with a cache")

    @classmethod
    @abstractmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the analytic cost of one call on one sample, projections included."""


class ModelAttention(Component, ABC):
    """A model-level variant: converts several layers together (sharing maps or atoms between layers)."""

    @abstractmethod
    def convert(
        self,
        model: nn.Module,
        views: Mapping[int, AttentionView],
        layers: Sequence[int],
        calibration: Sequence[Batch],
    ) -> Transformed:
        """Return the converted model (a copy) and a report.

        Args:
            model: the model, left unchanged.
            views: layer index -> canonical view.
            layers: the layers that may be changed.
            calibration: a few batches, for similarity analysis.
        """


AnyAttention = AttentionCore | ModuleAttention | ModelAttention
"""What an attention component's class derives from."""
