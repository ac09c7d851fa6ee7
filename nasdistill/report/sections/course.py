"""How the run went: hypervolume, training curves, and what each rung cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.charts import Axis, Bar, Line, Series, bars, lines
from nasdistill.report.markup import count, duration, figure, is_share, paragraph
from nasdistill.report.sections.front import recommended
from nasdistill.search.pareto import hypervolume, non_dominated


def progress(run: Mapping[str, Any]) -> Section:
    """Return the hypervolume of the front as trials ended and as time went by."""
    title = "Hypervolume over the run"
    field = field_of(run)
    steps = [] if field is None else hypervolume_steps(run, field)
    if field is None or len(steps) < 2:
        return Section(title, paragraph("Fewer than two students were distilled in full: there is no course to draw."))
    name, share = (run.get("metric") or {}).get("name", "score"), is_share(run.get("metric"))
    worst, slowest = abs(field.corner[0]), field.corner[1]
    shown = f"{100 * worst:.1f} %" if share else f"{worst:.4g}"
    explained = (
        f"Hypervolume: the share of the rectangle between the corner ({shown} {name}, {slowest:.3g} ms: the worst and "
        "the slowest of teacher and finished students) and the ideal corner (0 ms, "
        f"{'100 %' if share else 'the best score'}) that the front dominates. Only students distilled in full count."
    )
    style = Series("", 0)
    by_trial = [(step["trials"], step["hypervolume"]) for step in steps]
    plots = figure(
        lines([Line(style, by_trial, stairs=True)], Axis("trials ended"), Axis("hypervolume"),
              title="Hypervolume over trials", description=f"ends at {by_trial[-1][1]:.3f}"),
        "Over trials, in the order in which they ended.",
    )  # fmt: skip
    if all(step["seconds"] is not None for step in steps):
        most = max(step["seconds"] for step in steps)
        unit, divisor = ("s", 1.0) if most < 180 else ("min", 60.0) if most < 7200 else ("h", 3600.0)
        by_time = [(step["seconds"] / divisor, step["hypervolume"]) for step in steps]
        plots += figure(
            lines([Line(style, by_time, stairs=True)], Axis(f"time since the start, {unit}"), Axis("hypervolume"),
                  title="Hypervolume over time", description=f"after {most:.0f} s {by_time[-1][1]:.3f}"),
            "Over wall-clock time; pauses of a run that was resumed are in it.",
        )  # fmt: skip
    return Section(title, paragraph(explained, "note") + f'<div class="two">{plots}</div>',
                   {"steps": steps, "corner": {"score": worst, "latency_ms": slowest}})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Field:
    """The finished students of a run as points, and the rectangle that hypervolumes are shares of.

    Attributes:
        points: trial number -> (score so that lower is better, milliseconds), of the feasible ones.
        corner: the worst score and the slowest latency of teacher and students, in the same form.
        box: area between that corner and the ideal one.
    """

    points: dict[int, tuple[float, float]]
    corner: tuple[float, float]
    box: float

    def share(self, numbers: Iterable[int]) -> float:
        """Return the share of the rectangle that the students with these numbers dominate."""
        rows = [self.points[number] for number in numbers if number in self.points]
        return hypervolume(rows, self.corner) / self.box if self.box > 0 else 0.0


def field_of(run: Mapping[str, Any]) -> Field | None:
    """Return the finished students of a run, None when there are none."""
    teacher, metric = run["teacher"], run.get("metric") or {}
    primary = next(iter(teacher["latency_ms"]), None)
    sign = -1.0 if metric.get("higher_is_better", True) else 1.0
    points = {}
    for outcome in run.get("outcomes", []):
        report = outcome.get("targets", {}).get(primary)
        feasible = all(value <= 0 for value in outcome.get("constraints", {}).values())
        if outcome.get("state") == "complete" and report and outcome.get("score") is not None and feasible:
            points[outcome["number"]] = (sign * outcome["score"], report["latency"]["value_ms"])
    if not points or primary is None:
        return None
    everyone = [*points.values()]
    if teacher.get("score") is not None:
        everyone.append((sign * teacher["score"], teacher["latency_ms"][primary]["value"]))
    corner = (max(score for score, _ in everyone), max(latency for _, latency in everyone))
    ideal = -1.0 if is_share(metric) and sign < 0 else min(score for score, _ in everyone)
    return Field(points, corner, (corner[0] - ideal) * corner[1])


def hypervolume_steps(run: Mapping[str, Any], field: Field) -> list[dict[str, Any]]:
    """Return the hypervolume after every finished student.

    Each step has ``trials`` (ended until then, whatever their outcome), ``seconds`` (None where the log does not say)
    and ``hypervolume`` (a share).
    """
    events = run.get("events", [])
    started = next((e["time"] for e in events if e.get("event") == "started" and "time" in e), None)
    # A run that was resumed may tell a trial's end a second time.
    ended: dict[int, Mapping[str, Any]] = {}
    for event in events:
        if event.get("event") == "trial" and "number" in event:
            ended.setdefault(event["number"], event)
    front: list[int] = []
    steps: list[dict[str, Any]] = []
    for position, (number, event) in enumerate(ended.items(), start=1):
        if number not in field.points:
            continue
        front.append(number)
        front = [front[i] for i in non_dominated([field.points[n] for n in front])]
        at = event.get("time")
        seconds = None if started is None or at is None else max(0.0, at - started)
        steps.append({"trials": position, "seconds": seconds, "hypervolume": field.share(front)})
    return steps


def costs(run: Mapping[str, Any]) -> Section:
    """Return the seconds that each rung took."""
    seconds = {str(name): float(value) for name, value in run["seconds"].items() if isinstance(value, int | float)}
    title = "What each rung cost"
    if not seconds:
        return Section(title, paragraph("No rung is finished."))
    per: dict[str, int] = {}
    for outcome in run.get("outcomes", []):
        for rung in outcome.get("seconds", {}):
            per[rung] = per.get(rung, 0) + 1
    total = sum(seconds.values())
    rows = [Bar(rung, value, f"{duration(value)}, {value / total:.0%}" + (f", n={per[rung]}" if per.get(rung) else ""))
            for rung, value in seconds.items()] if total > 0 else []  # fmt: skip
    order = ["pilot", "static", "proxies", "latency", *_by_epochs(run)]
    rows.sort(key=lambda row: order.index(row.name) if row.name in order else len(order))
    drawn = bars(rows, title="Seconds by rung", description=f"{duration(total)} in all")
    html = figure(drawn, f"{duration(total)} of work in all; n is the number of candidates that went through.")
    return Section(title, html, {"seconds": seconds})


def _by_epochs(run: Mapping[str, Any]) -> list[str]:
    """Return the rungs that train, the shortest first."""
    epochs: dict[str, int] = {}
    for outcome in run.get("outcomes", []):
        for rung, facts in outcome.get("rungs", {}).items():
            epochs[rung] = max(epochs.get(rung, 0), int(facts.get("epochs", 0)))
    return sorted(epochs, key=lambda rung: epochs[rung])


def curves(run: Mapping[str, Any]) -> Section | None:
    """Return the training loss of the front's students over their epochs."""
    by_number = {outcome.get("number"): outcome for outcome in run.get("outcomes", [])}
    best = recommended(run)
    drawn, rungs = [], set()
    for index, student in enumerate(run["front"]):
        history = by_number.get(int(student["id"].split("-")[0]), {}).get("history", [])
        points = [(row["epoch"] + 1, row["total"]) for row in history if isinstance(row.get("total"), int | float)]
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        rungs |= {row.get("rung") for row in history}
        if points:
            star = " ★" if best is not None and best["id"] == student["id"] else ""
            drawn.append(Line(Series(f"{student['id'].split('-')[0]} ({count(student['params'])}){star}",
                                     index % 6, index // 6 + index), points))  # fmt: skip
    if not drawn:
        return None if not run["front"] else Section("Training of the front", paragraph("No epoch is recorded."))
    shown = drawn[:12]
    html = figure(
        lines(shown, Axis("epoch", least=0), Axis("training loss"), size=(420, 310),
              title="Training loss of the front's students",
              description=f"{len(shown)} student{'s' * (len(shown) != 1)}"),
        "Total training loss after each epoch, by trial number (parameters in brackets, ★ recommended)."
        + (f" The first 12 of {len(drawn)} are drawn." if len(drawn) > 12 else ""),
    )  # fmt: skip
    if len(rungs) > 1:
        html += paragraph(
            "Each rung goes on from the weights of the one before, with a learning rate that starts anew: a step in a "
            "curve is where a rung begins. Losses of students with different losses left out are not on one scale.",
            "note",
        )
    return Section("Training of the front", html, {"students": len(drawn)})
