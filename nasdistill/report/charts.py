"""The kinds of drawings a report needs: scatter plots with intervals, lines, bars, and values with intervals.

Each function returns one SVG drawing. Nothing here knows what a run is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nasdistill.report.scale import Scale, fitted, tick_label
from nasdistill.report.svg import COLOURS, MARKERS, drawing, label, marker, path, tag, text

CHARACTER = 6.4
"""Width of an average character at 12 pixels, on the wide side."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a scatter plot.

    Attributes:
        x, y: its values.
        series: index into the plot's series.
        low, high: ends of the interval on x, None without one.
        name: shown beside it, where there is room.
        tip: everything about it, in one line.
        strong: drawn filled, named, and reached by the keyboard; the others are outlines in the background.
    """

    x: float
    y: float
    series: int = 0
    low: float | None = None
    high: float | None = None
    name: str = ""
    tip: str = ""
    strong: bool = True


@dataclass(frozen=True, slots=True)
class Series:
    """A group of points or a line, as the legend names it.

    Attributes:
        name: for the legend.
        colour: index of the colour; -1 is the colour of text.
        marker: index of the marker.
        hollow: markers without filling.
    """

    name: str
    colour: int = 0
    marker: int = 0
    hollow: bool = False

    @property
    def style(self) -> str:
        """Classes of a filled marker."""
        stroke = "kt" if self.colour < 0 else f"f{self.colour % COLOURS}"
        if not self.hollow:
            return stroke
        return "ho kt" if self.colour < 0 else f"ho s{self.colour % COLOURS}"

    @property
    def outline(self) -> str:
        """Class of a line in this colour."""
        return "ax" if self.colour < 0 else f"s{self.colour % COLOURS}"


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its title, and how values are written and spread.

    Attributes:
        title: with the unit.
        log: None decides by the values.
        form: text of a tick.
        least, most: what the values cannot go beyond.
        flipped: the values are errors in percent: the lower end is at the top, and ticks say what is left to 100.
    """

    title: str
    log: bool | None = None
    form: Callable[[float], str] = field(default=tick_label)
    least: float | None = None
    most: float | None = None
    flipped: bool = False


def scatter(
    points: Sequence[Point], series: Sequence[Series], x: Axis, y: Axis, *, title: str, description: str = "",
    size: tuple[int, int] = (880, 440), steps: Sequence[tuple[float, float]] = (), standalone: bool = False,
    heading: str = "",
) -> str:  # fmt: skip
    """Return a scatter plot with intervals on x, names where they fit, and a legend.

    Args:
        points: drawn in this order, the weak ones first.
        series: who the points belong to; those without points are not in the legend.
        x: the horizontal axis.
        y: the vertical axis.
        title: for those who cannot see it.
        description: the same.
        size: width and height.
        steps: corners of the front as (x, y), drawn as a staircase.
        standalone: see :func:`nasdistill.report.svg.drawing`.
        heading: a line above the plot.
    """
    width, height = size
    used = [index for index in range(len(series)) if any(p.series == index for p in points)]
    legend, rows = _legend([series[i] for i in used], width)
    top, bottom, left, right = (30 if heading else 14), 46 + 20 * rows, 56, 16
    values = [v for p in points for v in (p.x, p.low, p.high) if v is not None]
    sx = fitted(values, left, width - right, log=x.log, least=x.least, most=x.most)
    ends = (top, height - bottom) if y.flipped else (height - bottom, top)
    sy = fitted((p.y for p in points), *ends, log=y.log, least=y.least, most=y.most)
    out = [_frame(sx, sy, x, y, width)]
    if heading:
        out.append(label(heading, left, 18, class_="ti"))
    if len(steps) > 1:
        out.append(path(_staircase([(sx(a), sy(b)) for a, b in steps]), class_="fl ax"))
    out += [_mark(point, series[point.series], sx, sy) for point in sorted(points, key=lambda p: p.strong)]
    out += _names([p for p in points if p.strong and p.name], sx, sy, (left, top, width - right, height - bottom))
    out.append(tag("g", *legend, transform=f"translate(0,{height - 20 * rows + 4})", aria_hidden="true"))
    zoom = {
        "data_x0": repr(sx.low), "data_x1": repr(sx.high), "data_y0": repr(sy.low), "data_y1": repr(sy.high),
        "data_box": f"{left},{top},{width - right},{height - bottom}",
        "data_xlog": "1" if sx.log else "0", "data_ylog": "1" if sy.log else "0",
        "data_yflip": "1" if y.flipped else "0",
    }  # fmt: skip
    return drawing(
        out, width, height, title=title, description=description, standalone=standalone,
        **({} if standalone else {"class": "plot zoomable", **zoom}),
    )  # fmt: skip


