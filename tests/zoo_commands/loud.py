"""A command with an option of the frame's."""


def add_arguments(parser):
    """Declare an option."""
    parser.add_argument("--debug", action="store_true", help="write more files")


def run(args):
    """Do what was asked for."""
    return 0
