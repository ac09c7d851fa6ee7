"""Architectures given on a command line: a JSON file, JSON text, a student, or the word ``default``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasdistill.errors import ArchitectureError

if TYPE_CHECKING:
    from nasdistill.host import Host
    from nasdistill.interfaces import SearchSpace, TeacherInfo
    from nasdistill.spec.architecture import Architecture


class Spaces:
    """Search spaces by name, each created once.

    Args:
        host: creates them.
        options: name, bare or canonical -> options; a space that is not named here takes its defaults.
        teacher: what spaces adapt to, where there is one.

    Attributes:
        host: creates them.
    """

    def __init__(
        self, host: Host, options: Mapping[str, Any] | None = None, teacher: TeacherInfo | None = None
    ) -> None:
        self.host = host
        self._teacher = teacher
        self._options = dict(options or {})
        self._created: dict[str, SearchSpace] = {}

    def get(self, name: str) -> SearchSpace:
        """Return the space that `name` stands for.

        Raises:
            UnknownComponentError: there is none; close matches are named.
            ConfigError: its options are wrong.
        """
        from nasdistill.host.adapting import adapted_options
        from nasdistill.spec.component import Kind

        identifier = self.host.canonical(Kind.SEARCH_SPACE, name)
        if identifier not in self._created:
            known = {self.host.canonical(Kind.SEARCH_SPACE, key): value for key, value in self._options.items()}
            options = known.get(identifier)
            if self._teacher is not None:
                options = adapted_options(self.host, identifier, options or {}, self._teacher)
            self._created[identifier] = self.host.create(Kind.SEARCH_SPACE, identifier, options)
        return self._created[identifier]


def read_architectures(
    spaces: Spaces, sources: Sequence[str], within: Sequence[str] = ()
) -> list[tuple[SearchSpace, Architecture]]:
    """Return every architecture with its space.

    Args:
        spaces: makes the spaces.
        sources: each a file or JSON text of one architecture or a list of them. An architecture has the form of
            ``architecture.json``, or is only an object of axes and values, the rest at their defaults, or stands under
            the key ``architecture``, as in what the commands print with ``--json``. The word ``default`` is a space's
            default point. Both short forms need exactly one space in `within`. Also a student's folder, a run (its
            best student) or ``RUN:ID``, each with the options that its space was made with.
        within: the spaces that architectures must belong to; empty takes the one each names.

    Raises:
        ArchitectureError: unreadable, not an architecture, of no space or one that is not in `within`, or not a point
            of its space (every violation is named).
        UnknownComponentError: no such space; close matches are named.
        UsageError: a folder is neither a run nor a student, or damaged.
    """
    from nasdistill.spec.architecture import read_json

    allowed = [spaces.get(name) for name in within]
    found = []
    for source in sources:
        if source.strip() == "default":
            space = _only(allowed, "--arch default")
            found.append((space, space.default()))
            continue
        if names_student(source):
            found.append(_of_student(spaces.host, source, allowed))
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

    keys = set(value) if isinstance(value, dict) else set()
    # `params` beside it is a number there: the size.
    if "architecture" in keys and isinstance(value["architecture"], dict) and not {"space", "format"} & keys:
        value, where = value["architecture"], f"{where}: architecture"
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
    _check_allowed(space, allowed, where)
    arch = Architecture.of(space.id, arch.params, arch.version)  # files may say the bare name
    space.check(arch)
    return space, arch


def names_student(source: str) -> bool:
    """Return whether a source is a folder or ``RUN:ID``, not a file, JSON or a word."""
    if source.lstrip().startswith(("{", "[")):
        return False
    run = source.rpartition(":")[0]
    try:
        return Path(source).is_dir() or (bool(run) and (Path(run) / "run.json").is_file())
    except OSError:  # no name that a file can have
        return False


def _of_student(host: Host, source: str, allowed: Sequence[SearchSpace]) -> tuple[SearchSpace, Architecture]:
    """Return a student's architecture and its space, with the options it was made with."""
    from nasdistill.library import find_student

    student = find_student(source, host=host)
    space = student.space()
    _check_allowed(space, allowed, source)
    space.check(student.architecture)
    return space, student.architecture


def _check_allowed(space: SearchSpace, allowed: Sequence[SearchSpace], where: str) -> None:
    """Refuse an architecture of a space that is not among those named."""
    if allowed and space.id not in [other.id for other in allowed]:
        names = " or ".join(other.id for other in allowed)
        raise ArchitectureError(f"{where}: it belongs to space {space.id}, not to {names} (--space)")


def _only(allowed: Sequence[SearchSpace], where: str) -> SearchSpace:
    """Return the one space that a short form is meant in."""
    if len(allowed) != 1:
        raise ArchitectureError(
            f"{where}: it names no space", hint="Give one --space NAME, or {'space': NAME, 'params': {...}}."
        )
    return allowed[0]
