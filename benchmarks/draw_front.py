"""Draw the front of a finished run as an SVG: score on the test split against latency, as in the run's report.

``python benchmarks/draw_front.py runs/digits docs/front.svg`` made the picture in the README; with ``--size 366 380``
it is ``docs/front-narrow.svg``, which the documentation shows on a phone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nasdistill.files import write_text
from nasdistill.report import collect
from nasdistill.report.sections.front import front_plot
from nasdistill.store import RunDirectory


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--target", help="whose latency (default: the one that the search minimised)")
    parser.add_argument("--size", type=int, nargs=2, default=(760, 420), metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args()
    run = collect(RunDirectory.open(args.run))
    target = args.target or next(iter(run["teacher"]["latency_ms"]))
    heading = f"{run['name']}: students of {run['teacher']['name']}"
    drawn = front_plot(run, target, "test", size=tuple(args.size), standalone=True, heading=heading)
    write_text(args.svg, drawn + "\n")


if __name__ == "__main__":
    main()
