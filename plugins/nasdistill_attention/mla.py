"""Multi-head latent attention that starts from a softmax layer: one small latent per token is all that is cached.

    c_q = A_q x             q = B_q c_q                     per head [q_n ; q_r], of d_n and d_r channels
    c = A_kv x              [k_n ; v] = B_kv c              per head, of d_n and d_v channels
    k_r = W_r x             one rotary key of d_r channels for all heads
    P_h = softmax(([q_n ; R q_r] . [k_n ; R k_r]) / sqrt(d_n + d_r))            out = W_o concat_h(P_h v_h)

The cache holds r_kv + d_r numbers per token, where softmax attention keeps 2 G D. Keys and values are either expanded
from c, or absorbed: q_n . k_n = (B_k^T q_n) . c and W_o (P v) = W_o B_v (P c), so that attention runs on the latent
itself as with one key/value head. Both give the same; `path` chooses, by default what multiplies less.

Start: W_q = U S V^T gives A_q = S V^T and B_q = U, cut to r_q; the stack [W_k ; W_v], key/value heads repeated for
their query heads, gives A_kv and B_kv in one joint decomposition, cut to r_kv. B keeps d_n rows of each head for the
part without positions and d_r for the rotary part; W_r is the mean of these rows over the G key heads. W_o is copied.
Ranks are fixed, or follow from the spectrum: #{i : s_1^2 + ... + s_i^2 <= energy * sum s^2}, at least 1, rounded up to
a multiple of 8. At full rank and without rotary positions the module is the softmax layer; with as many key as query
heads and H D = C, full rank is half of the cache.

Cost per token in multiply-accumulates: (C + H (d_n + d_r)) r_q for the queries, or C H (d_n + d_r) with W_q in one
piece, C (r_kv + d_r) and H d_v C; and for N queries on M keys either H (d_n + d_v) r_kv M + H N M (d_n + d_r + d_v)
(expanded) or H (d_n + d_v) r_kv N + H N M (2 r_kv + d_r) (absorbed).

Source: "X-EcoMLA: Upcycling Pre-Trained Attention into MLA for Efficient and Extreme KV Compression", arXiv 2503.11132.
- With rotary positions even full rank is not the softmax layer: heads share one rotary key, and of D rotary channels
  d_r are left (it is the layer with one key/value head and d_r = D). The paper keeps the last d_r rows of each head and
  turns them by a shorter table of frequencies, so the rows are not turned as they were trained to be. That is
  `rope_rows = "last"`. Ours, the default, keeps the rows of the fastest d_r / 2 frequencies, with these frequencies:
  what becomes position-free are the channels that turned least.
- Rows are turned in the source's convention; the released code takes DeepSeek's, pairs of neighbours, for weights that
  were trained on halves.
- Biases are kept. That of the position-free keys is left out: it adds the same to all scores of a query, which softmax
  does not see.
- Queries stay in one piece by default: factoring them saves no cache. The paper always factors them, with r_q such that
  the layer keeps its number of parameters (`q_rank = "match"`); where keys and values have as many heads as queries and
  r_kv is large, little is left for them then.
- The scale is the layer's own times sqrt(D / (d_n + d_r)), that is 1 / sqrt(d_n + d_r) where it was 1 / sqrt(D).
- d_v stays the layer's, since W_o is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from nasdistill.errors import ConfigError, MismatchError
from nasdistill.interfaces import (
    AttentionContext,
    AttentionGeometry,
    AttentionResult,
    AttentionView,
    ComponentFactory,
    Example,
    ModuleAttention,
    RotaryEmbedding,
    refuse_undeclared,
    static_shape,
)
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions, parse_options, searchable
from nasdistill_attention import TAGS
from nasdistill_attention._shared import as_dtype, constant, widen
from nasdistill_attention.softmax import causal_only, softmax_attention, softmax_map


class MLAOptions(ComponentOptions):
    """Options of latent attention. Those of a converted module have every size filled in, and rebuild it."""

    kv_rank: int | None = Field(None, ge=1, description="r_kv, the size of the latent; unset: from energy or cache.")
    energy: float | None = Field(None, gt=0, le=1, description="Share of the squared singular values to keep at most.")
    cache: float = searchable(
        0.5, choices=(0.0625, 0.125, 0.25, 0.5, 1.0), gt=0, le=1,
        description="Cached numbers per token, r_kv + d_r, as a share of softmax attention's.",
    )  # fmt: skip
    q_rank: int | Literal["direct", "full", "match"] = Field(
        "direct",
        description="r_q; `direct` keeps W_q in one piece, `full` factors it without a loss, `match` keeps the number "
        "of parameters.",
    )
    nope_dim: int | None = Field(None, ge=0, description="d_n, channels per head without positions; unset: D - d_r.")
    rope_dim: int | None = Field(
        None, ge=0, description="d_r, channels with rotary positions; unset: half of them, 0 where there are none."
    )
    rope_rows: Literal["fast", "last"] = Field(
        "fast", description="Which rows stay rotary: of the fastest frequencies, or the last with a shorter table."
    )
    init: Literal["svd", "random"] = Field("svd", description="Start of the low-rank maps; random is for comparison.")
    latent_norm: bool = Field(False, description="Root-mean-square norm of both latents; changes the start.")
    path: Literal["auto", "expanded", "absorbed"] = Field("auto", description="How keys and values are formed.")
    bias: bool = Field(True, description="Keep biases of queries, rotary key and values where the layer has them.")
    output_bias: bool = Field(True, description="Keep the bias of the output where the layer has one.")

    @model_validator(mode="after")
    def _one_rule(self) -> MLAOptions:
        if self.kv_rank is not None and self.energy is not None:
            raise ValueError("give kv_rank or energy, not both")
        if isinstance(self.q_rank, int) and self.q_rank < 1:
            raise ValueError("q_rank must be at least 1")
        if self.rope_dim is not None and self.rope_dim % 2:
            raise ValueError("rope_dim must be even: channels turn in pairs")
        return self


class Sizes(NamedTuple):
    """The sizes of one layer: ranks (a q_rank of 0: not factored) and channels per head."""

    q_rank: int
    kv_rank: int
    nope: int
    rope: int


@dataclass(slots=True)
class LatentCache:
    """Latents ``(B, M, r_kv)`` and rotary keys ``(B, M, d_r)`` (already turned) of the tokens so far."""

    latent: Tensor | None = None
    key: Tensor | None = None

    def append(self, latent: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens and return all of them."""
        self.latent = latent if self.latent is None else torch.cat([self.latent, latent], dim=1)
        self.key = key if self.key is None else torch.cat([self.key, key], dim=1)
        return self.latent, self.key

    @property
    def tokens(self) -> int:
        """Number of tokens so far."""
        return 0 if self.latent is None else static_shape(self.latent)[1]

    @property
    def numbers(self) -> int:
        """How many numbers are kept per token."""
        kept = [part for part in (self.latent, self.key) if part is not None]
        return sum(static_shape(part)[-1] for part in kept)


