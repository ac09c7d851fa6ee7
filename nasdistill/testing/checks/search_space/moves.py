"""From points to other points: mutation, crossover, suggestions, enumeration, sub-spaces."""

from __future__ import annotations

import random
from itertools import pairwise

from nasdistill.errors import ArchitectureError
from nasdistill.seeds import derive_seed
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.search_space.cases import NAME, SMALL, points, samples, told
from nasdistill.testing.registry import check, fail, skip
from nasdistill.testing.subject import Subject


@check(Kind.SEARCH_SPACE, hint="Return self.canonical(...) of the changed parameters, checked against constraints().")
def mutation_stays_inside(subject: Subject) -> None:
    """A mutated point is a point of the space, and another one."""
    space, rng = subject.create(), random.Random(derive_seed(subject.seed, "moves"))
    if space.size() == 1:
        skip("there is one point only")
    for arch in samples(subject, space, 10):
        for changes in (1, 3):
            child = space.mutate(arch, rng, changes)
            if violations := space.validate(child):
                fail(f"mutate() leaves the space: {'; '.join(violations)}")
            if child == arch:
                fail(f"mutate() changes nothing {told(arch)}")


@check(Kind.SEARCH_SPACE, hint="Take each axis from one parent or the other, then canonical().")
def crossover_stays_inside(subject: Subject) -> None:
    """A child of two points is a point of the space, and has what its parents share."""
    space, rng = subject.create(), random.Random(derive_seed(subject.seed, "moves"))
    for first, second in pairwise(samples(subject, space, 12)):
        child = space.crossover(first, second, rng)
        if violations := space.validate(child):
            fail(f"crossover() leaves the space: {'; '.join(violations)}")
        for axis in space.axes():
            taken = {parent.params[axis.name] for parent in (first, second)}
            if axis.is_active(child.params) and child.params[axis.name] not in taken:
                fail(f"a child has {axis.name} = {child.params[axis.name]!r}, its parents have {sorted(taken)}")


@check(Kind.SEARCH_SPACE, hint="Suggest every axis, also the inactive ones, under prefix + name.")
def suggestions_are_points(subject: Subject) -> None:
    """An Optuna trial proposes points of the space, with all axes as parameters under the prefix given."""
    import optuna

    space = subject.create()
    wanted = {"s." + axis.name for axis in space.axes()}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=subject.seed % 2**32))
        for _ in range(6):
            trial = study.ask()
            try:
                arch = space.suggest(trial, prefix="s.")
            except ArchitectureError:
                arch = None  # the constraints exclude it
            if set(trial.params) != wanted:
                differing = sorted(wanted ^ set(trial.params))
                fail(f"the trial's parameters are not the axes; not in both: {', '.join(differing[:4])}")
            if arch is not None and (violations := space.validate(arch)):
                fail(f"a suggested point is not valid: {'; '.join(violations)}")
    finally:
        optuna.logging.set_verbosity(before)
    for arch in points(subject, space):
        fixed = optuna.trial.FixedTrial({f"s.{name}": value for name, value in arch.params.items()})
        if dict(space.suggest(fixed, prefix="s.").params) != dict(arch.params):
            fail(f"a trial that holds {dict(arch.params)} gives {dict(space.suggest(fixed, prefix='s.').params)}")


@check(Kind.SEARCH_SPACE, hint="Correct the closed form in size(), or leave it to the default.")
def enumeration_is_complete(subject: Subject) -> None:
    """Enumeration yields every point once, in a fixed order, and as many as size() says (small spaces)."""
    space = subject.create()
    if not 1 <= space.size() <= space.raw_size():
        fail(f"size() is {space.size()} of {space.raw_size()} raw points")
    if space.raw_size() > SMALL:
        skip(f"its {space.raw_size()} raw points are too many to list; give it an example with few choices")
    found = list(space.enumerate())
    if len(set(found)) != len(found):
        fail(f"{len(found) - len(set(found))} of {len(found)} points are listed twice")
    if len(found) != space.size():
        fail(f"size() says {space.size()}, enumerate() yields {len(found)}")
    for arch in found:
        if violations := space.validate(arch):
            fail(f"it lists what is no point: {'; '.join(violations)}")
    if list(space.enumerate()) != found:
        fail("a second enumeration has another order")
    listed = {arch.fingerprint for arch in found}
    for arch in samples(subject, space, 50):
        if arch.fingerprint not in listed:
            fail(f"it does not list {dict(arch.params)}, which sample() drew")


@check(Kind.SEARCH_SPACE, per_example=False, hint="Correct the sub-space, or leave it out where the options lack it.")
def subspaces_name_known_choices(subject: Subject) -> None:
    """Named sub-spaces restrict existing axes to existing choices."""
    space = subject.create()
    if not space.subspaces():
        skip("it names no sub-space")
    axes = {axis.name: axis for axis in space.axes()}
    names = [sub.name for sub in space.subspaces()]
    if len(set(names)) != len(names) or not all(map(NAME.match, names)):
        fail(f"sub-spaces need distinct, legal names, not {names}")
    for sub in space.subspaces():
        for name, choices in sub.choices.items():
            if name not in axes:
                fail(f"sub-space {sub.name!r} restricts {name!r}, which is no axis")
            unknown = [choice for choice in choices if choice not in axes[name].choices]
            if unknown or not choices:
                fail(f"sub-space {sub.name!r}: {name} has the choices {axes[name].choices}, not {choices}")
