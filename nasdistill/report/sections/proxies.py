"""How well each proxy ranked the students that were distilled later, always beside plain size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from nasdistill.interfaces import Section
from nasdistill.report.charts import Span, spans
from nasdistill.report.markup import Cell, figure, listed, paragraph, score, table
from nasdistill.search.proxyhealth import failure_line

SIZE = ("params", "macs")

_FEW = 12
"""Students up to which a correlation's interval covers nearly everything."""


def verdicts(proxies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each proxy that is not plain size: whether it ranks better than parameters and MACs do."""
    sizes = {name: proxies[name] for name in SIZE if proxies.get(name, {}).get("spearman") is not None}
    found = []
    for name, quality in proxies.items():
        if name in SIZE:
            continue
        if quality.get("spearman") is None:
            found.append(f"{name}: no rank correlation (fewer than three scores, or all the same).")
            continue
        if not sizes:
            continue
        best = max(sizes, key=lambda key: sizes[key]["spearman"])
        mine, theirs = quality["spearman"], sizes[best]["spearman"]
        same = round(mine, 2) == round(theirs, 2)
        verdict = "equals size" if same else "loses to size" if mine < theirs else "beats size"
        sentence = f"{name} {verdict}: Spearman {mine:+.2f}, {best} {theirs:+.2f}"
        (low, high), (low2, high2) = quality["spearman_interval"], sizes[best]["spearman_interval"]
        if verdict != "equals size" and low <= high2 and low2 <= high:
            sentence += "; the intervals overlap, so this may be chance"
        found.append(sentence + ".")
    return found


def proxies(run: Mapping[str, Any]) -> Section:
    """Return the correlations as a plot and a table, and what they say."""
    data = run["proxies"]
    known = {name: quality for name, quality in data.items() if quality.get("spearman") is not None}
    title = "What the proxies were worth"
    failures = list(run.get("proxy_failures", ()))
    failed = listed([f"{line[0].upper()}{line[1:]}." for line in map(failure_line, failures)]) if failures else Markup()
    if not known:
        n = max((quality.get("n", 0) for quality in data.values()), default=0)
        students = "student was" if n == 1 else "students were"
        words = f"Only {n} {students} distilled: rank correlations need at least three that differ."
        return Section(title, failed + paragraph(words), {"n": n, "failures": failures})
    n, rung = max(q["n"] for q in known.values()), next(iter(known.values()))["rung"]
    order = sorted(known, key=lambda name: -known[name]["spearman"])
    rows = [
        Span(
            name, quality["spearman"], quality["spearman_interval"][0], quality["spearman_interval"][1],
            int(name in SIZE), name in SIZE,
        )
        for name, quality in ((name, known[name]) for name in order)
    ]  # fmt: skip
    plot = spans(rows, title="Spearman correlation of each proxy with distilled scores", axis="Spearman correlation",
                 description="; ".join(f"{row.name} {row.value:+.2f}" for row in rows))  # fmt: skip
    cells = []
    for name in [*order, *(name for name in data if name not in known)]:
        quality = data[name]
        row: list[Cell | str] = [name]
        for kind in ("spearman", "kendall"):
            value, interval = quality.get(kind), quality.get(f"{kind}_interval")
            note = "" if interval is None else f"[{interval[0]:+.2f}, {interval[1]:+.2f}]"
            row.append("–" if value is None else Cell(f"{value:+.2f}", value, note))
        regret = quality.get("top3_regret")
        row.append("–" if regret is None else Cell(score(regret, run.get("metric")), regret))
        cells.append([*row, Cell(str(quality.get("n", 0)), quality.get("n", 0))])
    html = failed + paragraph(
        f"Scores of {n} students after rung “{rung}”, ranked by each proxy before any training. Plain size "
        "(square marks) is the rival every proxy has to beat. These students were chosen with the proxies' help, which "
        "narrows the range and lowers the correlations; with few students the intervals are wide.",
        "note",
    )
    scored = sum(bool(outcome.get("proxies")) for outcome in run.get("outcomes", []))
    if n <= _FEW and scored >= 3 * n:
        few = f"Only {n} of {scored} scored candidates were distilled: too few for a verdict on the proxies."
        html += paragraph(few)
    html += listed(verdicts(data)) if any(name not in SIZE for name in data) else ""
    html += figure(plot, "Rank correlation with the distilled scores, with 95 % bootstrap intervals.")
    html += table(
        ["proxy", "Spearman", "Kendall", "regret of the top 3", "n"], cells,
        caption="Proxies against distilled scores; regret is what training only its three favourites would have lost",
    )  # fmt: skip
    return Section(title, html, {"verdicts": verdicts(data), "n": n, "rung": rung, "failures": failures})
