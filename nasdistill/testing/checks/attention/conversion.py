"""From existing softmax layers: what modules start from, and what converts several layers of a model."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

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
    model, images = encoder(), digits(4).image
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


@check(Kind.ATTENTION, applies=is_model, hint="Work on copy.deepcopy(model).")
def conversion_leaves_the_model_alone(subject: Subject) -> None:
    """convert() works on a copy: weights, modes, hooks and gradients of the model stay, and no memory is shared."""
    model = encoder()
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
    model = encoder()
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
    made = copy.deepcopy(convert(subject, encoder()).model).train()
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
    model, images = encoder(), digits(4).image
    with torch.no_grad():
        found = gap(convert(subject, model).model.eval()(images), model(images))
    if found > 1e-5:
        fail(f"it is tagged exact, and the converted model's outputs differ by {found:.3g}")
