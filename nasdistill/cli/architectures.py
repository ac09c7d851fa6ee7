"""Architectures given on a command line: a JSON file, JSON text, or the word ``default``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasdistill.errors import ArchitectureError, UsageError

if TYPE_CHECKING:
    from nasdistill.host import Host
    from nasdistill.interfaces import SearchSpace
    from nasdistill.spec.architecture import Architecture


def read_architectures(
    host: Host, texts: Sequence[str], space: str | None = None, options: dict[str, Any] | None = None
) -> list[tuple[SearchSpace, Architecture]]:
    """Return every architecture with its space.

    Args:
        host: creates the spaces.
        texts: each a file, or JSON text: an architecture (``architecture.json``), or only an object of axes and
            values, the rest at their defaults, which needs `space`; ``default`` is the space's default point.
        space: the space that architectures must belong to; None takes the one each names.
        options: of `space`.

    Raises:
        ArchitectureError: unreadable, not an architecture, or not a point of its space (every violation is named).
        UsageError: it does not say which space, or names another one than `space`.
        UnknownComponentError: no such space; close matches are named.
    """
    from nasdistill.spec.component import Kind

    spaces: dict[str, SearchSpace] = {}

    def find(name: str) -> SearchSpace:
        identifier = host.canonical(Kind.SEARCH_SPACE, name)
        if identifier not in spaces:
            spaces[identifier] = host.create(Kind.SEARCH_SPACE, identifier, options if name == space else None)
        return spaces[identifier]

    given = None if space is None else find(space)
    return [_one(text, given, find) for text in texts]


def _one(text: str, given: SearchSpace | None, find: Any) -> tuple[SearchSpace, Architecture]:
    """Read one architecture."""
    from nasdistill.spec.architecture import Architecture

    if text.strip() == "default":
        if given is None:
            raise UsageError("--arch default needs --space")
        return given, given.default()
    values = _axes_only(text)
    if values is not None:
        if given is None:
            raise UsageError(
                f"architecture {text.strip()!r} does not name its search space",
                hint="Give --space NAME, or a JSON object with 'space' and 'params'.",
            )
        return given, given.architecture(values)
    arch = Architecture.load(text)
    found = find(arch.space)
    if given is not None and found.id != given.id:
        raise UsageError(f"the architecture belongs to space {found.id}, not to {given.id} (--space)")
    arch = dataclasses.replace(arch, space=found.id)  # files may say the bare name
    found.check(arch)
    return given or found, arch


def _axes_only(text: str) -> dict[str, Any] | None:
    """Return the object of axes and values when `text` is one, None when it is a whole architecture (or unreadable)."""
    try:
        raw = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        value = json.loads(raw)
    except (OSError, ValueError, RecursionError):
        return None  # Architecture.load says what is wrong
    if not isinstance(value, dict) or "space" in value or "params" in value or "format" in value:
        return None
    for name, item in value.items():
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ArchitectureError(f"architecture: {name} must be a string or a number, not {item!r}")
    return value
