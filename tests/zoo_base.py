"""The zoo: components that are sound but for one thing, each to be caught by one check and by no other.

A kind's zoo is a module ``zoo_KIND.py`` here, with `SOUND` (specs of components that pass everything) and `BROKEN`;
`SOUND_IF_QUICK` are sound ones on which no time is spent for thorough checks.
"""

from __future__ import annotations

from dataclasses import dataclass

from nasdistill.spec.component import ComponentSpec


@dataclass(frozen=True)
class Broken:
    """A component that breaks one rule.

    Attributes:
        check: the check that has to fail, alone.
        spec: the component; its target is a class of the zoo's module.
        says: what the message must contain.
    """

    check: str
    spec: ComponentSpec
    says: str

    def __str__(self) -> str:
        return f"{self.spec.kind.value}-{self.check}-{self.spec.name}"
