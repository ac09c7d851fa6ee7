"""Which plugins there are: the bundled ones from a fixed tuple, others from the entry points of group ``nasdistill``.

Nothing is imported here. Every distribution is read in its own ``try``: one with unreadable metadata becomes a problem
and the others are still found.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata

from nasdistill._version import __version__
from nasdistill.errors import one_line
from nasdistill.host.bundled import BUNDLED, plugin_name
from nasdistill.host.onefile import OneOffFile
from nasdistill.host.problems import PluginProblem, Stage
from nasdistill.spec.component import NAME_PATTERN

GROUP = "nasdistill"
HOME = "nasdistill"
"""Distribution of the bundled plugins."""

_UNKNOWN = "unknown"
_GROUP_HEADER = re.compile(rf"^\s*\[\s*{GROUP}\s*\]", re.MULTILINE)
_VALUE = re.compile(r"^(?P<module>[A-Za-z_][\w.]*)\s*(?::\s*(?P<attr>[A-Za-z_][\w.]*))?\s*(?:\[.*\])?$")


@dataclass(frozen=True, slots=True)
class PluginSource:
    """A plugin that could be loaded.

    Attributes:
        name: its name, the first half of its components' ids.
        module: ``"module"`` or ``"module:attribute"``.
        distribution, version: who brings it.
        bundled: whether it is part of this distribution.
        file: the one file that it consists of, where it was not installed.
    """

    name: str
    module: str
    distribution: str
    version: str
    bundled: bool
    file: OneOffFile | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What switches know it by."""
        return (self.name,) if self.bundled or self.file is not None else (self.name, self.distribution)

    @property
    def origin(self) -> str:
        """Who brings it, for messages: ``"nasdistill-acme 1.2"``."""
        return f"{self.distribution} {self.version}".strip()

    def load(self) -> object:
        """Import and return the plugin. Raises whatever its code raises."""
        if self.file is not None:
            return self.file.load()
        match = _VALUE.match(self.module)
        if match is None:
            raise ValueError(f"{self.module!r} is not 'module' or 'module:attribute'")
        module = importlib.import_module(match["module"])
        attributes = match["attr"].split(".") if match["attr"] else []
        return functools.reduce(getattr, attributes, module)


def bundled_sources() -> list[PluginSource]:
    """Return the bundled plugins."""
    return [PluginSource(plugin_name(module), module, HOME, __version__, True) for module in BUNDLED]


def file_source(file: OneOffFile) -> PluginSource:
    """Return the plugin that a file is; its version is the start of its hash."""
    return PluginSource(file.name, file.name, file.filename, file.sha256[:12], False, file)


def third_party_sources() -> tuple[list[PluginSource], list[PluginProblem]]:
    """Return the installed third-party plugins, sorted by distribution and name, and what could not be read."""
    sources: list[PluginSource] = []
    problems: list[PluginProblem] = []
    for distribution, version, entries, problem in _entries():
        if problem is not None:
            problems.append(problem)
        for entry in entries:
            if NAME_PATTERN.match(entry.name) is None:
                problems.append(_misnamed(entry, distribution, version))
            else:
                sources.append(PluginSource(entry.name, entry.value, distribution, version, False))
    sources.sort(key=lambda source: (source.distribution, source.name))
    return sources, problems


_Found = tuple[str, str, Iterable[metadata.EntryPoint], "PluginProblem | None"]


def _entries() -> list[_Found]:
    """Return (distribution, version, entry points of our group, problem) for every distribution that has some."""
    seen: set[str] = set()
    found: list[_Found] = []
    for distribution in metadata.distributions():
        # The text is looked at first: parsing it is what fails, and most distributions have no such group.
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except Exception:  # unreadable metadata of a package that may have nothing to do with us
            continue
        if not _GROUP_HEADER.search(text):
            continue
        name, version = _identity(distribution)
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen and name != _UNKNOWN:  # another copy further down the path; Python imports the first one
            continue
        seen.add(key)
        try:
            entries = [entry for entry in distribution.entry_points if entry.group == GROUP]
            found.append((name, version, entries, None))
        except Exception as error:
            problem = PluginProblem(
                plugin=name, distribution=name, version=version, stage=Stage.METADATA,
                cause=f"its entry points cannot be read ({one_line(error)})",
                hint=f"Reinstall it, or go on without it: nasdistill plugins disable {name}", exception=error,
            )  # fmt: skip
            found.append((name, version, [], problem))
    return found


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """Return name and version, as far as they can be read."""
    try:
        fields = distribution.metadata
        return str(fields["Name"] or _UNKNOWN), str(fields["Version"] or "")
    except Exception:  # no METADATA file: the entry points may still be good
        return _UNKNOWN, ""


def _misnamed(entry: metadata.EntryPoint, distribution: str, version: str) -> PluginProblem:
    return PluginProblem(
        plugin=entry.name, distribution=distribution, version=version, stage=Stage.METADATA,
        cause=f"its name must match {NAME_PATTERN.pattern}",
        hint=f"The author has to rename the entry point; until then: nasdistill plugins disable {distribution}",
    )  # fmt: skip
