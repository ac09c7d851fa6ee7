"""The canonical view of attention layers, read off what a model does; names only label.

From one dry run of a noisy copy (:mod:`nasdistill.bridge.dryrun`) each attention call's q, k, v and context are known,
and so is every product with a weight. A column of v that equals an output column of a product says which row of which
weight it came from, whatever the layout: separate or packed, interleaved, ``Conv1D``, batch or sequence first. Between
a projection and q or k there may be a factor, a norm per head, a rotation (solved per position from before and after),
or a norm and then a rotation. The output projection is the product whose input columns are the context's. A view is
handed out only after it rebuilt, by itself, what the output projection gave in the dry run.

What has no such form is refused by name: streams joined before the attention, projections by convolution, scores
written out by hand, a gate behind the context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.bridge.dryrun import DryRun, Leaf, Product, dry_run
from nasdistill.bridge.matching import (
    Match,
    columns_of,
    direct,
    head_layouts,
    heads_of,
    nearest,
    one_factor,
    producers_of,
    repeats,
    rotary_sizes,
    rotation,
    rows_of,
    streams_of,
    tolerance_of,
    turned,
    with_frequencies,
)
from nasdistill.bridge.record import CallRecord, first_float
from nasdistill.bridge.watching import AttentionCall
from nasdistill.errors import MismatchError, one_line
from nasdistill.interfaces import (
    AttentionGeometry,
    AttentionView,
    ModuleAttention,
    RotaryEmbedding,
    Site,
    TokenLayout,
    WeightSource,
)

Run = Callable[[nn.Module], Any]
"""One forward on a tiny real batch: ``run(model)``."""

_MAX_PREFIX = 8
_TABLES = ("inv_freq", "cos", "sin")


class NoAttentionError(MismatchError):
    """A model's forward holds no attention at all."""


def attention_views(
    model: nn.Module, run: Run, *, layers: Iterable[int] | None = None, cross: bool = False
) -> dict[int, AttentionView]:
    """Return the softmax attention of a model's layers in canonical form.

    Args:
        model: any model; left as it is. It is copied and run once.
        run: one forward on a tiny real batch through ``model(...)``, at least two samples of eight different tokens.
        layers: only these, numbered as the sites ``q.i``; None = all that have such attention.
        cross: the attention of a layer over another sequence, which follows its self-attention in decoders and U-Nets.

    Returns:
        Layer -> view; its weights are copies of the model's.

    Raises:
        MismatchError: the model has no attention that can be seen, or a layer has no such form; the message says why.
    """
    done = dry_run(model, run)
    wanted = None if layers is None else set(layers)
    found: dict[int, AttentionView] = {}
    for layer, calls in enumerate(call_records(done, model)):
        if wanted is not None and layer not in wanted:
            continue
        for call in calls:
            if is_cross(done, call) == cross:
                found[layer] = LayerReader(model, done, layer, call).view()
                break
    missing = sorted((wanted or set()) - set(found))
    if missing or not found:
        kind = "attention over another sequence" if cross else "self-attention"
        where = f"layer {missing[0]} of " if missing else ""
        raise MismatchError(f"{where}{type(model).__name__} has no {kind}; it has {len(done.found.calls)} layers")
    return found


def call_records(done: DryRun, model: nn.Module) -> list[list[CallRecord]]:
    """Return the attention calls of each layer. Raises MismatchError when there is none, saying what was seen."""
    if done.found.calls:
        return done.found.calls
    name = type(model).__name__
    if done.by_hand:
        path = done.by_hand[0]
        kind = type(done.model.get_submodule(path)).__name__
        raise MismatchError(
            f"{name} computes its attention scores by hand (a softmax in {path or 'the model'!r}, {kind}): there is no "
            "call to scaled_dot_product_attention to read q, k and v from",
            hint="Only attention that runs as a fused call can be viewed or replaced.",
        )
    raise NoAttentionError(
        f"{name} made no attention call in its forward",
        hint="Choose a network with attention: a transformer of text, or a vision transformer.",
    )


