"""From `nasdistill plugins new` to a green `nasdistill plugins check`: the time for each kind, as a user has it.

Four commands, each in a process of its own, in a clean virtual environment with the wheel of the checkout: write the
package, install it (its build included; pip's own start is most of that), run the checks, and run its tests with
pytest, the same checks once more. Dependencies are lent from the interpreter that runs this script, so nothing is
downloaded. The median of `--seeds` repetitions.

A row is green when all four commands return 0; the person's time between the first and the third is not in it.
"""

from __future__ import annotations

import json
import os
import site
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from _common import finish, parser, say, start, timed

from nasdistill.spec.component import Kind

ROOT = Path(__file__).resolve().parents[1]
PIP = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation")


class Environment:
    """A clean environment with the wheel, and a folder outside the checkout."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder / "outside"
        self.folder.mkdir()
        venv.create(folder / "environment", symlinks=True)
        self.python = folder / "environment" / "bin" / "python"
        (packages,) = (folder / "environment").glob("lib/*/site-packages")
        (packages / "zz_lent.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        own = {name: value for name, value in os.environ.items() if not name.startswith("NASDISTILL_")}
        own.pop("PYTHONPATH", None)
        self.variables = own | {
            "OMP_NUM_THREADS": str(threads), "NASDISTILL_CACHE": str(folder / "cache"),
            "NASDISTILL_CONFIG_HOME": str(folder / "config"),
        }  # fmt: skip
        self.pip("install", *PIP, "--ignore-installed", str(ROOT))

    def timed(self, *words: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        """Run a command and return its seconds."""
        begin = time.perf_counter()
        done = subprocess.run(
            words, cwd=self.folder, env=self.variables, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
        return time.perf_counter() - begin, done

    def pip(self, *words: str) -> tuple[float, subprocess.CompletedProcess[str]]:
        """Run pip on the environment."""
        return self.timed(sys.executable, "-m", "pip", "--python", str(self.python), *words)

    def journey(self, kind: Kind, number: int) -> dict[str, Any]:
        """Return the times of one journey; the package is gone afterwards."""
        name, python = f"my_{kind.value}{number}", str(self.python)
        nasdistill = (python, "-m", "nasdistill")
        folder = self.folder / f"nasdistill-{name}".replace("_", "-")
        new, made = self.timed(*nasdistill, "plugins", "new", name, "--kind", kind.value)
        install, installed = self.pip("install", *PIP, str(folder))
        check, checked = self.timed(*nasdistill, "plugins", "check", name, "--json")
        tests, tested = self.timed(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder))
        self.pip("uninstall", "--quiet", "--yes", folder.name)
        done = (made, installed, checked, tested)
        for process in done:
            if process.returncode:
                say(f"{process.args}\n{process.stdout[-2000:]}\n{process.stderr[-2000:]}")
        green = all(process.returncode == 0 for process in done)
        results = json.loads(checked.stdout.splitlines()[-1])["results"] if checked.returncode in (0, 1) else []
        return {
            "new": new, "install": install, "check": check, "tests": tests, "total": new + install + check,
            "checks": sum(item["status"] == "passed" for item in results),
            "suite": sum(item["seconds"] for item in results), "green": green,
        }  # fmt: skip


def main() -> None:
    """Measure every kind."""
    args = parser(__doc__.splitlines()[0]).parse_args()
    start(args)
    kinds = [Kind.PROXY, Kind.LOSS] if args.quick else list(Kind)
    rows = []
    with tempfile.TemporaryDirectory(prefix="journey-") as text:
        with timed("clean environment with the wheel"):
            environment = Environment(Path(text), args.threads)
        for kind in kinds:
            found = [environment.journey(kind, number) for number in range(args.seeds)]
            keys = ("new", "install", "check", "tests", "total", "suite")
            row: dict[str, Any] = {key: statistics.median(item[key] for item in found) for key in keys}
            row |= {"kind": kind.value.replace("_", " "), "checks": found[0]["checks"]}
            row["green"] = "yes" if all(item["green"] for item in found) else "no"
            rows.append(row)
            say(f"{row['kind']}: {row['total']:.1f} s, green: {row['green']}")
    finish(
        args,
        rows,
        [
            ("kind", "kind", ""), ("new", "new, s", ".1f"), ("install", "install, s", ".1f"),
            ("check", "check, s", ".1f"), ("total", "together, s", ".1f"), ("suite", "of it checks, s", ".1f"),
            ("checks", "checks passed", "d"), ("tests", "pytest, s", ".1f"), ("green", "green", ""),
        ],
        {"goal": "ten minutes for a person, of which the commands take a few seconds"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
