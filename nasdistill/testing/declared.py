"""What a component's class says to the checks: its examples and the checks that it is known to fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nasdistill.errors import did_you_mean
from nasdistill.interfaces.base import Example
from nasdistill.spec.component import Kind
from nasdistill.testing.registry import context_names


def declared(found: Any, kind: Kind) -> tuple[tuple[Example, ...], dict[str, str]]:
    """Return the examples of a class (none: one with the default options) and its expected failures with reasons.

    Args:
        found: the class.
        kind: its kind, which says what the examples' contexts may name.

    Raises:
        TypeError: they are not written as they have to be; the text says how.
    """
    examples, expected = getattr(found, "examples", ()), getattr(found, "expected_failures", {})
    if isinstance(examples, Example):
        raise TypeError("examples is one Example, not a tuple of them: write examples = (Example(...),)")
    if not isinstance(examples, tuple | list):
        raise TypeError(f"examples is {_a(examples)}, not a tuple of Example objects")
    for number, example in enumerate(examples):
        fault = _fault(example) or context_fault(example, kind)
        if fault:
            raise TypeError(f"examples[{number}] {fault}")
    if not isinstance(expected, Mapping):
        raise TypeError(f'expected_failures is {_a(expected)}, not a mapping: write {{"name_of_the_check": "why"}}')
    for name, reason in expected.items():
        if not (isinstance(name, str) and isinstance(reason, str) and reason.strip()):
            raise TypeError(f"expected_failures has {name!r}: {reason!r}; it takes the name of a check and a reason")
    return tuple(examples) or (Example(),), dict(expected)


def context_fault(example: Example, kind: Kind) -> str:
    """Return what is wrong with the names in an example's context: a misspelt one would change nothing, unnoticed."""
    known = context_names(kind)
    for name in example.context:
        if name not in known:
            meant = did_you_mean(str(name), sorted(known)) if known else f"Those of a {kind.value} name nothing."
            return f"has {name!r} in its context, which no check of a {kind.value} asks for. {meant}"
    return ""


def _fault(example: Any) -> str:
    """Return what is wrong with one example; empty when nothing is."""
    if not isinstance(example, Example):
        return f"is {_a(example)}, not an Example: write Example(options={{...}})"
    for name in ("options", "context"):
        if not isinstance(getattr(example, name), Mapping):
            return f"has {_a(getattr(example, name))} for its {name}, not a mapping from names to values"
    return "" if isinstance(example.name, str) else f"has {_a(example.name)} for its name, not a text"


def _a(value: Any) -> str:
    return f"a {type(value).__name__}"
