"""A command that declares its arguments once."""

declared = []


def add_arguments(parser):
    """Declare an argument, unless that was done before."""
    if not declared:
        parser.add_argument("run", help="run directory")
        declared.append(True)


def run(args):
    """Do what was asked for."""
    return 0