def view_output(
    view: AttentionView,
    x: Tensor,
    source: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Compute attention from a view alone.

    Args:
        view: the layer.
        x: ``(B, N, C)``, the input of its projections.
        source: ``(B, M, C')`` for cross attention.
        mask: bool, broadcastable to ``(B, H, N, M)``, True = attend; the causal mask is added where the view is causal.
        bias: added to the scores, broadcastable likewise.
        positions: ``(N,)`` or ``(B, N)`` for the rotary embedding; 0..N-1 by default.

    Returns:
        ``(B, N, C)``, the output projection's output; rows that may attend to nothing are projected zeros.
    """
    q, k, v = view_heads(view, x, source, positions)
    scores = q @ k.transpose(-1, -2) * view.scale
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device)
    allowed = allowed.tril(scores.shape[-1] - scores.shape[-2]) if view.geometry.causal else allowed
    allowed = allowed if mask is None else allowed & mask
    scores = scores if bias is None else scores + bias
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num(0.0)
    return F.linear((weights @ v).transpose(1, 2).flatten(2), view.w_o, view.b_o)


def view_heads(
    view: AttentionView, x: Tensor, source: Tensor | None = None, positions: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v of a view, ``(B, H, N, D)``, normed, turned and repeated for all query heads."""
    source = x if source is None else source
    q, k, v = (
        _split(F.linear(tokens, weight, offset), heads)
        for tokens, weight, offset, heads in (
            (x, view.w_q, view.b_q, view.geometry.heads),
            (source, view.w_k, view.b_k, view.geometry.kv_heads),
            (source, view.w_v, view.b_v, view.geometry.kv_heads),
        )
    )
    q = q if view.q_norm is None else view.q_norm(q)
    k = k if view.k_norm is None else view.k_norm(k)
    if view.rotary is not None:
        q, k = view.rotary.rotate(q, positions), view.rotary.rotate(k, positions)
    times = view.geometry.heads // view.geometry.kv_heads
    return q, k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)


def _split(x: Tensor, heads: int) -> Tensor:
    """``(B, N, H * D)`` to ``(B, H, N, D)``."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def layer_view(model: nn.Module, done: DryRun, layer: int, record: CallRecord) -> AttentionView:
    """Return the view of one attention call of a dry run. Raises MismatchError when it has none."""
    return LayerReader(model, done, layer, record).view()


# ---- views as data ---------------------------------------------------------------------------------------------------


def pack_view(view: AttentionView) -> dict[str, Any]:
    """Return all of a view but its numbers as plain data, from which :func:`unpack_view` reads it off another model."""
    rotary = view.rotary
    return {
        "path": view.path,
        "layer": view.layer,
        "geometry": asdict(view.geometry),
        "scale": view.scale,
        "cross": view.cross,
        "score_bias": view.score_bias,
        "norms": list(view.norm_paths),
        "rotary": None if rotary is None else {
            "style": rotary.style, "dim": rotary.dim, "scaling": rotary.scaling,
            **{name: None if x is None else x.tolist() for name, x in (
                ("inv_freq", rotary.inv_freq), ("cos", rotary.cos), ("sin", rotary.sin))},
        },
        "sources": {
            role: {"weight": source.weight, "bias": source.bias, "axis": source.axis, "index": _runs(source.index)}
            for role, source in view.sources.items()
        },
    }  # fmt: skip


def unpack_view(model: nn.Module, data: Mapping[str, Any], path: str) -> AttentionView:
    """Return the view that `data` describes, with the weights of `model`.

    Raises:
        MismatchError: the model lacks a parameter, or it is too small.
    """
    rotary = data["rotary"]
    if rotary is not None:
        rotary = RotaryEmbedding(
            rotary["style"], rotary["dim"], scaling=rotary["scaling"],
            **{name: None if rotary[name] is None else torch.tensor(rotary[name]) for name in _TABLES},
        )  # fmt: skip
    sources = {
        role: WeightSource(source["weight"], source["bias"], _from_runs(source["index"]), source["axis"])
        for role, source in data["sources"].items()
    }
    geometry = dict(data["geometry"])
    if geometry.get("layout") is not None:
        grid = geometry["layout"]["grid"]
        geometry["layout"] = TokenLayout(**{**geometry["layout"], "grid": None if grid is None else tuple(grid)})
    try:
        return _assembled(
            model, sources, AttentionGeometry(**geometry), data["norms"], scale=data["scale"], rotary=rotary,
            cross=data["cross"], path=path, layer=data["layer"], score_bias=data["score_bias"],
        )  # fmt: skip
    except (AttributeError, IndexError) as error:
        raise MismatchError(
            f"the attention of {path!r} in {type(model).__name__} is not the recorded one: {one_line(error)}"
        ) from None


def _assembled(
    model: nn.Module,
    sources: Mapping[str, WeightSource],
    geometry: AttentionGeometry,
    norms: Sequence[str | None],
    **facts: Any,
) -> AttentionView:
    """Return a view with the weights of a model."""
    parts = {role: _take(model, source, role) for role, source in sources.items()}
    if "o" not in parts:  # nobody reads what a stream gets
        parts["o"] = parts["v"][0].new_zeros(0, geometry.heads * (geometry.value_dim or geometry.head_dim)), None
    q_norm, k_norm = (None if norm is None else copy.deepcopy(model.get_submodule(norm)) for norm in norms)
    return AttentionView(
        w_q=parts["q"][0], w_k=parts["k"][0], w_v=parts["v"][0], w_o=parts["o"][0],
        b_q=parts["q"][1], b_k=parts["k"][1], b_v=parts["v"][1], b_o=parts["o"][1],
        geometry=geometry, q_norm=q_norm, k_norm=k_norm, norm_paths=(norms[0], norms[1]), sources=sources, **facts,
    )  # fmt: skip


def _runs(index: Tensor) -> list[list[int]]:
    """Return an index as ``[start, stop)`` runs."""
    found: list[list[int]] = []
    for entry in index.tolist():
        if found and entry == found[-1][1]:
            found[-1][1] += 1
        else:
            found.append([entry, entry + 1])
    return found


def _from_runs(runs: Iterable[Sequence[int]]) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in runs])


# ---- what a call is like ---------------------------------------------------------------------------------------------


def kv_groups(call: AttentionCall) -> int:
    """Return how many different key/value heads a call has: repeated ones are equal to the bit."""
    heads = call.k.shape[1]
    for times in range(heads, 1, -1):
        if heads % times == 0 and all(
            torch.equal(x[:, ::times].repeat_interleave(times, dim=1), x) for x in (call.k, call.v)
        ):
            return heads // times
    return heads


def has_bias(call: AttentionCall) -> bool:
    """Return whether the call's float mask holds more than "attend" and "do not"."""
    return call.bias is not None and bool(call.bias.detach().abs().max() > 0)


def layout_of(done: DryRun, layer: int, record: CallRecord, call: AttentionCall) -> TokenLayout | None:
    """Return where the tokens of a layer stand in the image, as far as the dry run tells.

    Of streams attended together the one that the module takes first is the image; the others are text before and
    after it.
    """
    tap, tokens = done.found.taps.get(Site("context", layer)), call.q.shape[-2]
    grid = None if tap is None else tap.grid
    streams = streams_of(done, call, kv_groups(call))
    if streams:
        given = done.runs.get(record.caller)
        x = None if given is None else first_float(given.args, given.kwargs)
        known = [stream for stream in streams if x is not None and _same(stream.product.input, x)]
        if len(known) != 1:
            return None
        length = known[0].stop - known[0].start
        grid = grid if grid is not None and grid[0] * grid[1] == length else None
        return TokenLayout(grid=grid, prefix=known[0].start, text=tokens - known[0].stop or None)
    if grid is None or not 0 <= tokens - grid[0] * grid[1] <= _MAX_PREFIX:
        return None
    return TokenLayout(grid=grid, prefix=tokens - grid[0] * grid[1])


def geometry_of(done: DryRun, layer: int, record: CallRecord, call: AttentionCall, dim: int) -> AttentionGeometry:
    """Return the sizes of the layer that makes a call."""
    tokens = call.q.shape[-2]
    layout = layout_of(done, layer, record, call)
    return AttentionGeometry(
        dim=dim,
        heads=call.q.shape[1],
        kv_heads=kv_groups(call),
        head_dim=call.q.shape[-1],
        value_dim=call.v.shape[-1],
        tokens=None if layout is None else tokens,
        layout=layout,
        causal=record.causal,
    )


def is_cross(done: DryRun, record: CallRecord) -> bool:
    """Return whether queries and keys come from different sequences: no product feeds both from one input."""
    call = done.tensors[id(record)]
    if call is None:
        return False
    if call.q.shape[-2] != call.k.shape[-2]:
        return True
    before = [p for p in done.products if p.time < record.time and p.weight is not None]
    q, k = (
        direct(columns_of(x, groups), before, tolerance_of(call))
        for x, groups in ((call.q, call.q.shape[1]), (call.k, kv_groups(call)))
    )
    if q is None or k is None:
        makers = [[p for p in producers_of(done, x) if p.weight is not None][:1] for x in (call.q, call.k)]
        return all(makers) and not _same(makers[0][0].input, makers[1][0].input)
    return not _same(q.product.input, k.product.input)


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.shape == second.shape and torch.equal(first, second))


