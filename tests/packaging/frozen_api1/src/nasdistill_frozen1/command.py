"""``nasdistill frozen [--name NAME]``: say hello."""

from __future__ import annotations


def add_arguments(parser):
    """Declare the argument."""
    parser.add_argument("--name", default="world", help="whom to greet")


def run(args):
    """Say hello and return the exit code."""
    print(f"hello {args.name}")
    return 0