def _frame(sx: Scale, sy: Scale, x: Axis, y: Axis, width: int) -> str:
    """Return grid, ticks and titles."""
    left, right, bottom, top = sx.start, sx.end, max(sy.start, sy.end), min(sy.start, sy.end)
    parts = []
    for value in sy.ticks(6):
        at = sy(value)
        parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="gr"))
        parts.append(
            label(y.form(100 - value if y.flipped else value), left - 7, at + 4, text_anchor="end", class_="mu")
        )
    room = max(2, int((right - left) // 62))
    for value in sx.ticks(min(8, room)):
        at = sx(value)
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="gr"))
        parts.append(label(x.form(value), at, bottom + 16, text_anchor="middle", class_="mu"))
    parts.append(tag("path", d=f"M{left},{top:.1f}V{bottom:.1f}H{right}", class_="ax", fill="none"))
    titles = [
        label(_cut(x.title, right - left), (left + right) / 2, bottom + 34, text_anchor="middle"),
        label(
            _cut(y.title, bottom - top), 0, 0, text_anchor="middle",
            transform=f"translate(13,{(top + bottom) / 2:.1f}) rotate(-90)",
        ),
    ]  # fmt: skip
    return tag("g", *parts, class_="frame", aria_hidden="true") + tag("g", *titles, aria_hidden="true")


def _cut(words: str, room: float) -> str:
    """Return a title that fits its axis."""
    most = max(8, int(room / CHARACTER))
    return words if len(words) <= most else words[: most - 1] + "…"


def _mark(point: Point, series: Series, sx: Scale, sy: Scale) -> str:
    """Return a point with its interval."""
    shape = MARKERS[series.marker % len(MARKERS)]
    at = f"translate({sx(point.x):.1f},{sy(point.y):.1f})"
    data = {"data_x": f"{point.x:.9g}", "data_y": f"{point.y:.9g}"}
    tip = tag("title", text(point.tip)) if point.tip else ""
    if not point.strong:
        return tag("path", tip or " ", d=marker(shape, 3.4), class_=f"pt ot {series.outline}", transform=at, **data)
    bar = ""
    if point.low is not None and point.high is not None:
        low, high = sx(point.low) - sx(point.x), sx(point.high) - sx(point.x)
        bar = tag("path", d=f"M{low:.1f},0H{high:.1f}M{low:.1f},-4v8M{high:.1f},-4v8", class_=f"eb {series.outline}")
        data |= {"data_low": f"{point.low:.9g}", "data_high": f"{point.high:.9g}"}
    return tag(
        "g", tip, bar, tag("path", d=marker(shape, 5.2), class_=series.style),
        class_="pt fo", transform=at, tabindex="0", role="img", aria_label=point.tip or point.name, **data,
    )  # fmt: skip


