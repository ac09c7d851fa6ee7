"""A command without arguments."""


def run(args):
    """Do the one thing that it does."""
