"""Attention variants in the layers of a space's networks: which may stand there, and fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nasdistill.errors import ArchitectureError, UnknownComponentError
from nasdistill.interfaces import AttentionCore, AttentionGeometry, SearchSpace
from nasdistill.spec.component import Kind


def core_class(space: SearchSpace, name: str, *, padding: bool = False) -> type[AttentionCore]:
    """Return a variant's class.

    Args:
        space: which asks.
        name: of the variant.
        padding: whether its inputs are padded.

    Raises:
        ArchitectureError: unknown, or not a variant that can stand in an encoder's layer.
    """
    try:
        tags = space.host.tags(Kind.ATTENTION, name)
    except UnknownComponentError as error:
        raise ArchitectureError(f"{space.id}: {error.message}", hint=error.hint) from error
    reasons = [f"it is of level {tags.level!r}"] if tags.level != "core" else []
    reasons += [] if tags.bidirectional else ["it works with a causal mask only"]
    reasons += [] if tags.padding or not padding else ["it does not take padding"]
    if reasons:
        raise ArchitectureError(
            f"{space.id}: attention variant {name!r} cannot stand in an encoder: {', '.join(reasons)}",
            hint="nasdistill plugins list --kind attention names all variants; choose some of level 'core'.",
        )
    found: type[AttentionCore] = space.host.load(Kind.ATTENTION, name)
    return found


def fresh_core(
    space: SearchSpace,
    name: str,
    geometry: AttentionGeometry,
    options: Mapping[str, Mapping[str, Any]],
    *,
    padding: bool = False,
) -> AttentionCore:
    """Return a core for one layer, with its entry of `options`; raises as :func:`core_class`."""
    core_class(space, name, padding=padding)
    core: AttentionCore = space.host.create(Kind.ATTENTION, name, options.get(name), geometry=geometry)
    return core
