"""What importing a module does: found out in a process of its own, where nothing is imported yet."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasdistill.testing.registry import fail

HEAVY = ("torch", "numpy", "optuna", "transformers", "timm", "diffusers", "networkx", "pandas", "scipy", "onnxruntime")
"""Packages whose import takes long enough for a user to notice it in every command."""

SECONDS = 120.0
"""After which an import counts as hanging."""

# The answer goes to a file: what is imported may print at any time, also when the process ends.
_PROCESS = """
import importlib, json, sys
told = json.load(sys.stdin)
sys.path[:] = told["path"]
answer = getattr(importlib.import_module("nasdistill.testing.alone"), told["function"])(told["given"])
with open(told["answer"], "w", encoding="utf-8") as file:
    json.dump(answer, file)
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        heavy: those of `HEAVY` that it imported.
        reached: names and addresses that it looked up or tried to connect to.
        printed: what it printed, then or at the end of the process.
    """

    heavy: tuple[str, ...]
    reached: tuple[str, ...]
    printed: str


def import_alone(module: str, declare: str = "") -> Imported:
    """Import a module in a new process.

    Args:
        module: its name.
        declare: a function of the module that is then called with an argument parser, if there is one; whether it
            fails is not asked here.

    Raises:
        CheckFailed: it cannot be imported.
    """
    seen, printed = ask("import_light", {"module": module, "declare": declare}, f"its module {module}")
    return Imported(
        tuple(name for name in HEAVY if name in seen["modules"]),
        tuple(seen["reached"]),
        (seen["printed"] + printed).strip(),
    )


def ask(function: str, given: dict[str, Any], what: str) -> tuple[dict[str, Any], str]:
    """Return what a function of :mod:`nasdistill.testing.alone` answers in a new process, and what was printed there.

    Args:
        function: its name.
        given: its argument, as JSON.
        what: is imported, for the message.

    Raises:
        CheckFailed: there is no answer.
    """
    with tempfile.TemporaryDirectory(prefix="nasdistill-") as folder:
        answer = Path(folder, "answer.json")
        told = {"function": function, "given": given, "path": [*map(str, sys.path)], "answer": str(answer)}
        try:
            done = subprocess.run(
                [sys.executable, "-c", _PROCESS], input=json.dumps(told), capture_output=True, text=True,
                errors="replace", timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            fail(f"{what}, imported alone, has not come to an end within {SECONDS:g} s")
        if not answer.exists():
            last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
            fail(f"{what} cannot be imported alone: exit code {done.returncode}, {last[0]}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found, done.stdout
