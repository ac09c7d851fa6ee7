"""Draw the front of a finished run as an SVG: score on the test split against latency relative to the teacher.

``python benchmarks/draw_front.py runs/digits docs/front.svg`` made the picture in the README.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 40, 60
COLOURS = {"resnet_s0": "#1f6feb", "conv_vit": "#d9730d", "teacher": "#57606a"}


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("svg", type=Path)
    args = parser.parse_args()
    result = json.loads((args.run / "result.json").read_text())
    target = next(iter(result["teacher"]["latency_ms"]))
    points = [
        {
            "x": student["latency_ratio"][target]["value"],
            "low": student["latency_ratio"][target]["low"],
            "high": student["latency_ratio"][target]["high"],
            "y": 100 * student["test_score"],
            "kind": student["architecture"]["space"].split(":")[-1],
            "label": f"{student['params'] / 1e3:.0f}k",
        }
        for student in result["front"]
    ]
    teacher = {"x": 1.0, "low": 1.0, "high": 1.0, "y": 100 * result["teacher"]["test_score"], "kind": "teacher"}
    teacher["label"] = f"teacher, {result['teacher']['params'] / 1e3:.0f}k"
    everything = [*points, teacher]
    floor = math.floor(min(p["y"] for p in everything) - 0.5)
    least = math.log10(min(p["low"] for p in everything)) - 0.1

    def px(x: float) -> float:
        return LEFT + (math.log10(x) - least) / (0.15 - least) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - floor) / (100 - floor) * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" fill="#24292f">Test accuracy (%) against latency relative to the teacher '
        f"({target.split(':')[-1]}, one thread, batch 1)</text>",
    ]
    for y in range(floor, 101):
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}" stroke="#d0d7de"/>')
        lines.append(f'<text x="{LEFT - 10}" y="{py(y) + 4:.1f}" text-anchor="end" fill="#57606a">{y}</text>')
    lines += [
        f'<line x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eaeef2"/>'
        f'<text x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" fill="#57606a">{x:g}</text>'
        for x in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
        if math.log10(x) >= least
    ]
    for p in everything:
        colour = COLOURS.get(p["kind"], "#8250df")
        lines.append(
            f'<line x1="{px(p["low"]):.1f}" x2="{px(p["high"]):.1f}" y1="{py(p["y"]):.1f}" y2="{py(p["y"]):.1f}" '
            f'stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{px(p["x"]):.1f}" cy="{py(p["y"]):.1f}" r="5" fill="{colour}"/>'
        )
        anchor = "end" if p["kind"] == "teacher" else "start"
        shift = -9 if p["kind"] == "teacher" else 9
        lines.append(
            f'<text x="{px(p["x"]) + shift:.1f}" y="{py(p["y"]) + 16:.1f}" text-anchor="{anchor}" fill="#24292f">'
            f"{p['label']}</text>"
        )
    for i, kind in enumerate(dict.fromkeys(p["kind"] for p in everything)):
        x = LEFT + 140 * i
        lines.append(
            f'<circle cx="{x}" cy="{HEIGHT - 16}" r="5" fill="{COLOURS.get(kind, "#8250df")}"/>'
            f'<text x="{x + 10}" y="{HEIGHT - 12}" fill="#24292f">{kind}</text>'
        )
    args.svg.write_text("\n".join([*lines, "</svg>"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
