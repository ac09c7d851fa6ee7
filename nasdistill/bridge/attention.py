"""Replacing softmax attention, layer by layer and in place, in models of any library.

Which module attends where is found by a dry run, so BERT, GPT-2, Llama, ViT, Swin, U-Nets, ``nn.TransformerEncoder``
and what a user wrote are all served by the same code. A variant of the level *core* gets q, k and v as the model's own
forward made them (rotated, normed, grouped) in place of the fused kernel. A variant of the level *module* starts from
the layer's weights (:func:`nasdistill.bridge.views.attention_views`) and takes the place of its projections too. A
variant of the level *model* converts a copy: :func:`convert_attention`. What was changed is a record of plain data::

    record = set_attention(model, {0: "flow", -1: ("window", {"window": 5})}, factory, run=lambda m: m(**batch))
    ...
    apply_attention(fresh_model, record, factory).load_state_dict(weights)

transformers' own switch, ``attn_implementation``, is not used: it is global, one for all layers, not saved with the
model, and a function registered without a mask function of the same name gets no mask at all. Here the masks are those
that the model made for its own kernel, and every forward fails that does not reach the core.

Attention dropout has no meaning for a core and is left out; so is dropout inside a module that is replaced whole.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from torch import Tensor, nn

from nasdistill.bridge.dryrun import CallerRun, DryRun, Product, dry_run
from nasdistill.bridge.masks import MaskNature
from nasdistill.bridge.matching import streams_of
from nasdistill.bridge.record import CallRecord, first_float
from nasdistill.bridge.swapping import CoreAttention, OwnAttention, SharedStore, Swap, SwappedAttention, swapped_class
from nasdistill.bridge.views import (
    Run,
    attention_views,
    call_records,
    geometry_of,
    has_bias,
    is_cross,
    layer_view,
    pack_view,
    unpack_view,
)
from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    AttentionCore,
    AttentionGeometry,
    AttentionView,
    Batch,
    ComponentFactory,
    TokenLayout,
    Transformed,
)
from nasdistill.spec.component import AttentionTags, Kind

if TYPE_CHECKING:
    from nasdistill.spec.options import ComponentOptions

Choice = str | tuple[str, Mapping[str, Any] | None]
"""A variant by name, or by name and options."""


class VariantSpec(TypedDict, total=False):
    """Which attention a module got, as data; all but the first two are what a dry run found out about the layer.

    `streams`: joint attention, over several streams of tokens one after the other: how many tokens each had.
    """

    variant: str
    options: dict[str, Any]
    level: str
    layer: int
    geometry: dict[str, Any]
    biased: bool
    cross: bool
    streams: list[int]
    view: dict[str, Any]
    returns: int
    token_first: bool
    outside: str | None


AttentionRecord = list[tuple[str, VariantSpec]]
"""Dotted path of each changed attention module and its variant; JSON turns tuples into lists, which is accepted."""


def set_attention(
    model: nn.Module,
    choice: Choice | Mapping[int, Choice],
    factory: ComponentFactory,
    *,
    run: Run,
    cross: bool = False,
) -> AttentionRecord:
    """Replace softmax attention in some or all layers, in place.

    Args:
        model: any model whose attention runs as a fused call.
        choice: one variant for all layers, or one per layer (numbered as the sites ``q.i``; negative ones count from
            the end). Layers that are not named stay as they are; a second call replaces a core by another.
        factory: makes the variants (the host).
        run: one forward on a tiny real batch, ``run(model)``; used for dry runs on copies.
        cross: replace the attention over another sequence that follows a layer's self-attention.

    Returns:
        The record of this call, in the order of the layers; :func:`attention_record` gives that of the whole model.

    Raises:
        MismatchError: a layer does not exist, or the variant cannot serve it; the message names the layer and the
            feature. The model is then unchanged.
    """
    done = dry_run(model, run)
    layers = call_records(done, model)
    wanted = _by_layer(choice, len(layers), model)
    calls = {
        layer: _call_of(done, model, layer, records, cross)
        for layer, records in enumerate(layers)
        if layer in wanted or not isinstance(choice, Mapping)
    }
    chosen = {layer: (call, *wanted[layer]) for layer, call in calls.items() if call is not None}
    missing = sorted(set(wanted) - set(chosen)) if isinstance(choice, Mapping) else []
    if missing or not chosen:
        kind = "attention over another sequence" if cross else "softmax self-attention"
        raise MismatchError(f"layer {missing[0] if missing else 0} of {type(model).__name__} has no {kind}")
    _check_shared(layers, chosen, model)
    # Everything is made before the first module changes: what is refused leaves the model as it was.
    parts = [
        _part(model, done, layer, call, name, options, factory, cross=cross)
        for layer, (call, name, options) in sorted(chosen.items())
    ]
    for path, swap, core in parts:
        _put(model, path, swap, core)
    _link(model)
    changed = {path for path, _, _ in parts}
    return [entry for entry in attention_record(model) if entry[0] in changed]


def apply_attention(
    model: nn.Module, record: Sequence[Sequence[Any]] | AttentionRecord, factory: ComponentFactory
) -> nn.Module:
    """Repeat the changes of a record on another instance of the model, in place, before its weights are loaded.

    Nothing is run: the record says all about the layers.

    Args:
        model: a model as it was before the record was made.
        record: what :func:`set_attention` returned, also after a round trip through JSON.
        factory: makes the variants.

    Returns:
        The same model.

    Raises:
        MismatchError: a path of the record is no module of the model, or its layer has other sizes.
    """
    entries = [(str(path), cast("VariantSpec", dict(spec))) for path, spec in record]
    if any("level" not in spec for _, spec in entries):
        from nasdistill.bridge import timm  # made by its own, shorter way

        plain = [(path, spec) for path, spec in entries if "level" not in spec]
        timm.apply_attention(model, plain, factory)
        entries = [(path, spec) for path, spec in entries if "level" in spec]
    parts = [_part_of_record(model, path, spec, factory) for path, spec in entries]
    for path, swap, core in parts:
        _put(model, path, swap, core)
    _link(model)
    return model


def attention_record(model: nn.Module) -> AttentionRecord:
    """Return the record of all replaced attention modules of a model; empty when there is none."""
    found: AttentionRecord = []
    for path, module in model.named_modules():
        if isinstance(module, SwappedAttention):
            options: Any = getattr(module.core, "options", None)
            spec = cast("VariantSpec", dict(module.swap.entry))
            spec["variant"] = module.swap.variant
            spec["options"] = options.model_dump(mode="json") if hasattr(options, "model_dump") else spec["options"]
            found.append((path, spec))
    return found


def clear_attention(model: nn.Module) -> None:
    """Give all replaced modules of a model their own attention back, in place; cores and their parameters are lost.

    Raises:
        MismatchError: a layer was replaced with its projections, which are gone.
    """
    swapped = [(path, module) for path, module in model.named_modules() if isinstance(module, SwappedAttention)]
    for path, module in swapped:
        if isinstance(module, OwnAttention):
            raise MismatchError(
                f"{path!r} has {module.swap.variant} in the place of its projections, so that its softmax attention is "
                "gone",
                hint="Build the model anew.",
            )
    for _, module in reversed(swapped):
        for owner, name, value in reversed(module.swap.undo):
            setattr(owner, name, value)
        base = type(module).swapped_from
        del module.core, module.swap
        module.__class__ = base


def verify_attention(
    model: nn.Module, example: Tensor | tuple[Any, ...] | Mapping[str, Any] | Callable[[nn.Module], Any]
) -> dict[str, int]:
    """Run the model once and count how often each core was reached.

    The run is in eval mode and without gradients; the modes are restored after it.

    Args:
        model: a model with replaced attention.
        example: its input, a tuple of inputs, inputs by name, or a function that runs the model.

    Returns:
        Path of each replaced module -> calls.

    Raises:
        MismatchError: nothing is replaced, or a core was not reached (something reads the weights past its forward).
    """
    swapped = {path: module for path, module in model.named_modules() if isinstance(module, SwappedAttention)}
    if not swapped:
        raise MismatchError(
            f"{type(model).__name__} has no replaced attention to verify", hint="Call set_attention(model, ...) first."
        )
    calls = dict.fromkeys(swapped, 0)

    def count(path: str, *_: Any) -> None:
        calls[path] += 1

    modes = {module: module.training for module in model.modules()}
    handles = [module.core.register_forward_hook(functools.partial(count, path)) for path, module in swapped.items()]
    try:
        model.eval()
        with torch.no_grad():
            _call(model, example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    missed = [path for path, times in calls.items() if times == 0]
    if missed:
        raise MismatchError(
            f"the attention core of {', '.join(missed)} was not reached by a forward of {type(model).__name__}",
            hint="Something uses this module without calling its forward; this model cannot take another attention.",
        )
    return calls


def convert_attention(
    model: nn.Module,
    choice: Choice,
    factory: ComponentFactory,
    *,
    run: Run,
    layers: Iterable[int] | None = None,
    calibration: Sequence[Batch] = (),
) -> Transformed:
    """Convert several layers together with a variant of the level *model*; the model itself is left as it is.

    Args:
        model: any model whose attention has a canonical view.
        choice: the variant.
        factory: makes it (the host).
        run: one forward on a tiny real batch.
        layers: that may be changed; None = all with self-attention.
        calibration: a few batches, for variants that look at the layers first.

    Raises:
        MismatchError: the variant is of another level, or a layer has no canonical view.
    """
    name, options = (choice, None) if isinstance(choice, str) else choice
    tags = cast("AttentionTags", factory.tags(Kind.ATTENTION, name))
    if tags.level != "model":
        raise MismatchError(
            f"attention variant {name!r} works on the {tags.level} level, one layer at a time",
            hint="Use set_attention(model, ...).",
        )
    try:
        views = attention_views(model, run, layers=layers)
    except MismatchError as error:
        text = f"attention variant {name!r} cannot convert {error.message}"
        raise type(error)(text, hint=error.hint) from None
    variant = factory.create(Kind.ATTENTION, name, dict(options) if options is not None else None)
    return cast("Transformed", variant.convert(model, views, sorted(views), list(calibration)))


def _call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else example(model)


# ---- which layers, and whether the variant fits ----------------------------------------------------------------------


def _by_layer(
    choice: Choice | Mapping[int, Choice], layers: int, model: nn.Module
) -> dict[int, tuple[str, Mapping[str, Any] | None]]:
    """Return layer -> (name, options)."""
    given = choice if isinstance(choice, Mapping) else dict.fromkeys(range(layers), choice)
    outside = [layer for layer in given if not -layers <= layer < layers]
    if outside:
        raise MismatchError(f"layer {outside[0]} does not exist: {type(model).__name__} has {layers} attention layers")
    return {
        layer % layers: (one, None) if isinstance(one, str) else (one[0], one[1]) for layer, one in given.items()
    }  # fmt: skip


def _call_of(
    done: DryRun, model: nn.Module, layer: int, records: Sequence[CallRecord], cross: bool
) -> CallRecord | None:
    """Return the call of a layer to replace, None without one."""
    call = next((call for call in records if done.tensors[id(call)] is None or is_cross(done, call) == cross), None)
    if call is not None and done.tensors[id(call)] is None:
        raise MismatchError(
            f"layer {layer} of {type(model).__name__} ({call.caller[0]!r}) is no softmax attention any more: it was "
            "replaced with its projections"
        )
    return call


def _check_shared(
    layers: Sequence[Sequence[CallRecord]],
    chosen: Mapping[int, tuple[CallRecord, str, Mapping[str, Any] | None]],
    model: nn.Module,
) -> None:
    """Refuse to change a module that attends elsewhere too, in a way that was not asked for."""
    for layer, (call, name, options) in chosen.items():
        path = call.caller[0]
        where = f"layer {layer} of {type(model).__name__} ({path or 'the model'!r})"
        for other, records in enumerate(layers):
            for record in records:
                if record.caller == call.caller and record is not call:
                    raise MismatchError(
                        f"{where} attends several times in one run of its module; it cannot be replaced"
                    )
                if record.caller[0] == path and other != layer:
                    same = chosen.get(other)
                    if same is None or same[1:] != (name, options):
                        raise MismatchError(
                            f"{where} is the module of layer {other} too",
                            hint="Give all layers that share a module the same variant.",
                        )


def _check_fits(
    name: str,
    tags: AttentionTags,
    geometry: AttentionGeometry,
    where: str,
    *,
    biased: bool,
    cross: bool,
    padded: bool,
    streams: Sequence[int],
) -> None:
    """Refuse a variant that lacks what the layer needs."""
    if tags.level == "model":
        raise MismatchError(
            f"attention variant {name!r} works on several layers together",
            hint="Use convert_attention(model, ...).",
        )
    groups = f"{geometry.heads} query heads share {geometry.kv_heads} key/value heads"
    lacking = {
        "is causal": geometry.causal and tags.causal != "strict",
        "is not causal": not geometry.causal and not tags.bidirectional,
        "adds a bias to its scores": biased and not tags.bias,
        "attends to another sequence": cross and not tags.cross,
        f"has grouped heads ({groups})": geometry.heads != geometry.kv_heads and not tags.gqa,
        "gets padding": padded and not tags.padding,
        "keeps no state between calls": tags.stateful,
        f"attends over {len(streams)} streams together": bool(streams) and tags.level != "core",
    }
    for feature, there in lacking.items():
        if there:
            raise MismatchError(
                f"{where} {feature}, which attention variant {name!r} does not support",
                hint="Choose another variant for this layer, or leave it as it is.",
            )


# ---- making one replacement ------------------------------------------------------------------------------------------

Part = tuple[str, Swap, nn.Module]
"""Path of the module, what is known of it, what takes the place."""


def _part(
    model: nn.Module,
    done: DryRun,
    layer: int,
    record: CallRecord,
    name: str,
    options: Mapping[str, Any] | ComponentOptions | None,
    factory: ComponentFactory,
    *,
    cross: bool,
) -> Part:
    """Make a replacement that fits one layer, or refuse."""
    tags = cast("AttentionTags", factory.tags(Kind.ATTENTION, name))
    call, path = done.tensors[id(record)], record.caller[0]
    assert call is not None
    where = f"layer {layer} of {type(model).__name__} ({path or 'the model'!r})"
    given = done.runs.get(record.caller)
    x = None if given is None else first_float(given.args, given.kwargs)
    geometry = geometry_of(done, layer, record, call, 0 if x is None else int(x.shape[-1]))
    biased = has_bias(call)
    padded = call.mask is not None and not record.causal and not bool(call.mask.all()) and call.mask.shape[0] > 1
    streams = [stream.stop - stream.start for stream in streams_of(done, call, geometry.kv_heads)]
    _check_fits(name, tags, geometry, where, biased=biased, cross=cross, padded=padded, streams=streams)
    chosen = dict(options) if isinstance(options, Mapping) else options
    canonical = factory.canonical(Kind.ATTENTION, name)
    entry: dict[str, Any] = {
        "variant": canonical, "options": dict(options) if isinstance(options, Mapping) else {}, "level": tags.level,
        "layer": layer, "geometry": _packed(geometry), "biased": biased, "cross": cross,
    }  # fmt: skip
    nature = MaskNature(causal=geometry.causal, biased=biased, takes_bias=tags.bias, exact=tags.exact)
    swap = Swap(canonical, tags.level, layer, geometry, nature, cross=cross, entry=entry)
    if streams:
        entry["streams"] = streams
    if tags.level == "core":
        core = factory.create(Kind.ATTENTION, name, chosen, geometry=geometry)
        return path, swap, _fitted(model, path, cast("nn.Module", core))
    view = layer_view(model, done, layer, record)
    entry |= {"view": pack_view(view)} | _convention(model, done, given, record, view, where)
    swap.returns, swap.token_first = entry["returns"], entry["token_first"]
    swap.geometry = view.geometry
    entry["geometry"] = _packed(view.geometry)
    return path, swap, _fitted(model, path, _from_softmax(factory, name, view, chosen))


def _part_of_record(model: nn.Module, path: str, spec: VariantSpec, factory: ComponentFactory) -> Part:
    """Make a replacement as a record says."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise MismatchError(f"{type(model).__name__} has no module {path!r}, which the record names") from None
    if isinstance(module, SwappedAttention):
        raise MismatchError(f"the attention of {path!r} is replaced already", hint="Apply a record to a fresh model.")
    name, geometry = spec["variant"], _unpacked(spec["geometry"])
    tags = cast("AttentionTags", factory.tags(Kind.ATTENTION, name))
    nature = MaskNature(causal=geometry.causal, biased=spec["biased"], takes_bias=tags.bias, exact=tags.exact)
    swap = Swap(
        factory.canonical(Kind.ATTENTION, name), spec["level"], spec["layer"], geometry, nature, cross=spec["cross"],
        entry=dict(spec), returns=spec.get("returns", -1), token_first=spec.get("token_first", False),
    )  # fmt: skip
    if spec["level"] == "core":
        core = factory.create(Kind.ATTENTION, name, dict(spec["options"]), geometry=geometry)
        return path, swap, _fitted(model, path, cast("nn.Module", core))
    view = unpack_view(model, spec["view"], path)
    return path, swap, _fitted(model, path, _from_softmax(factory, name, view, dict(spec["options"])))


