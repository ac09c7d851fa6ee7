"""The command line: one module per command, named in :mod:`nasdistill.cli.table`, imported when it is run."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the program's name; None takes them from the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted (143 by SIGTERM).
    """
    from nasdistill.cli.app import run

    return run(argv)
