"""A network's graph as a drawing: one row per topological generation, the way of the data from top to bottom.

Nodes of one generation stand side by side. An edge to the next row is a straight line; one that skips rows (a residual
connection) runs down a lane at the right. A network of many layers is drawn by its groups: nodes whose names share
their first parts (``blocks.0``) become one box.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import networkx as nx

from nasdistill.report.charts import CHARACTER
from nasdistill.report.scale import tick_label
from nasdistill.report.svg import drawing, label, tag, text

ROW, BOX, GAP, LANE = 26, 20, 8, 9
MOST = 80
"""Boxes above which a network is drawn by its groups."""

COLOUR = {"conv": 0, "linear": 2, "attention": 1, "norm": 5, "add": 3, "mean": 4, "pool": 4}


def graph_json(graph: nx.DiGraph) -> dict[str, Any]:
    """Return a graph as JSON-able values: ``nodes`` (``id op label shape params macs``) and ``edges`` (pairs)."""
    keys = ("op", "label", "shape", "params", "macs")
    nodes = [{"id": str(name), **{key: facts.get(key) for key in keys}} for name, facts in graph.nodes(data=True)]
    for node in nodes:
        node["shape"] = None if node["shape"] is None else list(node["shape"])
    return {"nodes": nodes, "edges": [[str(a), str(b)] for a, b in graph.edges]}


def graph_of(value: Mapping[str, Any]) -> nx.DiGraph:
    """Return the graph of :func:`graph_json`'s form."""
    graph = nx.DiGraph()
    for node in value["nodes"]:
        graph.add_node(node["id"], **{key: node.get(key) for key in ("op", "label", "shape", "params", "macs")})
    graph.add_edges_from(value["edges"])
    return graph


def grouped(graph: nx.DiGraph, most: int = MOST) -> nx.DiGraph:
    """Return the graph itself, or that of its groups where it has more than `most` nodes and the groups have no cycle.

    The groups are as fine as `most` permits: names are cut to three parts, else two, else one.
    """
    if len(graph) <= most:
        return graph
    for parts in (3, 2, 1):
        names = {node: ".".join(str(node).split(".")[:parts]) for node in graph}
        merged = nx.DiGraph()
        for node, facts in graph.nodes(data=True):
            name = names[node]
            if name not in merged:
                merged.add_node(name, op=facts.get("op"), label=facts.get("label"), params=0, macs=0, layers=0)
            group = merged.nodes[name]
            group["params"] += facts.get("params") or 0
            group["macs"] += facts.get("macs") or 0
            group["layers"] += 1
            group["shape"] = facts.get("shape")
        for name, group in merged.nodes(data=True):
            if group["layers"] > 1:
                group |= {"op": "group", "label": f"{name}, {group['layers']} layers"}
        merged.add_edges_from({(names[a], names[b]) for a, b in graph.edges if names[a] != names[b]})
        if len(merged) <= most and nx.is_directed_acyclic_graph(merged):
            return merged
    return graph


def draw_graph(graph: nx.DiGraph, *, title: str, width: int = 360) -> str:
    """Return the drawing of an acyclic graph.

    Raises:
        ValueError: it has a cycle, or no node.
    """
    if not len(graph) or not nx.is_directed_acyclic_graph(graph):
        raise ValueError("only an acyclic graph with at least one node has layers")
    graph = grouped(graph)
    rows = [sorted(generation, key=str) for generation in nx.topological_generations(graph)]
    row_of = {node: index for index, row in enumerate(rows) for node in row}
    skips = sorted(
        ((row_of[a], row_of[b], a, b) for a, b in graph.edges if row_of[b] - row_of[a] > 1), key=lambda e: (e[0], e[1])
    )
    lanes = _lanes([(start, end) for start, end, _, _ in skips])
    room = width - 8 - LANE * (max(lanes, default=-1) + 2)
    boxes = {
        node: (4 + index * (room + GAP) / len(row), (room + GAP) / len(row) - GAP)
        for row in rows
        for index, node in enumerate(row)
    }
    out = []
    for a, b in graph.edges:
        if row_of[b] - row_of[a] == 1:
            (xa, wa), (xb, wb) = boxes[a], boxes[b]
            ya, yb = 6 + row_of[a] * ROW + BOX, 6 + row_of[b] * ROW
            out.append(tag("path", d=f"M{xa + wa / 2:.1f},{ya}L{xb + wb / 2:.1f},{yb}", class_="ed"))
    for (top, bottom, a, b), lane in zip(skips, lanes, strict=True):
        at, xa, xb = room + 8 + LANE * (lane + 1), sum(boxes[a]), sum(boxes[b])
        level, under = 6 + top * ROW + BOX // 2, 6 + bottom * ROW + BOX // 2
        d = f"M{xa:.1f},{level}H{at - 4:.1f}q4,0 4,4V{under - 4}q0,4 -4,4H{xb + 4:.1f}m4,-3l-4,3l4,3"
        out.append(tag("path", d=d, class_="ed"))
    for node, (x, wide) in boxes.items():
        out.append(_box(str(node), graph.nodes[node], x, 6 + row_of[node] * ROW, wide))
    description = f"{len(graph)} layers in {len(rows)} rows"
    return drawing(out, width, 12 + ROW * len(rows), title=title, description=description, class_="chart graph")


def _box(name: str, facts: Mapping[str, Any], x: float, y: float, wide: float) -> str:
    """Return a layer's box: what it is, and its parameters where it has some."""
    what = str(facts.get("label") or facts.get("op") or name)
    params = facts.get("params") or 0
    right = f"{tick_label(_rounded(params))}" if params else ""
    fits = int((wide - 14 - CHARACTER * (len(right) + 1)) / CHARACTER)
    shown = what if len(what) <= fits else what[: max(1, fits - 1)] + "…"
    shape = facts.get("shape")
    tip = f"{name}: {what}" + (f", output {' x '.join(map(str, shape))}" if shape else "")
    tip += f", {params:,} parameters, {facts.get('macs') or 0:,} MACs"
    colour = COLOUR.get(str(facts.get("op")))
    parts = [tag("title", text(tip)), tag("rect", x=x, y=y, width=wide, height=BOX, rx=3, class_="nb")]
    if colour is not None:
        parts.append(tag("rect", x=x, y=y, width=4, height=BOX, rx=2, class_=f"f{colour}"))
    parts.append(label(shown, x + 9, y + 14, class_="sm"))
    if right and fits > 0:
        parts.append(label(right, x + wide - 6, y + 14, text_anchor="end", class_="sm mu"))
    return tag("g", *parts)


def _rounded(value: int) -> float:
    """Return a count with three digits."""
    return float(f"{value:.3g}")


def _lanes(spans: list[tuple[int, int]]) -> list[int]:
    """Return a lane for each span, so that spans in one lane do not overlap; they come ordered by their start."""
    ends: list[int] = []
    found = []
    for start, end in spans:
        lane = next((i for i, last in enumerate(ends) if last <= start), len(ends))
        ends[lane : lane + 1] = [end]
        found.append(lane)
    return found
