"""A command that imports numpy to declare its arguments."""


def add_arguments(parser):
    """Declare an option."""
    import numpy as np

    parser.add_argument("--share", type=float, choices=list(np.linspace(0, 1, 5)), help="how much stays")


def run(args):
    """Do what was asked for."""
    return 0
