"""Flow-Attention: attention as a flow from sources (keys) to sinks (queries) that is conserved, in linear time.

With Q = phi(q), K = phi(k), phi = sigmoid + eps, n sinks and m sources:

    I_i = Q_i . sum_j K_j                 flow into sink i          O_j = K_j . sum_i Q_i          flow out of source j
    Ihat_i = Q_i . sum_j K_j / O_j        with every source sending 1
    Ohat_j = K_j . sum_i Q_i / I_i        with every sink receiving 1
    competition  w_j = m softmax_j(Ohat_j)            allocation  a_i = sigmoid(Ihat_i n / m)
    out_i = a_i (Q_i / I_i) sum_j K_j^T (w_j v_j)

Conservation makes sum_i Ihat_i = m and sum_j Ohat_j = n exactly. Causal (n = m, positions t = 1 ...): each sum over
the other side becomes a running mean up to t, and w_t = t exp(Ohat_t) / sum_{u<=t} exp(Ohat_u). A source's weight is
settled when it arrives, so a state of constant size decodes token by token.

Cost per head, in multiply-accumulates: M D (Dv + 2) + N D (Dv + 2), linear in the length; causal adds N C (D + Dv) for
chunks of C tokens. Up to 1024 pairs the N x M product is formed instead, which is faster there.

Source: "Flowformer: Linearizing Transformers with Conservation Flows", arXiv 2202.06258. Departures:
- The paper adds eps = 1e-6 to both factors of each flow product. We add it once, inside phi: it then stands in both
  factors everywhere, conservation is exact for any eps, and four operations fewer run. The results differ by about eps.
- The released code clamps Ohat, differently for each task ([-1, 1] for images, [-5, 5] for language, [-10, 10], none);
  the paper does not. `source_clamp` is that bound, none by default: since the mean of Ohat is 1 in self-attention, a
  bound of 1 silences half of the competition.
- Padding is ours: padded sources and sinks leave every sum and both counts.
There is no scale on q.k: the context's `scale` has no meaning here. Rows of the map do not sum to 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from nasdistill.interfaces import (
    AttentionContext,
    AttentionCore,
    AttentionGeometry,
    AttentionResult,
    Example,
    refuse_undeclared,
    static_shape,
)
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions, parse_options
from nasdistill_attention import TAGS
from nasdistill_attention._shared import (
    SMALL,
    StateCache,
    as_dtype,
    causal_product,
    causal_product_macs,
    no_autocast,
    nonzero,
    repeat_heads,
    validity,
    widen,
)

EPS = 1e-6


class FlowOptions(ComponentOptions):
    """Options of Flow-Attention."""

    source_clamp: float | None = Field(
        None, gt=0, description="Bound on |Ohat| before the competition; none by default, as in the paper."
    )
    chunk: int = Field(64, ge=1, description="Tokens per chunk of the causal form; changes speed, not the result.")


class FlowState(NamedTuple):
    """Sums over the tokens so far: all that decoding keeps. ``(B, H, 1, D)`` where not said otherwise."""

    sources: Tensor
    """Number of sources, broadcastable to ``(B, H, 1, 1)``."""
    sinks: Tensor
    """Number of sinks, broadcastable to ``(B, H, 1, 1)``."""
    source: Tensor
    """Sum of K."""
    sink: Tensor
    """Sum of Q."""
    sent: Tensor
    """Sum of K / O."""
    received: Tensor
    """Sum of Q / I."""
    competition: Tensor
    """Log of the sum of exp(Ohat), ``(B, H, 1, 1)``."""
    product: Tensor
    """Sum of K^T (w v), ``(B, H, D, Dv)``."""


def feature_map(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return phi(x), zero at padding."""
    features = x.sigmoid() + EPS
    return features if valid is None else features.masked_fill(~valid, 0.0)


def flow_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_valid: Tensor | None = None,
    key_valid: Tensor | None = None,
    source_clamp: float | None = None,
) -> Tensor:
    """Attend in linear time, every sink to every source.

    Args:
        q: ``(B, H, N, D)``.
        k: ``(B, H, M, D)``.
        v: ``(B, H, M, Dv)``.
        query_valid: ``(B, 1, N, 1)`` bool, False at padding.
        key_valid: ``(B, 1, M, 1)`` bool, False at padding.
        source_clamp: bound on ``|Ohat|``; None = none.

    Returns:
        ``(B, H, N, Dv)``.
    """
    sink, source, v = _features(q, k, v, query_valid, key_valid)
    sinks, sources = _count(q, query_valid), _count(k, key_valid)
    incoming = sink @ source.sum(dim=-2, keepdim=True).transpose(-1, -2)
    outgoing = source @ sink.sum(dim=-2, keepdim=True).transpose(-1, -2)
    if query_valid is not None or key_valid is not None:
        incoming, outgoing = nonzero(incoming), nonzero(outgoing)
    received = sink / incoming
    conserved_in = sink @ (source / outgoing).sum(dim=-2, keepdim=True).transpose(-1, -2)
    conserved_out = source @ received.sum(dim=-2, keepdim=True).transpose(-1, -2)
    weight = _bounded(conserved_out, key_valid, source_clamp).softmax(dim=-2) * sources
    product = source.transpose(-1, -2) @ (v * weight)
    return received @ product * _allocation(conserved_in, sinks, sources)


