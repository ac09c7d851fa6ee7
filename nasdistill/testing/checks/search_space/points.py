"""The axes of a space and the points they span."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from nasdistill.errors import ISOLATED, ArchitectureError
from nasdistill.host import Host
from nasdistill.interfaces import SearchSpace
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ObjectiveConfig, TrainingConfig
from nasdistill.spec.options import ComponentOptions, parse_options
from nasdistill.testing.checks.search_space.cases import NAME, first_case, networks_differ, points, samples, told
from nasdistill.testing.declared import declared
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.state import first_difference
from nasdistill.testing.subject import Subject


@check(Kind.SEARCH_SPACE, gate=True, hint="Give each axis distinct choices of one of the types str, int and float.")
def axes_are_well_formed(subject: Subject) -> None:
    """Axes have legal, unique names and distinct choices, all str, all int or all float, the default among them."""
    axes = subject.create().axes()
    if not axes:
        fail("there is no axis")
    for axis in axes:
        if not NAME.match(axis.name):
            fail(f"axis name {axis.name!r} does not match {NAME.pattern}")
        kinds = {type(choice) for choice in (*axis.choices, axis.default)}
        if len(kinds) != 1 or not kinds <= {str, int, float}:
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            fail(f"axis {axis.name!r} mixes or misuses types ({found}): choices {axis.choices}, {axis.default!r}")
        if any(isinstance(choice, float) and not math.isfinite(choice) for choice in axis.choices):
            fail(f"axis {axis.name!r} has a choice that is no finite number: {axis.choices}")
        if len(set(axis.choices)) != len(axis.choices):
            fail(f"axis {axis.name!r} gives a choice twice: {axis.choices}")
    names = [axis.name for axis in axes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(f"axis {', '.join(twice)} is there twice")


@check(Kind.SEARCH_SPACE, gate=True, hint="Derive axes() from the options alone, in a fixed order.")
def axes_are_the_same_in_every_call(subject: Subject) -> None:
    """Names, choices and defaults of the axes are the same in every call and for every instance."""
    space = subject.create()
    before = facts_of(space.axes())
    for who, now in (
        ("a second call", facts_of(space.axes())),
        ("another instance", facts_of(subject.create().axes())),
    ):
        difference = first_difference(before, now)
        if difference:
            fail("axes() of {} differ: axis {} is {} and {}".format(who, *difference))


def facts_of(axes: tuple[Axis, ...]) -> list[tuple[Any, ...]]:
    """Return what must not change about axes."""
    return [(axis.name, axis.choices, axis.default, axis.ordered) for axis in axes]


@check(Kind.SEARCH_SPACE, hint="Draw every axis from the generator given, and return the canonical point.")
def samples_are_points(subject: Subject) -> None:
    """Random points are valid, complete, canonical, and not always the same one."""
    space = subject.create()
    found = samples(subject, space, 20)
    for arch in found:
        if violations := space.validate(arch):
            fail(f"a random point is not valid: {'; '.join(violations)}")
        if dict(space.architecture(arch.params).params) != dict(arch.params):
            fail(f"a random point is not canonical: {dict(arch.params)}")
        if dict(space.architecture(space.features(arch)).params) != dict(arch.params):
            fail(f"features() lacks an axis that matters: {space.features(arch)} of {dict(arch.params)}")
    if len(set(found)) == 1 and space.size() > 1:
        fail(f"20 random points of {space.size()} are all {dict(found[0].params)}")


@check(Kind.SEARCH_SPACE, hint="Return plain Architecture objects with parameters of type str, int and float.")
def points_survive_json(subject: Subject) -> None:
    """A point read back from its JSON is the same point, with the same hash and fingerprint."""
    space = subject.create()
    for arch in [*points(subject, space), *samples(subject, space, 8)]:
        again = Architecture.from_json(json.loads(json.dumps(arch.to_json())))
        if again != arch or hash(again) != hash(arch) or again.fingerprint != arch.fingerprint:
            fail(f"{arch!r} is read back as {again!r}")


PROCESS = """
import importlib, json, random, sys
told = json.load(sys.stdin)
sys.path[:] = told["path"]
from nasdistill.host import Host
host = Host.load()
def answer(asked):
    module, _, name = asked["target"].partition(":")
    space = getattr(importlib.import_module(module), name)(asked["options"], host=host)
    space.id = asked["id"]
    rng = random.Random(asked["seed"])
    axes = [[a.name, a.choices, a.default, a.ordered] for a in space.axes()]
    return [axes, [space.sample(rng).fingerprint for _ in range(5)]]
answers = []
for asked in told["asked"]:
    try:
        answers.append(answer(asked))
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""
"""Starting it takes seconds, answering does not: one process is asked about all spaces of a plugin."""

