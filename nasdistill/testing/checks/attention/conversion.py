"""From existing softmax layers: what modules start from, and what converts several layers of a model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.attention.cases import (
    SHORT,
    attend,
    convert,
    encoder,
    first_mode,
    gap,
    geometry_of,
    is_model,
    is_module,
    tagged,
    tags_of,
    tensors,
    view,
)
from nasdistill.testing.kit.attention import views_of
from nasdistill.testing.kit.models import digits, digits_loss
from nasdistill.testing.registry import check, fail
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject

MATRICES = ("w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o")


@check(Kind.ATTENTION, applies=is_module, hint="Raise MismatchError('... does not support a rotary embedding ...').")
def unfit_layers_are_refused(subject: Subject) -> None:
    """A softmax layer with a feature that the variant lacks is refused with a MismatchError that names the feature."""
    plain = view(geometry_of(subject))
    norm = nn.LayerNorm(geometry_of(subject).head_dim)
    with torch.no_grad():
        norm.weight.mul_(2.0).add_(torch.arange(norm.weight.numel()))
    unfit = {
        "rotary": replace(plain, rotary={"theta": 10_000.0}),
        "cross": replace(plain, cross=True),
        "norm": replace(plain, q_norm=norm, k_norm=norm),
    }
    inputs, mask = tensors(subject, SHORT), first_mode(subject)
    for feature, layer in unfit.items():
        try:
            module = _started(subject, layer)
        except MismatchError as error:
            if feature not in str(error):
                fail(f"a layer with {feature} is refused with an error that does not say {feature}: {error}")
            continue
        if feature == "cross" and not tags_of(subject).cross:
            fail("cross is not declared, and a cross-attention layer is accepted")
        if feature != "cross":
            outs = [attend(subject, one, inputs, mask).out for one in (module, _started(subject, plain))]
            if not gap(*outs) > 1e-9:
                fail(f"a layer with {feature} is accepted, and {feature} is ignored: the module computes as without")


def _started(subject: Subject, layer: object) -> nn.Module:
    """Return the module that starts from a layer."""
    with seeded(subject.seed, "layer"):
        found = subject.load().from_softmax(layer, dict(subject.example.options), host=subject.host)
    return found.double().eval()  # type: ignore[no-any-return]


@check(Kind.ATTENTION, applies=is_module, hint="Clone what you take from the view.")
def the_softmax_layer_is_left_alone(subject: Subject) -> None:
    """A module shares no memory with the layer it starts from, and does not change it."""
    layer = view(geometry_of(subject))
    before = {name: getattr(layer, name).clone() for name in MATRICES}
    with seeded(subject.seed):
        module = subject.load().from_softmax(layer, dict(subject.example.options), host=subject.host)
    memory = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    for name, old in before.items():
        now: Tensor = getattr(layer, name)
        if not torch.equal(now, old):
            fail(f"from_softmax() changes {name} of the layer")
        if now.untyped_storage().data_ptr() in memory:
            fail(f"the module shares its memory with {name} of the layer: training one changes the other")


@check(Kind.ATTENTION, gate=True, applies=is_model, hint="Keep the model's inputs and outputs; report plain numbers.")
def conversion_gives_a_model_that_runs(subject: Subject) -> None:
    """The converted model gives finite outputs of the same shape, with a report and a configuration that fit JSON."""
    model, images = encoder(subject), digits(4).image
    made = convert(subject, model)
    with torch.no_grad():
        before, after = model(images), made.model.eval()(images)
    if before.shape != after.shape or not after.isfinite().all():
        fail(f"the converted model gives {tuple(after.shape)}, not finite numbers of {tuple(before.shape)}")
    for name, value in (("report", made.report), ("config", made.config)):
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            fail(f"the {name} does not fit JSON: {error}")
    if made.cost is not None:
        owned = sum(parameter.numel() for parameter in made.model.parameters())
        if made.cost.params != owned:
            fail(f"its cost says {made.cost.params} parameters, the converted model has {owned}")


class Layers(NamedTuple):
    """Layers that a conversion may meet: the tag that it says so with, whether it does, the model, and the words."""

    tag: str
    declared: bool
    model: dict[str, int]
    words: tuple[str, ...]


@check(Kind.ATTENTION, applies=is_model, hint="Look at view.geometry and view.cross, and raise MismatchError first.")
def undeclared_layers_are_refused(subject: Subject) -> None:
    """Layers of a kind that the tags do not declare are refused with a MismatchError that names it; declared ones work.

    These are `causal`, `bidirectional`, `gqa` and `cross`; how a converted layer attends across is not asked.
    """
    tags = tags_of(subject)
    kinds = (
        Layers("causal", tags.causal != "no", {"causal": True}, ("causal",)),
        Layers("bidirectional", tags.bidirectional, {"causal": False}, ("causal", "bidirectional")),
        Layers("gqa", tags.gqa, {"kv_heads": 1}, ("head",)),
        Layers("cross", tags.cross, {}, ("cross",)),
    )
    for kind in kinds:
        model = encoder(subject, **kind.model)
        views = {layer: replace(view, cross=kind.tag == "cross") for layer, view in views_of(model).items()}
        try:
            with seeded(subject.seed, "convert"):
                made = subject.create().convert(model, views, [0, 1, 2], [digits(16)])
        except MismatchError as error:
            if kind.declared:
                fail(f"{kind.tag} is declared, and such layers are refused: {error.message}")
            if not any(word in str(error) for word in kind.words):
                fail(f"{kind.tag} is refused with an error that does not say {' or '.join(kind.words)}: {error}")
            continue
        if not kind.declared:
            fail(f"{kind.tag} is not declared, and such layers are converted without an error")
        with torch.no_grad():
            if kind.tag != "cross" and not made.model.eval()(digits(4).image).isfinite().all():
                fail(f"{kind.tag} is declared, and the converted model gives numbers that are not finite")


@check(
    Kind.ATTENTION, applies=is_model, hint="Leave them at False; they are for layers that are called with a context."
)
def nothing_is_declared_that_cannot_be_asked(subject: Subject) -> None:
    """Of a conversion nobody asks for padding, a bias, patterns, maps or decoding, so it declares none of these."""
    tags = tags_of(subject)
    found = [tag for tag in ("padding", "bias", "patterns", "returns_map", "decodes") if getattr(tags, tag)]
    if found:
        fail(f"it declares {', '.join(found)}, which converted layers are not called with")


@check(
    Kind.ATTENTION,
    applies=lambda subject: is_model(subject) and subject.tags.causal != "no",
    hint="Apply the causal mask in every converted layer, before anything is shared or selected.",
)
def converted_models_are_causal(subject: Subject) -> None:
    """Of a converted causal model, later tokens change no earlier one where `causal` is "strict", else they do."""
    model = encoder(subject, causal=True)
    made = convert(subject, model).model.eval()
    seen: list[Tensor] = []
    made.get_submodule("norm").register_forward_hook(lambda module, args, out: seen.append(out))
    image = digits(4).image
    changed = image.clone()
    changed[:, :, 4:] += 1.0  # the lower half of the image, tokens 8 on
    with torch.no_grad():
        made(image)
        made(changed)
    found, strict = gap(seen[1][:, :8], seen[0][:, :8]), tags_of(subject).causal == "strict"
    if strict and found > 1e-6:
        fail(f'causal="strict", and in the converted model later tokens change earlier ones, by {found:.3g}')
    if not strict and found <= 1e-6:
        fail('causal="values", and in the converted model no later token changes an earlier one: declare "strict"')


@check(Kind.ATTENTION, applies=is_model, hint="Reset what layers share where the first of them runs.")
def converted_models_remember_nothing(subject: Subject) -> None:
    """The tag `stateful` is true both ways: calls of the converted model influence later ones, or they do not."""
    made = convert(subject, encoder(subject)).model.eval()
    with torch.no_grad():
        first = made(digits(4).image)
        made(digits(4, start=50).image)
        difference = same(first, made(digits(4).image), "the output")
    if difference and not tags_of(subject).stateful:
        fail(f"stateful=False, and after a call with other images {difference}")
    if not difference and tags_of(subject).stateful:
        fail("stateful=True, and a call with other images leaves no trace: declare stateful=False")


@check(Kind.ATTENTION, applies=is_model, hint="Work on copy.deepcopy(model).")
def conversion_leaves_the_model_alone(subject: Subject) -> None:
    """convert() works on a copy: weights, modes, hooks and gradients of the model stay, and no memory is shared."""
    model = encoder(subject)
    torch.autograd.backward(digits_loss(model(digits(4).image), digits(4)))
    guard = Guard({"model": model})
    made = convert(subject, model)
    if changed := guard.settle():
        fail(f"it changes {', '.join(changed[:3])}")
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    shared = [name for name, parameter in made.model.named_parameters() if parameter.data_ptr() in mine]
    if shared:
        fail(f"the converted model shares {', '.join(shared[:3])} with the model")


@check(Kind.ATTENTION, applies=is_model, hint="Touch the modules at views[layer].path for the given layers only.")
def only_the_given_layers_change(subject: Subject) -> None:
    """Layers that may not be changed compute as before, and so does the rest of the model."""
    model = encoder(subject)
    made = convert(subject, model, [1, 2])
    touched = ("blocks.1", "blocks.2")
    names = [name for name, _ in model.named_modules() if not name.startswith(touched)]
    spared = [name for name in names if name not in ("", "blocks")]  # these two hold what is touched
    x = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in spared:
        try:
            old, new = model.get_submodule(name), made.model.get_submodule(name)
        except AttributeError:
            fail(f"only layers 1 and 2 may change, and {name} is gone")
        if difference := same(dict(old.state_dict()), dict(new.state_dict()), f"the state of {name}"):
            fail(f"only layers 1 and 2 may change, and {difference}")
    with torch.no_grad():
        if difference := same(model.blocks[0](x), made.model.get_submodule("blocks.0")(x), "the output of blocks.0"):
            fail(f"only layers 1 and 2 may change, and {difference}")


@check(Kind.ATTENTION, applies=is_model, hint="Register new parts as modules, and detach nothing on the way.")
def converted_models_can_be_trained(subject: Subject) -> None:
    """Every trainable parameter of the converted model gets a finite gradient."""
    made = copy.deepcopy(convert(subject, encoder(subject)).model).train()
    torch.autograd.backward(digits_loss(made(digits(8).image), digits(8)))
    for name, parameter in made.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
            fail(f"{name} gets {'no' if parameter.grad is None else 'not a finite'} gradient")


@check(
    Kind.ATTENTION,
    applies=tagged("exact", is_model),
    hint="Drop the tag `exact`, or keep what softmax attention computes.",
)
def exact_conversion_changes_no_output(subject: Subject) -> None:
    """A variant tagged `exact` leaves the model's outputs as they are."""
    model, images = encoder(subject), digits(4).image
    with torch.no_grad():
        found = gap(convert(subject, model).model.eval()(images), model(images))
    if found > 1e-5:
        fail(f"it is tagged exact, and the converted model's outputs differ by {found:.3g}")
