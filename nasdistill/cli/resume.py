"""``nasdistill resume``: go on with a run that was interrupted or killed."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory; it may have been moved")
    parser.add_argument("--workers", type=int, metavar="W", help="isolated processes to work in (default: as before)")
    parser.add_argument("--json", action="store_true", help="print the result object as the last thing on stdout")


def run(args: argparse.Namespace) -> int:
    """Go on with a run; what is on record is not done again."""
    from nasdistill.cli.common import load_host
    from nasdistill.cli.search import watch
    from nasdistill.errors import UsageError
    from nasdistill.search.opening import read_config
    from nasdistill.search.run import resume_search
    from nasdistill.store import RunDirectory

    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers {args.workers}: give 0 or more")
    config = read_config(RunDirectory.open(args.run))
    host = load_host(args, disable=config.plugins.disable)
    return watch(
        lambda listener: resume_search(args.run, host=host, listener=listener, workers=args.workers),
        args.run,
        host,
        as_json=args.json,
    )
