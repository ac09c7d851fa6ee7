"""A command that imports numpy before it is asked for anything."""

import numpy as np


def add_arguments(parser):
    """Declare an option."""
    parser.add_argument("--values", nargs="*", type=float, help="numbers")


def run(args):
    """Do what was asked for."""
    return int(np.sum(args.values) > 0)
