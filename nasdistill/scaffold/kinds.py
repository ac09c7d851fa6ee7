"""What the templates of a kind say of their component: the worked example that a new package starts from."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from nasdistill.errors import UsageError, did_you_mean
from nasdistill.host.hookspecs import HOOKS
from nasdistill.spec.component import SPEC_CLASSES, Kind


@dataclass(frozen=True, slots=True)
class KindFacts:
    """One kind, as far as a new package is concerned.

    Attributes:
        kind: the kind.
        suffix: how its classes end (``Proxy``); empty for commands, which are functions.
        summary: one line on the example.
        references: its sources.
        left_out: what of them it does not do.
        tags: the call that makes its tags, as Python; empty for a kind without tags.
        options: whether the example has options.
        untyped: packages that it imports and that have no types.
    """

    kind: Kind
    suffix: str
    summary: str
    references: tuple[str, ...]
    left_out: str = ""
    tags: str = ""
    options: bool = True
    untyped: tuple[str, ...] = ()

    @property
    def hook(self) -> str:
        """The registration hook."""
        return next(hook for hook, kind in HOOKS.items() if kind is self.kind)

    @property
    def spec_class(self) -> str:
        """The spec's class."""
        return SPEC_CLASSES[self.kind].__name__

    @property
    def label(self) -> str:
        """The kind in words."""
        return "attention variant" if self.kind is Kind.ATTENTION else self.kind.value.replace("_", " ")


def kind_facts(kind: Kind | str) -> KindFacts:
    """Return what is known of a kind; plurals and hyphens are understood.

    Raises:
        UsageError: no such kind; close matches are named.
    """
    name = str(kind).replace("-", "_").lower()
    name = {_plural(known): known for known in _table()}.get(name, "search_space" if name == "space" else name)
    if name in _table():
        return _table()[name]
    raise UsageError(f"no kind {str(kind)!r}. {did_you_mean(name, [item.value for item in Kind])}")


def _plural(name: str) -> str:
    """Return the plural of a kind's name."""
    if name.endswith("y"):
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith("s") else f"{name}s"


@cache
def _table() -> dict[str, KindFacts]:
    text = resources.files(__package__).joinpath("templates", "kinds.toml").read_text(encoding="utf-8")
    found: dict[str, KindFacts] = {}
    for name, raw in tomllib.loads(text).items():
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        found[name] = KindFacts(kind=Kind(name), **values)
    return found