def _from_softmax(factory: ComponentFactory, name: str, view: AttentionView, options: Any) -> nn.Module:
    if view.score_bias:
        raise MismatchError(
            f"layer {view.layer} ({view.path!r}) adds a bias to its scores that is not among its weights, and "
            f"{name!r} would lose it"
        )
    cls: Any = factory.load(Kind.ATTENTION, name)
    return cast("nn.Module", cls.from_softmax(view, options, host=factory))


def _fitted(model: nn.Module, path: str, core: nn.Module) -> nn.Module:
    """Return a core on the device, in the type and in the mode of the module that it goes to."""
    module = model.get_submodule(path)
    like = next((p for p in (*module.parameters(), *model.parameters()) if p.is_floating_point()), None)
    core = core if like is None else core.to(device=like.device, dtype=like.dtype)
    return core.train(module.training)


def _convention(
    model: nn.Module, done: DryRun, given: CallerRun | None, record: CallRecord, view: AttentionView, where: str
) -> dict[str, Any]:
    """Return how a module is called and what it returns, proven on the dry run, or refuse to replace it whole."""
    call = done.tensors[id(record)]
    x = None if given is None else first_float(given.args, given.kwargs)
    if given is None or call is None or x is None or x.ndim != 3:
        raise MismatchError(f"{where} does not take tokens (B, N, C); it cannot be replaced whole")
    inside = {name for name, _ in done.model.get_submodule(view.path).named_parameters(prefix=view.path)}
    for role in ("q", "k", "v"):
        if view.sources[role].weight not in inside:
            raise MismatchError(f"{where}: its projection {view.sources[role].weight!r} lies outside the module")
    before = [p for p in done.products if p.time < record.time and record.caller in p.stack]
    query = next(p for p in before if _is_source(done, p, view, "q"))
    token_first = x.shape[:2] == (call.q.shape[2], call.q.shape[0]) and _batch_second(done, record)
    if x.numel() != query.input.numel() or not _same_tokens(x, query.input):
        raise MismatchError(
            f"{where} changes its input before it projects it (a norm inside); it cannot be replaced whole"
        )
    out = given.output
    rest = list(out[1:]) if isinstance(out, tuple | list) else []
    main = out[0] if isinstance(out, tuple | list) else out
    if any(item is not None for item in rest) or not isinstance(main, Tensor):
        raise MismatchError(f"{where} returns more than its output; it cannot be replaced whole")
    outside = view.sources["o"].weight not in inside
    projected = next(p.output for p in done.products if p.time > record.time and _is_source(done, p, view, "o"))
    expected = call.out.transpose(1, 2).flatten(2) if outside else projected
    if main.numel() != expected.numel() or not _same_tokens(main, expected):
        raise MismatchError(
            f"{where} adds something to its projected output (a residual, a factor); it cannot be replaced whole"
        )
    owner = view.sources["o"].weight.rpartition(".")[0] if outside else None
    return {"returns": len(rest) if isinstance(out, tuple | list) else -1, "token_first": token_first, "outside": owner}


