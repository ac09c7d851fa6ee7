"""What several commands do: load the host and say what is wrong with plugins."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nasdistill.cli import output

if TYPE_CHECKING:
    from nasdistill.host import Host


def load_host(args: argparse.Namespace, *, disable: Iterable[str] = ()) -> Host:
    """Load all plugins, with one line on stderr for each problem.

    Args:
        args: the command's arguments; `no_plugin` and `plugin_files` are read.
        disable: further plugins to leave out (``[plugins] disable`` of a configuration).
    """
    host = quiet_host(args, disable=disable)
    for problem in host.problems:
        output.warn(str(problem))
    return host


def quiet_host(args: argparse.Namespace, *, disable: Iterable[str] = ()) -> Host:
    """Load all plugins and leave their problems to the caller; the rest is said as by :func:`load_host`."""
    from nasdistill.host import Host

    files = getattr(args, "plugin_files", [])
    host = Host.load(disable=[*getattr(args, "no_plugin", []), *disable], files=files)
    for notice in host.notices:
        output.warn(notice)
    for name in host.unknown_switches:
        output.warn(f"no plugin {name!r} is installed, so there is nothing to leave out")
    return host


def config_values(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the tables of a configuration file or ``--preset NAME`` (digits without either), and how to name them.

    Raises:
        UsageError: both were given.
        ConfigError: the file cannot be read, or there is no such preset.
    """
    import tomllib

    from nasdistill.errors import UsageError
    from nasdistill.spec.config import preset_text, read_toml

    if args.config is not None and args.preset is not None:
        raise UsageError("give a configuration file or --preset, not both")
    if args.config is not None:
        return read_toml(args.config), str(args.config)
    preset = args.preset or "digits"
    return tomllib.loads(preset_text(preset)), f"preset {preset}"


def parse_setting(item: str) -> tuple[str, Any]:
    """Return key and value of ``--set KEY=VALUE``; the value is TOML, or a bare word taken as text.

    Raises:
        UsageError: there is no ``=``.
    """
    import tomllib

    from nasdistill.errors import UsageError

    key, equals, raw = item.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {item!r}: write KEY=VALUE, such as training.lr=1e-3")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):  # no TOML, or a number of thousands of digits
        return key.strip(), raw


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted key of nested tables; tables on the way are copied, so that others who hold them keep theirs."""
    *parents, leaf = path.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[leaf] = value
