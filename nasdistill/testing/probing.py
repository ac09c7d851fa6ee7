"""What importing a module brings in: found out in a process of its own, where nothing is imported yet."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from nasdistill.testing.registry import fail

HEAVY = ("torch", "numpy", "optuna", "transformers", "timm", "diffusers", "networkx", "pandas", "scipy", "onnxruntime")
"""Packages whose import takes long enough for a user to notice it in every command."""

# What the import brings in, prints, and whether it reaches for the network.
_PROBE = """
import importlib, json, socket, sys

opened = []

def refuse(self, address, *rest):
    opened.append(str(address))
    raise OSError("no network while plugins are listed")

socket.socket.connect = refuse
importlib.import_module("nasdistill")
from nasdistill import hookimpl
before = set(sys.modules)
real, sys.stdout = sys.stdout, sys.stderr
class Tee:
    text = ""
    def write(self, text):
        Tee.text += text
    def flush(self):
        pass
sys.stdout = Tee()
sys.path[:0] = json.loads(sys.argv[2])
module = importlib.import_module(sys.argv[1])
if sys.argv[3:] and hasattr(module, sys.argv[3]):
    import argparse
    try:
        getattr(module, sys.argv[3])(argparse.ArgumentParser())
    except Exception:
        pass
sys.stdout = real
print(json.dumps({"modules": sorted(set(sys.modules) - before), "opened": opened, "printed": Tee.text}))
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did.

    Attributes:
        heavy: those of `HEAVY` that it imported.
        opened: addresses that it tried to connect to.
        printed: what it printed.
    """

    heavy: tuple[str, ...]
    opened: tuple[str, ...]
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
    words = [module, json.dumps([entry for entry in sys.path if entry]), *([declare] if declare else [])]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        fail(f"its module {module} cannot be imported alone: {done.stderr.strip().splitlines()[-1:]}")
    seen = json.loads(done.stdout)
    return Imported(
        tuple(name for name in HEAVY if name in seen["modules"]), tuple(seen["opened"]), seen["printed"].strip()
    )
