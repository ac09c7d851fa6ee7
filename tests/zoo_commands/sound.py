"""Commands with arguments that are as they should be."""

from __future__ import annotations


def add_arguments(parser):
    """Declare an argument, an option and two subcommands."""
    parser.add_argument("--share", type=float, default=0.5, help="how much stays (default: 50 %%)")
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="show a run")
    show.add_argument("run", help="run directory")
    actions.add_parser("count", help="count runs")


def run(args):
    """Do what was asked for."""
    return 0


def run_two(args, config):
    """Ask for more than there is."""
    return 0


async def run_later(args):
    """Do it later."""
    return 0