def flow_attention_explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_valid: Tensor | None = None,
    key_valid: Tensor | None = None,
    source_clamp: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend through the N x M flows.

    Arguments as in :func:`flow_attention`. Returns the output and the map ``(B, H, N, M)``, with ``out = map @ v``.
    """
    sink, source, v = _features(q, k, v, query_valid, key_valid)
    sinks, sources = _count(q, query_valid), _count(k, key_valid)
    flows = sink @ source.transpose(-1, -2)
    incoming, outgoing = flows.sum(dim=-1, keepdim=True), flows.sum(dim=-2, keepdim=True)
    if query_valid is not None or key_valid is not None:
        incoming, outgoing = nonzero(incoming), nonzero(outgoing)
    received = flows / incoming
    conserved_in = (flows / outgoing).sum(dim=-1, keepdim=True)
    conserved_out = received.sum(dim=-2, keepdim=True)
    columns = None if key_valid is None else key_valid.transpose(-1, -2)
    weight = _bounded(conserved_out, columns, source_clamp).softmax(dim=-1) * sources
    share = received * weight * _allocation(conserved_in, sinks, sources)
    return share @ v, share


def causal_flow_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_valid: Tensor | None = None,
    key_valid: Tensor | None = None,
    source_clamp: float | None = None,
    chunk: int = 64,
    state: FlowState | None = None,
    keep_state: bool = False,
    need_map: bool = False,
) -> tuple[Tensor, FlowState | None, Tensor | None]:
    """Attend in linear time, each token to itself and what came before.

    Arguments as in :func:`flow_attention`, with N = M. `chunk` is the number of tokens per chunk of the last product,
    `state` what the tokens before the first one left, if there are any.

    Returns:
        ``(B, H, N, Dv)``; with `keep_state` the state after the last token; with `need_map` the map ``(B, H, N, N)``.
    """
    sink, source, v = _features(q, k, v, query_valid, key_valid)
    all_sinks, all_sources = _running_count(q, query_valid), _running_count(k, key_valid)
    all_sink, all_source = sink.cumsum(dim=-2), source.cumsum(dim=-2)
    if state is not None:
        all_sinks, all_sources = all_sinks + state.sinks, all_sources + state.sources
        all_sink, all_source = all_sink + state.sink, all_source + state.source
    sinks, sources = all_sinks.clamp_min(1), all_sources.clamp_min(1)

    # Means, not sums, so that a flow keeps its size from the first token to the last.
    incoming = (sink * all_source).sum(dim=-1, keepdim=True) / sources
    outgoing = (source * all_sink).sum(dim=-1, keepdim=True) / sinks
    if query_valid is not None or key_valid is not None:
        incoming, outgoing = nonzero(incoming), nonzero(outgoing)
    received = sink / incoming
    all_sent, all_received = (source / outgoing).cumsum(dim=-2), received.cumsum(dim=-2)
    if state is not None:
        all_sent, all_received = all_sent + state.sent, all_received + state.received
    conserved_in = (sink * all_sent).sum(dim=-1, keepdim=True) / sources
    conserved_out = (source * all_received).sum(dim=-1, keepdim=True) / sinks

    strength = _bounded(conserved_out, key_valid, source_clamp)
    all_strength = _running_logsumexp(strength)
    if state is not None:
        all_strength = torch.logaddexp(all_strength, state.competition)
    weight, allocation = (strength - all_strength).exp() * sources, conserved_in.sigmoid()
    before = None if state is None else state.product
    out = causal_product(received / sources, source, v * weight, chunk, before) * allocation
    after = share = None
    if keep_state:
        product = source.transpose(-1, -2) @ (v * weight)
        running = (all_sources, all_sinks, all_source, all_sink, all_sent, all_received, all_strength)
        product = product if before is None else before + product
        after = FlowState._make([*(total[..., -1:, :] for total in running), product])
    if need_map:
        share = (received / sources @ source.transpose(-1, -2)).tril() * weight.transpose(-1, -2) * allocation
    return out, after, share


def _features(
    q: Tensor, k: Tensor, v: Tensor, query_valid: Tensor | None, key_valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, K and v, zero at padding."""
    v = v if key_valid is None else v.masked_fill(~key_valid, 0.0)
    return feature_map(q, query_valid), feature_map(k, key_valid), v


def _count(x: Tensor, valid: Tensor | None) -> int | Tensor:
    """Return how many tokens count: an int, or per sample ``(B, 1, 1, 1)`` and at least 1."""
    if valid is None:
        return static_shape(x)[-2]
    return valid.sum(dim=-2, keepdim=True).clamp_min(1).to(x.dtype)


