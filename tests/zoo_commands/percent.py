"""A command with a percent sign in a help text."""


def add_arguments(parser):
    """Declare an option."""
    parser.add_argument("--share", help="how much stays (half: 50%)")


def run(args):
    """Do what was asked for."""
    return 0
