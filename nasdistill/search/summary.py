"""The result object as rows of a table."""

from __future__ import annotations

from typing import Any


def summary_header(result: dict[str, Any]) -> list[str]:
    """Return the column names that go with :func:`summary_rows`."""
    metric = (result.get("metric") or {}).get("name", "score")
    targets = [f"{name.split(':', 1)[-1]} ms [interval] ratio" for name in result["teacher"]["latency_ms"]]
    return ["student", "space", f"val {metric} %", f"test {metric} %", *targets, "params", "MACs"]


def summary_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return teacher and front as table rows: id, space, validation, test, latency per target, parameters, MACs."""
    teacher = result["teacher"]
    return [
        _cells("teacher", teacher.get("name") or "", teacher, teacher),
        *(_cells(s["id"], s["architecture"]["space"].split(":", 1)[-1], s, teacher) for s in result["front"]),
    ]


def _cells(name: str, kind: str, item: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    cells = [name, kind, percent(item.get("score")), percent(item.get("test_score"))]
    for target in teacher["latency_ms"]:
        value = item["latency_ms"].get(target)
        if value is None:
            cells.append("-")
            continue
        ratio = (item.get("latency_ratio", {}).get(target) or {"value": 1.0})["value"]
        cells.append(f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}] {ratio:.3f}x")
    params, macs = item.get("params"), item.get("macs")
    cells += ["-" if params is None else f"{params:,}", "-" if macs is None else f"{macs:,}"]
    return cells