def _running_count(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return how many tokens count up to each position: ``(N, 1)``, or per sample ``(B, 1, N, 1)``."""
    if valid is None:
        return torch.arange(1, static_shape(x)[-2] + 1, dtype=x.dtype, device=x.device)[:, None]
    return valid.to(x.dtype).cumsum(dim=-2)


def _allocation(conserved_in: Tensor, sinks: int | Tensor, sources: int | Tensor) -> Tensor:
    """Return sigmoid(Ihat n / m)."""
    if isinstance(sinks, int) and isinstance(sources, int) and sinks == sources:
        return conserved_in.sigmoid()
    return (conserved_in * (sinks / sources)).sigmoid()


def _bounded(conserved_out: Tensor, key_valid: Tensor | None, source_clamp: float | None) -> Tensor:
    """Return Ohat within its bound, and so low at padding that no share of the competition is left for it."""
    if source_clamp is not None:
        conserved_out = conserved_out.clamp(-source_clamp, source_clamp)
    if key_valid is None:
        return conserved_out
    return conserved_out.masked_fill(~key_valid, torch.finfo(conserved_out.dtype).min / 2)


def _running_logsumexp(x: Tensor) -> Tensor:
    """Return log sum_{u<=t} exp(x_u) over ``(B, H, N, 1)``, whatever the size of x.

    Exporters have no operator for it (or one that is bounded by the largest x of all, later ones included), so a graph
    gets the N x N form.
    """
    if not (torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting()):
        return x.logcumsumexp(dim=-2)
    n = static_shape(x)[-2]
    later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
    rows = x.transpose(-1, -2).masked_fill(later, torch.finfo(x.dtype).min)
    return rows.logsumexp(dim=-1, keepdim=True)


class FlowAttention(AttentionCore):
    """Flow-Attention, bidirectional, cross and causal."""

    options_model = FlowOptions
    options: FlowOptions
    examples = (Example(name="default"), Example({"source_clamp": 1.0, "chunk": 16}, name="clamped"))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttentionContext) -> AttentionResult:
        """Attend; see :class:`nasdistill.interfaces.AttentionCore`. Rows of the map do not sum to 1.

        Queries influence each other here: in self-attention give `query_valid` as well as `key_valid`.
        """
        refuse_undeclared(self.id, TAGS["flow"], q, k, ctx)
        k, v = repeat_heads(q, k, v)
        n, m = static_shape(q)[-2], static_shape(k)[-2]
        causal = ctx.mask is not None and ctx.mask.causal
        if causal and n != m:
            raise ValueError(f"{self.id} does not support causal cross attention ({n} queries, {m} keys)")
        if ctx.cache is not None and not causal:
            raise ValueError(f"{self.id}: decoding needs a causal mask")
        if ctx.cache is not None and ctx.need_map:
            raise ValueError(f"{self.id} does not support an attention map while decoding: earlier keys are not kept")
        with no_autocast(q):
            query_valid, key_valid = validity(ctx.mask, n, m)
            wide, clamp = (widen(q), widen(k), widen(v)), self.options.source_clamp
            weights = None
            if causal:
                cache = ctx.cache
                out, state, weights = causal_flow_attention(
                    *wide,
                    query_valid=query_valid,
                    key_valid=key_valid,
                    source_clamp=clamp,
                    chunk=self.options.chunk,
                    state=None if cache is None else cache.state,
                    keep_state=cache is not None,
                    need_map=ctx.need_map,
                )
                if cache is not None:
                    cache.state = state
            elif ctx.need_map or n * m <= SMALL:
                out, weights = flow_attention_explicit(
                    *wide, query_valid=query_valid, key_valid=key_valid, source_clamp=clamp
                )
            else:
                out = flow_attention(*wide, query_valid=query_valid, key_valid=key_valid, source_clamp=clamp)
        return AttentionResult(as_dtype(out, v), map=weights if ctx.need_map else None)

    def start_cache(self) -> StateCache:
        """Return an empty state, of constant size whatever the number of tokens."""
        return StateCache()

    @classmethod
    def cost(cls, geometry: AttentionGeometry, n: int, m: int, options: Any = None) -> Cost:
        """Return the cost of the form that runs for these lengths."""
        chunk = parse_options(FlowOptions, options, where=cls.__name__).chunk
        d, dv, heads = geometry.head_dim, geometry.value_dim, geometry.heads
        if geometry.causal:
            return Cost(0, heads * causal_product_macs(n, chunk, d, dv), heads * n * (min(n, chunk) + dv))
        if n * m <= SMALL:
            return Cost(0, heads * n * m * (d + dv), heads * n * (m + dv))
        return Cost(0, heads * (n + m) * d * (dv + 2), heads * (d * dv + n * dv + 2 * (n + m)))
