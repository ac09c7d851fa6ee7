"""The published systems that nasdistill is to cover, and what of each is there.

``systems.toml`` names the systems and the parts that each needs, one per kind of component. What is there of a system
is computed: a component counts when one of its `references` is the system's arXiv id. A system

- is ``planned`` while no component counts,
- ``works`` when each kind that it needs has a component that counts, of which nothing essential is missing (see
  `partly` of :class:`nasdistill.spec.component.ComponentSpec`),
- is ``partial`` otherwise.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Literal

from nasdistill.spec.component import ComponentSpec, Kind

State = Literal["works", "partial", "planned"]
STATES: tuple[State, ...] = ("works", "partial", "planned")

_ARXIV = re.compile(r"arxiv(?:\s*:\s*|\s+|\.org/(?:abs|pdf)/)(\d{4}\.\d{4,5})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class System:
    """A published system.

    Attributes:
        number: 1, 2, ... in the order of the list.
        title: of the paper; after a slash the name it is known by, where the title lacks it.
        arxiv: id of the paper; None where it has none.
        also: other sources that are part of it: arXiv ids, or citations as they stand in a component's `references`.
        parts: kind of component -> what the system needs of that kind.
    """

    number: int
    title: str
    arxiv: str | None
    also: tuple[str, ...]
    parts: Mapping[Kind, str]

    @property
    def sources(self) -> frozenset[str]:
        """The ids and citations that a component of this system refers to, as :func:`source_key` gives them."""
        return frozenset(source_key(text) for text in (self.arxiv, *self.also) if text)


@dataclass(frozen=True, slots=True)
class Realisation:
    """What is there of a system.

    Attributes:
        system: the system.
        components: those that count, as (id, spec), in the order of kinds and ids.
        state: ``"works"``, ``"partial"`` or ``"planned"``.
        missing: the kinds that no component stands for, or only in part.
    """

    system: System
    components: tuple[tuple[str, ComponentSpec], ...]
    state: State
    missing: tuple[Kind, ...]

    def of(self, kind: Kind) -> tuple[tuple[str, ComponentSpec], ...]:
        """Return the components of one kind."""
        return tuple((name, spec) for name, spec in self.components if spec.kind is kind)

    @property
    def left_out(self) -> str:
        """What is missing: the parts without a component, then what the components say of themselves; may be empty."""
        absent = [
            f"no {kind.value.replace('_', ' ')} ({text})"
            for kind, text in self.system.parts.items()
            if not self.of(kind)
        ]
        own = [f"{name}: {spec.left_out.strip().rstrip('.')}" for name, spec in self.components if spec.left_out]
        return "; ".join([*absent, *own])


def source_key(reference: str) -> str:
    """Return a reference in the form in which two are compared.

    ``"arXiv:2303.15678"``, ``"arXiv 2303.15678v2"``, ``"https://arxiv.org/abs/2303.15678"`` and ``"2303.15678"`` are
    the same; any other text is itself, in lower case.
    """
    found = _ARXIV.search(reference)
    return found.group(1) if found else reference.strip().lower()


@lru_cache(maxsize=1)
def systems() -> tuple[System, ...]:
    """Return all systems, by number."""
    text = resources.files("nasdistill.spec").joinpath("systems.toml").read_text(encoding="utf-8")
    return tuple(
        System(
            entry["number"],
            entry["title"],
            entry.get("arxiv"),
            tuple(entry.get("also", ())),
            {Kind(kind): text for kind, text in entry["parts"].items()},
        )
        for entry in tomllib.loads(text)["system"]
    )


def realise(system: System, components: Iterable[tuple[str, ComponentSpec]]) -> Realisation:
    """Return what `components`, as (canonical id, spec), give of a system."""
    sources = system.sources
    order = list(Kind)
    counted = sorted(
        ((name, spec) for name, spec in components if sources & {source_key(text) for text in spec.references}),
        key=lambda item: (order.index(item[1].kind), item[0]),
    )
    whole = {spec.kind for _, spec in counted if not sources & {source_key(text) for text in spec.partly}}
    missing = tuple(kind for kind in system.parts if kind not in whole)
    state: State = "planned" if not counted else "partial" if missing else "works"
    return Realisation(system, tuple(counted), state, missing)
