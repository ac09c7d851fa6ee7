"""``nasdistill compare``: runs and saved students, evaluated and timed anew under one protocol."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="RUN_OR_STUDENT",
        help="runs (their fronts take part) and saved students; the first run sets data and teacher",
    )
    parser.add_argument("--target", metavar="T", help="where to time (default: the first run's first target)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write index.html and compare.json there")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Compare, print, and return 1 when a network could not take part."""
    from nasdistill.cli.common import load_host
    from nasdistill.cli.output import info, print_json, print_table, say
    from nasdistill.errors import UsageError
    from nasdistill.report.compare import compare
    from nasdistill.report.sections.comparison import comparison_table
    from nasdistill.report.write import write_comparison

    if len(args.paths) < 2:
        raise UsageError("one folder alone cannot be compared", hint="nasdistill show RUN shows a single run.")
    result = compare(args.paths, load_host(args), target=args.target, message=info)
    if args.out is not None:
        info(f"written: {write_comparison(result, args.out)}")
    if args.json:
        print_json(result)
    else:
        columns, rows = comparison_table(result)
        print_table(columns, rows, right=columns[2:8])
        for name, value in result["hypervolume"].items():
            say(f"Hypervolume of {name}: {value:.4f} (one corner for all)")
        for note in result["notes"]:
            say(note)
        for row in result["networks"]:
            if row["problem"]:
                say(f"{row['name']}: {row['problem']}")
    return 1 if any(row["problem"] for row in result["networks"]) else 0
