"""A command that does not say what its option is for."""


def add_arguments(parser):
    """Declare an option."""
    parser.add_argument("--share")


def run(args):
    """Do what was asked for."""
    return 0