def _staircase(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the border of what a front dominates: along x to the next corner, then to its y."""
    ordered = sorted(corners)
    found = [ordered[0]]
    for (_, before), (x, y) in itertools.pairwise(ordered):
        found += [(x, before), (x, y)]
    return found


def _names(points: Sequence[Point], sx: Scale, sy: Scale, box: tuple[float, float, float, float]) -> list[str]:
    """Return the points' names at places where they cover nothing; a name without such a place is left out."""
    taken = [(sx(p.x) - 6, sy(p.y) - 6, sx(p.x) + 6, sy(p.y) + 6) for p in points]
    found = []
    for point in points:
        x, y, wide = sx(point.x), sy(point.y), CHARACTER * len(point.name)
        for dx, dy, anchor in (
            (9, 15, "start"),
            (9, -8, "start"),
            (-9, -8, "end"),
            (-9, 15, "end"),
            (0, -11, "middle"),
            (0, 20, "middle"),
        ):
            start = x + dx - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
            area = (start, y + dy - 10, start + wide, y + dy + 3)
            inside = area[0] >= box[0] and area[1] >= box[1] and area[2] <= box[2] and area[3] <= box[3]
            if inside and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                found.append(label(point.name, x + dx, y + dy, text_anchor=anchor, class_="sm halo nm"))
                break
    return [tag("g", *found, aria_hidden="true", class_="names")] if found else []


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(series: Sequence[Series], width: float, left: float = 20) -> tuple[list[str], int]:
    """Return the legend's elements and its number of lines."""
    x, row, out = left, 0, []
    if not series:
        return [], 0
    for item in series:
        wide = 32 + 1.1 * CHARACTER * len(item.name)
        if x + wide > width and x > left:
            x, row = left, row + 1
        shape = marker(MARKERS[item.marker % len(MARKERS)], 4.5)
        out.append(tag("path", d=shape, transform=f"translate({x:.0f},{row * 20 + 4})", class_=f"pt {item.style}"))
        out.append(label(_cut(item.name, width - x - 20), x + 10, row * 20 + 8, class_="mu"))
        x += wide
    return out, row + 1


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a line chart."""

    series: Series
    points: Sequence[tuple[float, float]]
    stairs: bool = False


def lines(
    drawn: Sequence[Line], x: Axis, y: Axis, *, title: str, description: str = "", size: tuple[int, int] = (420, 270)
) -> str:
    """Return a line chart; lines told to be stairs keep each value until the next."""
    width, height = size
    legend, rows = _legend([line.series for line in drawn if line.series.name], width)
    top, bottom, left, right = 14, 46 + 20 * rows, 56, 14
    sx = fitted(
        (a for line in drawn for a, _ in line.points), left, width - right, log=x.log or False, pad=0.02,
        least=x.least, most=x.most,
    )  # fmt: skip
    sy = fitted(
        (b for line in drawn for _, b in line.points), height - bottom, top, log=y.log, least=y.least, most=y.most
    )
    out = [_frame(sx, sy, x, y, width)]
    for line in drawn:
        places = [(sx(a), sy(b)) for a, b in line.points if math.isfinite(b)]
        if len(places) == 1:
            out.append(tag("circle", cx=places[0][0], cy=places[0][1], r=3, class_=line.series.style))
        elif places:
            shown = _staircase(places) if line.stairs else places
            out.append(path(shown, class_=f"li {line.series.outline}"))
            shape = MARKERS[line.series.marker % len(MARKERS)]
            if line.series.name:  # told apart by more than colour
                x1, y1 = places[-1]
                mark = f"translate({x1:.1f},{y1:.1f})"
                out.append(tag("path", d=marker(shape, 4), transform=mark, class_=f"pt {line.series.style}"))
    out.append(tag("g", *legend, transform=f"translate(0,{height - 20 * rows + 4})", aria_hidden="true"))
    return drawing(out, width, height, title=title, description=description, class_="chart")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: its name, its length, and what is written at its end."""

    name: str
    value: float
    shown: str
    colour: int = 0


def bars(rows: Sequence[Bar], *, title: str, description: str = "", width: int = 420, stacked: bool = False) -> str:
    """Return horizontal bars from zero, their names at the left or, when `stacked`, above them."""
    names = 0.0 if stacked else min(160.0, 12 + CHARACTER * max((len(row.name) for row in rows), default=0))
    tail = 12 + CHARACTER * max((len(row.shown) for row in rows), default=0)
    most = max((row.value for row in rows), default=0) or 1.0
    step = 40 if stacked else 24
    out = []
    for index, row in enumerate(rows):
        y = 8 + step * index + (16 if stacked else 0)
        length = max(1.0, row.value / most * (width - names - tail))
        if stacked:
            out.append(label(_cut(row.name, width), 0, y - 4))
        else:
            out.append(label(_cut(row.name, names), names - 8, y + 12, text_anchor="end"))
        out.append(tag("rect", x=names, y=y, width=length, height=16, rx=2, class_=f"f{row.colour % COLOURS}"))
        out.append(label(row.shown, names + length + 6, y + 12, class_="mu"))
    return drawing(out, width, 12 + step * len(rows), title=title, description=description, class_="chart")


@dataclass(frozen=True, slots=True)
class Span:
    """A value with its interval, on a line of its own."""

    name: str
    value: float
    low: float
    high: float
    colour: int = 0
    strong: bool = False


def spans(
    rows: Sequence[Span], *, title: str, axis: str, description: str = "", width: int = 420,
    domain: tuple[float, float] = (-1.0, 1.0),
) -> str:  # fmt: skip
    """Return values with intervals on one axis, zero marked."""
    names = min(150.0, 16 + CHARACTER * max((len(row.name) for row in rows), default=0))
    bottom = 10 + 24 * len(rows)
    scale = Scale(domain[0], domain[1], names, width - 16)
    out = []
    for value in scale.ticks(5):
        at = scale(value)
        out.append(tag("line", x1=at, x2=at, y1=4, y2=bottom, class_="ax" if value == 0 else "gr"))
        out.append(label(tick_label(value), at, bottom + 15, text_anchor="middle", class_="mu"))
    out.append(label(axis, (names + width - 16) / 2, bottom + 33, text_anchor="middle"))
    for index, row in enumerate(rows):
        y = 18.0 + 24 * index
        style = f"f{row.colour % COLOURS}"
        out.append(
            label(_cut(row.name, names), names - 8, y + 4, text_anchor="end", class_="ti" if row.strong else None)
        )
        ends = [(scale(row.low), y), (scale(row.high), y)]
        out.append(path(ends, class_=f"s{row.colour % COLOURS}", stroke_width="2"))
        shape = marker("square" if row.strong else "circle", 4.5)
        out.append(tag("path", d=shape, transform=f"translate({scale(row.value):.1f},{y})", class_=f"pt {style}"))
    return drawing(out, width, bottom + 42, title=title, description=description, class_="chart")
