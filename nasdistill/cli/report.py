"""``nasdistill report``: one HTML file about a run, finished, running or killed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nasdistill.host import Host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: RUN/report/index.html)")
    parser.add_argument("--json", action="store_true", help="print the file's name and the data of every section")


def run(args: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    from nasdistill.cli.common import load_host
    from nasdistill.cli.output import print_json, say, warn
    from nasdistill.report import write_report
    from nasdistill.store import RunDirectory

    directory = RunDirectory.open(args.run)
    disabled = ((directory.read("config.json") or {}).get("plugins") or {}).get("disable", ())
    report = write_report(directory, load_host(args, disable=disabled), args.out)
    for gap in report.gaps:
        warn(f"the report lacks {gap}")
    for section in report.sections:
        if section["problem"]:
            warn(f"section {section['title']}: {section['problem']}")
    if args.json:
        print_json(report.to_json())
    else:
        say(f"Report: {report.path} ({report.size / 1000:.0f} kB)")
    return 0


def report_after(run: Path, host: Host) -> None:
    """Write the report of a search that has ended and say where it is; one that fails is a line and nothing more."""
    from nasdistill.cli.output import info, warn
    from nasdistill.errors import ISOLATED, one_line

    try:
        from nasdistill.report import write_report
        from nasdistill.store import RunDirectory

        report = write_report(RunDirectory.open(run), host)
    except ISOLATED as error:
        warn(f"no report: {one_line(error)}; nasdistill report {run} tries again")
    else:
        info(f"Report: {report.path}")
