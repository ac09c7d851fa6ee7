"""Architectures given on a command line: a JSON file, JSON text, or the word ``default``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nasdistill.errors import ArchitectureError

if TYPE_CHECKING:
    from nasdistill.host import Host
    from nasdistill.interfaces import SearchSpace
    from nasdistill.spec.architecture import Architecture


class Spaces:
    """Search spaces by name, each created once.

    Args:
        host: creates them.
        options: name, bare or canonical -> options; a space that is not named here takes its defaults.
    """

    def __init__(self, host: Host, options: Mapping[str, Any] | None = None) -> None:
        self._host = host
        self._options = dict(options or {})
        self._created: dict[str, SearchSpace] = {}

    def get(self, name: str) -> SearchSpace:
        """Return the space that `name` stands for.

        Raises:
            UnknownComponentError: there is none; close matches are named.
            ConfigError: its options are wrong.
        """
        from nasdistill.spec.component import Kind

        identifier = self._host.canonical(Kind.SEARCH_SPACE, name)
        if identifier not in self._created:
            options = {self._host.canonical(Kind.SEARCH_SPACE, key): value for key, value in self._options.items()}
            self._created[identifier] = self._host.create(Kind.SEARCH_SPACE, identifier, options.get(identifier))
        return self._created[identifier]


def read_architectures(
    spaces: Spaces, sources: Sequence[str], within: Sequence[str] = ()
) -> list[tuple[SearchSpace, Architecture]]:
    """Return every architecture with its space.

    Args:
        spaces: makes the spaces.
        sources: each a file or JSON text of one architecture or a list of them. An architecture has the form of
            ``architecture.json``, or is only an object of axes and values, the rest at their defaults. The word
            ``default`` is a space's default point. Both short forms need exactly one space in `within`.
        within: the spaces that architectures must belong to; empty takes the one each names.

    Raises:
        ArchitectureError: unreadable, not an architecture, of no space or one that is not in `within`, or not a point
            of its space (every violation is named).
        UnknownComponentError: no such space; close matches are named.
    """
    from nasdistill.spec.architecture import read_json

    allowed = [spaces.get(name) for name in within]
    found = []
    for source in sources:
        if source.strip() == "default":
            space = _only(allowed, "--arch default")
            found.append((space, space.default()))
            continue
        value, where = read_json(source)
        if isinstance(value, list):
            found += [read_architecture(spaces, item, f"{where}[{i}]", allowed) for i, item in enumerate(value)]
        else:
            found.append(read_architecture(spaces, value, where, allowed))
    return found


def read_architecture(
    spaces: Spaces, value: Any, where: str, allowed: Sequence[SearchSpace] = ()
) -> tuple[SearchSpace, Architecture]:
    """Return the architecture in a JSON value, with its space; see :func:`read_architectures`."""
    from nasdistill.spec.architecture import Architecture

    short = isinstance(value, dict) and not {"space", "params", "format"} & set(value)
    if short:
        space = _only(allowed, where)
        # The full form, so that values of a wrong type are refused with their name; missing axes take their default.
        arch = Architecture.from_json({"space": space.id, "params": value}, where=where)
        return space, space.architecture(arch.params)
    if isinstance(value, dict) and "space" not in value and "params" in value:
        value = {**value, "space": _only(allowed, where).id}
    arch = Architecture.from_json(value, where=where)
    space = spaces.get(arch.space)
    if allowed and space.id not in [other.id for other in allowed]:
        names = " or ".join(other.id for other in allowed)
        raise ArchitectureError(f"{where}: it belongs to space {space.id}, not to {names} (--space)")
    arch = Architecture.of(space.id, arch.params, arch.version)  # files may say the bare name
    space.check(arch)
    return space, arch


def _only(allowed: Sequence[SearchSpace], where: str) -> SearchSpace:
    """Return the one space that a short form is meant in."""
    if len(allowed) != 1:
        raise ArchitectureError(
            f"{where}: it names no space", hint="Give one --space NAME, or {'space': NAME, 'params': {...}}."
        )
    return allowed[0]
