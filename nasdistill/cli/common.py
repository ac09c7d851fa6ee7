"""What several commands do: load the host and say what is wrong with plugins."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nasdistill.cli import output

if TYPE_CHECKING:
    from nasdistill.host import Host


def load_host(args: argparse.Namespace, *, disable: Iterable[str] = ()) -> Host:
    """Load all plugins, with one line on stderr for each problem.

    Args:
        args: the command's arguments; `no_plugin` is read.
        disable: further plugins to leave out (``[plugins] disable`` of a configuration).
    """
    from nasdistill.host import Host

    host = Host.load(disable=[*getattr(args, "no_plugin", []), *disable])
    for problem in host.problems:
        output.warn(str(problem))
    for name in host.unknown_switches:
        output.warn(f"no plugin {name!r} is installed, so there is nothing to leave out")
    return host
