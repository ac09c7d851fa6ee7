"""How commands print: results on stdout, everything else on stderr.

While a command of nasdistill itself works, :func:`results_only` keeps stdout for these functions: what a component
prints goes to stderr.

A table is drawn with rich on a terminal and is aligned text otherwise, so that it can be piped; ``NO_COLOR`` is
honoured. JSON goes to stdout as one object, the last thing there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

_quiet = False
_verbose = 0
_results: TextIO | None = None


@contextlib.contextmanager
def results_only() -> Iterator[None]:
    """Send to stderr what anybody but this module prints to stdout, which belongs to the command's result."""
    global _results
    before, _results = _results, results()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


def results() -> TextIO:
    """Return the stream for results: stdout, whoever has redirected it since the command began."""
    return sys.stdout if _results is None else _results


def say(text: object = "", *, end: str = "\n") -> None:
    """Print a line of a result to stdout."""
    print(text, end=end, file=results())


def configure(*, quiet: bool, verbose: int) -> None:
    """Set how much :func:`info` and :func:`detail` say; called once by the frame."""
    global _quiet, _verbose
    _quiet, _verbose = quiet, verbose
    if verbose:
        import logging

        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger = logging.getLogger("nasdistill")
        logger.handlers[:] = [handler]
        logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)


def is_quiet() -> bool:
    """Return whether the user asked for results and errors only (``-q``)."""
    return _quiet


def is_verbose() -> bool:
    """Return whether the user asked for more (``-v``)."""
    return _verbose > 0


def info(text: str) -> None:
    """Print progress to stderr, unless quiet."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def detail(text: str) -> None:
    """Print to stderr with ``-v`` only."""
    if _verbose:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning to stderr, unless quiet."""
    if not _quiet:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print `value` to stdout as JSON: indented on a terminal, one line elsewhere (so ``| tail -1`` has all of it).

    Raises:
        ValueError: it holds NaN or an infinity, which JSON cannot say.
    """
    stream = results()
    encoding = (stream.encoding or "").lower().replace("-", "")
    indent = 2 if stream.isatty() else None
    text = json.dumps(value, indent=indent, ensure_ascii=encoding != "utf8", allow_nan=False)
    print(text, file=stream, flush=True)


def is_terminal(stream: TextIO | None = None) -> bool:
    """Return whether a stream (stdout by default) is a terminal that can move its cursor."""
    stream = results() if stream is None else stream
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", right: Sequence[str] = ()
) -> None:
    """Print a table to stdout.

    Args:
        columns: headings.
        rows: one cell per column; None is an empty cell. Numbers are printed as they are: format them before.
        title: a line above.
        right: headings of the columns that are aligned to the right.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if is_terminal():
        _rich_table(columns, cells, title, right)
    else:
        say(plain_table(columns, cells, title=title, right=right))


def plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", right: Sequence[str] = ()
) -> str:
    """Return a table as aligned text, two spaces between columns, nothing cut off."""
    widths = [max(len(heading), *(len(row[i]) for row in rows), 0) for i, heading in enumerate(columns)]

    def line(values: Sequence[str]) -> str:
        parts = [
            value.rjust(width) if heading in right else value.ljust(width)
            for heading, value, width in zip(columns, values, widths, strict=True)
        ]
        return "  ".join(parts).rstrip()

    lines = [line(columns), line(["-" * width for width in widths]), *(line(row) for row in rows)]
    return "\n".join([title, *lines] if title else lines)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, right: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text: brackets in a title, heading or cell are not markup
    table = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in columns:
        number = heading in right  # numbers stay whole: it is the text beside them that wraps
        table.add_column(Text(heading), justify="right" if number else "left", overflow="fold", no_wrap=number)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=results()).print(table)


def terminal_width() -> int | None:
    """Return the width of the terminal on stdout (``COLUMNS`` wins), None where stdout is no terminal."""
    return shutil.get_terminal_size().columns if is_terminal() else None


def print_lines(lines: Sequence[str], *, head: int = 0) -> None:
    """Print lines that are laid out already to stdout; on a terminal the first `head` of them are bold."""
    if not is_terminal():
        say("\n".join(lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=results())
    for number, line in enumerate(lines):
        # The terminal may be narrower than the narrowest form: then it wraps, and nothing is cut off.
        console.print(Text(line, style="bold" if number < head else ""), soft_wrap=True)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Print names and values in two columns to stdout; a value of several lines is indented under its name."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        first, *rest = str(value).splitlines() or [""]
        say(f"{name:<{width}}  {first}".rstrip())
        for text in rest:
            say(f"{'':<{width}}  {text}")