def energy_rank(singular: Tensor, energy: float, multiple: int = 8) -> int:
    """Return how many singular values to keep.

    Args:
        singular: ``(K,)``, largest first.
        energy: share of the sum of squares that is not to be exceeded before rounding, in (0, 1].
        multiple: the count is rounded up to a multiple of this, and is K at most.
    """
    squares = singular.double().square()
    share = squares.cumsum(0) / squares.sum().clamp_min(torch.finfo(torch.float64).tiny)
    count = max(1, int((share <= energy + 1e-9).sum()))
    return min(-(-count // multiple) * multiple, len(singular))


def joint_decomposition(w_k: Tensor, w_v: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Decompose keys and values together, with heads repeated for their query heads.

    Repeating all rows t times is the same subspace with singular values sqrt(t) larger, so it is done afterwards.

    Args:
        w_k: ``(G * D, C)``.
        w_v: ``(G * Dv, C)``.
        heads: H.
        kv_heads: G.

    Returns:
        U ``(H, D + Dv, K)`` (keys first), singular values ``(K,)``, V^T ``(K, C)`` of the repeated stack.
    """
    times = heads // kv_heads
    u, s, vt = torch.linalg.svd(torch.cat([w_k, w_v]), full_matrices=False)
    u_k, u_v = (by_head(part, kv_heads) for part in u.split([len(w_k), len(w_v)]))
    rows = torch.cat([u_k, u_v], dim=1).repeat_interleave(times, dim=0) / math.sqrt(times)
    return rows, s * math.sqrt(times), vt


def by_head(rows: Tensor, heads: int) -> Tensor:
    """Return ``(H * D, ...)`` as ``(H, D, ...)``."""
    return rows.reshape(heads, -1, *rows.shape[1:])


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn channel i together with channel i + d / 2 by `angle`.

    Args:
        x: ``(..., N, d)``.
        angle: ``(N, d / 2)`` or broadcastable to it, float32.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = as_dtype(angle.cos(), x), as_dtype(angle.sin(), x)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class LatentNorm(nn.Module):
    """Root-mean-square norm, written out: torch's own has no form in ONNX."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., size)``."""
        wide = widen(x)
        return as_dtype(wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt(), x) * self.weight


class LatentAttention(ModuleAttention):
    """Multi-head latent attention.

    Attributes:
        options: with every size filled in; with them `from_softmax` gives the same structure again.
        q_down, q_up: A_q and B_q; without A_q, `q_up` is W_q.
        kv_down, k_up, v_up: A_kv and both parts of B_kv.
        k_rope: W_r.
        out: W_o.
    """

    options_model = MLAOptions
    options: MLAOptions
    pair_cache = True
    examples = (
        Example({"cache": 0.25}, name="quarter"),
        Example({"kv_rank": 4, "q_rank": "match", "path": "absorbed", "latent_norm": True}, name="absorbed"),
    )

    def __init__(
        self,
        geometry: AttentionGeometry,
        options: MLAOptions,
        *,
        scale: float,
        frequencies: npt.NDArray[np.float32] | None = None,
        turned: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        sizes = sizes_of(geometry, options, rotary=frequencies is not None)
        self.options, self.geometry, self.sizes, self.scale = options, geometry, sizes, scale
        self.frequencies, self.turned = frequencies, turned
        make: Any = lambda i, o, bias=False: nn.Linear(i, o, bias=bias, dtype=dtype, device=device)  # noqa: E731
        heads, dim = geometry.heads, geometry.dim
        self.q_down = make(dim, sizes.q_rank) if sizes.q_rank else None
        self.q_up = make(sizes.q_rank or dim, heads * (sizes.nope + sizes.rope), options.bias)
        self.kv_down = make(dim, sizes.kv_rank)
        self.k_up = make(sizes.kv_rank, heads * sizes.nope) if sizes.nope else None
        self.v_up = make(sizes.kv_rank, heads * geometry.value_dim, options.bias)
        self.k_rope = make(dim, sizes.rope, options.bias) if sizes.rope else None
        self.out = make(heads * geometry.value_dim, dim, options.output_bias)
        self.q_norm = LatentNorm(sizes.q_rank, dtype, device) if options.latent_norm and sizes.q_rank else None
        self.kv_norm = LatentNorm(sizes.kv_rank, dtype, device) if options.latent_norm else None

    @classmethod
    def from_softmax(
        cls, view: AttentionView, options: Any = None, *, host: ComponentFactory | None = None
    ) -> LatentAttention:
        """Return the module that starts from a softmax layer.

        Args:
            view: the layer. Weights in half precision are decomposed in float32 and cast back.
            options: :class:`MLAOptions`.
            host: not needed.

        Raises:
            MismatchError: cross attention, norms of q and k, or rotary positions that do not fit the options.
            ConfigError: a size of the options that the layer does not have.
        """
        chosen = parse_options(MLAOptions, options, where="mla")
        rotary = _rotary(view)
        _check(view, chosen, rotary)
        geometry = view.geometry
        wide = torch.promote_types(view.w_q.dtype, torch.float32)
        with torch.no_grad():
            w_q, w_k, w_v = (w.detach().to(wide) for w in (view.w_q, view.w_k, view.w_v))
            kv = joint_decomposition(w_k, w_v, geometry.heads, geometry.kv_heads)
            chosen = _resolved(view, chosen, kv[1], rotary=rotary is not None)
            sizes = sizes_of(geometry, chosen, rotary=rotary is not None)
            nope, rope, frequencies = _rows(geometry.head_dim, sizes, rotary, chosen.rope_rows)
            module = cls(
                geometry, chosen, dtype=view.w_q.dtype, device=view.w_q.device, frequencies=frequencies,
                turned=1.0 if rotary is None else rotary.scaling,
                scale=view.scale * math.sqrt(geometry.head_dim / (sizes.nope + sizes.rope)),
            )  # fmt: skip
            if chosen.init == "svd":
                module._decompose(w_q, w_k, kv, nope, rope)
            module._copy(view, nope, rope)
        return module

    def _decompose(
        self, w_q: Tensor, w_k: Tensor, kv: tuple[Tensor, Tensor, Tensor], nope: Sequence[int], rope: Sequence[int]
    ) -> None:
        """Set the low-rank maps and the rotary key."""
        geometry, sizes = self.geometry, self.sizes
        rows = w_q
        if self.q_down is not None:
            u, s, vt = torch.linalg.svd(w_q, full_matrices=False)
            rows = u[:, : sizes.q_rank]
            self.q_down.weight.copy_(s[: sizes.q_rank, None] * vt[: sizes.q_rank])
        self.q_up.weight.copy_(by_head(rows, geometry.heads)[:, [*nope, *rope]].flatten(0, 1))
        u, s, vt = kv
        self.kv_down.weight.copy_(s[: sizes.kv_rank, None] * vt[: sizes.kv_rank])
        keys, values = (part[..., : sizes.kv_rank] for part in u.tensor_split([geometry.head_dim], dim=1))
        if self.k_up is not None:
            self.k_up.weight.copy_(keys[:, list(nope)].flatten(0, 1))
        self.v_up.weight.copy_(values.flatten(0, 1))
        if self.k_rope is not None:
            self.k_rope.weight.copy_(by_head(w_k, geometry.kv_heads)[:, list(rope)].mean(0))

    def _copy(self, view: AttentionView, nope: Sequence[int], rope: Sequence[int]) -> None:
        """Copy the output projection and all biases; a layer that has only some of q, k and v gets zeros for others."""
        geometry = self.geometry
        self.out.weight.copy_(view.w_o)
        if self.out.bias is not None:
            self.out.bias.copy_(view.b_o if view.b_o is not None else torch.zeros_like(self.out.bias))
        if not self.options.bias:
            return
        b_q, b_k, b_v = (
            w.new_zeros(len(w)) if b is None else b
            for w, b in ((view.w_q, view.b_q), (view.w_k, view.b_k), (view.w_v, view.b_v))
        )
        times = geometry.heads // geometry.kv_heads
        self.q_up.bias.copy_(by_head(b_q, geometry.heads)[:, [*nope, *rope]].flatten())
        self.v_up.bias.copy_(by_head(b_v, geometry.kv_heads).repeat_interleave(times, dim=0).flatten())
        if self.k_rope is not None:
            self.k_rope.bias.copy_(by_head(b_k, geometry.kv_heads)[:, list(rope)].mean(0))

    def forward(self, x: Tensor, ctx: AttentionContext, source: Tensor | None = None) -> AttentionResult:
        """Attend; see :class:`nasdistill.interfaces.ModuleAttention`. ``(B, N, C)`` to ``(B, N, C)``."""
        if source is not None:
            raise ValueError("mla does not support cross attention (a source of its own)")
        geometry, sizes, n = self.geometry, self.sizes, static_shape(x)[1]
        compressed = x if self.q_down is None else self.q_down(x)
        compressed = compressed if self.q_norm is None else self.q_norm(compressed)
        q = self.q_up(compressed).unflatten(-1, (geometry.heads, -1)).transpose(1, 2)
        refuse_undeclared("mla", TAGS["mla"], q, q, ctx)
        latent = self.kv_down(x) if self.kv_norm is None else self.kv_norm(self.kv_down(x))
        key = latent[..., :0]
        q_nope, q_rope = q.split([sizes.nope, sizes.rope], dim=-1)
        if self.k_rope is not None:
            angle = self._angle(x, ctx, 0 if ctx.cache is None else ctx.cache.tokens)
            key = rotate(self.k_rope(x), angle) * self.turned
            q_rope = rotate(q_rope, angle if angle.dim() == 2 else angle.unsqueeze(1)) * self.turned
        if ctx.cache is not None:
            latent, key = ctx.cache.append(latent, key)
        if self._absorbs(n, static_shape(latent)[1]):
            out, weights = self._absorbed(q_nope, q_rope, latent, key, ctx)
        else:
            out, weights = self._expanded(q_nope, q_rope, latent, key, ctx)
        return AttentionResult(self.out(out.transpose(1, 2).flatten(2)), map=weights)

    def _expanded(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor, ctx: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with keys and values of every head: ``(B, H, N, d_v)`` and the map if asked for."""
        heads = self.geometry.heads
        parts = [key.unsqueeze(1).expand(-1, heads, -1, -1)] if self.sizes.rope else []
        if self.k_up is not None:
            parts.insert(0, self.k_up(latent).unflatten(-1, (heads, -1)).transpose(1, 2))
        v = self.v_up(latent).unflatten(-1, (heads, -1)).transpose(1, 2)
        return self._attend(torch.cat([q_nope, q_rope], dim=-1), torch.cat(parts, dim=-1), v, ctx)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor, ctx: AttentionContext
    ) -> tuple[Tensor, Tensor | None]:
        """Attend on the latent, which is key and value of all heads; keys and values of the heads are never formed."""
        heads = self.geometry.heads
        parts, keys = [q_rope], [key]
        if self.k_up is not None:
            parts.insert(0, q_nope @ by_head(self.k_up.weight, heads))
            keys.insert(0, latent)
        k, v = (x.unsqueeze(1).expand(-1, heads, -1, -1) for x in (torch.cat(keys, dim=-1), latent))
        mixed, weights = self._attend(torch.cat(parts, dim=-1), k, v, ctx)
        out = mixed @ by_head(self.v_up.weight, heads).transpose(-1, -2)
        if self.v_up.bias is not None:
            out = out + self.v_up.bias.unflatten(0, (heads, 1, -1))
        return out, weights

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> tuple[Tensor, Tensor | None]:
        n, m = static_shape(q)[-2], static_shape(k)[-2]
        if ctx.mask is not None and causal_only(ctx.mask) and n == m and ctx.bias is None and not ctx.need_map:
            return softmax_attention(q, k, v, causal=True, scale=self.scale), None
        dense = None if ctx.mask is None else ctx.mask.dense(n, m, q.device)
        if not ctx.need_map:
            return softmax_attention(q, k, v, mask=dense, bias=ctx.bias, scale=self.scale), None
        weights, _ = softmax_map(q, k, mask=dense, bias=ctx.bias, scale=self.scale)
        return as_dtype(weights, v) @ v, weights

    def _angle(self, x: Tensor, ctx: AttentionContext, start: int) -> Tensor:
        """Return the angles of this call's tokens, ``(N, d_r / 2)`` or ``(B, N, d_r / 2)``, in float32."""
        n = static_shape(x)[1]
        positions = torch.arange(start, start + n, device=x.device) if ctx.positions is None else ctx.positions
        assert self.frequencies is not None
        return positions[..., None].float() * constant(self.frequencies, x)

    def _absorbs(self, n: int, m: int) -> bool:
        return _absorbs(self.geometry, self.sizes, self.options, n, m)

    def start_cache(self) -> LatentCache:
        """Return an empty cache of latents: `r_kv + d_r` numbers per token."""
        return LatentCache()

    @classmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the cost of one call; a causal mask is not counted as saved work.

        Exact for the options of a converted module. Before a conversion, `energy` and rotary positions are not known
        from the sizes: the first is taken for full rank, and without `rope_dim` there are none; biases are counted
        unless switched off.
        """
        chosen = parse_options(MLAOptions, options, where="mla")
        sizes = sizes_of(geometry, chosen, rotary=bool(chosen.rope_dim))
        heads, dim, value, r = geometry.heads, geometry.dim, geometry.value_dim, sizes.kv_rank
        width = sizes.nope + sizes.rope
        cost = Cost.linear(dim, r, tokens=n, bias=False)
        cost += Cost.linear(dim, sizes.q_rank, tokens=n, bias=False) if sizes.q_rank else Cost(0, 0)
        cost += Cost.linear(sizes.q_rank or dim, heads * width, tokens=n, bias=chosen.bias)
        if sizes.rope:
            cost += Cost.linear(dim, sizes.rope, tokens=n, bias=chosen.bias)
        cost += Cost.linear(heads * value, dim, tokens=n, bias=chosen.output_bias)
        cost += Cost(sizes.q_rank + r, 0) if chosen.latent_norm else Cost(0, 0)
        own = heads * (sizes.nope + value) * r + (heads * value if chosen.bias else 0)
        if _absorbs(geometry, sizes, chosen, n, m):
            inner = (r if sizes.nope else 0) + sizes.rope + r
            return cost + Cost(own, heads * n * (r * (sizes.nope + value) + m * inner), heads * n * (2 * r + value + m))
        products = heads * m * r * (sizes.nope + value) + heads * n * m * (width + value)
        return cost + Cost(own, products, heads * (m * (sizes.nope + value) + n * (m + value)))


def sizes_of(geometry: AttentionGeometry, options: MLAOptions, *, rotary: bool, by_energy: int | None = None) -> Sizes:
    """Return the sizes that options mean for a layer; `by_energy` is the rank by energy, full rank unless given.

    Raises:
        ConfigError: a size is larger than the layer's.
    """
    heads, groups, dim, head_dim = geometry.heads, geometry.kv_heads, geometry.dim, geometry.head_dim
    rope = options.rope_dim if options.rope_dim is not None else (head_dim // 4 * 2 if rotary else 0)
    nope = options.nope_dim if options.nope_dim is not None else head_dim - rope
    cached = groups * (head_dim + geometry.value_dim)
    full, q_full = min(cached, dim), min(heads * head_dim, dim)
    if nope + rope > head_dim or nope + rope < 1:
        raise ConfigError(f"mla: {nope} channels without and {rope} with positions do not fit heads of {head_dim}")
    if options.kv_rank is not None:
        r = options.kv_rank
    elif options.energy is not None:
        r = full if by_energy is None else by_energy
    else:
        r = min(full, max(1, round(options.cache * cached) - rope))
    if r > full:
        raise ConfigError(f"mla: kv_rank {r} is more than the full rank of the keys and values, {full}")
    if options.q_rank == "match":
        before = dim * (heads * head_dim + cached)
        left = before - dim * (r + rope) - r * heads * (nope + geometry.value_dim)
        matched = left // (dim + heads * (nope + rope))
        q_rank = max(1, min(q_full, matched // 8 * 8 if matched >= 8 else matched))
    elif options.q_rank == "direct":
        q_rank = 0
    else:
        q_rank = q_full if options.q_rank == "full" else options.q_rank
    if q_rank > q_full:
        raise ConfigError(f"mla: q_rank {q_rank} is more than the full rank of the queries, {q_full}")
    return Sizes(q_rank, r, nope, rope)


def _absorbs(geometry: AttentionGeometry, sizes: Sizes, options: MLAOptions, n: int, m: int) -> bool:
    """Whether the absorbed path is taken: as the options say, or where it multiplies less."""
    if options.path != "auto":
        return options.path == "absorbed"
    inner, r = sizes.nope + geometry.value_dim, sizes.kv_rank
    expanded = m * r * inner + n * m * (sizes.nope + sizes.rope + geometry.value_dim)
    return n * r * inner + n * m * (2 * r + sizes.rope) < expanded


def _resolved(view: AttentionView, options: MLAOptions, singular: Tensor, *, rotary: bool) -> MLAOptions:
    """Return the options with all sizes filled in, so that nothing has to be decided again."""
    rank = None if options.energy is None else energy_rank(singular, options.energy)
    sizes = sizes_of(view.geometry, options, rotary=rotary, by_energy=rank)
    biased = any(bias is not None for bias in (view.b_q, view.b_k, view.b_v))
    return options.model_copy(
        update={
            "kv_rank": sizes.kv_rank, "energy": None, "q_rank": sizes.q_rank or "direct", "nope_dim": sizes.nope,
            "rope_dim": sizes.rope, "bias": options.bias and biased,
            "output_bias": options.output_bias and view.b_o is not None,
        }
    )  # fmt: skip


def _check(view: AttentionView, options: MLAOptions, rotary: RotaryEmbedding | None) -> None:
    """Refuse what cannot be converted, naming the layer."""
    where = f" ({view.path})" if view.path else ""
    if view.cross:
        raise MismatchError(f"mla does not support cross attention{where}")
    if view.q_norm is not None or view.k_norm is not None:
        raise MismatchError(
            f"mla does not support a norm of q and k per head{where}: a normed key is no linear map of a latent"
        )
    if rotary is None and options.rope_dim:
        raise MismatchError(f"mla: rope_dim is {options.rope_dim}, and the layer has no rotary positions{where}")
    if rotary is not None and options.rope_dim == 0:
        raise MismatchError(f"mla: with rope_dim 0 the layer's rotary positions would be lost{where}")
    if rotary is not None and (options.rope_dim or 0) > rotary.dim:
        raise MismatchError(f"mla: rope_dim {options.rope_dim} is more than the {rotary.dim} rotary channels{where}")


def _rotary(view: AttentionView) -> RotaryEmbedding | None:
    """Return the layer's rotary embedding, which must be a rule of positions."""
    found = view.rotary
    if found is not None and not (isinstance(found, RotaryEmbedding) and found.inv_freq is not None):
        where = f" of {view.path}" if view.path else ""
        raise MismatchError(
            f"mla does not support the rotary embedding{where}: its angles are no multiples of the position",
            hint="Image models that turn by row and column are of this kind.",
        )
    return found


def _rows(
    head_dim: int, sizes: Sizes, rotary: RotaryEmbedding | None, which: str
) -> tuple[list[int], list[int], npt.NDArray[np.float32] | None]:
    """Return which rows of a head become position-free, which rotary (first halves of pairs first), and frequencies."""
    if rotary is None or rotary.inv_freq is None or not sizes.rope:
        return list(range(sizes.nope)), [], None
    table = rotary.inv_freq.detach().double().cpu().numpy()
    pairs, kept, interleaved = len(table), sizes.rope // 2, rotary.style == "interleaved"
    if which == "last":
        rope = list(range(2 * pairs - sizes.rope, 2 * pairs))
        if interleaved:
            rope = [*rope[::2], *rope[1::2]]
        # The table of a head of d_r channels: every (D / d_r)-th frequency, between neighbours where that is no whole.
        frequencies = np.exp(np.interp(np.arange(kept) * pairs / kept, np.arange(pairs), np.log(table)))
    else:
        fastest = np.argsort(-table, kind="stable")[:kept]
        first, second = (2 * fastest, 2 * fastest + 1) if interleaved else (fastest, fastest + pairs)
        rope, frequencies = [*map(int, first), *map(int, second)], table[fastest]
    nope = [row for row in range(head_dim) if row not in set(rope)][: sizes.nope]
    return nope, rope, frequencies.astype(np.float32)