# ---- one layer -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Origin:
    """How q or k comes about: projection, then a norm, then a rotation."""

    match: Match
    norm: str | None = None
    rotary: RotaryEmbedding | None = None


@dataclass(slots=True)
class Reading:
    """What was read off a dry run: how to make the view, and the products that it is proven with."""

    build: Callable[[nn.Module], AttentionView]
    query: Product
    key: Product
    output: Product | None


class LayerReader:
    """Reads one call of the dry run, or one of the streams that it joins, into a view.

    Args:
        model: the model.
        done: its dry run.
        layer: index of the layer.
        record: the call.
        part: only these tokens.
    """

    def __init__(
        self, model: nn.Module, done: DryRun, layer: int, record: CallRecord, part: slice | None = None
    ) -> None:
        self.model, self.done, self.layer, self.record = model, done, layer, record
        self.path = record.caller[0]
        self.where = f"layer {layer} of {type(model).__name__} ({self.path or 'the model'!r})"
        call = done.tensors[id(record)]
        if call is None:
            module = done.model.get_submodule(record.key[0])
            kind = type(module).__name__ if isinstance(module, ModuleAttention) else "its module"
            raise MismatchError(f"{self.where} is no softmax attention: {kind} owns its projections")
        if part is not None:
            q, k, v, out = (x[:, :, part] for x in (call.q, call.k, call.v, call.out))
            call = replace(call, q=q, k=k, v=v, out=out, mask=None, bias=None)
        self.call, self.whole = call, part is None
        self.groups = kv_groups(call)
        self.tolerance = tolerance_of(call)
        self.before = [product for product in done.products if product.time < record.time]
        # Nearly always the projections run inside the module that makes the call; then nothing else needs a look.
        inside = [product for product in self.before if record.caller in product.stack]
        self.near = inside or self.before

    def view(self) -> AttentionView:
        """Return the view, proven on the dry run."""
        found = self.read()
        assert found.output is not None
        self._prove(found.build(self.done.model), found.query, found.key, found.output)
        return found.build(self.model)

    def read(self, *, unread: bool = False) -> Reading:
        """Find where everything comes from and goes to.

        Args:
            unread: nothing reads the attention's output.
        """
        call = self.call
        v = self._search(lambda products: direct(columns_of(call.v, self.groups), products, self.tolerance))
        if v is None:
            self._refuse("v", call.v)
        if v.factor != 1:
            raise MismatchError(f"{self.where}: v is {v.factor:.4g} times its projection, which a view cannot say")
        q, k = self._origin("q", call.q, call.q.shape[1]), self._origin("k", call.k, self.groups)
        rotary = self._one_rotary(q, k)
        matches = {"q": q.match, "k": k.match, "v": v}
        output = None
        if not unread:
            output, columns = self._output()
            matches["o"] = Match(output, columns)
        cross = not _same(q.match.product.input, k.match.product.input)
        geometry = geometry_of(self.done, self.layer, self.record, call, int(q.match.product.input.shape[-1]))
        geometry = geometry if self.whole else replace(geometry, tokens=None, layout=None)
        sources = {role: self._source(match, role) for role, match in matches.items()}

        def build(model: nn.Module) -> AttentionView:
            return _assembled(
                model, sources, geometry, (q.norm, k.norm), scale=call.scale * q.match.factor * k.match.factor,
                rotary=rotary, cross=cross, path=self.path, layer=self.layer, score_bias=has_bias(call),
            )  # fmt: skip

        return Reading(build, q.match.product, k.match.product, output)

    def _search(self, look: Callable[[list[Product]], Any]) -> Any:
        """Look among the products of the calling module, then among all earlier ones."""
        found = look(self.near)
        return found if found is not None or len(self.near) == len(self.before) else look(self.before)

    def _origin(self, name: Literal["q", "k"], x: Tensor, groups: int) -> _Origin:
        """Find where q or k comes from: directly, through a norm, a rotation, or both."""
        wanted = heads_of(x, groups)
        found = self._search(lambda products: direct(wanted.flatten(0, 1), products, self.tolerance))
        if found is not None:
            return _Origin(found)
        norm = self._normed(wanted, groups)
        if norm is not None:
            return norm
        rotated = self._search(lambda products: turned(wanted, products, self.tolerance))
        if rotated is not None:
            return _Origin(rotated[0], rotary=rotated[1])
        self._refuse(name, x)

    def _normed(self, wanted: Tensor, groups: int) -> _Origin | None:
        """Find a norm whose input is a projection and whose output, turned or not, is `wanted`."""
        _, head_dim, batch, tokens = wanted.shape
        leaves = [leaf for leaf in self.done.leaves if leaf.time < self.record.time]
        inside = [leaf for leaf in leaves if self.record.caller in leaf.stack]
        for leaf in reversed(inside or leaves):
            layouts = zip(
                head_layouts(leaf.input, batch, tokens, head_dim),
                head_layouts(leaf.output, batch, tokens, head_dim),
                strict=True,
            )
            for given, normed in layouts:
                if given.shape[1] != groups:
                    continue
                rotary = self._after_norm(heads_of(normed, groups), wanted)
                if rotary is False:
                    continue
                match = direct(
                    columns_of(given, groups), [p for p in self.before if p.time < leaf.time], self.tolerance
                )
                if match is not None and match.factor == 1:
                    return _Origin(match, norm=self._norm_path(leaf), rotary=rotary)
        return None

    def _after_norm(self, normed: Tensor, wanted: Tensor) -> RotaryEmbedding | Literal[False] | None:
        """Return what lies between a norm's output and q: None nothing, a rotation, or False for neither."""
        if float((normed - wanted).norm()) <= self.tolerance * float(wanted.norm()):
            return None
        for dim in rotary_sizes(wanted.shape[1]):
            for style in ("half", "interleaved"):
                rotary = rotation(normed, wanted, style, dim, self.tolerance)
                if rotary is not None:
                    return rotary
        return False

    def _norm_path(self, leaf: Leaf) -> str | None:
        """Return the path of a norm; a leaf that changes nothing is none."""
        return None if torch.equal(leaf.input, leaf.output) else leaf.key[0]

    def _one_rotary(self, q: _Origin, k: _Origin) -> RotaryEmbedding | None:
        """Return the rotation of q and k, with exact frequencies where the model holds them."""
        if q.rotary is None and k.rotary is None:
            return None
        if q.rotary is None or k.rotary is None:
            raise MismatchError(f"{self.where}: only one of q and k is rotated, which a view cannot say")
        first, second = q.rotary, k.rotary
        same = (first.style, first.dim) == (second.style, second.dim)
        if not same or first.cos is None or second.cos is None or float((first.cos - second.cos).abs().max()) > 1e-2:
            raise MismatchError(f"{self.where}: q and k are rotated differently, which a view cannot say")
        return with_frequencies(first, self.done.model)

    def _output(self) -> tuple[Product, Tensor]:
        """Return the product that reads the context, and which of its input columns the context's are."""
        out = self.call.out
        wanted = columns_of(out, out.shape[1])
        _, batch, tokens = wanted.shape
        partly = None
        for product in (p for p in self.done.products if p.time > self.record.time):
            if product.weight is None:
                continue
            for given in rows_of(product.input, batch, tokens):
                if given.shape[0] < wanted.shape[0]:
                    continue
                index, _ = nearest(wanted, given)
                if one_factor(wanted, given[index], self.tolerance) != 1 or repeats(index):
                    continue
                if given.shape[0] == wanted.shape[0]:
                    return product, index
                partly = partly or product
        if partly is not None:
            other = partly.input.shape[-1] - wanted.shape[0]
            raise MismatchError(
                f"{self.where}: its output projection ({partly.path!r}) also reads {other} channels that are not the "
                "attention's (an MLP beside it)"
            )
        raise MismatchError(
            f"{self.where}: no linear layer reads the attention's output as it is; a gate or a norm follows it, or it "
            "is split over two streams"
        )

    def _source(self, match: Match, role: str) -> WeightSource:
        """Return which entries of which parameter a matrix consists of."""
        weight, product = match.product.weight, match.product
        assert weight is not None
        name, offset = self._parameter(weight, product, role)
        parameter = self.done.model.get_parameter(name)
        # A product may read a slice of a packed parameter, and Conv1D reads it transposed.
        transposed = weight.stride(-1) != 1 and weight.stride(0) == 1 and parameter.stride(-1) == 1
        transposed = transposed or (weight.shape == parameter.t().shape and weight.stride() == parameter.t().stride()
                                    and weight.stride() != parameter.stride())  # fmt: skip
        out_axis = 1 if transposed else 0
        along = out_axis if role != "o" else 1 - out_axis
        start = offset // parameter.stride(out_axis) if role != "o" and offset else 0
        if offset and (role == "o" or offset % parameter.stride(out_axis) or transposed):
            raise MismatchError(
                f"{self.where}: the weights of {role} are a part of {name!r} that cannot be said simply"
            )
        bias = None
        if product.bias is not None:
            bias, bias_offset = self._parameter(product.bias, product, f"the bias of {role}")
            if bias_offset != start:
                raise MismatchError(f"{self.where}: weight and bias of {role} are cut differently out of {bias!r}")
        return WeightSource(name, bias, (match.index + start).cpu(), along)

    def _parameter(self, tensor: Tensor, product: Product, role: str) -> tuple[str, int]:
        """Return the parameter that a tensor is, or is a part of, and where the part begins."""
        for name, parameter in self.done.model.named_parameters():
            if parameter.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr():
                return name, int(tensor.storage_offset() - parameter.storage_offset())
        raise MismatchError(
            f"{self.where}: the weights of {role} (in {product.path!r}) are no parameters of the model; they are "
            "computed in its forward"
        )

    def _prove(self, view: AttentionView, query: Product, key: Product, output: Product) -> None:
        """Rebuild the output projection's output of the dry run from the view, or refuse."""
        batch, _, tokens, _ = self.call.q.shape
        mask, bias = self.call.mask, self.call.bias
        view = replace(view, geometry=replace(view.geometry, causal=self.call.causal))
        expected = output.output.detach()
        ways = [False] if batch == 1 else [False, True]
        error = float("inf")
        for swapped in ways:
            x, source = (
                _batch_first(p.input.detach(), batch, n, swapped)
                for p, n in ((query, tokens), (key, self.call.k.shape[-2]))
            )
            with torch.no_grad():
                rebuilt = view_output(view, x, source, mask=mask, bias=bias)
            for back in ways:
                told = _batch_first(expected, batch, tokens, back)
                rows = torch.ones(batch, tokens, dtype=torch.bool, device=told.device)
                if mask is not None:  # rows without any key are defined as 0 here; libraries give anything
                    rows = mask.any(-1).expand(batch, -1, tokens).all(1)
                scale = float(told.float().abs().max()) + 1e-12
                difference = (rebuilt - told)[rows].float().abs()
                error = min(error, float(difference.max()) / scale if difference.numel() else 0.0)
        if not error <= 10 * self.tolerance:
            raise MismatchError(
                f"{self.where}: the weights found do not rebuild its output (off by {error:.2g} of its size); "
                "something else happens between projections and output"
            )

    def _refuse(self, name: str, x: Tensor) -> NoReturn:
        """Say why a tensor has no canonical origin."""
        producers = producers_of(self.done, x)
        convolutions = [product.path for product in producers if product.weight is None]
        linears = list(dict.fromkeys(product.path for product in producers if product.weight is not None))
        if convolutions:
            raise MismatchError(
                f"{self.where}: {name} is projected by a convolution ({convolutions[0]!r}), which a view cannot say"
            )
        if len(linears) > 1:
            raise MismatchError(
                f"{self.where}: {name} joins {len(linears)} projections ({', '.join(map(repr, linears[:3]))}): streams "
                "attended together are no single view (nasdistill.bridge.joint reads them)"
            )
        if linears:
            raise MismatchError(
                f"{self.where}: between the projection {linears[0]!r} and {name} lies something that is neither a norm "
                "per head nor a rotation"
            )
        raise MismatchError(f"{self.where}: no linear layer was found that {name} comes from")


def _batch_first(x: Tensor, batch: int, tokens: int, swapped: bool) -> Tensor:
    """Return a product's side as ``(B, N, C)``."""
    if swapped:
        return x.reshape(tokens, batch, x.shape[-1]).transpose(0, 1)
    return x.reshape(batch, tokens, x.shape[-1])


def _take(model: nn.Module, source: WeightSource, role: str) -> tuple[Tensor, Tensor | None]:
    """Return a canonical matrix ``(out, in)`` and its bias from a model's parameters, as copies."""
    parameter = model.get_parameter(source.weight).detach()
    index = source.index.to(parameter.device)
    weight = parameter.index_select(source.axis, index)
    transposed = source.axis != (1 if role == "o" else 0)
    weight = weight.t().contiguous() if transposed else weight
    if source.bias is None:
        return weight, None
    bias = model.get_parameter(source.bias).detach()
    return weight, bias.clone() if role == "o" else bias.index_select(0, index)
