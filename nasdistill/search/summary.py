"""The result object as a table that fits a width.

Two lines of headings: what a group of columns is about (the metric, a target), and what each column holds, with its
unit. Where the width does not suffice, the least important things go, in this order: intervals, digits of counts, words
of target names, ratios of further targets, MACs, further targets. Identifiers and numbers are never broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Detail:
    """How much a table shows.

    Attributes:
        intervals: the interval of every latency.
        counts: parameters and MACs with all digits.
        names: whole names of targets.
        ratios: the latency ratio to the teacher on every target, not only on the first.
        macs: multiply-accumulates.
        targets: how many targets, None for all.
    """

    intervals: bool = True
    counts: bool = True
    names: bool = True
    ratios: bool = True
    macs: bool = True
    targets: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column: the heading it shares with its neighbours, its own, and its cells."""

    group: str
    name: str
    cells: tuple[str, ...]
    right: bool = True

    @property
    def width(self) -> int:
        """Characters of the widest cell."""
        return max(map(len, (self.name, *self.cells)))


def summary_lines(result: dict[str, Any], width: int | None = None) -> list[str]:
    """Return teacher and front as a table: two lines of headings, a rule, and one line for each network.

    Args:
        result: the result object.
        width: characters there are; None shows everything. Below about 75 characters the narrowest form may not fit.
    """
    for detail in _narrower(len(result["teacher"]["latency_ms"])):
        lines = _layout(_columns(result, detail))
        if width is None or max(map(len, lines)) <= width:
            break
    left_out = list(result["teacher"]["latency_ms"])[detail.targets :] if detail.targets is not None else []
    if left_out:
        lines.append(f"Not shown for want of width: {', '.join(left_out)}.")
    return lines


def _narrower(targets: int) -> Iterator[Detail]:
    """Yield the forms of a table, each narrower than the one before."""
    detail = Detail()
    yield detail
    for change in ("intervals", "counts", "names", "ratios", "macs"):
        detail = replace(detail, **{change: False})
        yield detail
    for count in range(targets - 1, 0, -1):
        yield replace(detail, targets=count)


def _columns(result: dict[str, Any], detail: Detail) -> list[Column]:
    teacher = result["teacher"]
    items = [teacher, *result["front"]]
    metric = result.get("metric") or {}
    share = metric.get("unit") == "share"
    unit = "%" if share else "" if metric.get("unit") is None else metric["unit"]
    group = f"{metric.get('name', 'score')} {unit}".rstrip()

    def scores(key: str) -> tuple[str, ...]:
        return tuple(_score(item.get(key), share) for item in items)

    columns = [
        Column("", "student", ("teacher", *(student["id"] for student in result["front"])), right=False),
        Column("", "space", ("", *(_space(student) for student in result["front"])), right=False),
        Column(group, "val", scores("score")),
        Column(group, "test", scores("test_score")),
    ]
    targets = list(teacher["latency_ms"])[: detail.targets]
    for number, (target, name) in enumerate(zip(targets, target_names(targets, detail.names), strict=True)):
        values = [item["latency_ms"].get(target) for item in items]
        columns.append(Column(name, "ms", tuple("-" if v is None else f"{v['value']:.3f}" for v in values)))
        if detail.intervals:
            cells = tuple("-" if v is None else f"[{v['low']:.3f}, {v['high']:.3f}]" for v in values)
            columns.append(Column(name, "interval", cells))
        if detail.ratios or number == 0:
            columns.append(Column(name, "ratio", tuple(_ratio(item, target) for item in items)))
    columns.append(Column("", "params", tuple(_count(item.get("params"), detail.counts) for item in items)))
    if detail.macs:
        columns.append(Column("", "MACs", tuple(_count(item.get("macs"), detail.counts) for item in items)))
    return columns


def target_names(targets: Sequence[str], whole: bool = True) -> list[str]:
    """Return targets as headings: without their plugin, and with their first word alone unless `whole`.

    Names that would be equal are left longer.
    """
    names = list(targets)
    for separator, part in ((":", -1), ("_", 0)):
        short = [name.split(separator, 1)[part] for name in names]
        if len(set(short)) == len(short) and (separator == ":" or not whole):
            names = short
    return names


def _space(student: dict[str, Any]) -> str:
    return str(student["architecture"]["space"]).split(":", 1)[-1]


def _score(value: float | None, share: bool) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if share else f"{value:.4f}"


def _ratio(item: dict[str, Any], target: str) -> str:
    if target not in item["latency_ms"]:
        return "-"
    if "latency_ratio" not in item:
        return "1.000"  # the teacher itself
    ratio = item["latency_ratio"].get(target)
    return "-" if ratio is None else f"{ratio['value']:.3f}"


def _count(value: int | None, whole: bool) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if whole else abbreviated(value)


def abbreviated(value: int) -> str:
    """Return a count with two to four digits and the letter of its size: ``812``, ``5.0k``, ``134k``, ``2.1M``."""
    if value < 1000:
        return str(value)
    scaled, letters = value / 1000, "kMGT"
    while scaled >= 999.5 and len(letters) > 1:
        scaled, letters = scaled / 1000, letters[1:]
    return f"{scaled:.1f}{letters[0]}" if scaled < 99.95 else f"{scaled:.0f}{letters[0]}"


def _layout(columns: Sequence[Column]) -> list[str]:
    """Return the lines of a table: headings of groups, headings of columns, a rule, the cells."""
    widths = [column.width for column in columns]
    groups = ""
    start = 0
    while start < len(columns):
        end = start + 1
        while end < len(columns) and columns[end].group and columns[end].group == columns[start].group:
            end += 1
        own = sum(widths[start:end]) + len(_GAP) * (end - start - 1)
        # A heading wider than its columns widens the first of them.
        widths[start] += max(0, len(columns[start].group) - own)
        own = max(own, len(columns[start].group))
        groups += columns[start].group.rjust(own) + _GAP
        start = end

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, column, width in zip(cells, columns, widths, strict=True)
        ]
        return _GAP.join(parts).rstrip()

    rows = zip(*(column.cells for column in columns), strict=True)
    return [
        groups.rstrip(),
        line([column.name for column in columns]),
        line(["-" * width for width in widths]),
        *(line(row) for row in rows),
    ]
