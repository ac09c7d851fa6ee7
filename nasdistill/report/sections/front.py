"""What came out: the recommended student in a sentence, and the front as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.charts import Axis, Point, Series, scatter
from nasdistill.report.markup import (
    count,
    figure,
    is_share,
    metric_title,
    milliseconds,
    paragraph,
    score,
    short,
)
from nasdistill.search.pareto import non_dominated

TOLERANCE = 0.01
"""The recommended student may score this much less than the best network, as a share of that score."""


def recommended(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fastest student of the front whose validation score is within 1 % of the best one's and the teacher's.

    Where none is, the student with the best score. The test score takes no part.
    """
    higher = (run.get("metric") or {}).get("higher_is_better", True)
    students = [s for s in run["front"] if s.get("score") is not None]
    if not students:
        return None
    known = [s["score"] for s in students]
    if run["teacher"].get("score") is not None:
        known.append(run["teacher"]["score"])
    best = max(known) if higher else min(known)
    slack = TOLERANCE * abs(best)
    near = [s for s in students if (s["score"] >= best - slack if higher else s["score"] <= best + slack)]
    if near:
        return dict(near[0])  # the front comes fastest first
    return dict(max(students, key=lambda s: s["score"] if higher else -s["score"]))


def headline(run: Mapping[str, Any]) -> Section:
    """Return the sentence that sums the run up, and its counts."""
    trials, metric, teacher = run["trials"], run.get("metric"), run["teacher"]
    warning = (run.get("teacher_record") or {}).get("warning")
    warned = paragraph(f"Warning: {warning}") if warning else ""
    proposed = sum(trials[key] for key in ("complete", "pruned", "failed", "running"))
    counts = (
        f"{proposed} architecture{'s' * (proposed != 1)} proposed: {trials['complete']} distilled in full, "
        f"{trials['pruned']} pruned, {trials['failed']} failed"
        + (f", {trials['running']} still on their way" if trials["running"] else "")
        + "."
    )
    best = recommended(run)
    if best is None:
        words = "No student is finished"
        words += " yet." if run["state"] == "running" else "."
        return Section("In one sentence", paragraph(words, "lead") + warned + paragraph(counts), {"recommended": None})
    name = (metric or {}).get("name", "score")
    split = "test" if best.get("test_score") is not None and teacher.get("test_score") is not None else "validation"
    key = "test_score" if split == "test" else "score"
    parts = [f"Student {best['id']} reaches {score(best[key], metric)} {split} {name}"]
    if teacher.get(key) is not None:
        parts.append(f" (teacher {teacher.get('name')}: {score(teacher[key], metric)})")
    target = next(iter(teacher["latency_ms"]), None)
    if target in best["latency_ms"]:
        mine, theirs = best["latency_ms"][target]["value"], teacher["latency_ms"][target]["value"]
        ratio = (best["latency_ratio"].get(target) or {"value": mine / theirs})["value"]
        speed = f"{1 / ratio:.3g} times as fast" if ratio < 1 else f"at {ratio:.3g} times the teacher's latency"
        parts.append(
            f" and is {speed}: {milliseconds(mine)} ms instead of {milliseconds(theirs)} ms on {short(target)}"
            if ratio < 1
            else f" {speed}: {milliseconds(mine)} ms instead of {milliseconds(theirs)} ms on {short(target)}"
        )
    if best.get("params") and teacher.get("params"):
        parts.append(f", with {count(best['params'])} parameters instead of {count(teacher['params'])}")
    words = "".join(parts) + "."
    beaten = beating_baselines(run, best)
    rule = (
        "Recommended: the fastest student of the front whose validation score is within 1 % of the best score, the "
        "teacher's included; where there is none, the one with the best score. Test scores take no part in the choice."
    )
    html = paragraph(words, "lead") + warned
    if beaten:
        html += paragraph(
            f"A simple baseline is no worse: {', '.join(beaten)} is at least as fast and scores at least as well on "
            "validation."
        )
    html += paragraph(counts) + paragraph(rule, "note")
    return Section("In one sentence", html, {"recommended": best["id"], "sentence": words})


