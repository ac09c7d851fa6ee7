"""``nasdistill plugins check``: run the contract checks of a plugin or of one component."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nasdistill.host import Host
    from nasdistill.testing import BoundCheck, CheckResult
    from nasdistill.testing.pluginchecks import PluginCheck

SECONDS = 300.0
"""Which no check of a sound component takes, not on a slow machine and not a thorough one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="plugin (proxies) or component (synflow, proxies:synflow)")
    parser.add_argument("--kind", metavar="K", help="which kind, where several have a component of that name")
    parser.add_argument("--thorough", action="store_true", help="the slow checks too")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=SECONDS,
        help=f"a check that takes longer has failed (default {SECONDS:g}; 0: none has)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def _seconds(text: str) -> float:
    """Read a number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds (0: no limit)")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Check, print, and return 1 when something is broken."""
    from nasdistill.cli import output
    from nasdistill.cli.common import load_host
    from nasdistill.testing.results import failures

    host = load_host(args)
    progress = Progress()
    try:
        results = _check(args, host, progress)
    except KeyboardInterrupt as stop:  # somebody had enough of waiting: for what?
        stop.args = (*stop.args, f"it was {progress.title}" if progress.title else "nothing was checked yet")
        raise
    finally:
        progress.close()
    broken = failures(results)
    if args.json:
        output.print_json({"name": args.name, "ok": not broken, "results": [item.to_json() for item in results]})
        return 1 if broken else 0
    _print(results)
    for result in broken:
        output.say(f"\n{result}")
    count = Counter(item.status for item in results)
    said = ", ".join(
        f"{count[status]} {status}" for status in ("passed", "failed", "xpassed", "xfailed") if count[status]
    )
    output.info(f"{args.name}: {said or 'nothing to check'} in {sum(item.seconds for item in results):.1f} s")
    return 1 if broken else 0


def _check(args: argparse.Namespace, host: Host, progress: Progress) -> list[CheckResult]:
    """Check the plugin of that name, else the component."""
    from nasdistill.cli.plugins import choose, kind_name, refuse_disabled
    from nasdistill.testing import check_component, check_plugin

    refuse_disabled(host, args.name)
    # A plugin may have a component of its own name; its own checks include that.
    plugin = args.kind is None and args.name in {item.name for item in host.plugins()}
    record = None if plugin else choose(host, args.name, kind_name(args.kind))
    if record is None:
        return check_plugin(
            args.name, host=host, thorough=args.thorough, on_fail="record", on_start=progress, timeout=args.timeout
        )
    return check_component(
        record.id, kind=record.kind, host=host, thorough=args.thorough, on_fail="record", on_start=progress,
        timeout=args.timeout,
    )  # fmt: skip


class Progress:
    """Says on stderr what has its turn, since some checks take seconds and one may never end.

    On a terminal one line names the running check; elsewhere there is a line for each component, and with ``-v`` for
    each check.

    Attributes:
        title: the check that began last; empty before the first.
    """

    def __init__(self) -> None:
        from nasdistill.cli import output

        self._live = output.is_terminal(sys.stderr) and not output.is_quiet() and not output.is_verbose()
        self._last = ("", "")
        self.title = ""

    def __call__(self, item: BoundCheck | PluginCheck) -> None:
        """Name a check that begins."""
        from nasdistill.cli import output

        if self._live:
            room = shutil.get_terminal_size().columns - 1
            self._show(f"checking {item.title}"[:room])
        elif output.is_verbose():
            output.detail(f"checking {item.title}")
        elif item.about != self._last:
            output.info(f"checking {item.about[0].replace('_', ' ')} {item.about[1]}")
        self._last, self.title = item.about, item.title

    def close(self) -> None:
        """Leave an empty line behind."""
        if self._live:
            self._show("")

    def _show(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[2K{text}")
        sys.stderr.flush()


def _print(results: list[CheckResult]) -> None:
    """Print one line per component."""
    from nasdistill.cli import output

    groups: dict[tuple[str, str], list[CheckResult]] = {}
    for result in results:
        groups.setdefault((result.kind, result.component), []).append(result)
    rows = []
    for (kind, component), found in groups.items():
        count = Counter(item.status for item in found)
        bad = [item.check for item in found if not item.ok]
        known = [item.check for item in found if item.status == "xfailed"]
        passed = count["passed"]
        absent = [item.message for item in found] if count["skipped"] == len(found) else []
        notes = [*bad, *(f"{name} (known)" for name in known), *absent]
        rows.append(
            (
                kind.replace("_", " "), component, "FAILED" if bad else "skipped" if absent else "ok", passed,
                count["skipped"], f"{sum(item.seconds for item in found):.1f}", ", ".join(dict.fromkeys(notes)),
            )
        )  # fmt: skip
    output.print_table(
        ("kind", "component", "result", "passed", "skipped", "seconds", "why"),
        rows,
        right=("passed", "skipped", "seconds"),
    )
