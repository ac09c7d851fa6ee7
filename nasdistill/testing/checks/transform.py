"""Checks of transforms: another network comes out, and the old one can be turned into it again without data.

They are tried on two small networks, a convolutional one and a transformer, and on real digits, unless an example names
another. A transform may refuse one of them. The example with the setting under which nothing changes is called
``"identity"``, or says so.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError, NasdistillError
from nasdistill.interfaces import Batch, Example, Site, Transform, Transformed
from nasdistill.measure import count_params
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.inputs import descend, forward, gap, label_of, network, objective, outputs, samples
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import few, same
from nasdistill.testing.subject import Subject
from nasdistill.trace import describe

CONTEXT = {
    "model": (
        "what makes the network: `Mlp` or another one of `nasdistill.testing.kit.models`, or "
        "`package.module:callable`; a convolutional one and a transformer unless given"
    ),
    "batch": "`package.module:callable`, which returns the batch that the network takes; digits unless given",
    "identity": "`True` for the setting under which nothing changes; an example called `identity` needs not say it",
}
"""What an example's context may name."""

NETWORKS = ("SmallResNet", "SmallViT")
STEPS = 6


@dataclass(frozen=True)
class Attempt:
    """What became of one network.

    Attributes:
        name: the network's.
        model: the network that was handed over.
        calibration: the batches that were handed over.
        found: the result; None when there is none.
        error: why there is none.
    """

    name: str
    model: nn.Module
    calibration: Sequence[Batch]
    found: Transformed | None
    error: Exception | None = None


def is_identity(example: Example) -> bool:
    """Return whether an example is the setting under which nothing changes."""
    return example.name == "identity" or bool(example.context.get("identity"))


def does_something(subject: Subject) -> bool:
    """Whether the example is one to be tried in full: the identity is only where there is no other."""
    return not is_identity(subject.example) or all(map(is_identity, getattr(subject.load(), "examples", ())))


rule = partial(check, Kind.TRANSFORM, applies=does_something)


def names(subject: Subject) -> tuple[Any, ...]:
    """Return the networks to try."""
    chosen = subject.context("model")
    return NETWORKS if chosen is None else (chosen,)


def batch_of(subject: Subject, size: int = 16, start: int = 0) -> Batch:
    """Return a new batch of up to `size` samples."""
    return samples(subject.context("batch"), size, start)


def network_of(subject: Subject, what: Any, seed: int = 0) -> nn.Module:
    """Return a new network."""
    return network(what, batch_of(subject), seed=seed)


def attempt(
    subject: Subject,
    what: Any,
    *,
    options: Any = None,
    change: Callable[[Batch], Batch] | None = None,
    empty: bool = False,
    model: nn.Module | None = None,
) -> Attempt:
    """Apply a fresh transform to a fresh network (or to `model`); `change` is made to the calibration batches."""
    batches = [] if empty else [batch_of(subject, 16), batch_of(subject, 16, start=100)]
    if change is not None:
        batches = [change(batch) for batch in batches]
    named = label_of(what)
    model = network_of(subject, what) if model is None else model
    transform: Transform = subject.create(options)
    try:
        with subject.seeded():
            return Attempt(named, model, batches, transform.apply(model, batches, forward))
    except Exception as error:
        return Attempt(named, model, batches, None, error)


def attempts(subject: Subject) -> list[Attempt]:
    """Return what became of each network, for checks that only look."""
    return subject.once("attempts", lambda: [attempt(subject, what) for what in names(subject)])


def results(subject: Subject) -> Iterator[tuple[Attempt, Transformed]]:
    """Yield the networks that were transformed, with their results, for checks that only look."""
    for item in attempts(subject):
        if item.found is not None:
            yield item, item.found


def fresh(subject: Subject) -> Iterator[tuple[Attempt, Transformed]]:
    """Yield new results, for checks that change them."""
    for what, old in zip(names(subject), attempts(subject), strict=True):
        if old.found is not None:
            item = attempt(subject, what)
            if item.error is not None:
                raise item.error
            assert item.found is not None
            yield item, item.found


@exercise(Kind.TRANSFORM)
def use(subject: Subject) -> list[Any]:
    """Transform each network that it fits, and compute with the results."""
    tried = [attempt(subject, what) for what in names(subject)]
    broken = [item.error for item in tried if item.error is not None and not isinstance(item.error, MismatchError)]
    if broken and all(item.found is None for item in tried):
        raise broken[0]
    return [
        (
            item.name,
            outputs(item.found.model, batch_of(subject)),
            dict(item.found.model.state_dict()),
            item.found.config,
        )
        for item in tried
        if item.found is not None
    ]


# -- gates ------------------------------------------------------------------------------------------------------------


