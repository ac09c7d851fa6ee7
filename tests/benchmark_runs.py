"""Runs a benchmark script in the tests' own process, where torch and the libraries are loaded already."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_benchmark(name: str, folder: Path, *words: object) -> tuple[dict[str, Any], str]:
    """Run ``benchmarks/NAME.py --quick`` and return what it wrote as JSON and what it printed.

    The script is the main module of the call, with the arguments and the path that it would have; what it changes in
    the process (environment, path, modules, threads) is put back.
    """
    out, printed = folder / f"{name}.json", io.StringIO()
    command = [str(BENCHMARKS / f"{name}.py"), "--quick", "--json", str(out), *map(str, words)]
    modules, threads = set(sys.modules), torch.get_num_threads()
    with (
        mock.patch.object(sys, "argv", command),
        mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(printed),
    ):
        try:
            runpy.run_path(command[0], run_name="__main__")
        finally:
            torch.set_num_threads(threads)
            for module in set(sys.modules) - modules:
                if str(getattr(sys.modules[module], "__file__", "")).startswith(str(BENCHMARKS)):
                    del sys.modules[module]
    return json.loads(out.read_text(encoding="utf-8")), printed.getvalue()