def beating_baselines(run: Mapping[str, Any], student: Mapping[str, Any]) -> list[str]:
    """Return the baselines at least as good as a student in validation score and in latency on the first target."""
    target = next(iter(run["teacher"]["latency_ms"]), "")
    latency, sign = student["latency_ms"].get(target), _sign(run)
    found = []
    for item in run.get("baselines", []):
        report = item.get("targets", {}).get(target)
        if latency is None or report is None or item.get("score") is None or student.get("score") is None:
            continue
        if sign * item["score"] >= sign * student["score"] and report["latency"]["value_ms"] <= latency["value"]:
            found.append(str(item["name"]))
    return found


def _sign(run: Mapping[str, Any]) -> float:
    return 1.0 if (run.get("metric") or {}).get("higher_is_better", True) else -1.0


# ---- plots ----------------------------------------------------------------------------------------------------------


def front(run: Mapping[str, Any]) -> Section:
    """Return a plot per target on the test split, and one of everything that was chosen from on validation."""
    targets = list(run["teacher"]["latency_ms"])
    if not targets:
        return Section("The Pareto front", paragraph("The teacher's latency is not measured yet."), {})
    html = []
    tested = any(s.get("test_score") is not None for s in run["front"])
    for target in targets:
        if tested:
            html.append(_figure(run, target, "test"))
        if not tested or target == targets[0]:
            html.append(_figure(run, target, "validation"))
    explained = (
        "Up and to the left is better. Bars are 95 % intervals of the latency. Filled points are the front: no other "
        "student is both faster and better on validation. Outlines are the other students that were distilled in full. "
    )
    if not tested:
        explained += (
            "There are no test scores: the test split has no labels."
            if run["state"] == "finished"
            else "Test scores are not known yet: the run looks at the test split once, at its end."
        )
    return Section("The Pareto front", paragraph(explained, "note") + "".join(html), {"targets": targets})


def _figure(run: Mapping[str, Any], target: str, split: str) -> str:
    points, series, steps = front_points(run, target, split)
    if not points:
        return paragraph(f"No {split} score is known with a latency on {short(target)}.")
    title = f"{split.capitalize()} score against latency on {short(target)}"
    drawn = [
        front_plot(run, target, split, size=size_, points=points, series=series, steps=steps)
        for size_ in ((880, 440), (366, 380))
    ]
    many = sum(not p.strong for p in points)
    caption = f"{title}." + (f" {many} student{'s' * (many != 1)} not on the front in outline." if many else "")
    return figure(drawn[0], caption, narrow=drawn[1], wide=True)


def front_plot(
    run: Mapping[str, Any], target: str, split: str, *, size: tuple[int, int] = (880, 440), standalone: bool = False,
    points: Sequence[Point] | None = None, series: Sequence[Series] | None = None,
    steps: Sequence[tuple[float, float]] = (), heading: str = "",
) -> str:  # fmt: skip
    """Return the plot of a run's front on one target, for the report or as a drawing of its own."""
    if points is None or series is None:
        points, series, steps = front_points(run, target, split)
    title = f"{split} score against latency on {short(target)}"
    described = f"{sum(p.strong for p in points)} named points; the table of students has their figures"
    return score_plot(
        points, series, steps, Axis(f"latency on {short(target)}, ms"), run.get("metric"), split, title=title,
        description=described, size=size, standalone=standalone, heading=heading,
    )  # fmt: skip


def score_plot(
    points: Sequence[Point], series: Sequence[Series], steps: Sequence[tuple[float, float]], x: Axis,
    metric: Mapping[str, Any] | None, split: str, **keywords: Any,
) -> str:  # fmt: skip
    """Return a scatter plot of scores (in percent where they are shares); keywords as :func:`scatter`."""
    y = _score_axis(metric, split, points)
    if y.flipped:  # room for what makes no error at all: half of the smallest error there is
        floor = min((100 - p.y for p in points if p.y < 100), default=1.0) / 2
        points = [replace(point, y=max(100 - point.y, floor)) for point in points]
        steps = [(at, max(100 - value, floor)) for at, value in steps]
    return scatter(points, series, x, y, steps=steps, **keywords)


def _score_axis(metric: Mapping[str, Any] | None, split: str, points: Sequence[Point]) -> Axis:
    """Return the axis of scores: by the logarithm of the error where the best err far less often than the worst."""
    title = metric_title(metric, split)
    if not is_share(metric):
        return Axis(title)
    errors = [100 - point.y for point in points]
    positive = [error for error in errors if error > 0]
    higher = (metric or {}).get("higher_is_better", True)
    if higher and min(errors) >= 0 and positive and max(errors) / min(positive) > 6:
        return Axis(title, log=True, flipped=True)
    return Axis(title, log=False, least=-0.5, most=100.5)


