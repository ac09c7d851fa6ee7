"""What every layer does: shapes, independence, gradients, state."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import AttentionMask
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.attention.cases import (
    LONG,
    SHORT,
    attend,
    convert,
    encoder,
    first_mode,
    gap,
    geometry_of,
    is_core,
    is_layer,
    is_model,
    layer_of,
    modes,
    noise,
    padded,
    perturb,
    softmax,
    tagged,
    tags_of,
    tensors,
)
from nasdistill.testing.kit.models import digits
from nasdistill.testing.registry import check, fail
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject


@check(Kind.ATTENTION, gate=True, applies=is_layer, hint="Derive all sizes from the tensors; return the inputs' dtype.")
def output_has_the_shape_of_the_queries(subject: Subject) -> None:
    """The output has the queries' shape (with the values' channels) and dtype, for 1, 7 and 64 tokens and odd sizes."""
    first_mode(subject)
    odd = {"head_dim": 5, "value_dim": 3} if is_core(subject) else {"head_dim": 5}
    for n in (1, SHORT, 64):
        for sizes in ({}, odd):
            for dtype in (torch.float32, torch.bfloat16) if n == SHORT else (torch.float32,):
                for where, mask in modes(subject):
                    geometry = geometry_of(subject, **sizes)
                    layer = layer_of(subject, dtype=dtype, **sizes)
                    out = attend(subject, layer, tensors(subject, n, dtype=dtype, **sizes), mask).out
                    shape = (2, geometry.heads, n, geometry.value_dim) if is_core(subject) else (2, n, geometry.dim)
                    told = f"{n} tokens, heads of {geometry.head_dim}, {dtype}, {where}"
                    if tuple(out.shape) != shape or out.dtype != dtype:
                        fail(f"{told}: the output is {tuple(out.shape)} {out.dtype}, not {shape} {dtype}")
                    if not out.isfinite().all():
                        fail(f"{told}: the output is not finite")


@check(Kind.ATTENTION, applies=is_layer, hint="Never reduce over the first axis.")
def batch_items_are_independent(subject: Subject) -> None:
    """An item's output does not depend on the others of its batch."""
    layer = layer_of(subject)
    for n in (SHORT, LONG):
        inputs = tensors(subject, n, batch=3)
        for where, mask in modes(subject):
            together = attend(subject, layer, inputs, mask).out
            parts = [[x[i : i + 1] for x in inputs] for i in range(3)]
            alone = torch.cat([attend(subject, layer, part, mask).out for part in parts])
            if (found := gap(alone, together)) > 1e-9:
                fail(f"{n} tokens, {where}: items give other outputs alone than in a batch, by {found:.3g}")


@check(Kind.ATTENTION, applies=is_layer, hint="Avoid in-place operations on q, k, v or x.")
def inputs_are_left_alone(subject: Subject) -> None:
    """A call does not change its inputs."""
    layer = layer_of(subject)
    for n in (SHORT, LONG):
        inputs = tensors(subject, n)
        before = [x.clone() for x in inputs]
        for where, mask in modes(subject):
            attend(subject, layer, inputs, mask, copies=False)
            for number, (x, old) in enumerate(zip(inputs, before, strict=True)):
                if not torch.equal(x, old):
                    fail(f"{where} it changes its input {'qkv'[number] if is_core(subject) else 'x'}")


@check(Kind.ATTENTION, applies=is_layer, hint="Keep what outlives a call in ctx.store or ctx.session, never in self.")
def stateful_is_true(subject: Subject) -> None:
    """The tag `stateful` is true both ways: calls do not influence each other, or a new store resets what they keep."""
    layer, tags, mask = layer_of(subject), tags_of(subject), first_mode(subject)
    first, other = tensors(subject, SHORT), tensors(subject, SHORT, seed=1)
    expected = attend(subject, layer, first, mask, step=1, total_steps=4).out
    attend(subject, layer, other, mask, step=0, total_steps=4)
    again = attend(subject, layer, first, mask, step=1, total_steps=4).out
    if difference := same(expected, again, "the output"):
        told = "stateful=True, and a new store and session do not reset it" if tags.stateful else "stateful=False"
        fail(f"{told}: after a call with other inputs {difference}")
    store: dict[str, object] = {}
    session: dict[str, object] = {}
    for step, inputs in enumerate((other, first)):
        kept = attend(subject, layer, inputs, mask, step=step, total_steps=4, store=store, session=session).out
    if not tags.stateful and (difference := same(expected, kept, "the output")):
        fail(f"stateful=False, and with the store of an earlier call {difference}")
    if tags.stateful and not store and not session:
        fail("stateful=True, and two calls leave nothing in the store or the session")


