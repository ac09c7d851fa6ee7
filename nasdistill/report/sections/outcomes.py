"""What was pruned and what failed, by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.charts import Bar, bars
from nasdistill.report.markup import Cell, figure, paragraph, table

_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?%?")


def kind_of(reason: str) -> str:
    """Return what reasons of one kind have in common: the text with its numbers taken out."""
    return _NUMBER.sub("…", reason).strip() or "no reason recorded"


def outcomes(run: Mapping[str, Any]) -> Section:
    """Return counts by reason, and every failure with its own words."""
    groups: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], str] = {}
    failed = []
    for outcome in run.get("outcomes", []):
        state, reason = str(outcome.get("state")), str(outcome.get("reason", ""))
        if state not in ("pruned", "failed"):
            continue
        key = (
            ("repeated", "same architecture as an earlier trial") if "repeats" in outcome else (state, kind_of(reason))
        )
        groups[key] += 1
        example.setdefault(key, reason)
        if state == "failed":
            failed.append(outcome)
    title = "What was dropped, and why"
    if not groups:
        return Section(title, paragraph("Nothing was pruned and nothing failed."), {})
    order = groups.most_common()
    drawn = [Bar(reason, n, f"{n} {state}", {"pruned": 0, "failed": 1}.get(state, 5))
             for (state, reason), n in order[:12]]  # fmt: skip
    html = figure(bars(drawn, title="Dropped proposals by reason", stacked=True), "Dropped proposals by reason.")
    hints = [(str(e["reason"]), str(e.get("hint", ""))) for e in run.get("reasons", []) if e.get("hint")]
    rows: list[list[Cell | str]] = []
    for (state, reason), n in order:
        first = example[(state, reason)]
        hint = next((hint for known, hint in hints if known.startswith(first)), "")
        rows.append([state, Cell(str(n), n), first if n == 1 else reason, *([hint] if hints else [])])
    columns = ["outcome", "n", "reason", *(["what would change it"] if hints else [])]
    html += table(columns, rows, caption="Reasons, the commonest first", words=(0, 2, 3))
    if failed:
        rows = [[f"trial {o['number']}", str(o.get("rung", "")), str(o.get("reason", ""))] for o in failed[:50]]
        html += table(["trial", "last rung", "reason"], rows, caption="Trials that failed", words=(0, 1, 2))
        if len(failed) > 50:
            html += paragraph(f"{len(failed) - 50} more are in the folder trials/.")
    problems: Counter[str] = Counter()
    for outcome in run.get("outcomes", []):
        problems.update(f"{name}: {kind_of(str(text))}" for name, text in outcome.get("proxy_problems", {}).items())
    if problems:
        rows = [[name, Cell(str(n), n)] for name, n in problems.most_common(10)]
        html += table(["proxy and problem", "candidates"], rows, caption="Proxies that did not go through as a whole",
                      words=(0,))  # fmt: skip
    return Section(title, html, {"reasons": [{"state": s, "reason": r, "n": n} for (s, r), n in order]})
