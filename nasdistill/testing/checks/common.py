"""The rules of every kind: a truthful spec, honest options, no trace left in the process."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from nasdistill.errors import ConfigError, NasdistillError
from nasdistill.spec.component import Kind
from nasdistill.spec.options import ComponentOptions, parse_options
from nasdistill.testing.declared import declared
from nasdistill.testing.registry import Exercise, check, exercise_of, fail, skip, skip_component
from nasdistill.testing.state import ProcessState, same
from nasdistill.testing.subject import Subject

ARXIV = re.compile(r"^arXiv:(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})$")


def has_use(subject: Subject) -> bool:
    """Whether anything is known of the plain use of this kind."""
    return exercise_of(subject.kind) is not None


def has_instance(subject: Subject) -> bool:
    """Whether the component is created at all: a command is run, a module-level attention is made from a layer."""
    return subject.kind is not Kind.COMMAND and not (subject.kind is Kind.ATTENTION and subject.tags.level == "module")


def has_options(subject: Subject) -> bool:
    """Whether the component has an options model, as far as it can be found out."""
    try:
        return subject.host.options_model(subject.kind, subject.id) is not None
    except NasdistillError:
        return False


@check(None, gate=True, per_example=False, hint="Check the spec's target, and what the module imports.")
def can_be_imported(subject: Subject) -> None:
    """A component's target imports, derives from its kind's interface with nothing abstract left, has legal `examples`.

    Nothing is said of a component that declares a package which is not installed.
    """
    lacking = subject.host.missing(subject.kind, subject.id)
    if lacking:
        skip_component(
            f"{', '.join(item.module for item in lacking)} is not installed here: pip install '{lacking[0].extra}'"
        )
    found = subject.load()
    try:
        declared(found, subject.kind)
    except TypeError as fault:
        fail(str(fault))
    stated, actual = subject.spec.options, getattr(found, "options_model", None)
    if stated is not None and actual is not subject.host.options_model(subject.kind, subject.id):
        fail(f"the spec names the options model {stated}, the class uses {getattr(actual, '__name__', actual)}")
    if stated is None and actual not in (None, ComponentOptions):
        fail(f"the class has options ({actual.__name__}) and the spec does not name their model")


@check(
    None,
    gate=True,
    applies=has_instance,
    hint="Give every option a default, or give the class `examples` with options that work.",
)
def can_be_created(subject: Subject) -> None:
    """A component is created from its example's options, by a constructor that only keeps them."""
    with put_back():
        component = create(subject)
    if component.id != subject.id:
        fail(f"its id is {component.id!r} after the host has set it to {subject.id!r}")


@check(
    None,
    gate=True,
    applies=has_use,
    hint="Run it by hand as the message says; the kind's guide has a complete example.",
)
def works(subject: Subject) -> None:
    """A component does its plain work without an error."""
    with put_back():
        plain_use(subject)(subject)


@check(None, per_example=False, hint='Cite the paper as "arXiv:2303.15678", or say "original" for your own work.')
def names_its_source(subject: Subject) -> None:
    """A component names where its idea comes from, arXiv ids in the form ``arXiv:2303.15678``."""
    if not subject.spec.references:
        fail("references is empty")
    for text in subject.spec.references:
        if not text.strip():
            fail("a reference is empty")
        if "arxiv" in text.lower() and not ARXIV.match(text) and "://" not in text:
            fail(f"reference {text!r} is not of the form arXiv:2303.15678")


@check(None, per_example=False, hint="Write a docstring for the class, and a description for each option.")
def is_documented(subject: Subject) -> None:
    """A component's class has a docstring of its own, and every option says what it means."""
    found = subject.load()
    if not (found.__doc__ or "").strip():
        fail(f"{found.__name__} has no docstring")
    model = subject.host.options_model(subject.kind, subject.id)
    for name, info in (model.model_fields if model is not None else {}).items():
        if not (info.description or "").strip():
            fail(f"option {name!r} has no description")


