"""``nasdistill plugins new``: write a package with one component of a kind, complete and ready to be replaced."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from nasdistill.spec.component import Kind

if TYPE_CHECKING:
    from nasdistill.scaffold import NewPlugin

LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    kinds = ", ".join(kind.value for kind in Kind)
    parser.add_argument("name", metavar="NAME", help="name of the plugin and of its component, such as my_proxy")
    parser.add_argument("--kind", metavar="K", required=True, help=f"what it is to be: {kinds}")
    parser.add_argument("--out", metavar="DIR", help="new folder (default: nasdistill-NAME)")
    parser.add_argument(
        "--license", metavar="L", default="apache-2.0", help=f"{', '.join(LICENSES)} (default: apache-2.0)"
    )
    parser.add_argument("--author", metavar="A", default="", help="'Name' or 'Name <address>'")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Write the package, and say what comes next."""
    from nasdistill.cli import output
    from nasdistill.scaffold import NewPlugin, kind_facts, render, write

    plugin = NewPlugin(args.name, kind_facts(args.kind), license=args.license.lower(), author=args.author.strip())
    _refuse_known(plugin)
    folder = Path(plugin.distribution if args.out is None else args.out)
    files = render(plugin)
    write(files, folder)
    # A bare name would be looked up on the package index.
    place = str(folder) if folder.is_absolute() or ".." in folder.parts else f"./{folder}"
    steps = [
        f"pip install -e {shlex.quote(place + '[test]')}",
        f"nasdistill plugins check {plugin.name}",
        f"python -m pytest {shlex.quote(place)}",
    ]
    if args.json:
        output.print_json(
            {
                "folder": str(folder), "plugin": plugin.name, "kind": plugin.facts.kind.value,
                "component": plugin.component, "distribution": plugin.distribution, "files": sorted(files),
                "source": plugin.source, "next": steps,
            }
        )  # fmt: skip
        return 0
    output.say(f"{folder}: {plugin.distribution} with the {plugin.facts.label} {plugin.component}, {len(files)} files")
    output.info(
        "next:\n" + "".join(f"  {step}\n" for step in steps) + f"then put your idea in {folder / plugin.source}"
    )
    return 0


def _refuse_known(plugin: NewPlugin) -> None:
    """Refuse the name of something that comes with nasdistill: the bare name would no longer say which is meant.

    Raises:
        UsageError: naming it.
    """
    from nasdistill.cli.table import COMMANDS
    from nasdistill.errors import UsageError
    from nasdistill.host import Host

    kind = plugin.facts.kind
    known = {record.name: record.id for record in Host.load(third_party=False).specs(kind)}
    if kind is Kind.COMMAND:
        known |= {name: f"nasdistill {name}" for name in COMMANDS}
    if plugin.name in known:
        raise UsageError(
            f"there is a {plugin.facts.label} {plugin.name!r} already, {known[plugin.name]}",
            hint="Choose another name, so that the name alone says which one is meant.",
        )
