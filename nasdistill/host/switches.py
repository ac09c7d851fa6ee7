"""Which plugins are left out, and by what.

The first of these that has something to say about a plugin decides:

1. ``--no-plugin NAME`` and ``[plugins] disable`` of a configuration (the argument `disable`): out.
2. ``NASDISTILL_DISABLE_PLUGINS=a,b``: out.
3. ``NASDISTILL_PLUGINS=a,b`` (the argument `only`): of third parties these are in and all others out; empty means none.
4. The user's ``plugins.toml``, written by ``nasdistill plugins disable``: out.

A name is a plugin's or a distribution's, hyphens and underscores alike. Bundled plugins go by their own names
only. Plugins of one file, which somebody has just named, heed 1 and 2. Nothing is imported here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasdistill.errors import UsageError, did_you_mean, one_line
from nasdistill.files import config_folder, write_text
from nasdistill.host.discovery import PluginSource, bundled_sources, third_party_sources

ENV_ONLY = "NASDISTILL_PLUGINS"
ENV_DISABLE = "NASDISTILL_DISABLE_PLUGINS"
ARGUMENT = "--no-plugin or [plugins] disable"
FILE_NAME = "plugins.toml"
_HEADER = (
    "# Plugins that are not loaded. Written by `nasdistill plugins disable` and `enable`; comments are not kept.\n"
)


def name_key(name: str) -> str:
    """Return what equal names share: hyphens, underscores, dots and case make no difference."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated environment variable."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class Switches:
    """What was said about plugins.

    Attributes:
        disable: from the caller.
        environment: from ``NASDISTILL_DISABLE_PLUGINS``.
        only: the third-party plugins that may load; None is all.
        only_by: who says so.
        user: from the user's file.
        notice: what is wrong with the user's file.
    """

    disable: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    only_by: str = ENV_ONLY
    user: tuple[str, ...] = ()
    notice: str = ""

    @classmethod
    def collect(
        cls,
        disable: Iterable[str] = (),
        only: Iterable[str] | None = None,
        *,
        user: bool = True,
        environment: bool = True,
    ) -> Switches:
        """Return the switches of this moment: the arguments, the environment and the user's file, where these count."""
        only_by = ENV_ONLY if only is None else "only="
        if only is None and environment and ENV_ONLY in os.environ:
            only = split_names(os.environ[ENV_ONLY])
        names: tuple[str, ...] = ()
        notice = ""
        if user:
            try:
                names = read_user_file()
            except UsageError as error:
                notice = f"{error.message}, so it disables nothing. {error.hint}"
        out = split_names(os.environ.get(ENV_DISABLE, "")) if environment else ()
        return cls(tuple(disable), out, None if only is None else tuple(only), only_by, names, notice)

    def disabled_by(self, names: Iterable[str], *, bundled: bool = False, one_off: bool = False) -> str:
        """Return the switch that disables a plugin, empty when none does.

        Args:
            names: what it goes by: its own name and its distribution's.
            bundled: it is part of nasdistill.
            one_off: it is a file that was given.
        """
        keys = set(map(name_key, names))

        def has(given: Iterable[str]) -> bool:
            return not keys.isdisjoint(map(name_key, given))

        if has(self.disable):
            return ARGUMENT
        if has(self.environment):
            return ENV_DISABLE
        if one_off:
            return ""
        if not bundled and self.only is not None:
            return "" if has(self.only) else self.only_by
        return str(user_file()) if has(self.user) else ""

    def of(self, source: PluginSource) -> str:
        """Return the switch that disables a plugin, empty when none does."""
        return self.disabled_by(source.names, bundled=source.bundled, one_off=source.file is not None)

    def unknown(self, known: Iterable[str]) -> tuple[str, ...]:
        """Return the names to leave out, of this call and the environment, that nothing goes by."""
        keys = set(map(name_key, known))
        return tuple(sorted({name for name in (*self.disable, *self.environment) if name_key(name) not in keys}))

    def arguments(self) -> dict[str, Any]:
        """Return arguments of :meth:`nasdistill.host.Host.load` that say the same in another process, later."""
        bundled = {name_key(source.name) for source in bundled_sources()}
        user = (name for name in self.user if self.only is None or name_key(name) in bundled)
        return {
            "disable": (*self.disable, *self.environment, *user), "only": self.only, "user_settings": False,
            "environment": False,
        }  # fmt: skip


