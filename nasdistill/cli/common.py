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
    debug = bool(getattr(args, "debug", False))
    more = debug or bool(getattr(args, "verbose", False))
    for problem in host.problems:
        output.warn(str(problem))
        where = _where(problem.exception, whole=debug) if more and problem.exception is not None else ""
        if where:
            output.info(where if debug else f"  at {where}")
    return host


def _where(error: BaseException, *, whole: bool) -> str:
    """Return where an exception came from: the last frame's file and line, or the whole traceback."""
    import traceback
    from pathlib import Path

    from nasdistill import host

    if whole:
        return "".join(traceback.format_exception(error)).rstrip()
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    # What the host itself refuses is in no line of the plugin's.
    own = bool(frames) and Path(frames[-1].filename).parent == Path(host.__file__).parent
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames and not own else ""


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

    Another task than the preset's has nothing to take from it: with ``--task`` alone everything that the command line
    does not say follows from the task and the teacher.

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
    values = tomllib.loads(preset_text(preset))
    task = getattr(args, "task", None)
    if args.preset is None and task not in (None, values["task"]["name"]):
        return {"task": {"name": task}}, "the command line"
    return values, f"preset {preset}"


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


NAMED = ("space", "target", "proxy")
"""Tables of a configuration of which there may be several, told apart by their names."""


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted key of nested tables; tables on the way are copied, so that others who hold them keep theirs.

    ``proxy.NAME.KEY`` sets an option of the proxy of that name, and so for spaces and targets.

    Raises:
        UsageError: no such proxy, space or target is configured.
    """
    *parents, leaf = path.split(".")
    if parents and parents[0] in NAMED:
        _put_option(values, *path.split(".", 2), value=value)
        return
    for parent in parents:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[leaf] = value


def _put_option(values: dict[str, Any], table: str, name: str, key: str = "", *, value: Any) -> None:
    """Set an option of one of several components of a kind."""
    from nasdistill.errors import UsageError, did_you_mean

    entries = [dict(entry) for entry in values.get(table, [])]
    bare = name.rpartition(":")[2]
    fitting = [entry for entry in entries if entry.get("name") == name]
    if not fitting:  # with and without its plugin's name
        fitting = [entry for entry in entries if bare in (entry.get("name"), str(entry.get("name")).rpartition(":")[2])]
        fitting = [entry for entry in fitting if ":" not in name or ":" not in str(entry["name"])]
    if not key:
        raise UsageError(f"--set {table}.{name}: write {table}.NAME.KEY=VALUE")
    if not fitting:
        names = [str(entry.get("name")) for entry in entries]
        raise UsageError(
            f"--set {table}.{name}.{key}: no {table} {name!r} is asked for. {did_you_mean(name, names)}",
            hint=f"--{table} {name} asks for it.",
        )
    for entry in fitting:
        options = dict(entry.get("options", {}))
        put(options, key, value)
        entry["options"] = options
    values[table] = entries


def named_setting(key: str) -> bool:
    """Return whether a key of ``--set`` is an option of one of several components of a kind."""
    return key.partition(".")[0] in NAMED and "." in key
