"""What a layer may be asked for: each feature works where it is declared, and is refused where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import AttentionMask
from nasdistill.spec.component import AttentionTags, Kind
from nasdistill.testing.checks.attention.cases import (
    CAUSAL,
    SHORT,
    attend,
    first_mode,
    gap,
    geometry_of,
    is_core,
    is_layer,
    layer_of,
    modes,
    noise,
    padded,
    perturb,
    tagged,
    tags_of,
    tensors,
)
from nasdistill.testing.registry import check, fail
from nasdistill.testing.subject import Subject

ALL = torch.ones(2, SHORT, dtype=torch.bool)


class Feature(NamedTuple):
    """Something to ask for: who declares it, the call, and what an error must name."""

    tag: str
    declared: Callable[[AttentionTags], bool]
    words: tuple[str, ...]
    context: dict[str, Any]
    sizes: dict[str, Any]


def masked(**parts: Any) -> dict[str, Any]:
    """Return the arguments of a call with a mask."""
    return {"mask": AttentionMask(**parts)}


FEATURES = (
    Feature("causal", lambda t: t.causal != "no", ("causal",), {"mask": CAUSAL}, {}),
    Feature("bidirectional", lambda t: t.bidirectional, ("causal", "bidirectional"), {"mask": None}, {}),
    Feature("cross", lambda t: t.cross, ("cross",), {}, {"m": SHORT + 2}),
    Feature("gqa", lambda t: t.gqa, ("head",), {}, {"kv_heads": 1}),
    Feature("padding", lambda t: t.padding, ("padding", "padded"), masked(key_valid=ALL), {}),
    Feature("patterns", lambda t: t.patterns, ("window",), masked(window=(1, 1)), {}),
    Feature("patterns", lambda t: t.patterns, ("predicate",), masked(predicate=lambda i, j: j >= i - 1), {}),
    Feature("bias", lambda t: t.bias, ("bias",), {"bias": torch.zeros(SHORT, SHORT, dtype=torch.float64)}, {}),
    Feature("returns_map", lambda t: t.returns_map, ("map",), {"need_map": True}, {}),
)


@check(Kind.ATTENTION, applies=is_layer, hint="Begin forward() with refuse_undeclared(self.id, tags, q, k, ctx).")
def undeclared_features_are_refused(subject: Subject) -> None:
    """What the tags do not declare raises an error that names the feature, and is never ignored."""
    tags, mode = tags_of(subject), first_mode(subject)
    for feature in FEATURES:
        if feature.declared(tags):
            continue
        context = {"mask": mode, **feature.context}
        asked = context["mask"]
        if asked is not None and not asked.causal and not tags.bidirectional:
            context["mask"] = AttentionMask(True, asked.window, asked.key_valid, None, asked.predicate)
        sizes = {name: value for name, value in feature.sizes.items() if name != "m"}
        try:
            layer = layer_of(subject, **sizes)
            attend(subject, layer, tensors(subject, SHORT, feature.sizes.get("m"), **sizes), **context)
        except (ValueError, MismatchError) as error:
            _names(subject, str(error), feature.tag, feature.words)
        else:
            fail(f"{feature.tag} is not declared, and {' / '.join(feature.words)} is accepted without an error")
    if not tags.decodes:
        try:
            layer_: Any = layer_of(subject)
            layer_.start_cache()
        except ValueError as error:
            _names(subject, str(error), "decodes", ("decod", "cache"))
        else:
            fail("decodes is not declared, and start_cache() gives a cache")


def _names(subject: Subject, text: str, tag: str, words: tuple[str, ...]) -> None:
    """Fail when an error does not say what was refused, and by whom."""
    if not any(word in text for word in words):
        fail(f"{tag} is refused with an error that does not say {' or '.join(words)}: {text}")
    if is_core(subject) and subject.record.name not in text:
        fail(f"{tag} is refused with an error that does not name the variant: {text}")


@check(
    Kind.ATTENTION,
    applies=tagged("gqa", is_layer),
    hint="Repeat key and value head g for the query heads g * H / G and on.",
)
def grouped_heads_are_repeated_heads(subject: Subject) -> None:
    """Fewer key/value heads give what repeated heads give (a module starts from such a layer).

    A core's parameters of key/value heads are repeated with them. Where they have no such form, because their sizes
    follow the heads otherwise, only finite outputs are asked for.
    """
    few: dict[str, Any] = {"heads": 4, "kv_heads": 2}
    layer, inputs = perturb(layer_of(subject, **few)), tensors(subject, SHORT, **few)
    for where, mask in modes(subject):
        out = attend(subject, layer, inputs, mask).out
        if not out.isfinite().all():
            fail(f"{where}: with 4 heads on 2 key/value heads the output is not finite")
        if is_core(subject):
            q, k, v = inputs
            repeated = [q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)]
            wide = _widened(layer, layer_of(subject, heads=4))
            if wide is None:
                continue
            expected = attend(subject, wide, repeated, mask).out
            if (found := gap(out, expected)) > 1e-9:
                fail(f"{where}: 4 heads on 2 key/value heads differ from repeated heads by {found:.3g}")


def _widened(layer: nn.Module, wide: nn.Module) -> nn.Module | None:
    """Give a core of 4 heads the state of one of 4 heads on 2 key/value heads; None where there is no such form."""
    state, wanted = dict(layer.state_dict()), wide.state_dict()
    for name, value in state.items():
        want = wanted[name].shape if name in wanted else value.shape
        differing = (
            [dim for dim in range(value.dim()) if value.shape[dim] != want[dim]] if len(want) == value.dim() else []
        )
        for dim in differing:
            if value.shape[dim] % 2 or want[dim] != 2 * value.shape[dim]:
                return None
            value = value.unflatten(dim, (2, -1)).repeat_interleave(2, dim=dim).flatten(dim, dim + 1)
        state[name] = value
    try:
        wide.load_state_dict(state)
    except RuntimeError:
        return None
    return wide


@check(Kind.ATTENTION, applies=tagged("cross", is_layer), hint="Take the number of keys from k, not from q.")
def cross_attention_works(subject: Subject) -> None:
    """Queries attend to another sequence, longer or shorter, and what stands there matters."""
    layer = layer_of(subject)
    for n, m in ((3, 9), (9, 3), (40, 60)):
        inputs = tensors(subject, n, m)
        out = attend(subject, layer, inputs).out
        geometry = geometry_of(subject)
        expected = (2, geometry.heads, n, geometry.value_dim) if is_core(subject) else (2, n, geometry.dim)
        if tuple(out.shape) != expected or not out.isfinite().all():
            fail(f"{n} queries on {m} keys give {tuple(out.shape)}, not finite numbers of {expected}")
        other = attend(subject, layer, [inputs[0], *(noise(x, number) for number, x in enumerate(inputs[1:]))]).out
        if not gap(other, out) > 1e-6:
            fail(f"{n} queries on {m} keys: another source gives the same output")


@check(
    Kind.ATTENTION,
    applies=tagged("bias", is_layer),
    hint="Add ctx.bias to the scaled scores, broadcast to (B, H, N, M).",
)
def bias_shifts_the_scores(subject: Subject) -> None:
    """A bias of 0 changes nothing, any other changes the output, and -inf hides a key."""
    layer, inputs = layer_of(subject), tensors(subject, SHORT)
    heads = geometry_of(subject).heads
    bias = noise(torch.empty(SHORT, SHORT, dtype=torch.float64), "bias", scale=1.0)
    for where, mask in modes(subject):
        plain = attend(subject, layer, inputs, mask).out
        if (found := gap(attend(subject, layer, inputs, mask, bias=0 * bias).out, plain)) > 1e-9:
            fail(f"{where}: a bias of 0 changes the output by {found:.3g}")
        shifted = attend(subject, layer, inputs, mask, bias=bias).out
        if not gap(shifted, plain) > 1e-6:
            fail(f"{where}: a bias changes nothing")
        spread = bias.expand(2, heads, SHORT, SHORT)
        if (found := gap(attend(subject, layer, inputs, mask, bias=spread).out, shifted)) > 1e-9:
            fail(f"{where}: a bias per item and head differs from the same one for all, by {found:.3g}")
        hidden = bias.clone()
        hidden[:, 2] = float("-inf")
        rows = torch.arange(SHORT) != 2
        changed = [torch.where(rows[:, None], x, noise(x, number)) for number, x in enumerate(inputs)]
        pair = [attend(subject, layer, given, mask, bias=hidden).out[..., rows, :] for given in (inputs, changed)]
        if mask is not None:
            pair = [out[..., 2:, :] for out in pair]
        if (found := gap(pair[1], pair[0])) > 1e-9:
            fail(f"{where}: a key with a bias of -inf changes outputs by {found:.3g}")


@check(
    Kind.ATTENTION,
    applies=tagged("returns_map", is_layer),
    hint="Return the weights that multiply the values, after all masks.",
)
def map_is_true(subject: Subject) -> None:
    """A map comes when asked for, changes nothing, and is 0 at masked pairs; of exact variants its rows sum to 1."""
    tags = tags_of(subject)
    layer, inputs, heads = layer_of(subject), tensors(subject, SHORT), geometry_of(subject).heads
    valid = torch.ones(2, SHORT, dtype=torch.bool)
    valid[1, -2:] = False
    for where, mode in modes(subject):
        for mask in [mode, padded(mode, valid, valid)] if tags.padding else [mode]:
            plain = attend(subject, layer, inputs, mask).out
            result = attend(subject, layer, inputs, mask, need_map=True)
            if result.map is None:
                fail(f"{where}: a map is asked for and none is returned")
            if tuple(result.map.shape) != (2, heads, SHORT, SHORT) or not result.map.isfinite().all():
                fail(f"{where}: the map is {tuple(result.map.shape)}, not finite numbers of {(2, heads, SHORT, SHORT)}")
            if (found := gap(result.out, plain)) > 1e-8:
                fail(f"{where}: with a map the output is another, by {found:.3g}")
            allowed = None if mask is None else mask.dense(SHORT, SHORT)
            if allowed is not None and tags.causal != "values" and bool((result.map * ~allowed != 0).any()):
                fail(f"{where}: the map is not 0 at masked pairs")
            if tags.exact and (found := gap(result.map.sum(-1)[0], torch.ones(heads, SHORT).double())) > 1e-6:
                fail(f"{where}: it is tagged exact, and rows of the map miss 1 by up to {found:.3g}")
            if tags.exact and is_core(subject) and (found := gap(result.map @ inputs[2], result.out)) > 1e-6:
                fail(f"{where}: it is tagged exact, and the map times the values misses the output by {found:.3g}")


@check(
    Kind.ATTENTION,
    applies=tagged("decodes", is_layer),
    hint="Add the new tokens to ctx.cache in place, then attend to all of them.",
)
def decoding_equals_the_full_pass(subject: Subject) -> None:
    """Token by token, or in pieces, with a cache gives what one causal pass gives."""
    sizes: dict[str, Any] = {"kv_heads": 1} if tags_of(subject).gqa else {}
    layer: Any = layer_of(subject, **sizes)
    for steps in ([1] * 9, [7, 1, 90, 2]):
        inputs = tensors(subject, sum(steps), **sizes)
        whole = attend(subject, layer, inputs, CAUSAL).out
        cache, outs, start = layer.start_cache(), [], 0
        for step in steps:
            part = [x[..., start : start + step, :] for x in inputs]
            outs.append(attend(subject, layer, part, CAUSAL, cache=cache).out)
            start += step
        if (found := gap(torch.cat(outs, dim=-2), whole)) > 1e-8:
            fail(f"decoding {len(steps)} pieces of {start} tokens differs from the full pass by {found:.3g}")