# -- the user's file --------------------------------------------------------------------------------------------------


def user_file() -> Path:
    """Return the path of the user's file, which need not exist."""
    return config_folder() / FILE_NAME


def read_user_file() -> tuple[str, ...]:
    """Return the names that the user's file disables.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    import tomllib

    try:
        path = user_file()
    except RuntimeError:  # a user without a home has no settings
        return ()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise UsageError(f"{path} cannot be read ({why})", hint="Mend it or delete it.") from error
    names = values.pop("disable", [])
    if values:
        key = next(iter(values))
        raise UsageError(f"{path} has an unknown key {key!r}", hint="It may say disable = [names] and nothing else.")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path}: disable is not a list of names", hint="Mend it or delete it.")
    return tuple(names)


def write_user_file(names: Iterable[str]) -> None:
    """Write the names that the user's file disables.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    import tomli_w

    path = Path(os.path.realpath(user_file()))  # a link to somewhere stays a link
    write_text(path, _HEADER + tomli_w.dumps({"disable": sorted(set(names), key=name_key)}))


@dataclass(frozen=True, slots=True)
class Installed:
    """What is installed, from metadata alone.

    Attributes:
        plugins: plugins by the names that switches know them by; a distribution may have several.
        unreadable: distributions and plugins whose metadata is faulty.
    """

    plugins: tuple[PluginSource, ...]
    unreadable: tuple[str, ...]

    @classmethod
    def look(cls) -> Installed:
        """Read the metadata of all distributions; no plugin's code is imported."""
        others, problems = third_party_sources()
        unreadable = tuple(name for problem in problems for name in (problem.plugin, problem.distribution))
        return cls((*bundled_sources(), *others), unreadable)

    def find(self, name: str) -> list[PluginSource]:
        """Return the plugins that go by `name`."""
        return [source for source in self.plugins if name_key(name) in map(name_key, source.names)]

    def knows(self, name: str) -> bool:
        """Return whether anything goes by `name`."""
        return bool(self.find(name)) or name_key(name) in map(name_key, self.unreadable)

    def check(self, name: str) -> None:
        """Refuse a name that nothing goes by.

        Raises:
            UsageError: with close matches.
        """
        if not self.knows(name):
            names = {*self.unreadable, *(item for source in self.plugins for item in source.names)}
            raise UsageError(
                f"no plugin or distribution {name!r} is installed. {did_you_mean(name, names)}",
                hint="nasdistill plugins list names them.",
            )


def disable_for_user(name: str) -> bool:
    """Disable a plugin, or all of a distribution, in the user's file; return False when it says so already.

    Raises:
        UsageError: nothing goes by this name, or the file cannot be read.
        OSError: the file cannot be written.
    """
    given = read_user_file()
    if name_key(name) in map(name_key, given):
        return False
    Installed.look().check(name)
    write_user_file([*given, name])
    return True


def enable_for_user(name: str) -> bool:
    """Take a plugin, or all of a distribution, out of the user's file; return False when it is not in there.

    A name that is not installed any more can be taken out too. Where the file names the whole distribution of a plugin,
    its other plugins stay disabled.

    Raises:
        UsageError: nothing goes by this name, or the file cannot be read.
        OSError: the file cannot be written.
    """
    given = read_user_file()
    installed = Installed.look()
    meant = {name_key(name)}
    kept = set(given)
    for source in installed.find(name):
        own, home = name_key(source.name), name_key(source.distribution)
        if home == name_key(name):  # the whole distribution, its plugins one by one included
            meant.add(own)
        elif not source.bundled and home in map(name_key, given):
            meant.add(home)
            kept |= {item.name for item in installed.find(source.distribution) if name_key(item.name) != own}
    if meant.isdisjoint(map(name_key, given)):
        if name_key(name) not in map(name_key, given):
            installed.check(name)
        return False
    write_user_file(item for item in kept if name_key(item) not in meant)
    return True
