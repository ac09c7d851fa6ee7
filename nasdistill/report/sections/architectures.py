"""The front's networks, drawn from their graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.drawing import draw_graph, graph_of
from nasdistill.report.markup import count, details, paragraph, short
from nasdistill.report.sections.front import recommended
from nasdistill.report.svg import text

MOST = 12
"""Students that are drawn; the rest are named."""


def architectures(run: Mapping[str, Any]) -> Section | None:
    """Return one drawing per student of the front, the recommended one's open."""
    if not run["front"]:
        return None
    best = recommended(run)
    graphs = run.get("graphs", {})
    first = [s for s in run["front"] if best is not None and s["id"] == best["id"]]
    chosen = (first + [s for s in run["front"] if s not in first])[:MOST]
    html = [
        paragraph(
            "From input to output, one row per layer; lines at the right are connections that pass rows by. The colour "
            "at a box's edge is the kind of layer, the number its parameters.",
            "note",
        )
    ]
    boxes = []
    for student in chosen:
        head = f"{student['id']} ({short(student['architecture']['space'])}, {count(student['params'])} parameters)"
        axes = ", ".join(f"{name} {value}" for name, value in student["architecture"]["params"].items())
        if student["id"] in graphs:
            inner = draw_graph(graph_of(graphs[student["id"]]), title=f"Architecture of {student['id']}")
        else:
            inner = paragraph("Its graph cannot be drawn here: the search space or its input shape is not known.")
        inner += details("Axes of its search space", paragraph(axes, "mono"))
        opened = best is not None and student["id"] == best["id"]
        boxes.append(f'<div id="arch-{text(student["id"])}" class="arch">{details(head, inner, open_=opened)}</div>')
    html.append(f'<div class="arches">{"".join(boxes)}</div>')
    left = [s["id"] for s in run["front"] if s not in chosen]
    if left:
        html.append(paragraph(f"Not drawn, to keep this file small: {', '.join(left)}."))
    return Section("Architectures of the front", "".join(html), {"drawn": len(chosen)})
