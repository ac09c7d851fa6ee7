"""``nasdistill plugins check``: run the contract checks of a plugin or of one component."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nasdistill.host import Host
    from nasdistill.testing import CheckResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME", help="plugin (proxies) or component (synflow, proxies:synflow)")
    parser.add_argument("--kind", metavar="K", help="which kind, where several have a component of that name")
    parser.add_argument("--thorough", action="store_true", help="the slow checks too")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Check, print, and return 1 when something is broken."""
    from nasdistill.cli import output
    from nasdistill.cli.common import load_host
    from nasdistill.testing.results import failures

    host = load_host(args)
    results = _check(args, host, _progress(output.info))
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


def _check(args: argparse.Namespace, host: Host, on_result: Callable[[CheckResult], None]) -> list[CheckResult]:
    """Check the plugin of that name, else the component."""
    from nasdistill.cli.plugins import choose, kind_name
    from nasdistill.testing import check_component, check_plugin

    # A plugin may have a component of its own name; its own checks include that.
    plugin = args.kind is None and args.name in {item.name for item in host.plugins()}
    record = None if plugin else choose(host, args.name, kind_name(args.kind))
    if record is None:
        return check_plugin(args.name, host=host, thorough=args.thorough, on_fail="record", on_result=on_result)
    return check_component(
        record.id, kind=record.kind, host=host, thorough=args.thorough, on_fail="record", on_result=on_result
    )


def _progress(say: Callable[[str], None]) -> Callable[[CheckResult], None]:
    """Return a listener that says which component has its turn, since some take seconds."""
    last = ""

    def listen(result: CheckResult) -> None:
        nonlocal last
        if result.component != last:
            last = result.component
            say(f"checking {result.kind.replace('_', ' ')} {last}")

    return listen


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
