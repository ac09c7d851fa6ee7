"""A command that declares one option twice."""


def add_arguments(parser):
    """Declare an option two times."""
    parser.add_argument("--share", help="how much stays")
    parser.add_argument("--share", help="how much goes")


def run(args):
    """Do what was asked for."""
    return 0