_ANSWERS: WeakKeyDictionary[Host, dict[tuple[str, str], Any]] = WeakKeyDictionary()
"""Host -> plugin and question, as JSON -> answer: axes and fingerprints, or the text of an error."""


@check(Kind.SEARCH_SPACE, thorough=True, hint="Never let the order of a set decide the order of axes or choices.")
def points_agree_across_processes(subject: Subject) -> None:
    """Axes, random points and fingerprints are the same in a process with another hash seed."""
    space = subject.create()
    found = elsewhere(subject)
    if isinstance(found, str):
        fail(f"it cannot be created in another process: {found}")
    here = [[*fact] for fact in facts_of(space.axes())], [p.fingerprint for p in samples(subject, space, 5)]
    if found != json.loads(json.dumps(here)):
        fail("axes or random points differ in a process with another PYTHONHASHSEED")


def elsewhere(subject: Subject) -> Any:
    """Return what a process with another hash seed says of a space, or the error there as a text.

    The first that is asked about a plugin's space answers for the examples of all; where it breaks off, and for
    examples that no class gives, a process is asked about this one alone.
    """
    known = _ANSWERS.setdefault(subject.host, {})
    plugin, mine = subject.record.plugin, question(subject)
    if (plugin, "") not in known:
        known[plugin, ""] = "asked"
        together = list(dict.fromkeys([mine, *questions(subject.host, plugin, subject.seed)]))
        answers = ask(together)
        if not isinstance(answers, str):
            known.update({(plugin, asked): found for asked, found in zip(together, answers, strict=True)})
    if (plugin, mine) not in known:
        answers = ask([mine])
        known[plugin, mine] = answers if isinstance(answers, str) else answers[0]
    return known[plugin, mine]


def questions(host: Host, plugin: str, seed: int) -> Iterator[str]:
    """Yield the questions about a plugin's spaces, those left out that cannot be asked about: they fail elsewhere."""
    for record in host.specs(Kind.SEARCH_SPACE):
        if record.plugin == plugin and not host.missing(record.kind, record.id):
            with suppress(*ISOLATED):
                for example in declared(host.load(record.kind, record.id), record.kind)[0]:
                    yield question(Subject(host, record, example, seed=seed))


def question(subject: Subject) -> str:
    """Return what another process needs to know to create a space and draw points, as JSON."""
    model = subject.load().options_model
    options = parse_options(model, dict(subject.example.options), where=subject.id)
    given = json.loads(options.model_dump_json()) if isinstance(options, ComponentOptions) else None
    return json.dumps({"target": subject.spec.target, "id": subject.id, "seed": subject.seed, "options": given})


def ask(asked: list[str]) -> Any:
    """Return the answers of a process with another hash seed, in order; its last words where there are none."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], input=json.dumps({"path": sys.path, "asked": [*map(json.loads, asked)]}),
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": seed},
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return json.loads(lines[-1])


def faults(space: SearchSpace) -> Iterator[tuple[str, str, Architecture]]:
    """Yield what is wrong, the word that has to be in the reason, and a point with this fault alone."""
    params, axes = dict(space.default().params), space.axes()

    def point(changes: dict[str, Value], *, without: str = "", id: str = space.id, version: int = space.version) -> Any:
        kept = {name: value for name, value in {**params, **changes}.items() if name != without}
        return Architecture.of(id, kept, version)

    yield "another space", "no:such_space", point({}, id="no:such_space")
    yield "another version", "999", point({}, version=999)
    yield "an unknown axis", "no_such_axis", point({"no_such_axis": 1})
    yield "a missing axis", axes[0].name, point({}, without=axes[0].name)
    for axis in axes:
        yield "a wrong value", axis.name, point({axis.name: stranger(axis)})
        kind = type(axis.default)
        yield "a wrong type", axis.name, point({axis.name: "1" if kind is float else float(len(axis.choices))})
        if kind is int:  # 8.0 == 8 in Python, and another point in JSON
            yield "a wrong type", axis.name, point({axis.name: float(axis.default)})


def stranger(axis: Axis) -> Value:
    """Return a value of the axis' type that is none of its choices."""
    if isinstance(axis.default, str):
        return "no_such_choice"
    return 1 + max(choice for choice in axis.choices if not isinstance(choice, str))