def front_points(
    run: Mapping[str, Any], target: str, split: str
) -> tuple[list[Point], list[Series], list[tuple[float, float]]]:
    """Return the points of a plot, their series and the corners of the front.

    Args:
        run: the report's data.
        target: whose latencies.
        split: ``test`` (teacher, front and baselines only) or ``validation`` (all that were distilled in full).
    """
    key = "test_score" if split == "test" else "score"
    factor = 100.0 if is_share(run.get("metric")) else 1.0
    spaces = list(dict.fromkeys(s["architecture"]["space"] for s in run["front"]))
    spaces += [
        name
        for name in dict.fromkeys(o["architecture"]["space"] for o in run.get("outcomes", []) if o.get("architecture"))
        if name not in spaces
    ]
    series = [Series(short(name), i, i % 3) for i, name in enumerate(spaces)]
    points: list[Point] = []
    on_front = set()
    corners = []
    for student in run["front"]:
        latency = student["latency_ms"].get(target)
        on_front.add(student["id"])
        if latency is None or student.get(key) is None:
            continue
        y = factor * student[key]
        place = spaces.index(student["architecture"]["space"])
        points.append(_point(student["id"], short(spaces[place]), latency, y, place, student, run, split))
        corners.append((latency["value"], y))
    corners = [corners[i] for i in non_dominated([(x, -_sign(run) * y) for x, y in corners])]
    if split == "validation":
        points += _others(run, target, factor, spaces, on_front)
    series.append(Series("truncated teacher, trained", 3, 5))
    series.append(Series("truncated teacher, untrained", 3, 5, hollow=True))
    for item in run.get("baselines", []):
        report = item.get("targets", {}).get(target)
        if report is not None and item.get(key) is not None:
            where = len(spaces) + (0 if item.get("epochs") else 1)
            latency = _brief(report)
            points.append(_point(item["name"], "baseline", latency, factor * item[key], where, item, run, split))
    teacher = run["teacher"]
    series.append(Series("teacher", -1, 3))
    if teacher["latency_ms"].get(target) and teacher.get(key) is not None:
        latency = teacher["latency_ms"][target]
        points.append(
            _point("teacher", str(teacher.get("name")), latency, factor * teacher[key], len(series) - 1, teacher, run,
                   split)
        )  # fmt: skip
    return points, series, corners


def _point(
    name: str, kind: str, latency: Mapping[str, float], y: float, series: int, item: Mapping[str, Any],
    run: Mapping[str, Any], split: str,
) -> Point:  # fmt: skip
    shown = "teacher" if name == "teacher" else count(item.get("params"))
    value = score(y / (100.0 if is_share(run.get("metric")) else 1.0), run.get("metric"))
    tip = (
        f"{name} ({kind}): {split} {(run.get('metric') or {}).get('name', 'score')} {value}, "
        f"{milliseconds(latency['value'])} ms [{milliseconds(latency['low'])}, {milliseconds(latency['high'])}], "
        f"{count(item.get('params'))} parameters"
    )
    return Point(latency["value"], y, series, latency["low"], latency["high"], shown, tip)


def _others(
    run: Mapping[str, Any], target: str, factor: float, spaces: Sequence[str], on_front: set[str]
) -> list[Point]:
    """Return the students that were distilled in full and are not on the front."""
    found = []
    for outcome in run.get("outcomes", []):
        arch, report = outcome.get("architecture"), outcome.get("targets", {}).get(target)
        if outcome.get("state") != "complete" or not arch or not report or outcome.get("score") is None:
            continue
        number = f"{outcome['number']:04d}"
        if any(name.startswith(number) for name in on_front):
            continue
        latency = _brief(report)
        value = score(outcome["score"], run.get("metric"))
        origin = " (random start)" if outcome.get("origin") == "spread" else ""
        tip = f"trial {outcome['number']}{origin}: {value}, {milliseconds(latency['value'])} ms"
        place = spaces.index(arch["space"])
        found.append(Point(latency["value"], factor * outcome["score"], place, tip=tip, strong=False))
    return found


def _brief(report: Mapping[str, Any]) -> dict[str, float]:
    latency = report["latency"]
    return {"value": latency["value_ms"], "low": latency["low_ms"], "high": latency["high_ms"]}