@check(
    Kind.ATTENTION, applies=is_layer, hint="Check detach(), in-place operations, and functions that have no gradient."
)
def gradients_are_right(subject: Subject) -> None:
    """Gradients reach every input and parameter, are finite, and agree with finite differences."""
    sizes: dict[str, Any] = {"head_dim": 3}
    for where, mask in modes(subject):
        layer = perturb(layer_of(subject, **sizes))
        for n in (4, 40):
            inputs = [x.requires_grad_() for x in tensors(subject, n, batch=1, **sizes)]
            torch.autograd.backward(attend(subject, layer, inputs, mask).out.square().sum())
            named = [*zip("qkv" if is_core(subject) else "x", inputs, strict=True), *layer.named_parameters()]
            for name, x in named:
                if x.requires_grad and (x.grad is None or not x.grad.isfinite().all()):
                    fail(f"{where}, {n} tokens: {name} gets {'no' if x.grad is None else 'not a finite'} gradient")
            for name, x in named[: len(inputs)]:
                if x.grad is not None and not x.grad.abs().sum() > 0:
                    fail(f"{where}, {n} tokens: the gradient of {name} is 0")

            run = partial(_output, subject, layer, mask)
            try:
                torch.autograd.gradcheck(run, inputs, fast_mode=n > 4)
            except RuntimeError as error:
                text = next((line for line in str(error).splitlines() if "for output" in line), str(error))
                fail(f"{where}, {n} tokens: the gradient is not that of the function: {text.strip()}")


def _output(subject: Subject, layer: nn.Module, mask: AttentionMask | None, *inputs: Tensor) -> Tensor:
    return attend(subject, layer, list(inputs), mask).out


@check(Kind.ATTENTION, applies=is_layer, hint="Register fixed tensors as buffers, and create all parameters at once.")
def state_dict_restores_the_layer(subject: Subject) -> None:
    """A state dict holds all that the output depends on: loaded into another instance it gives the same output."""
    mask = first_mode(subject)
    one, other = perturb(layer_of(subject, seed=1)), layer_of(subject, seed=2)
    inputs = tensors(subject, LONG)
    expected = attend(subject, one, inputs, mask).out
    try:
        other.load_state_dict(one.state_dict())
    except RuntimeError as error:
        fail(f"the state of a used layer does not fit a fresh one: {str(error).splitlines()[-1].strip()}")
    for who, twin in (("another instance with the same state", other), ("a deep copy", copy.deepcopy(one))):
        if difference := same(expected, attend(subject, twin, inputs, mask).out, "the output"):
            fail(f"of {who} {difference}")


@check(Kind.ATTENTION, hint="Set the tag owns_parameters to what the constructor, or the conversion, does.")
def owns_parameters_is_true(subject: Subject) -> None:
    """The tag `owns_parameters` is true both ways: a layer has trainable parameters, or none.

    Of a converted model those count that the model had neither under their name nor with their content.
    """
    if is_model(subject):
        model = encoder(subject)
        names = _own(model, convert(subject, model).model)
    else:
        names = [name for name, parameter in layer_of(subject).named_parameters() if parameter.requires_grad]
    if bool(names) != tags_of(subject).owns_parameters:
        fail(
            f"owns_parameters={tags_of(subject).owns_parameters}, and its parameters are: {', '.join(names) or 'none'}"
        )


def _own(before: nn.Module, after: nn.Module) -> list[str]:
    """Return the names of trainable parameters that come with a conversion."""
    known = dict(before.named_parameters())
    return [
        name
        for name, parameter in after.named_parameters()
        if parameter.requires_grad
        and (name not in known or known[name].shape != parameter.shape)
        and not any(torch.equal(parameter, other) for other in known.values())
    ]


@check(
    Kind.ATTENTION,
    per_example=False,
    applies=lambda subject: not subject.tags.exact,
    hint="Declare `exact`: a space may then keep a teacher's attention weights as they are.",
)
def softmax_is_declared_exact(subject: Subject) -> None:
    """A variant that is not tagged `exact` does differ from softmax attention, as it is made."""
    if is_model(subject):
        model, images = encoder(subject), digits(4).image
        with torch.no_grad():
            before = model(images)
            if gap(convert(subject, model).model.eval()(images), before) <= 1e-5:
                fail("it is not tagged exact, and the converted model's outputs are the model's: declare exact")
        return
    layer, found = layer_of(subject), 0.0
    for n in (SHORT, LONG):
        inputs = tensors(subject, n)
        for _, mask in modes(subject):
            found = max(found, gap(attend(subject, layer, inputs, mask).out, softmax(subject, inputs, mask)))
    if found <= 1e-6:
        fail(f"it is not tagged exact, and differs from softmax attention by {found:.3g} only: declare exact")


@check(
    Kind.ATTENTION,
    applies=tagged("exact", is_layer),
    hint="Compare with softmax_j(q_i . k_j * scale + bias_ij) v_j; use ctx.scale.",
)
def exact_is_true(subject: Subject) -> None:
    """A variant tagged `exact` equals softmax attention, scale, padding and bias included."""
    tags = tags_of(subject)
    for n in (SHORT, LONG):
        inputs = tensors(subject, n)
        valid = torch.arange(n)[None] < torch.tensor([n, n - 3])[:, None]
        calls: list[tuple[str, AttentionMask | None, dict[str, Any]]] = []
        for where, mask in modes(subject):
            calls.append((where, mask, {}))
            if tags.padding:
                calls.append((f"{where}, with padding", padded(mask, valid), {}))
            if is_core(subject):
                calls.append((f"{where}, with a scale", mask, {"scale": 0.3}))
            if is_core(subject) and tags.bias:
                calls.append((f"{where}, with a bias", mask, {"bias": noise(inputs[0].new_empty(n, n), "bias")}))
        layer = layer_of(subject)
        for where, mask, context in calls:
            expected = softmax(subject, inputs, mask, **context)
            if (found := gap(attend(subject, layer, inputs, mask, **context).out, expected)) > 1e-6:
                fail(f"{n} tokens, {where}: it differs from softmax attention by {found:.3g}")
