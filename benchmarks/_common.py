"""What all benchmark scripts share: arguments, the printed table, the JSON file, mean and spread.

A script is called ``python benchmarks/NAME.py [--quick] [--seeds N] [--data DIR] [--json FILE]``. It prints one table
on standard output (progress goes to standard error) and never fails because a figure came out badly.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nasdistill.files import write_json

Columns = Sequence[tuple[str, str, str]]
"""(key of the row, heading, format spec such as ``".3f"``; empty for text)."""


def parser(description: str, *, seeds: int = 3) -> argparse.ArgumentParser:
    """Return an argument parser with the common options; a script adds its own.

    Args:
        description: one line, usually the first line of the script's docstring.
        seeds: default of ``--seeds``.
    """
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the environment there")
    found.add_argument("--data", type=Path, metavar="DIR", default=_default_data(), help="folder of real data sets")
    found.add_argument("--seeds", type=int, default=seeds, metavar="N", help=f"repetitions (default {seeds})")
    found.add_argument("--quick", action="store_true", help="a run of about a minute")
    found.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    return found


def start(args: argparse.Namespace) -> None:
    """Fix the number of threads and start the clock of `finish`."""
    import torch

    torch.set_num_threads(args.threads)
    args.started = time.perf_counter()


def data_folder(args: argparse.Namespace, name: str) -> Path:
    """Return ``DATA/name``, or end the script with a sentence that says how to give the folder."""
    folder = Path(args.data) / name
    if not folder.exists():
        raise SystemExit(f"no {name} in {args.data}; give the folder of data sets with --data or NASDISTILL_DATA")
    return folder


def say(text: str) -> None:
    """Print a line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def timed(label: str) -> Iterator[None]:
    """Say on standard error how long a block took."""
    begin = time.perf_counter()
    yield
    say(f"{label}: {time.perf_counter() - begin:.1f} s")


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def environment() -> dict[str, Any]:
    """Return what the figures depend on besides the code: machine, threads, versions."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def finish(
    args: argparse.Namespace,
    rows: Sequence[Mapping[str, Any]],
    columns: Columns,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Print the table and write the JSON file where one was asked for.

    Args:
        args: the parsed arguments.
        rows: one mapping a line; a missing or None value is printed as ``-``. The JSON gets the rows whole.
        columns: what of them the table shows.
        meta: anything else worth keeping (settings, goals, notes); strings under ``"notes"`` are printed below.
    """
    print(table(rows, columns))
    meta = dict(meta or {})
    for note in meta.get("notes", ()):
        print(note)
    if args.json is not None:
        seconds = time.perf_counter() - args.started if hasattr(args, "started") else None
        write_json(
            args.json,
            {
                "benchmark": Path(sys.argv[0]).stem,
                "quick": args.quick,
                "seeds": args.seeds,
                "seconds": seconds,
                "environment": environment(),
                "meta": meta,
                "rows": [dict(row) for row in rows],
            },
        )


def table(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    """Return rows as an aligned Markdown table: text left, numbers right."""
    cells = [[heading for _, heading, _ in columns]]
    cells += [[_cell(row.get(key), spec) for key, _, spec in columns] for row in rows]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    right = [bool(spec) for _, _, spec in columns]

    def join(line: list[str]) -> str:
        parts = [text.rjust(w) if r else text.ljust(w) for text, w, r in zip(line, widths, right, strict=True)]
        return "| " + " | ".join(parts) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([join(cells[0]), rule, *(join(line) for line in cells[1:])])


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return "-"
    return format(value, spec) if spec and not isinstance(value, str) else str(value)


def _default_data() -> Path:
    return Path(os.environ.get("NASDISTILL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
