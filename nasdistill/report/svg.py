"""SVG as text: elements whose every attribute and text is escaped, and the colours of all drawings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that may not occur in a document, not even escaped."""

MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down")
COLOURS = 6

LIGHT = {
    "ink": "#1b1f24", "muted": "#59636e", "grid": "#e1e5ea", "axis": "#8c959f", "paper": "#ffffff", "soft": "#f3f5f7",
    "c0": "#0072b2", "c1": "#c84e00", "c2": "#007a5a", "c3": "#a8548a", "c4": "#856404", "c5": "#5b4fb3",
}  # fmt: skip
"""Colours on white. Blue, vermilion, green, purple, ochre and indigo stay apart for the colour-blind (after Okabe and
Ito, "Color universal design", 2008), and every series also has a marker of its own."""

DARK = {
    "ink": "#e6e9ed", "muted": "#9da7b3", "grid": "#2b323b", "axis": "#6b7683", "paper": "#12161b", "soft": "#1b2129",
    "c0": "#56b4e9", "c1": "#f0883e", "c2": "#35c79b", "c3": "#e29bc4", "c4": "#e3b341", "c5": "#a79bf0",
}  # fmt: skip
"""The same on a dark ground."""


def text(value: object) -> str:
    """Return a value as text of a document: escaped, without characters that no document may hold."""
    return escape(_FORBIDDEN.sub("\ufffd", str(value)), quote=True)


def tag(name: str, *children: str, **attributes: object) -> str:
    """Return an element.

    Args:
        name: of the element.
        children: markup, already escaped.
        attributes: their values are escaped; None leaves one out, a trailing underscore is dropped (``class_``), other
            underscores become hyphens, numbers are rounded to 0.01.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{text(shown)}"')
    opening = " ".join(parts)
    return f"<{opening}>{''.join(children)}</{name}>" if children else f"<{opening}/>"


def label(value: object, x: float, y: float, **attributes: object) -> str:
    """Return a text element with escaped text."""
    return tag("text", text(value), x=float(x), y=float(y), **attributes)


def path(points: Sequence[tuple[float, float]], **attributes: object) -> str:
    """Return an open line through points."""
    d = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("path", d=d, fill="none", **attributes)


def marker(kind: str, size: float = 5.0) -> str:
    """Return the outline of a marker around the origin, as a path's data."""
    s = size
    shapes = {
        "circle": f"M{-s},0a{s},{s} 0 1,0 {2 * s},0a{s},{s} 0 1,0 {-2 * s},0z",
        "square": f"M{-0.9 * s},{-0.9 * s}h{1.8 * s}v{1.8 * s}h{-1.8 * s}z",
        "triangle": f"M0,{-1.2 * s}L{1.1 * s},{0.8 * s}H{-1.1 * s}z",
        "down": f"M0,{1.2 * s}L{1.1 * s},{-0.8 * s}H{-1.1 * s}z",
        "diamond": f"M0,{-1.3 * s}L{1.3 * s},0L0,{1.3 * s}L{-1.3 * s},0z",
        "cross": f"M{-s},{-s}L{s},{s}M{-s},{s}L{s},{-s}",
    }
    numbers = re.compile(r"-?\d+\.\d+")
    return numbers.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), shapes[kind])


def drawing(
    children: Iterable[str], width: float, height: float, *, title: str, description: str = "",
    standalone: bool = False, **attributes: Any,
) -> str:  # fmt: skip
    """Return a whole drawing with its title for those who cannot see it.

    Args:
        children: its elements.
        width: of its coordinates; it is shown at whatever width its place has.
        height: of its coordinates.
        title: what it shows.
        description: the same at more length.
        standalone: for a file of its own, which brings its colours and a white ground.
        attributes: further attributes of the element.
    """
    name = f"{title}. {description}".strip() if description else title
    body = list(children)
    if standalone:
        attributes = {"xmlns": "http://www.w3.org/2000/svg", "font_family": "system-ui, sans-serif", **attributes}
        ground = tag("rect", width=width, height=height, fill=LIGHT["paper"])
        body = [tag("title", text(title)), tag("style", drawing_style(LIGHT)), ground, *body]
    viewbox = f"0 0 {width:g} {height:g}"
    return tag("svg", *body, viewBox=viewbox, role="group", aria_label=name, **attributes)


def drawing_style(colours: dict[str, str]) -> str:
    """Return the rules by which drawings are coloured, with given colours or with a page's variables."""
    rules = [
        f"svg text{{font-size:12px;fill:{colours['ink']}}}",
        f"svg .mu{{fill:{colours['muted']}}}",
        "svg .sm{font-size:11px}",
        f"svg .gr{{stroke:{colours['grid']};stroke-width:1}}",
        f"svg .ax{{stroke:{colours['axis']};stroke-width:1}}",
        "svg .ti{font-weight:600}",
        f"svg .nb{{fill:{colours['soft']};stroke:{colours['axis']}}}",
        f"svg .ed{{stroke:{colours['axis']};fill:none}}",
        f"svg .kt{{fill:{colours['ink']};stroke:{colours['ink']}}}",
        f"svg .halo{{stroke:{colours['paper']};stroke-width:3px;paint-order:stroke;stroke-linejoin:round}}",
        "svg .pt{stroke-width:1.6}",
        "svg .eb{fill:none;stroke-width:1.8}",
        f"svg .ot{{fill:{colours['paper']};fill-opacity:.01;stroke-width:1.2;stroke-opacity:.65}}",
        f"svg .ho{{fill:{colours['paper']}}}",
        "svg .li{fill:none;stroke-width:1.8}",
        "svg .fl{fill:none;stroke-width:1.2;stroke-dasharray:4 3}",
    ]
    for index in range(COLOURS):
        colour = colours[f"c{index}"]
        rules += [f"svg .f{index}{{fill:{colour};stroke:{colour}}}", f"svg .s{index}{{stroke:{colour}}}"]
    return "".join(rules)
