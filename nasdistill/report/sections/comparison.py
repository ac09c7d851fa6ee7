"""How a comparison of runs and students is shown: as a table of text, and as a section of a page."""

from __future__ import annotations

from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.charts import Axis, Point, Series
from nasdistill.report.markup import Cell, count, figure, is_share, listed, milliseconds, paragraph, score, short, table
from nasdistill.report.sections.front import score_plot

TEACHER = "teacher"


def comparison_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of a comparison as text."""
    metric = result["metric"]
    columns = ["network", "kind", f"test {metric['name']}", "ms", "interval", "x teacher", "params", "MACs", "front"]
    rows = []
    for row in result["networks"]:
        latency, ratio = row["latency_ms"], row["ratio"]
        rows.append([
            row["name"], row["kind"], score(row["test_score"], metric),
            "–" if latency is None else milliseconds(latency["value"]),
            "–" if latency is None else f"[{milliseconds(latency['low'])}, {milliseconds(latency['high'])}]",
            "–" if ratio is None else f"{ratio['value']:.3g}", count(row["params"]), count(row["macs"]),
            "yes" if row["front"] else "",
        ])  # fmt: skip
    return columns, rows


def comparison_section(result: dict[str, Any]) -> Section:
    """Return a comparison as a section of a report."""
    metric, protocol = result["metric"], result["protocol"]
    groups = list(dict.fromkeys(row["group"] for row in result["networks"] if row["group"]))
    series = [Series(group, i, i) for i, group in enumerate(groups)] + [Series(TEACHER, -1, 3)]
    factor = 100.0 if is_share(metric) else 1.0
    points, corners = [], []
    for row in result["networks"]:
        latency = row["latency_ms"]
        if latency is None or row["test_score"] is None:
            continue
        y = factor * row["test_score"]
        tip = (
            f"{row['name']}: {score(row['test_score'], metric)}, {milliseconds(latency['value'])} ms "
            f"[{milliseconds(latency['low'])}, {milliseconds(latency['high'])}], {count(row['params'])} parameters"
        )
        place = groups.index(row["group"]) if row["group"] else len(groups)
        name = TEACHER if not row["group"] else count(row["params"])
        points.append(Point(latency["value"], y, place, latency["low"], latency["high"], name, tip))
        if row["front"]:
            corners.append((latency["value"], y))
    html = paragraph(
        f"Every network was loaded and evaluated anew on {protocol['samples']} test samples, and timed in the same "
        f"rounds on {short(protocol['target'])}. The dashed line joins the students that no other beats in both.",
        "note",
    )
    if points:
        x = Axis(f"latency on {short(protocol['target'])}, ms")
        wide, narrow = (
            score_plot(points, series, corners, x, metric, "test", title="Test score against latency", size=size)
            for size in ((880, 440), (366, 380))
        )
        html += figure(wide, "Test score against latency, by run.", narrow=narrow, wide=True)
    columns, rows = comparison_table(result)
    cells: list[list[Cell | str]] = []
    for shown, row in zip(rows, result["networks"], strict=True):
        values = [None, None, row["test_score"], (row["latency_ms"] or {}).get("value"), None,
                  (row["ratio"] or {}).get("value"), row["params"], row["macs"], None]  # fmt: skip
        cells.append([Cell(text, value) for text, value in zip(shown, values, strict=True)])
    html += table(columns, cells, caption="All networks under one protocol", words=(0, 1))
    if result["hypervolume"]:
        rows_ = [[name, Cell(f"{value:.4f}", value)] for name, value in result["hypervolume"].items()]
        html += table(["run or student", "hypervolume"], rows_, caption="Share of the common rectangle that each front "
                      "dominates (corner: worst score and slowest latency of all)")  # fmt: skip
    problems = [f"{row['name']}: {row['problem']}" for row in result["networks"] if row["problem"]]
    if problems or result["notes"]:
        html += listed([*result["notes"], *problems])
    return Section("Comparison", html, result)