@rule(gate=True, hint="Name a network that it fits in an example: context={'model': 'SmallViT'}.")
def fits_a_network(subject: Subject) -> None:
    """At least one of the networks is transformed, and a Transformed with a module comes back."""
    found = list(results(subject))
    if not found:
        said = "; ".join(f"{item.name}: {item.error}" for item in attempts(subject))
        fail(f"it refuses every network ({said})")
    for item, result in found:
        if not isinstance(result, Transformed) or not isinstance(result.model, nn.Module):
            fail(f"for {item.name} it returns {type(result).__name__}, not a Transformed with a module")


@rule(gate=True, hint="Keep the input and the output of the network as they were.")
def result_computes(subject: Subject) -> None:
    """The result gives finite outputs of the input's shape, for one sample and for several."""
    for item, result in results(subject):
        for size in (1, 5):
            batch = batch_of(subject, size)
            expected, found = outputs(item.model, batch), outputs(result.model, batch)
            where = f"from {item.name}, on {size} sample{'s' if size > 1 else ''}"
            if found.shape != expected.shape:
                fail(f"{where}: the outputs have shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
            if not bool(found.isfinite().all()):
                fail(f"{where}: {int((~found.isfinite()).sum())} of {found.numel()} outputs are not finite")


# -- what is handed over ----------------------------------------------------------------------------------------------


@rule(hint="Look for what you need before any work, and raise MismatchError when it is not there.")
def refuses_in_order(subject: Subject) -> None:
    """A network that it does not fit is refused with a MismatchError that says why."""
    for item in attempts(subject):
        if item.error is not None and not isinstance(item.error, MismatchError):
            fail(f"on {item.name} it raises {type(item.error).__name__} instead of MismatchError: {item.error}")
        if item.error is not None and not str(item.error).strip():
            fail(f"it refuses {item.name} without a word")


@rule(hint="Work on copy.deepcopy(model), and put back the modes and gradients that you change.")
def input_is_left_alone(subject: Subject) -> None:
    """The input is unchanged, whether it was transformed or refused: weights, gradients, modes, hooks, structure."""
    for what in names(subject):
        model = network_of(subject, what)
        guard = Guard({"input": model})
        attempt(subject, what, model=model)
        changed = guard.settle()
        if changed:
            fail(f"it changes {few(changed)}")


@rule(hint="Clone what you take over from the input.")
def shares_no_weights(subject: Subject) -> None:
    """Result and input share no storage: training the one leaves the other as it is."""
    for item, result in results(subject):
        if result.model is item.model:
            fail(f"from {item.name}, the result is the input itself")
        owned = {t.untyped_storage().data_ptr(): name for name, t in _tensors(item.model)}
        for name, tensor in _tensors(result.model):
            if tensor.numel() and tensor.untyped_storage().data_ptr() in owned:
                fail(f"{name} of the result is {owned[tensor.untyped_storage().data_ptr()]} of {item.name} itself")


@rule(hint="Clone the batches before you change anything in them.")
def calibration_is_left_alone(subject: Subject) -> None:
    """The calibration batches are unchanged."""
    for what in names(subject):
        if next(item for item in attempts(subject) if item.name == label_of(what)).found is None:
            continue
        item = attempt(subject, what)
        expected = [batch_of(subject, 16), batch_of(subject, 16, start=100)]
        for number, (before, after) in enumerate(zip(expected, item.calibration, strict=True)):
            difference = same(dict(before.inputs), dict(after.inputs), "inputs") or same(
                before.labels, after.labels, "labels"
            )
            if difference:
                fail(f"calibration batch {number} is changed: {difference}")


@rule(hint="Use the labels only where they are; otherwise raise a DataError that asks for labels.")
def labels_may_be_missing(subject: Subject) -> None:
    """Calibration without labels works, or is refused with an error of nasdistill that says so."""
    _calibrate(subject, "without labels", "label", change=lambda batch: replace(batch, labels=None))


@rule(hint="Do without data, or raise a DataError that asks for calibration batches.")
def calibration_may_be_empty(subject: Subject) -> None:
    """An empty calibration works, or is refused with an error of nasdistill that says so."""
    _calibrate(subject, "without calibration batches", "calibrat", empty=True)


@rule(hint="Compute importances under torch.enable_grad(), and statistics under torch.no_grad().")
def grad_mode_plays_no_part(subject: Subject) -> None:
    """Applied where gradients are switched off, it gives the same result, and one that can be trained."""
    for item, result in results(subject):
        what = next(entry for entry in names(subject) if label_of(entry) == item.name)
        with torch.no_grad():
            other = attempt(subject, what)
        if other.found is None:
            fail(f"under torch.no_grad() {item.name} gives {type(other.error).__name__}: {other.error}")
        difference = same(dict(result.model.state_dict()), dict(other.found.model.state_dict()), "state_dict()")
        if difference:
            fail(f"under torch.no_grad(), from {item.name}: {difference}")
        flags = [[p.requires_grad for p in made.model.parameters()] for made in (result, other.found)]
        if flags[0] != flags[1]:
            fail(f"under torch.no_grad(), {sum(flags[1])} instead of {sum(flags[0])} parameters require a gradient")


# -- the function -----------------------------------------------------------------------------------------------------


@check(
    Kind.TRANSFORM,
    per_example=False,
    hint='Give the class an example named "identity" whose options keep everything; factor in float64.',
)
def identity_is_exact(subject: Subject) -> None:
    """There is a setting, named by an example, under which the result computes what the input computes, to 1e-5."""
    given: Sequence[Example] = (subject.example, *getattr(subject.load(), "examples", ()))
    found = [item for item in given if is_identity(item)]
    if not found:
        fail('no example is named "identity", so there is no setting known that keeps the function')
    same_use = Subject(subject.host, subject.record, found[0], seed=subject.seed)
    tried = [attempt(same_use, what) for what in names(same_use)]
    if all(item.found is None for item in tried):
        fail(f"with {dict(found[0].options)} every network is refused: {tried[0].error}")
    for item in tried:
        if item.found is not None:
            batch = batch_of(same_use)
            error = gap(outputs(item.model, batch), outputs(item.found.model, batch))
            if error > 1e-5:
                fail(f"with {dict(found[0].options)} the outputs of {item.name} move by {error:.2g}")


@rule(hint="Keep in config whatever shapes depend on, and in parameters or buffers all numbers.")
def rebuilds_from_config(subject: Subject) -> None:
    """A fresh transform rebuilds the result from another network of the input's structure, config and state_dict."""
    for item, result in results(subject):
        what = next(entry for entry in names(subject) if label_of(entry) == item.name)
        try:
            config = json.loads(json.dumps(result.config, allow_nan=False))
        except (TypeError, ValueError):
            skip("its config is not JSON, which another check is about")
        state = result.model.state_dict()
        strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
        if strange:
            fail(f"from {item.name}: {strange[0]} of the state_dict is no tensor, so it cannot be stored")
        stored = {name: value.clone() for name, value in state.items()}
        other = network_of(subject, what, seed=1)
        with seeded(subject.seed + 1, "rebuild"):
            transform: Transform = subject.create()
            try:
                rebuilt = transform.rebuild(other, config)
                rebuilt.load_state_dict(stored, strict=True)
            except Exception as error:
                told = str(error).splitlines()
                fail(f"from {item.name}: {type(error).__name__} while rebuilding: {' '.join(told[:3])}")
        batch = batch_of(subject)
        off = gap(outputs(result.model, batch), outputs(rebuilt, batch))
        if off > 1e-6:
            fail(f"from {item.name}: the rebuilt network's outputs are off by {off:.2g}")


@rule(hint="Hold no tensors or functions of the first module in closures; read them from self.")
def result_can_be_copied(subject: Subject) -> None:
    """A deep copy of the result computes the same, and goes on doing so when the original changes."""
    for item, result in fresh(subject):
        batch = batch_of(subject)
        expected = outputs(result.model, batch)
        twin = copy.deepcopy(result.model)
        error = gap(expected, outputs(twin, batch))
        if error > 1e-6:
            fail(f"from {item.name}: a deep copy's outputs are off by {error:.2g}")
        with torch.no_grad():
            for parameter in result.model.parameters():
                parameter.zero_()
        error = gap(expected, outputs(twin, batch))
        if error > 1e-6:
            fail(f"from {item.name}: a deep copy's outputs move by {error:.2g} when the original's weights change")


@rule(hint="Compute with parameters, not with detached copies or .data of them.")
def result_trains(subject: Subject) -> None:
    """A few steps lower the loss, and each parameter that the input had too gets a gradient if it asks for one."""
    for item, result in fresh(subject):
        batch, model = batch_of(subject, 32), result.model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            fail(f"from {item.name}: no parameter requires a gradient")
        before = _reached(item.model, batch)
        losses = []
        with subject.seeded():
            for step in range(STEPS + 1):
                loss = objective(forward(model, batch), batch)
                losses.append(loss.item())
                if not loss.requires_grad:
                    fail(f"from {item.name}: the outputs have no gradient")
                descend(trained, loss)
                if step == 0:
                    dry = [n for n, p in model.named_parameters() if n in before and p.requires_grad and p.grad is None]
                    if dry:
                        fail(f"from {item.name}: no gradient reaches {', '.join(dry[:3])}")
        if not losses[-1] < losses[0]:
            fail(f"from {item.name}: {STEPS} small steps take the loss from {losses[0]:.4g} to {losses[-1]:.4g}")


# -- what is said of it -----------------------------------------------------------------------------------------------


@rule(hint="Return numbers, texts and lists of them: .item() and .tolist() where there are tensors.")
def config_and_report_are_json(subject: Subject) -> None:
    """`config` and `report` are JSON."""
    for item, result in results(subject):
        for name, value in (("config", result.config), ("report", result.report)):
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                fail(f"from {item.name}: {name} is not JSON: {error}")


@rule(hint="Give for a site of the input the sorted positions of the channels that were kept.")
def index_maps_are_positions(subject: Subject) -> None:
    """`index_maps` gives for sites of the input which of its channels were kept: int64, one axis, each once."""
    if not any(result.index_maps for _, result in results(subject)):
        skip("it gives no index maps")
    for item, result in results(subject):
        if not result.index_maps:
            continue
        sites = describe(item.model, lambda model: forward(model, batch_of(subject, 2)), item.name)
        for site, kept in result.index_maps.items():
            where = f"from {item.name}: index_maps[{site}]"
            if not isinstance(site, Site) or site not in sites:
                fail(f"{where} is for no site of the input")
            if not isinstance(kept, Tensor) or kept.dtype != torch.int64 or kept.ndim != 1:
                form = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
                fail(f"{where} is {form}, not int64 of one axis")
            repeated = len(kept) - len(set(kept.tolist()))
            if repeated:
                fail(f"{where} names {repeated} channels more than once")
            width = sites[site].width
            if not kept.numel() or int(kept.min()) < 0 or int(kept.max()) >= width:
                fail(f"{where} is {kept[:4].tolist()} ..., of a site with {width} channels")


@rule(hint="Compute the terms from what the last forward left, and return them with their gradient.")
def losses_are_scalars(subject: Subject) -> None:
    """`losses` gives after each forward finite scalars under names, with a gradient that reaches a parameter."""
    if not any(result.losses for _, result in results(subject)):
        skip("it gives no losses")
    for item, result in fresh(subject):
        if result.losses is None:
            continue
        model = result.model.train()
        for number in (1, 2):
            model.zero_grad()
            with subject.seeded():
                forward(model, batch_of(subject))
                terms = result.losses()
            if not isinstance(terms, Mapping) or not terms:
                fail(f"from {item.name}: losses() returns {terms!r}")
            for name, value in terms.items():
                where = f"from {item.name}, after forward {number}: losses()[{name!r}]"
                if not isinstance(value, Tensor) or value.ndim or not bool(value.isfinite()):
                    fail(f"{where} is {value!r}, not a finite scalar tensor")
                if not value.requires_grad:
                    fail(f"{where} has no gradient")
            torch.stack([value.float() for value in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
            if all(parameter.grad is None for parameter in model.parameters()):
                fail(f"from {item.name}: the gradient of losses() reaches no parameter")


@rule(hint="Count with nasdistill.measure.count_params, masks and buffers left out.")
def cost_counts_parameters(subject: Subject) -> None:
    """`cost`, where it is given, has the result's number of parameters, and work that is not negative."""
    if not any(result.cost for _, result in results(subject)):
        skip("it gives no cost")
    for item, result in results(subject):
        if result.cost is None:
            continue
        counted = count_params(result.model)
        if result.cost.params != counted:
            fail(f"from {item.name}: cost.params is {result.cost.params}, and {counted} parameters are counted")
        if result.cost.macs < 0 or result.cost.activations < 0:
            fail(f"from {item.name}: the cost is {result.cost}")


# -- details ----------------------------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _calibrate(subject: Subject, situation: str, word: str, **changes: Any) -> None:
    """Apply with an unusual calibration: the result computes, or the error is one of ours and has `word` in it."""
    for old, _ in results(subject):
        what = next(entry for entry in names(subject) if label_of(entry) == old.name)
        item = attempt(subject, what, **changes)
        if item.found is not None:
            if not bool(outputs(item.found.model, batch_of(subject)).isfinite().all()):
                fail(f"{situation}, the outputs from {item.name} are not finite")
        elif not isinstance(item.error, NasdistillError):
            fail(f"{situation} it raises {type(item.error).__name__}: {item.error}")
        elif word not in str(item.error).lower():
            fail(f"{situation} it is refused, and the error does not say so: {item.error}")


def _reached(model: nn.Module, batch: Batch) -> set[str]:
    """Return the names of the parameters that get a gradient."""
    twin = copy.deepcopy(model).train()
    with torch.enable_grad():
        objective(forward(twin, batch), batch).backward()  # type: ignore[no-untyped-call]
    return {name for name, parameter in twin.named_parameters() if parameter.grad is not None}