@check(Kind.SEARCH_SPACE, hint="Extend constraints() rather than validate(), which finds all of this from the axes.")
def invalid_points_are_explained(subject: Subject) -> None:
    """validate() gives every reason why a point is none of this space; check() raises ArchitectureError with all."""
    space = subject.create()
    for fault, word, arch in faults(space):
        if not any(word in reason for reason in space.validate(arch)):
            fail(f"a point with {fault} ({word}): validate() gives {space.validate(arch)}")
    params = {**space.default().params, space.axes()[-1].name: stranger(space.axes()[-1]), "no_such_axis": 1}
    arch = Architecture.of("no:such_space", params, 999)
    reasons = space.validate(arch)
    missing = [
        w for w in ("no:such_space", "999", "no_such_axis", space.axes()[-1].name) if w not in "; ".join(reasons)
    ]
    if missing:
        fail(f"of a point with four faults validate() does not name {', '.join(missing)}: {reasons}")
    try:
        space.check(arch)
    except ArchitectureError as error:
        silent = [reason for reason in reasons if reason not in str(error)]
        if silent:
            fail(f"check() does not pass on {silent[0]!r}")
    else:
        fail(f"check() accepts {arch!r}")


@check(Kind.SEARCH_SPACE, hint="Begin build(), cost() and graph() with self.check(arch).")
def invalid_points_are_not_built(subject: Subject) -> None:
    """build(), cost() and graph() raise ArchitectureError for what is no point of the space."""
    space, io, _ = first_case(subject)
    tried: set[str] = set()
    for fault, _, arch in faults(space):
        if fault in tried:
            continue
        tried.add(fault)
        for method in (space.build, space.cost, space.graph):
            try:
                method(arch, io)
            except ArchitectureError:
                continue
            fail(f"{method.__name__}() accepts a point with {fault}")


def with_inactive(subject: Subject, space: SearchSpace) -> Iterator[tuple[Architecture, Axis, Value]]:
    """Yield points with an axis that is inactive there and another choice of it; each axis once."""
    seen: set[str] = set()
    if all(axis.active is None for axis in space.axes()):
        skip("every axis is always active")
    for arch in [*points(subject, space), *samples(subject, space, 50)]:
        for axis in space.axes():
            others = [choice for choice in axis.choices if choice != axis.default]
            if axis.name not in seen and others and not axis.is_active(arch.params):
                seen.add(axis.name)
                yield arch, axis, others[-1]


@check(Kind.SEARCH_SPACE, hint="Leave canonical() and validate() as they are; return canonical points.")
def inactive_axes_are_held_at_their_default(subject: Subject) -> None:
    """Parameters that differ in inactive axes only are one architecture, and the raw point is refused."""
    space = subject.create()
    for arch, axis, other in with_inactive(subject, space):
        params = {**arch.params, axis.name: other}
        if dict(space.architecture(params).params) != dict(arch.params):
            fail(f"{axis.name} is inactive {told(arch)}, and with {axis.name} = {other!r} it is another architecture")
        if not any(axis.name in reason for reason in space.validate(Architecture.of(space.id, params, space.version))):
            fail(f"{axis.name} is inactive {told(arch)}, and validate() accepts {axis.name} = {other!r}")


@check(Kind.SEARCH_SPACE, hint="Correct the axis' `active` predicate, or what build() reads.")
def inactive_axes_change_nothing(subject: Subject) -> None:
    """The network does not depend on an axis that is inactive."""
    space, io, _ = first_case(subject)
    space.check = lambda arch: None  # type: ignore[method-assign]  # see what would happen without the protection
    for arch, axis, other in with_inactive(subject, space):
        raw = Architecture.of(space.id, {**arch.params, axis.name: other}, space.version)
        try:
            difference = networks_differ(subject, space, arch, raw, io)
        except ArchitectureError:
            continue  # it has protection of its own
        if difference:
            fail(f"{axis.name} is inactive {told(arch)}, and with {axis.name} = {other!r} {difference}")


@check(Kind.SEARCH_SPACE, hint="Read the axis in build(), or give it an `active` predicate, or drop it.")
def active_axes_change_the_network(subject: Subject) -> None:
    """Every axis changes the network or its training where it is active: an idle one costs trials for nothing."""
    space, io, _ = first_case(subject)
    plain = ObjectiveConfig(), TrainingConfig()
    bases = [*points(subject, space), *samples(subject, space, 10)]
    for axis in space.axes():
        active = [arch for arch in bases if axis.is_active(arch.params)][:4]
        pairs = [
            (arch, space.canonical({**arch.params, axis.name: other}))
            for arch in active
            for other in axis.choices
            if other != arch.params[axis.name]
        ]
        changed = [
            (arch, Architecture.of(space.id, params, space.version))
            for arch, params in pairs
            if not space.constraints(params)
        ]
        if changed and not any(
            space.teaching(first, *plain) != space.teaching(other, *plain)
            or networks_differ(subject, space, first, other, io)
            for first, other in changed
        ):
            fail(f"{axis.name} is active {told(changed[0][0])}, and no other choice of it changes the network")
