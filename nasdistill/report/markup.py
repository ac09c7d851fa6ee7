"""Small pieces of HTML that sections share: tables, figures and how figures are written.

Everything given to these functions is escaped; what they return is markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nasdistill.report.scale import tick_label
from nasdistill.report.svg import text


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        shown: its text.
        value: what the column is sorted by, None for the text.
        note: further lines in small print.
        link: where it leads within the page.
    """

    shown: str
    value: float | None = None
    note: str = ""
    link: str = ""


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, caption: str, strong: Sequence[int] = (),
    words: Sequence[int] = (0,),
) -> str:  # fmt: skip
    """Return a table that can be sorted where scripts run, in a box that scrolls sideways.

    Args:
        columns: headings.
        rows: one cell per column; the first heads its row.
        caption: what it holds.
        strong: indices of rows to stand out.
        words: indices of columns with text, aligned to the left.
    """
    heads = "".join(
        f'<th scope="col"{" class=w" if i in words else ""}>{text(name)}</th>' for i, name in enumerate(columns)
    )
    body = []
    for number, row in enumerate(rows):
        cells = []
        for index, raw in enumerate(row):
            cell = raw if isinstance(raw, Cell) else Cell(raw)
            kind = "th" if index == 0 else "td"
            attributes = ' scope="row"' if index == 0 else ""
            style = "w long" if index in words and len(cell.shown) > 28 else "w" if index in words else ""
            attributes += f' class="{style}"' if style else ""
            attributes += "" if cell.value is None else f' data-v="{cell.value:.12g}"'
            shown = text(cell.shown)
            shown = f'<a href="#{text(cell.link)}">{shown}</a>' if cell.link else shown
            note = "".join(f"<small>{text(line)}</small>" for line in cell.note.splitlines())
            cells.append(f"<{kind}{attributes}>{shown}{note}</{kind}>")
        body.append(f"<tr{' class=strong' if number in strong else ''}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table class="sortable">'
        f"<caption><span>{text(caption)}</span></caption><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def figure(svg: str, caption: str, *, narrow: str = "", wide: bool = False) -> str:
    """Return a drawing with its caption; `narrow` is shown instead on small screens."""
    inner = f'<div class="wideonly">{svg}</div><div class="narrowonly">{narrow}</div>' if narrow else svg
    return f"<figure{' class=wide' if wide else ''}><figcaption>{text(caption)}</figcaption>{inner}</figure>"


def paragraph(words: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{f' class={kind}' if kind else ''}>{text(words)}</p>"


def listed(items: Sequence[str]) -> str:
    """Return a list of plain texts."""
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


def details(summary: str, inner: str, *, open_: bool = False) -> str:
    """Return markup that is folded away under a line."""
    return f"<details{' open' if open_ else ''}><summary>{text(summary)}</summary>{inner}</details>"


def pairs(items: Mapping[str, object]) -> str:
    """Return names and values."""
    inner = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in items.items())
    return f"<dl>{inner}</dl>"


# ---- how figures are written ----------------------------------------------------------------------------------------


def is_share(metric: Mapping[str, Any] | None) -> bool:
    """Return whether scores are shares, shown in percent."""
    return bool((metric or {}).get("unit", "share") == "share")


def score(value: float | None, metric: Mapping[str, Any] | None) -> str:
    """Return a score with its unit."""
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if is_share(metric) else f"{value:.4g}"


def metric_title(metric: Mapping[str, Any] | None, split: str) -> str:
    """Return what an axis of scores is called."""
    name = (metric or {}).get("name", "score")
    return f"{split} {name}, %" if is_share(metric) else f"{split} {name}"


def milliseconds(value: float) -> str:
    """Return a latency with three significant digits, without its unit."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def count(value: float | None) -> str:
    """Return a count in three digits: ``134k``."""
    return "–" if value is None else tick_label(float(f"{value:.3g}"))


def size(value: float | None) -> str:
    """Return a number of bytes."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return ""


def duration(seconds: float) -> str:
    """Return a time span."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def short(identifier: object) -> str:
    """Return a component's name without its plugin."""
    return str(identifier).split(":", 1)[-1]
