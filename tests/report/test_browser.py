"""The report in a real browser: no error, no request, no overflow; tooltips, sorting and zoom do what they say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nasdistill.report.page import banner_of, render_page, run_parts
from nasdistill.testing.kit.report import outcome, run_data, student

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, or a counted skip."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next((found for name in names if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=binary, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    data = run_data()
    data["front"] = [student(i, 0.5 + i / 100, 0.05 * 1.2**i) for i in range(30, 48)]
    data["outcomes"] = [
        outcome(
            i, ("complete", "pruned", "failed")[i % 3], 0.4 + (i % 50) / 100, 0.1 + i % 37, reason=f"slower than {i}"
        )
        for i in range(500)
    ]
    data["events"] = [{"event": "started", "time": 0.0}]
    data["events"] += [{"event": "trial", "number": i, "time": float(i)} for i in range(500)]
    node = [{"id": f"l.{i}", "op": "conv", "label": f"layer {i}", "shape": [3, 4], "params": i} for i in range(40)]
    edges = [[f"l.{i}", f"l.{i + 1}"] for i in range(39)] + [["l.2", "l.9"]]
    data["graphs"] = {s["id"]: {"nodes": node, "edges": edges} for s in data["front"]}
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render_page("500 trials", run_parts(data), banner=banner_of(data)), encoding="utf-8")
    return path


def opened(browser, path, **context):
    """Return a page and what it said and asked for."""
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_context(**context).new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, said, asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_loads_silently_and_fits_the_screen(browser, page_file, width, scheme):
    page, said, asked = opened(browser, page_file, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(18, 22, 27)")
    shown = page.locator("svg.plot:visible")
    assert shown.count() == 2
    for plot in range(2):
        box = shown.nth(plot).bounding_box()
        assert 300 <= box["width"] <= width
    small = page.evaluate(
        """() => Math.min(...Array.from(document.querySelectorAll('figure svg text'))
           .filter((t) => t.getBoundingClientRect().width > 0)
           .map((t) => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a))"""
    )
    assert small >= 9, "text in drawings can be read"
    page.context.close()


def test_it_is_complete_without_scripts(browser, page_file):
    plain, said, _ = opened(browser, page_file, viewport={"width": 1280, "height": 800}, java_script_enabled=False)
    rich, _, _ = opened(browser, page_file, viewport={"width": 1280, "height": 800})
    assert said == []
    for selector in ("svg.plot:visible .pt", "table.sortable tbody tr", "section", "figure:visible"):
        assert plain.locator(selector).count() == rich.locator(selector).count() > 0
    assert plain.locator("svg.plot:visible .fo > title").count() > 0, "titles are the tooltips without scripts"
    plain.context.close()
    rich.context.close()


def test_points_tell_about_themselves_on_focus_and_on_hover(browser, page_file):
    page, said, _ = opened(browser, page_file, viewport={"width": 1280, "height": 800})
    point = page.locator("svg.plot:visible .fo").nth(3)
    point.focus()  # scrolls there, smoothly
    page.wait_for_timeout(600)
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert tip.inner_text() == point.get_attribute("aria-label")
    assert "parameters" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    box = point.locator("path").last.bounding_box()
    page.mouse.move(5, 5)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    assert tip.is_visible()
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    assert said == []
    page.context.close()


def test_tables_sort_by_value_both_ways(browser, page_file):
    page, said, _ = opened(browser, page_file, viewport={"width": 1280, "height": 800})
    table = page.locator("#students table")

    def column() -> list[float]:
        return [float(v) for v in table.locator("tbody td:nth-child(3)").evaluate_all("c => c.map(x => x.dataset.v)")]

    before = column()
    button = table.locator("thead th:nth-child(3) button")
    button.click()
    assert column() == sorted(before)
    assert table.locator("thead th:nth-child(3)").get_attribute("aria-sort") == "ascending"
    button.press("Enter")
    assert column() == sorted(before, reverse=True)
    assert said == []
    page.context.close()


def test_a_plot_zooms_in_and_out(browser, page_file):
    page, said, _ = opened(browser, page_file, viewport={"width": 1280, "height": 900})
    plot = page.locator("svg.plot:visible").first
    plot.scroll_into_view_if_needed()
    first, last = (plot.locator(".fo").nth(i).bounding_box() for i in (4, 8))

    def visible() -> int:
        return plot.locator(".pt[data-x]").evaluate_all("m => m.filter(x => x.style.display !== 'none').length")

    everything, frame = visible(), plot.locator(".frame").inner_html()
    xs, ys = sorted((first["x"], last["x"])), sorted((first["y"], last["y"]))
    page.mouse.move(xs[0] - 12, ys[0] - 12)
    page.mouse.down()
    page.mouse.move(xs[0] + 20, ys[0] + 20, steps=3)
    page.mouse.move(xs[1] + 24, ys[1] + 24, steps=3)
    page.mouse.up()
    assert 5 <= visible() < everything
    zoomed = plot.locator(".frame").inner_html()
    assert zoomed != frame
    assert plot.locator(".frame text").count() >= 4
    page.get_by_role("button", name="Show all").first.click()
    assert visible() == everything
    assert plot.locator(".frame").inner_html() == frame
    assert said == []
    page.context.close()


def test_a_script_in_a_section_does_not_run(browser, page_file, tmp_path):
    html = page_file.read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    mark = "<main>"
    bad.write_text(
        html.replace(mark, mark + '<script>document.title = "run"</script><img src="https://example.invalid/x">')
    )
    page = browser.new_context().new_page()
    answered, refused = [], []
    page.on("response", lambda response: answered.append(response.url))
    page.on("requestfailed", lambda request: refused.append((request.url, request.failure)))
    page.goto(bad.as_uri())
    assert page.title() == "500 trials"
    assert answered == [bad.as_uri()]
    assert refused == [("https://example.invalid/x", "csp")], "the policy stops it before it leaves"
    page.context.close()
