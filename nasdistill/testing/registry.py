"""The checks, by kind: a check is a function with a rule (its docstring) and a hint.

A check module of one kind stands in ``nasdistill/testing/checks/KIND.py`` and is imported when that kind is checked.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import SkipTest

from nasdistill.errors import UsageError
from nasdistill.spec.component import Kind

if TYPE_CHECKING:
    from nasdistill.testing.subject import Subject

Run = Callable[["Subject"], None]
Exercise = Callable[["Subject"], Any]
Applies = Callable[["Subject"], bool]


class CheckFailed(AssertionError):
    """A component breaks a rule; the text says what was seen."""


class CheckSkipped(Exception):
    """A check does not apply; the text says why."""


class ComponentSkipped(CheckSkipped):
    """Nothing of this component can be tried here, whatever the check; the text says why, and what to do."""


def fail(text: str) -> NoReturn:
    """Report that the rule is broken: say what was done, what was expected and what was seen."""
    raise CheckFailed(text)


def skip(text: str) -> NoReturn:
    """Report that the check does not apply to this component."""
    raise CheckSkipped(text)


def skip_component(text: str) -> NoReturn:
    """Report, from a gate, that nothing of the component can be tried here: all checks after it are skipped, too."""
    raise ComponentSkipped(text)


def skip_test(reason: str) -> NoReturn:
    """Tell the test runner that a test does not apply: pytest where it runs, else unittest."""
    if "pytest" in sys.modules:  # pytest 9.0 takes unittest's exception for an error outside of a TestCase
        import pytest

        pytest.skip(reason)
    raise SkipTest(reason)


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the contract.

    Attributes:
        name: ``[a-z_]+``, unique within a kind; expected failures name it.
        kind: the kind it belongs to; None for the rules of every kind.
        rule: one sentence: what holds.
        hint: one sentence: what a component that fails most likely has to change.
        run: takes the subject; returns when the rule holds.
        gate: when it fails, the checks after it say nothing and are skipped.
        thorough: runs only when a thorough check is asked for.
        per_example: runs for each of the component's examples; otherwise for the first only.
        applies: whether the rule is one for this component at all; None: for every one of the kind. A component of
            another level or family then gets no result for it, where `skip` would say why there is none.
    """

    name: str
    kind: Kind | None
    rule: str
    hint: str
    run: Run
    gate: bool = False
    thorough: bool = False
    per_example: bool = True
    applies: Applies | None = None


_CHECKS: dict[Kind | None, dict[str, Check]] = {}
_EXERCISES: dict[Kind, Exercise] = {}


def check(
    kind: Kind | None,
    *,
    hint: str,
    gate: bool = False,
    thorough: bool = False,
    per_example: bool = True,
    applies: Applies | None = None,
) -> Callable[[Run], Run]:
    """Register a check; its name is the function's, its rule the first paragraph of the docstring."""

    def register(function: Run) -> Run:
        rule = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
        if not rule:
            raise ValueError(f"check {function.__name__} has no docstring to say its rule")
        known = _CHECKS.setdefault(kind, {})
        known[function.__name__] = Check(
            function.__name__, kind, rule, hint, function, gate=gate, thorough=thorough, per_example=per_example,
            applies=applies,
        )  # fmt: skip
        return function

    return register


def exercise(kind: Kind) -> Callable[[Exercise], Exercise]:
    """Register a kind's plain use: it runs a fresh component once and returns what came out, seeded by `subject.seed`.

    The rules of every kind (it works, it repeats, it leaves the process as it was) are held against this.
    """

    def register(function: Exercise) -> Exercise:
        _EXERCISES[kind] = function
        return function

    return register


def exercise_of(kind: Kind) -> Exercise | None:
    """Return the plain use of a kind, None where no module gives one."""
    _load(kind)
    return _EXERCISES.get(kind)


def need_docstrings() -> None:
    """Refuse to go on where Python drops docstrings, which the rules are.

    Raises:
        UsageError: Python runs with ``-OO``.
    """
    if sys.flags.optimize >= 2:
        raise UsageError("the contract checks need docstrings, which python -OO drops", hint="Run without -OO.")


def checks_of(kind: Kind) -> list[Check]:
    """Return the checks of a component of `kind`: those of every kind first, gates before all others."""
    _load(kind)
    found = [*_CHECKS.get(None, {}).values(), *_CHECKS.get(kind, {}).values()]
    return sorted(found, key=lambda item: not item.gate)  # stable: otherwise in the order written


def all_checks() -> list[Check]:
    """Return every check there is, those of every kind first, then by kind."""
    for kind in Kind:
        _load(kind)
    return [item for kind in (None, *Kind) for item in _CHECKS.get(kind, {}).values()]


def context_names(kind: Kind) -> Mapping[str, str]:
    """Return what an example's context may name for a component of `kind`: name -> what it is."""
    _load(kind)
    module = sys.modules.get(f"nasdistill.testing.checks.{kind.value}")
    names: Mapping[str, str] = getattr(module, "CONTEXT", {})
    return names


def _load(kind: Kind) -> None:
    """Import the check modules that concern a kind."""
    need_docstrings()
    importlib.import_module("nasdistill.testing.checks.common")
    name = f"nasdistill.testing.checks.{kind.value}"
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(name)
