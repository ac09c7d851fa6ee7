"""Which tokens may matter: causality, padding, windows."""

from __future__ import annotations

import torch
from torch import Tensor

from nasdistill.interfaces import AttentionMask
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.attention.cases import (
    CAUSAL,
    LONG,
    SHORT,
    attend,
    first_mode,
    gap,
    is_causal,
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


def keep(x: Tensor, kept: Tensor, other: Tensor) -> Tensor:
    """Return x with the tokens that are not kept, bool ``(N,)`` or ``(B, N)``, taken from `other`."""
    kept = kept[..., None] if kept.dim() == 1 or x.dim() == 3 else kept[:, None, :, None]
    return torch.where(kept, x, other)


@check(
    Kind.ATTENTION, applies=is_causal, hint="Sum over j <= i only; sums taken by subtraction let later tokens through."
)
def causality_is_true(subject: Subject) -> None:
    """Under a causal mask a later token changes no earlier output, bit for bit; tagged "values": a later value does."""
    causal = tags_of(subject).causal
    layer = layer_of(subject)
    for n in (SHORT, 64, LONG):
        inputs = tensors(subject, n)
        out = attend(subject, layer, inputs, CAUSAL).out
        for cut in {n // 3, n - 1}:
            before = torch.arange(n) < cut
            changed = [keep(x, before, noise(x, n, cut, number)) for number, x in enumerate(inputs)]
            if causal == "values":
                changed[:2] = inputs[:2]
            other = attend(subject, layer, changed, CAUSAL).out
            if not torch.equal(out[..., :cut, :], other[..., :cut, :]):
                found = gap(other[..., :cut, :], out[..., :cut, :])
                fail(
                    f"causal={causal!r}: of {n} tokens, those from {cut} on change outputs before them, by {found:.3g}"
                )
            if torch.equal(out[..., cut:, :], other[..., cut:, :]):
                fail(f"of {n} tokens, those from {cut} on do not even change their own outputs")


@check(
    Kind.ATTENTION,
    per_example=False,
    applies=lambda subject: is_layer(subject) and subject.tags.causal == "values",
    hint='Declare causal="strict", which more uses ask for.',
)
def looking_ahead_is_true(subject: Subject) -> None:
    """Where the tag `causal` is "values", later queries or keys do change earlier outputs; else it is "strict"."""
    layer = perturb(layer_of(subject))
    for n in (SHORT, 64, LONG):
        inputs = tensors(subject, n)
        out = attend(subject, layer, inputs, CAUSAL).out
        for cut in {n // 3, n - 1}:
            kept = torch.arange(n) < cut
            changed = [keep(x, kept, noise(x, n, cut, number)) for number, x in enumerate(inputs)]
            changed[2:] = inputs[2:]  # a core's values; of a module all that there is changes
            other = attend(subject, layer, changed, CAUSAL).out
            if not torch.equal(out[..., :cut, :], other[..., :cut, :]):
                return
    fail('causal="values", and no later query or key changes an earlier output: declare "strict"')


@check(
    Kind.ATTENTION,
    applies=tagged("padding", is_layer),
    hint="Apply mask.key_valid before anything is summed or selected.",
)
def padded_keys_change_nothing(subject: Subject) -> None:
    """What stands at padded positions has no influence on the outputs of the others."""
    layer = layer_of(subject)
    for n in (SHORT, LONG):
        inputs = tensors(subject, n)
        valid = torch.ones(2, n, dtype=torch.bool)
        valid[0, :2] = valid[1, 3] = False
        changed = [keep(x, valid, noise(x, n, number)) for number, x in enumerate(inputs)]
        for where, mode in modes(subject):
            tried = [(changed, padded(mode, valid, valid))]
            if is_core(subject):  # the queries of these positions are asked about all the same
                tried.append(([inputs[0], *changed[1:]], padded(mode, valid)))
            for other, mask in tried:
                pair = [attend(subject, layer, given, mask).out for given in (inputs, other)]
                shown = [keep(out, valid, torch.zeros_like(out)) for out in pair]
                if (found := gap(shown[1], shown[0])) > 1e-9:
                    fail(f"{n} tokens, {where}: padded positions change the outputs of others, by {found:.3g}")


@check(
    Kind.ATTENTION, applies=tagged("padding", is_layer), hint="Count valid tokens, not all; a mean over N sees padding."
)
def padding_is_as_if_absent(subject: Subject) -> None:
    """A padded sequence gives what it gives alone, without its padding."""
    layer = layer_of(subject)
    for n in (SHORT, LONG):
        inputs, lengths = tensors(subject, n, batch=3), (n, n - 2, 1)
        valid = torch.arange(n)[None] < torch.tensor(lengths)[:, None]
        for where, mode in modes(subject):
            together = attend(subject, layer, inputs, padded(mode, valid, valid)).out
            for item, length in enumerate(lengths):
                short = [x[item : item + 1, ..., :length, :] for x in inputs]
                alone = attend(subject, layer, short, mode).out
                if (found := gap(together[item : item + 1, ..., :length, :], alone)) > 1e-8:
                    fail(f"{length} tokens padded to {n}, {where}: they give other outputs than alone, by {found:.3g}")


@check(
    Kind.ATTENTION,
    applies=tagged("padding", is_layer),
    hint="Fill with the lowest finite number instead of -inf, and zero such rows.",
)
def empty_rows_are_zero(subject: Subject) -> None:
    """Queries that may attend to nothing give 0 (a module: no NaN), and finite gradients."""
    for n in (SHORT, LONG):
        keys, queries = torch.ones(2, n, dtype=torch.bool), torch.ones(2, n, dtype=torch.bool)
        keys[0] = False  # an item without any key
        queries[1, 2] = False  # a padded query
        for where, mode in modes(subject):
            for dtype in (torch.float32, torch.float64):
                layer = layer_of(subject, dtype=dtype)
                inputs = [x.requires_grad_() for x in tensors(subject, n, dtype=dtype)]
                out = attend(subject, layer, inputs, padded(mode, keys, queries)).out
                if not out.isfinite().all():
                    fail(f"{n} tokens, {where}: rows without any key give numbers that are not finite ({dtype})")
                if is_core(subject) and (bool((out[0] != 0).any()) or bool((out[1, :, 2] != 0).any())):
                    fail(f"{n} tokens, {where}: rows without any key are not 0")
                torch.autograd.backward(out.square().sum())
                if not all(x.grad is not None and x.grad.isfinite().all() for x in inputs):
                    fail(f"{n} tokens, {where}: rows without any key give gradients that are not finite ({dtype})")


@check(
    Kind.ATTENTION,
    applies=tagged("patterns", is_layer),
    hint="Read mask.dense(), pattern() or blocks(): they hold all conditions.",
)
def patterns_are_honoured(subject: Subject) -> None:
    """A window mask hides what lies outside it, and means the same as a predicate."""
    layer = layer_of(subject)
    for n in (SHORT, LONG):
        inputs = tensors(subject, n)
        changed = [keep(x, torch.arange(n) < 3, noise(x, n, number)) for number, x in enumerate(inputs)]
        for where, mode in modes(subject):
            causal = mode is not None
            window = AttentionMask(causal=causal, window=(2, 1))
            rule = AttentionMask(causal=causal, predicate=lambda i, j: (j >= i - 2) & (j <= i + 1))
            out = attend(subject, layer, inputs, window).out
            if (found := gap(attend(subject, layer, inputs, rule).out, out)) > 1e-9:
                fail(f"{n} tokens, {where}: a window and a predicate for the same pairs differ by {found:.3g}")
            other = attend(subject, layer, changed, window).out
            if (found := gap(other[..., :2, :], out[..., :2, :])) > 1e-9:
                fail(f"{n} tokens, {where}: tokens outside the window change outputs, by {found:.3g}")
    if not gap(attend(subject, layer, inputs, first_mode(subject)).out, out) > 1e-6:
        fail("a window changes nothing at all")
