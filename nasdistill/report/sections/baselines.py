"""What a simple approach gives: the teacher cut short, and architectures drawn at random."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.markup import Cell, count, listed, milliseconds, paragraph, score, short, table
from nasdistill.report.sections.course import field_of
from nasdistill.report.sections.front import beating_baselines
from nasdistill.report.sections.importance import common_rung

ORIGINS = {
    "spread": "drawn at random (first round)",
    "neighbour": "next to the best so far",
    "sampler": "proposed by the sampler",
    "given": "given by the strategy",
}


def baselines(run: Mapping[str, Any]) -> Section:
    """Return both baselines, or what the run has not measured."""
    html: list[str] = []
    missing = []
    if run.get("baselines"):
        html.append(_truncated(run))
    else:
        missing.append(
            "Truncated teacher: not measured in this run (it is at the end of a run, for teachers made of blocks that "
            "can be left out)."
        )
    table_, data = _random(run)
    if table_:
        html.append(table_)
    else:
        missing.append("Random architectures: the run has no distilled ones that are marked as drawn at random.")
    if missing:
        html.append(listed(missing))
    return Section("Against simple baselines", "".join(html), data)


def _truncated(run: Mapping[str, Any]) -> str:
    metric = run.get("metric")
    primary = next(iter(run["teacher"]["latency_ms"]), None)
    rows: list[list[Cell | str]] = []
    for item in run["baselines"]:
        report = item.get("targets", {}).get(primary)
        latency = None if report is None else report["latency"]["value_ms"]
        epochs = item.get("epochs") or 0
        problem = item.get("problem")
        rows.append([
            item["name"], f"{epochs} epoch{'s' * (epochs != 1)}" if epochs else str(problem or "none"),
            Cell(score(item.get("score"), metric), item.get("score")),
            Cell(score(item.get("test_score"), metric), item.get("test_score")),
            "–" if latency is None else Cell(milliseconds(latency), latency),
            Cell(count(item.get("params")), item.get("params")),
        ])  # fmt: skip
    name = (metric or {}).get("name", "score")
    columns = ["network", "distillation", f"validation {name}", f"test {name}", f"{short(primary)}, ms", "parameters"]
    beaten = {s["id"]: names for s in run["front"] if (names := beating_baselines(run, s))}
    words = [
        f"{student} is no better than {', '.join(names)}: not faster, and no higher score on validation."
        for student, names in beaten.items()
    ] or ["No baseline is at least as good as a student of the front in both validation score and latency."]
    return (
        table(columns, rows, caption="The teacher with only its first blocks", words=(0, 1))
        + listed(words)
        + paragraph(
            "The first blocks and the head of the teacher, its weights as they are, and the same network distilled as "
            "long and in the same way as the front. A search is worth it where the front is above and to the left.",
            "note",
        )
    )


def _random(run: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return how students of each origin did after one and the same rung, and what the front owes to them."""
    rung, metric = common_rung(run), run.get("metric")
    sign = 1.0 if (metric or {}).get("higher_is_better", True) else -1.0
    by_origin: dict[str, list[float]] = {}
    for outcome in run.get("outcomes", []):
        if rung in outcome.get("results", {}) and outcome.get("origin") in ORIGINS:
            by_origin.setdefault(outcome["origin"], []).append(sign * outcome["results"][rung]["score"])
    if "spread" not in by_origin:
        return "", {}
    rows: list[list[Cell | str]] = []
    for origin, words in ORIGINS.items():
        scores = [sign * value for value in sorted(by_origin.get(origin, []))]
        if scores:
            middle = statistics.median(scores)
            rows.append([words, Cell(str(len(scores)), len(scores)), Cell(score(middle, metric), middle),
                         Cell(score(scores[-1], metric), scores[-1])])  # fmt: skip
    part = ""
    data: dict[str, Any] = {"rung": rung, "n": {origin: len(v) for origin, v in by_origin.items()}}
    field = field_of(run)
    everyone = 0.0 if field is None else field.share(field.points)
    if field is not None and everyone > 0:
        spread = [o["number"] for o in run["outcomes"] if o.get("origin") == "spread"]
        data["random_share"] = field.share(spread) / everyone
        part = (
            f"The students of the random round that were distilled in full reach {data['random_share']:.0%} of the "
            "final hypervolume by themselves. They are the better part of what was drawn: the rest was pruned."
        )
    html = table(["how they were proposed", "n", "median", "best"], rows,
                 caption=f"Scores on validation after rung “{rung}”, by how a student was proposed")  # fmt: skip
    return html + (paragraph(part, "note") if part else ""), data