@check(None, applies=has_options, hint="Use types that JSON knows, and validators that accept what they return.")
def options_round_trip(subject: Subject) -> None:
    """Options survive JSON: what is written down in a run gives the same options back."""
    model = subject.host.options_model(subject.kind, subject.id)
    options = parse_options(model, dict(subject.example.options), where=subject.id)
    text = options.model_dump_json()
    again = parse_options(model, json.loads(text), where=subject.id)
    if again.model_dump() != options.model_dump():
        fail(f"{text} is read back as {again.model_dump_json()}")


@check(
    None, per_example=False, applies=has_options, hint="Derive the model from nasdistill.spec.options.ComponentOptions."
)
def unknown_options_are_refused(subject: Subject) -> None:
    """An option that does not exist is an error that names it."""
    model = subject.host.options_model(subject.kind, subject.id)
    try:
        parse_options(model, {**subject.example.options, "no_such_option": 1}, where=subject.id)
    except ConfigError as error:
        if "no_such_option" not in str(error):
            fail(f"the error does not name the option: {error}")
        return
    fail("an unknown option is accepted and ignored")


@check(
    None,
    gate=True,
    applies=has_use,
    hint="Draw from the generator you are given, or from a generator with a fixed seed.",
)
def same_seed_same_result(subject: Subject) -> None:
    """The same seed gives the same result, bit for bit, from a fresh component."""
    use = plain_use(subject)
    with put_back():
        first, second = use(subject), use(subject)
    difference = same(first, second)
    if difference:
        fail(f"two runs with one seed differ: {difference}")


@check(
    None,
    gate=True,
    applies=has_use,
    hint="Restore what you change in a `finally`; use local generators, not global seeds.",
)
def leaves_the_process_as_found(subject: Subject) -> None:
    """Global state is as before: random states, grad mode, default dtype, threads, warning filters, environment."""
    # What the first use in `works` imports and sets up once is not held against it. All uses before this one were put
    # back, so what every use sets, if only to the same value, shows here.
    use = plain_use(subject)
    subject.touched.clear()
    before = ProcessState()
    try:
        use(subject)
        changed = dict.fromkeys([*before.changes(), *subject.touched])
    finally:
        before.restore()
    if changed:
        fail(f"its use changes {', '.join(changed)}")


@check(
    None, applies=has_use, hint="Log, or return what you have to say; the command's result stands on standard output."
)
def prints_nothing(subject: Subject) -> None:
    """Nothing is printed to standard output, which belongs to the command's result."""
    use = plain_use(subject)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), put_back():
        use(subject)
    if said.getvalue().strip():
        fail(f"it prints {said.getvalue().strip().splitlines()[0]!r}")


@check(
    None,
    applies=has_instance,
    hint="Keep no open files, locks or lambdas in the component; hold the host by the base class.",
)
def can_be_copied(subject: Subject) -> None:
    """A component can be deep-copied, as a search does with what it configures once."""
    component = create(subject)
    if copy.deepcopy(component).id != component.id:
        fail("the copy has another id")


# -- details ----------------------------------------------------------------------------------------------------------


def create(subject: Subject) -> Any:
    """Return a new component, with whatever its kind's constructor wants."""
    if subject.kind is Kind.ATTENTION and subject.tags.level == "core":
        from nasdistill.interfaces import AttentionGeometry

        geometry = subject.context("geometry") or AttentionGeometry(heads=2, kv_heads=2, head_dim=8, dim=16, tokens=16)
        return subject.create(geometry=geometry)
    return subject.create()


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Put the process's state back afterwards: what a component leaves behind must not hide in the next check."""
    before = ProcessState()
    try:
        yield
    finally:
        before.restore()


def plain_use(subject: Subject) -> Exercise:
    """Return the plain use of the subject's kind."""
    use = exercise_of(subject.kind)
    if use is None:
        skip(f"nothing is known of the plain use of a {subject.kind.value}")
    return use
