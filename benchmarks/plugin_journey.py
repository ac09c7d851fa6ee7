"""From `nasdistill plugins new` to a green `nasdistill plugins check`: the time for each kind, as a user has it.

Four commands, each in a process of its own, in a clean virtual environment with the wheel of the checkout: write the
package, install it (its build included; pip's own start is most of that), run the checks, and run its tests with
pytest, the same checks once more. Dependencies are lent from the interpreter that runs this script, so nothing is
downloaded. The median of `--seeds` repetitions.

A row is green when all commands return 0; the person's time between the first and the third is not in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import finish, parser, say, start, timed

from nasdistill.spec.component import Kind

if TYPE_CHECKING:
    from clean_environment import CleanEnvironment

ROOT = Path(__file__).resolve().parents[1]


def clean(folder: Path, threads: int) -> CleanEnvironment:
    """Return a clean environment with the wheel of the checkout, made as the tests make theirs."""
    sys.path.append(str(ROOT / "tests"))
    from clean_environment import CleanEnvironment

    made = CleanEnvironment(folder)
    made.environment["OMP_NUM_THREADS"] = str(threads)
    del made.environment["PIP_NO_COMPILE"]  # a user waits for that, too
    made.install(ROOT)
    return made


def timed_run(environment: CleanEnvironment, *words: object) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Run the environment's interpreter and return the seconds with what came of it."""
    begin = time.perf_counter()
    done = environment.run(*words, ok=False)
    return time.perf_counter() - begin, done


def journey(environment: CleanEnvironment, kind: Kind, number: int) -> dict[str, Any]:
    """Return the times of one journey; the package is gone afterwards."""
    name = f"my_{kind.value}{number}"
    folder = environment.folder / f"nasdistill-{name}".replace("_", "-")
    new, made = timed_run(environment, "-m", "nasdistill", "plugins", "new", name, "--kind", kind.value)
    begin = time.perf_counter()
    environment.install(folder)
    install = time.perf_counter() - begin
    check, checked = timed_run(environment, "-m", "nasdistill", "plugins", "check", name, "--json")
    tests, tested = timed_run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder))
    environment.uninstall(folder.name)
    done = (made, checked, tested)
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
            environment = clean(Path(text), args.threads)
        for kind in kinds:
            found = [journey(environment, kind, number) for number in range(args.seeds)]
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