def _is_source(done: DryRun, product: Product, view: AttentionView, role: str) -> bool:
    """Return whether a product is with the weights that a view has for a role."""
    parameter = done.model.get_parameter(view.sources[role].weight)
    return product.weight is not None and product.weight.untyped_storage().data_ptr() == (
        parameter.untyped_storage().data_ptr()
    )


def _batch_second(done: DryRun, record: CallRecord) -> bool:
    """Return whether a module takes ``(N, B, C)``, which its shapes cannot tell where N = B."""
    module = done.model.get_submodule(record.caller[0])
    return isinstance(module, nn.MultiheadAttention) and not module.batch_first


def _same_tokens(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same tokens, batch first or sequence first."""
    a, b = first.detach().reshape(-1, first.shape[-1]), second.detach().reshape(-1, second.shape[-1])
    if a.shape == b.shape and torch.allclose(a, b, atol=1e-5, rtol=1e-4):
        return True
    turned = first.detach().transpose(0, 1).reshape(-1, first.shape[-1])
    return turned.shape == b.shape and torch.allclose(turned, b, atol=1e-5, rtol=1e-4)


def _packed(geometry: AttentionGeometry) -> dict[str, Any]:
    """Return sizes as JSON has them, so that a record equals itself after a round trip."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(geometry)))
    return found


def _unpacked(data: Mapping[str, Any]) -> AttentionGeometry:
    layout = data.get("layout")
    if layout is not None:
        grid = layout.get("grid")
        layout = TokenLayout(**{**layout, "grid": None if grid is None else (int(grid[0]), int(grid[1]))})
    return AttentionGeometry(**{**data, "layout": layout})


# ---- changing modules ------------------------------------------------------------------------------------------------


def _put(model: nn.Module, path: str, swap: Swap, core: nn.Module) -> None:
    """Put a replacement in its place."""
    module = model.get_submodule(path)
    if isinstance(module, SwappedAttention):  # a core for another core
        swap.undo = module.swap.undo
    elif hasattr(module, "swap") or (hasattr(module, "core") and not (swap.level != "core" and _has_own_core(module))):
        raise MismatchError(f"{path!r} ({type(module).__name__}) has an attribute of its own named core or swap")
    else:
        _open_paths(model, path, module, swap)
    mixin: type[SwappedAttention] = CoreAttention if swap.level == "core" else OwnAttention
    if swap.level != "core":
        base = type(module).swapped_from if isinstance(module, SwappedAttention) else type(module)
        module.__class__ = base
        _remove_projections(model, swap)
    if not isinstance(module, SwappedAttention):
        module.__class__ = swapped_class(mixin, type(module))
    changed = cast("SwappedAttention", module)
    changed.core, changed.swap = core, swap


def _has_own_core(module: nn.Module) -> bool:
    """Return whether a module is built around a core of ours, which goes with its projections, and says its context."""
    return isinstance(getattr(module, "core", None), AttentionCore) and hasattr(module, "attention_context")


def _open_paths(model: nn.Module, path: str, module: nn.Module, swap: Swap) -> None:
    """Close the ways on which a library passes the module's forward by, and note how to open them again."""

    def set_(owner: Any, name: str, value: Any) -> None:
        if getattr(owner, name, value) != value:
            swap.undo.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

    if getattr(module, "fused_attn", None) is False:
        set_(module, "fused_attn", True)  # timm: the softmax written out would not be seen
    parts = path.split(".") if path else []
    for depth in range(len(parts)):
        around = model.get_submodule(".".join(parts[:depth]))
        if isinstance(around, nn.TransformerEncoderLayer):
            set_(around, "activation_relu_or_gelu", 0)  # its fast path reads the weights instead of calling the module
        elif isinstance(around, nn.TransformerEncoder):
            set_(around, "use_nested_tensor", False)


def _remove_projections(model: nn.Module, swap: Swap) -> None:
    """Take away what the new attention brings itself: projections and norms of q and k."""
    view = swap.entry["view"]
    names = {source["weight"].rpartition(".")[0] for source in view["sources"].values()}
    names |= {name for name in view["norms"] if name is not None}
    for owner in names:
        parent, _, child = owner.rpartition(".")
        if owner == view["path"]:  # parameters of the module itself, as nn.MultiheadAttention has them
            module = model.get_submodule(owner)
            for source in view["sources"].values():
                for name in (source["weight"], source["bias"]):
                    if name is not None and name.rpartition(".")[0] == owner:
                        module.register_parameter(name.rpartition(".")[2], None)
        else:
            setattr(model.get_submodule(parent), child, nn.Identity())


def _link(model: nn.Module) -> None:
    """Give all replaced layers of a model one store, which the first of them empties."""
    swapped = [module for module in model.modules() if isinstance(module, SwappedAttention)]
    store = SharedStore()
    first = min((module.swap.layer for module in swapped), default=0)
    for module in swapped:
        module.swap.store, module.swap.first = store, module.swap.layer == first
