"""``nasdistill plugins disable`` and ``enable``: for this user, for good.

They read metadata only and import no third party's code: whoever is locked out by a plugin can remove the culprit.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nasdistill.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of either action."""
    parser.add_argument("name", metavar="NAME", help="a plugin, or a distribution with all its plugins")


def disable(args: argparse.Namespace) -> int:
    """Disable a plugin and say where that is written."""
    from nasdistill.cli import output
    from nasdistill.host.switches import Installed, disable_for_user, user_file

    changed = disable_for_user(args.name)
    output.say(f"{args.name} is {'disabled' if changed else 'disabled already'}: {user_file()}")
    if changed and any(source.bundled for source in Installed.look().find(args.name)):
        output.warn(
            f"{args.name} is part of nasdistill: whatever names its components fails now, presets and runs to be "
            f"resumed included; nasdistill plugins enable {args.name} has them back"
        )
    _tell_other_switches(args.name, wanted=False)
    return 0


def enable(args: argparse.Namespace) -> int:
    """Enable a plugin again and say where that is written."""
    from nasdistill.cli import output
    from nasdistill.host.switches import enable_for_user, user_file

    if enable_for_user(args.name):
        output.say(f"{args.name} is enabled: {user_file()}")
    else:
        output.say(f"{args.name} is not disabled in {user_file()}")
    _tell_other_switches(args.name, wanted=True)
    return 0


def _tell_other_switches(name: str, *, wanted: bool) -> None:
    """Say so where an environment variable, which goes before the file, says otherwise."""
    from nasdistill.cli.output import warn
    from nasdistill.host.switches import ENV_ONLY, Installed, Switches

    switches = Switches.collect()
    for source in Installed.look().find(name):
        by = switches.of(source)
        if wanted and by:
            warn(f"plugin {source.name!r} is still disabled by {by}")
        elif not wanted and not by:
            warn(f"plugin {source.name!r} still loads while {ENV_ONLY} names it")


def print_plugins(host: Host) -> None:
    """Print the plugins of others, and those of nasdistill itself that do not load, as a table."""
    from nasdistill.cli import output

    rows = []
    for plugin in host.plugins():
        if plugin.bundled and plugin.state == "loaded":
            continue
        origin = (plugin.name, plugin.distribution, plugin.version)
        stages = [p.stage.value for p in host.problems if (p.plugin, p.distribution, p.version) == origin]
        state = "enabled" if plugin.state == "loaded" else plugin.state
        why = f"by {plugin.disabled_by}" if plugin.disabled_by else ", ".join(f"at {stage}" for stage in stages)
        rows.append((*origin, state, why))
    if rows:
        output.say()
        output.print_table(("plugin", "distribution", "version", "state", "why"), rows)


def tell_leftovers() -> None:
    """Say which names in the user's file nothing goes by any more."""
    from nasdistill.cli.output import info
    from nasdistill.errors import UsageError
    from nasdistill.host.switches import Installed, read_user_file, user_file

    try:
        names = read_user_file()
    except UsageError:  # loading has said so already
        return
    installed = Installed.look() if names else None
    gone = [name for name in names if installed is not None and not installed.knows(name)]
    if gone:
        info(f"{user_file()} also disables {', '.join(gone)}, not installed here")
