"""Scales, ticks and drawings: values land where they belong, and nothing that is drawn breaks the document."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasdistill.report.charts import Axis, Bar, Line, Point, Series, Span, bars, lines, scatter, spans
from nasdistill.report.drawing import _lanes, draw_graph, graph_json, graph_of, grouped
from nasdistill.report.scale import Scale, fitted, log_ticks, nice_ticks, tick_label
from nasdistill.report.svg import DARK, LIGHT, label, tag

FINITE = st.floats(-1e9, 1e9, allow_nan=False).map(lambda v: round(v, 6))
NS = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


@given(FINITE, FINITE, st.integers(2, 12))
def test_ticks_are_round_equidistant_and_inside(a, b, count):
    low, high = min(a, b), max(a, b)
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-3):
        return
    ticks = nice_ticks(low, high, count)
    assert 1 <= len(ticks) <= 2 * count + 1
    slack = 1e-6 * (high - low)
    assert all(low - slack <= t <= high + slack for t in ticks)
    gaps = {f"{b - a:.3g}" for a, b in zip(ticks, ticks[1:], strict=False)}
    assert len(gaps) <= 1
    assert all(gap.strip("0.-").split("e")[0] in ("1", "2", "5", "") for gap in gaps)


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6))
def test_log_ticks_are_inside(low, factor):
    high = low * factor
    ticks = log_ticks(low, high, 6)
    assert ticks
    assert all(low * (1 - 1e-6) <= t <= high * (1 + 1e-6) for t in ticks)
    assert ticks == sorted(set(ticks))


def test_ticks_refuse_what_has_no_order():
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="no ticks"):
            nice_ticks(low, high)
    with pytest.raises(ValueError, match="logarithmic"):
        log_ticks(0.0, 1.0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20), st.booleans())
def test_every_value_lies_within_its_axis_and_order_is_kept(values, log):
    scale = fitted(values, 50, 400, log=log)
    places = [scale(v) for v in sorted(values)]
    assert all(50 - 1e-6 <= p <= 400 + 1e-6 for p in places)
    assert places == sorted(places)


def test_the_axis_is_logarithmic_where_the_range_asks_for_it():
    assert fitted([1, 2, 3], 0, 1).log is False
    assert fitted([0.1, 2, 30], 0, 1).log is True
    assert fitted([0, 2, 30], 0, 1).log is False, "zero has no logarithm"
    halfway = Scale(1, 100, 0, 100, log=True)
    assert halfway(10) == pytest.approx(50)
    assert fitted([5.0], 0, 1).low < 5 < fitted([5.0], 0, 1).high
    assert fitted([math.inf], 0, 1).high == 1.0


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.02, "0.02"), (1500, "1.5k"), (2_000_000, "2M"), (1e-7, "1e-07"), (-0.5, "-0.5")]
)
def test_tick_labels(value, shown):
    assert tick_label(value) == shown


@given(st.text())
def test_any_text_survives_as_text_and_as_attribute(words):
    kept = re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", words)
    element = parsed(tag("g", label(words, 0, 0), aria_label=words))
    assert (element[0].text or "") == kept.replace("\r\n", "\n").replace("\r", "\n"), "as XML reads line ends"
    assert not list(element[0])
    assert "aria-label" in element.attrib


def test_points_lie_where_their_values_say():
    points = [Point(1, 10, low=0.9, high=1.2, name="a", tip="first"), Point(10, 90, name="b", tip="second"),
              Point(5, 50, strong=False, tip="weak")]  # fmt: skip
    svg = parsed(scatter(points, [Series("s")], Axis("x", log=False), Axis("y", log=False), title="t"))
    marks = {m.get("data-x"): m for m in svg.iter() if m.get("data-x")}
    at = {x: tuple(map(float, re.findall(r"-?[\d.]+", m.get("transform", "")))) for x, m in marks.items()}
    assert at["1"][0] < at["5"][0] < at["10"][0]
    assert at["1"][1] > at["5"][1] > at["10"][1], "up is more"
    assert (at["5"][0] - at["1"][0]) / (at["10"][0] - at["1"][0]) == pytest.approx(4 / 9, abs=0.01)
    bar = next(e for e in marks["1"].iter() if e.get("class", "").startswith("eb")).get("d", "")
    low, high = map(float, re.match(r"M(-?[\d.]+),0H(-?[\d.]+)", bar).groups())  # type: ignore[union-attr]
    assert low < 0 < high
    assert high == pytest.approx(-2 * low, rel=0.05)
    assert marks["1"].get("tabindex") == "0"
    assert marks["1"].get("aria-label") == "first"
    assert marks["5"].get("tabindex") is None, "the many in the background are not stops of the keyboard"


def test_errors_are_shown_as_what_is_left_to_100():
    points = [Point(1, 50.0), Point(2, 1.0)]
    svg = parsed(scatter(points, [Series("s")], Axis("x"), Axis("accuracy", log=True, flipped=True), title="t"))
    at = {
        m.get("data-y"): float(re.findall(r"[\d.]+", m.get("transform", ""))[1]) for m in svg.iter() if m.get("data-y")
    }
    assert at["1"] < at["50"], "the smaller error is higher up"
    texts = [e.text for e in svg.iter() if e.tag.endswith("text")]
    assert "99" in texts


def test_names_do_not_cover_each_other():
    points = [Point(1 + 0.001 * i, 50 + 0.01 * i, name=f"student number {i}") for i in range(30)]
    svg = scatter(points, [Series("s")], Axis("x", log=False), Axis("y", log=False, least=0, most=100), title="t")
    boxes = []
    for x, y, anchor, words in re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="sm halo nm">([^<]+)<', svg
    ):
        width = 6.0 * len(words)
        left = float(x) - {"start": 0, "end": width, "middle": width / 2}[anchor]
        boxes.append((left, float(y) - 9, left + width, float(y)))
    assert boxes
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


@pytest.mark.parametrize("n", [0, 1, 400])
def test_all_drawings_are_documents_at_any_size(n):
    series = [Series(f"<series> & {i}", i) for i in range(7)]
    points = [Point(0.001 * (i + 1), 100 - i * 0.1, i % 7, name="x" * 40, strong=i < 20, tip="<b>") for i in range(n)]
    drawn = [scatter(points, series, Axis("x"), Axis("y"), title="<t>", size=size) for size in ((880, 440), (366, 380))]
    drawn.append(scatter(points, series, Axis("x"), Axis("y"), title="t", standalone=True, heading="h & h"))
    drawn.append(
        lines([Line(series[i % 7], [(j, j * i) for j in range(n)]) for i in range(3)], Axis("e"), Axis("l"), title="t")
    )
    drawn.append(bars([Bar("n" * i, float(i), "s") for i in range(n)], title="t"))
    drawn.append(bars([Bar("n", 0.0, "s")] * min(n, 3), title="t", stacked=True))
    drawn.append(spans([Span("n", 0.1, -0.2, 0.3)] * n, title="t", axis="a"))
    for svg in drawn:
        root = parsed(svg)
        assert root.get("aria-label")
        for element in root.iter():
            for key in ("x", "y", "width", "height", "x1", "y1"):
                assert math.isfinite(float(element.get(key, 0)))


def test_a_standalone_drawing_brings_its_colours_and_names_no_place():
    svg = scatter([Point(1, 2)], [Series("s")], Axis("x"), Axis("y"), title="t", standalone=True)
    assert "var(" not in svg
    assert re.findall(r'https?://[^"]+', svg) == ["http://www.w3.org/2000/svg"]
    assert parsed(svg).tag == f"{NS}svg"


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_colours_have_the_contrast_that_the_guidelines_ask_for(colours):
    """WCAG 2.2: 4.5 for text, 3 for what drawings are made of."""
    for name in ("ink", "muted", "c0"):
        for ground in ("paper", "soft"):
            assert contrast(colours[name], colours[ground]) >= 4.5, name
    for index in range(6):
        assert contrast(colours[f"c{index}"], colours["paper"]) >= 3


# ---- graphs ---------------------------------------------------------------------------------------------------------


def residual(blocks: int) -> nx.DiGraph:
    graph = nx.DiGraph()
    last = "input"
    graph.add_node(last, op="input", label="input", shape=(1, 8, 8), params=0, macs=0)
    for i in range(blocks):
        for part in ("norm", "fc", "add"):
            name = f"blocks.{i}.{part}"
            graph.add_node(name, op="linear", label=f"{part} <{i}>", shape=(4, 4), params=10, macs=20)
        graph.add_edges_from([(last, f"blocks.{i}.norm"), (f"blocks.{i}.norm", f"blocks.{i}.fc"),
                              (f"blocks.{i}.fc", f"blocks.{i}.add"), (last, f"blocks.{i}.add")])  # fmt: skip
        last = f"blocks.{i}.add"
    return graph


def test_every_layer_and_every_edge_is_drawn():
    graph = residual(4)
    root = parsed(draw_graph(graph, title="t"))
    boxes = [e for e in root.iter() if e.get("class") == "nb"]
    edges = [e for e in root.iter() if e.get("class") == "ed"]
    assert len(boxes) == len(graph)
    assert len(edges) == graph.number_of_edges()
    titles = [e.text for e in root.iter() if e.tag.endswith("title")]
    assert any("blocks.0.norm: norm <0>" in (t or "") for t in titles)
    rows = sorted(float(b.get("y", 0)) for b in boxes)
    assert len(set(rows)) == len(graph), "a chain has one layer per row"


def test_large_networks_are_drawn_by_their_groups():
    graph = residual(60)
    small = grouped(graph)
    assert len(small) <= 80
    assert nx.is_directed_acyclic_graph(small)
    assert sum(f["params"] for _, f in small.nodes(data=True)) == 60 * 30
    assert "3 layers" in draw_graph(graph, title="t")


def test_a_graph_survives_as_json():
    graph = residual(2)
    again = graph_of(graph_json(graph))
    assert set(again.edges) == set(graph.edges)
    assert again.nodes["blocks.1.fc"]["params"] == 10


def test_what_has_no_layers_is_refused():
    for graph in (nx.DiGraph(), nx.DiGraph([("a", "b"), ("b", "a")])):
        with pytest.raises(ValueError, match="acyclic"):
            draw_graph(graph, title="t")


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)).map(lambda p: (p[0], p[0] + p[1])), max_size=15))
def test_connections_in_one_lane_do_not_overlap(found):
    found = sorted(found)
    lanes = _lanes(found)
    for i, (start, _) in enumerate(found):
        for j in range(i):
            if lanes[i] == lanes[j]:
                assert found[j][1] <= start
