"""What the host knows of a plugin that it found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["loaded", "disabled", "broken"]


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A plugin that was found.

    Attributes:
        name: the first half of its components' ids.
        module: what was imported, ``"module"`` or ``"module:attribute"``.
        distribution, version: what installed it; for a plugin of one file its name and the start of its hash.
        bundled: part of nasdistill itself.
        state: ``"disabled"`` plugins were not imported; ``"broken"`` ones contribute nothing.
        api: the plugin interface it states; None when that is not known.
        disabled_by: the switch that disables it, as a user would name it; empty for the others.
        file, sha256: path and hash of a plugin of one file (``--plugin FILE.py``); None for the others.
    """

    name: str
    module: str
    distribution: str
    version: str
    bundled: bool
    state: State
    api: int | None = None
    disabled_by: str = ""
    file: str | None = None
    sha256: str | None = None

    def origin(self) -> dict[str, Any]:
        """Return what runs and saved students write down of it: no paths, so that they can be moved."""
        found: dict[str, Any] = {"plugin": self.name, "distribution": self.distribution, "version": self.version}
        if self.file is not None:
            found |= {"file": Path(self.file).name, "sha256": self.sha256}
        return found
