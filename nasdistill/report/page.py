"""Puts sections into one HTML file that needs nothing else: no network, and no script to be complete.

A content security policy in the file itself forbids every request and every script but the one whose hash it names, so
neither a name with markup in it nor a plugin's section can make the page load or run anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from markupsafe import Markup

from nasdistill._version import __version__
from nasdistill.errors import ISOLATED, one_line
from nasdistill.interfaces import Section
from nasdistill.report.markup import duration
from nasdistill.report.sections import SECTIONS
from nasdistill.report.svg import DARK, LIGHT, drawing_style
from nasdistill.spec.component import Kind

if TYPE_CHECKING:
    from nasdistill.host import Host

Render = Callable[[Mapping[str, Any]], Section | None]


@dataclass(frozen=True, slots=True)
class Part:
    """A section in its place.

    Attributes:
        anchor: its id in the page.
        title: its heading.
        html: its markup.
        problem: why it could not be made, instead of markup.
        data: the numbers behind it.
    """

    anchor: str
    title: str
    html: Markup = field(default_factory=Markup)
    problem: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Banner:
    """The state of a run: ``finished``, ``running``, ``interrupted``, ``killed`` or ``failed``, and a sentence."""

    kind: str
    text: str


def run_parts(run: Mapping[str, Any], host: Host | None = None) -> list[Part]:
    """Return all sections for a run's data: ours, then those of plugins; one that fails is a line saying so."""
    parts = [part for name, render in SECTIONS for part in _part(name, name, render, run)]
    for record in host.specs(Kind.REPORT_SECTION) if host is not None else ():
        anchor = "plugin-" + re.sub(r"[^a-z0-9]+", "-", record.id.lower())

        def render(data: Mapping[str, Any], name: str = record.id) -> Section | None:
            assert host is not None
            section: Section | None = host.create(Kind.REPORT_SECTION, name).render(data)
            return section

        parts += _part(anchor, record.id, render, run)
    return parts


def _part(anchor: str, name: str, render: Render, run: Mapping[str, Any]) -> list[Part]:
    """Return a section, none where it has nothing to say, or a line in its place."""
    try:
        section = render(run)
        if section is None:
            return []
        # Our own sections and plugins hand over markup; whatever is in it cannot run, see the policy.
        return [Part(anchor, str(section.title), Markup(str(section.html)), data=dict(section.data))]
    except ISOLATED as error:
        return [Part(anchor, name, problem=f"This section could not be made: {one_line(error)}")]


def banner_of(run: Mapping[str, Any]) -> Banner:
    """Return what to say of a run's state."""
    state = str(run.get("state", "unknown"))
    times = [event["time"] for event in run.get("events", []) if isinstance(event.get("time"), int | float)]
    ago = max(0.0, float(run.get("written", time.time())) - max(times)) if times else None
    last = "" if ago is None else f" The last entry of its log is {duration(ago)} old."
    reason = str(run.get("status", {}).get("reason", ""))
    because = f": {reason}" if reason else ""
    if state == "finished":
        took = f" after {duration(max(times) - min(times))}" if len(times) > 1 else ""
        return Banner("finished", f"Finished{took}.")
    if state == "running":
        return Banner("running", f"Running: what is known so far.{last}")
    if state in ("interrupted", "failed", "killed"):
        more = ": no process is at it any more" if state == "killed" else because
        return Banner(
            state, f"{state.capitalize()}{more}. Finished trials are kept; nasdistill resume goes on with them.{last}"
        )
    return Banner("running", f"The state of this run is not known.{last}")


def render_page(
    title: str, parts: Sequence[Part], *, banner: Banner | None = None, gaps: Sequence[str] = (),
    written: float | None = None,
) -> str:  # fmt: skip
    """Return a complete HTML document."""
    script = _resource("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = Environment(autoescape=True, trim_blocks=False).from_string(_resource("page.html.j2"))
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(written))
    return template.render(
        title=title, banner=banner, sections=parts, gaps=list(gaps), written=stamp, version=__version__, policy=policy,
        style=Markup(page_style()), script=Markup(script),
    )  # fmt: skip


def page_style() -> str:
    """Return the page's rules: its colours for light and dark, its layout, and the drawings' rules."""

    def variables(colours: Mapping[str, str]) -> str:
        return "".join(f"--{name}:{value};" for name, value in colours.items())

    return (
        f":root{{{variables(LIGHT)}}}@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}"
        # Paper has one colour, whatever the screen had.
        f"@media print{{:root{{{variables(LIGHT)}}}}}"
        + drawing_style({name: f"var(--{name})" for name in LIGHT})
        + _resource("style.css").replace("\n", "")
    )


def _resource(name: str) -> str:
    return resources.files("nasdistill.report").joinpath(name).read_text(encoding="utf-8")
