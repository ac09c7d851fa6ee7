"""Teacher and front as a table: scores, latencies with intervals, and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.markup import Cell, count, milliseconds, paragraph, score, short, size, table
from nasdistill.report.sections.front import recommended

BYTES = 4
"""Of a parameter in single precision."""


def students(run: Mapping[str, Any]) -> Section:
    """Return teacher and front as a table."""
    metric, targets = run.get("metric"), list(run["teacher"]["latency_ms"])
    name = (metric or {}).get("name", "score")
    columns = ["network", "space", f"validation {name}", f"test {name}"]
    columns += [f"{short(target)}, ms" for target in targets]
    columns += ["parameters, memory", "MACs", "on disk, exported"]
    best = recommended(run)
    rows = [_row({**run["teacher"], "id": "teacher"}, run, targets)]
    rows += [_row(student, run, targets) for student in run["front"]]
    strong = [i + 1 for i, s in enumerate(run["front"]) if best is not None and s["id"] == best["id"]]
    caption = "The teacher and the students of the front, fastest first; the recommended one stands out"
    html = table(columns, rows, caption=caption, strong=strong, words=(0, 1))
    html += paragraph(
        "Latency: median with its 95 % interval, on the exported network, timed in the same rounds as the teacher; the "
        "ratio is the paired one of those rounds. Memory: the parameters in single precision. On disk: the saved "
        "weights, and the file that the first target loads.",
        "note",
    )
    if not run["front"]:
        html += paragraph("No student of the front is finished.")
    return Section("Students", html, {"rows": len(rows)})


def _row(item: Mapping[str, Any], run: Mapping[str, Any], targets: Sequence[str]) -> list[Cell | str]:
    metric, identifier = run.get("metric"), item["id"]
    is_teacher = identifier == "teacher"
    kind = str(item.get("name") or "") if is_teacher else short(item["architecture"]["space"])
    link = f"arch-{identifier}" if not is_teacher and identifier in run.get("graphs", {}) else ""
    cells: list[Cell | str] = [Cell(identifier, link=link), kind]
    cells += [Cell(score(item.get(key), metric), item.get(key)) for key in ("score", "test_score")]
    for target in targets:
        latency = item["latency_ms"].get(target)
        if latency is None:
            cells.append("–")
            continue
        interval = f"[{milliseconds(latency['low'])}, {milliseconds(latency['high'])}]"
        ratio = None if is_teacher else item.get("latency_ratio", {}).get(target)
        note = interval if ratio is None else f"{interval}\n{ratio['value']:.3g} × teacher"
        cells.append(Cell(milliseconds(latency["value"]), latency["value"], note))
    params, macs = item.get("params"), item.get("macs")
    memory = "" if params is None else size(BYTES * params)
    cells += [Cell(count(params), params, memory), Cell(count(macs), macs)]
    weights, file = _disk(item, run, targets)
    cells.append(Cell(size(weights), weights, "" if file is None else size(file)))
    return cells


def _disk(item: Mapping[str, Any], run: Mapping[str, Any], targets: Sequence[str]) -> tuple[int | None, int | None]:
    """Return the bytes of a network's saved weights and of what the first target loads."""
    if item["id"] == "teacher":
        reports = run.get("teacher_record", {}).get("targets", {})
        return None, reports.get(targets[0], {}).get("artefact_bytes") if targets else None
    number = int(item["id"].split("-")[0])
    outcome: dict[str, Any] = next((o for o in run.get("outcomes", []) if o.get("number") == number), {})
    report = outcome.get("targets", {}).get(targets[0], {}) if targets else {}
    return run.get("disk", {}).get(item["id"]), report.get("artefact_bytes")
