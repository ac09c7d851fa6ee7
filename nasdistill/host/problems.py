"""What went wrong with a plugin: data for one line on the terminal, with the exception kept for chaining."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nasdistill.errors import NasdistillError


class Stage(StrEnum):
    """Where in its loading a plugin failed, in the order of loading."""

    METADATA = "metadata"
    IMPORT = "import"
    API_VERSION = "api-version"
    REGISTER = "register"
    HOOK = "hook"
    SPEC = "spec"


class PluginError(NasdistillError):
    """A plugin cannot be used; raised only where problems are not isolated (``strict``)."""


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """One problem of one plugin.

    Attributes:
        plugin: name of the plugin; the distribution's where no name could be read.
        distribution: what installed it (``"nasdistill-acme"``).
        version: of the distribution.
        stage: where it failed. Up to ``hook`` the whole plugin is out; at ``spec`` only the component concerned.
        cause: one line.
        hint: what to do next.
        component: canonical id of the component concerned, at stage ``spec``.
        exception: what was raised; None when the host itself found the fault.
    """

    plugin: str
    distribution: str
    version: str
    stage: Stage
    cause: str
    hint: str = ""
    component: str | None = None
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        line = f"plugin {self.plugin!r}{f' ({origin})' if origin else ''} failed at {self.stage.value}: {self.cause}"
        return f"{line}. {self.hint}" if self.hint else line

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form (without the exception)."""
        return {
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "stage": self.stage.value,
            "component": self.component,
            "cause": self.cause,
            "hint": self.hint,
        }
