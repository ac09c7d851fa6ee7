"""``nasdistill show``: the result of any run, finished, running or killed."""

from __future__ import annotations

import argparse
from pathlib import Path

_NUMBERS = ("trial", "score", "params")
"""Columns of the trials' table that are aligned to the right."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--trials", action="store_true", help="list every trial with its outcome")
    parser.add_argument("--json", action="store_true", help="print the result object")


def run(args: argparse.Namespace) -> int:
    """Print the result object or the table of the front."""
    from nasdistill.cli.output import print_json, print_table, say
    from nasdistill.cli.search import closing_lines, print_front
    from nasdistill.search.reasons import nothing_finished
    from nasdistill.search.result import build_result
    from nasdistill.store import RunDirectory

    directory = RunDirectory.open(args.run)
    result = build_result(directory)
    if args.json:
        print_json(result)
        return 0
    if args.trials:
        header = ["trial", "state", "rung", "space", "score", "params", "why"]
        print_table(header, [_trial_row(outcome) for outcome in directory.outcomes()], right=_NUMBERS)
    print_front(result)
    goes_on = f"; nasdistill resume {args.run} goes on" if result["state"] not in ("running", "finished") else ""
    # Without a student the reason follows below.
    why = f" ({result['state_reason']})" if result["state"] == "failed" and result["front"] else ""
    say(f"State: {result['state']}{why}{goes_on}.")
    if not result["front"] and result["state"] != "running":
        message, hint = nothing_finished(result)
        say(f"{message[0].upper()}{message[1:]}.\n  {hint}")
    for line in closing_lines(result):
        say(line)
    return 0


def _trial_row(outcome: dict[str, object]) -> list[str]:
    arch, cost, score = outcome.get("architecture"), outcome.get("cost"), outcome.get("score")
    return [
        str(outcome["number"]),
        str(outcome["state"]),
        str(outcome["rung"]),
        str(arch["space"]).split(":", 1)[-1] if isinstance(arch, dict) else "-",
        f"{score:.4f}" if isinstance(score, float) else "-",
        f"{cost['params']:,}" if isinstance(cost, dict) else "-",
        str(outcome.get("reason", "")),
    ]
