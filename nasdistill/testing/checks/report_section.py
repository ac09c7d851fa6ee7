"""Checks of report sections: an answer for any run, markup that stands alone, and names that stay text.

They are tried on the made-up runs of :mod:`nasdistill.testing.kit.report`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from nasdistill.interfaces import ReportSection, Section
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.report import Reader, loads, named_run, run_data, runs
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.subject import Subject

CONTEXT = {
    "run": "keys that replace those of the made-up run, for a section that has something to say of certain runs only",
}
"""What an example's context may name."""

NASTY = "x\"'><bad-tag bad-attr='1'>"
"""A name that becomes an element wherever it is not escaped, in text or in an attribute."""


def a_run(subject: Subject) -> dict[str, Any]:
    """Return the finished run, with the example's changes."""
    return run_data(**subject.context("run", {}))


def render(subject: Subject, run: Mapping[str, Any] | None = None) -> Section | None:
    """Return what a new section says of a run."""
    with seeded(subject.seed, "render"):
        section: ReportSection = subject.create()
        return section.render(a_run(subject) if run is None else run)


def said(subject: Subject) -> Section:
    """Return the section of the finished run; skip where there is none."""
    found = subject.once("section", lambda: render(subject))
    if found is None:
        skip("it has nothing to say of the kit's run; give an example whose context has a `run`")
    return found


@exercise(Kind.REPORT_SECTION)
def use(subject: Subject) -> list[Any]:
    """Render a finished run."""
    with subject.seeded():
        section: ReportSection = subject.create()
        found = section.render(a_run(subject))
        return [found.title, found.html] if isinstance(found, Section) else [found]


@check(Kind.REPORT_SECTION, gate=True, hint="Return Section(title, html, data), or None.")
def returns_a_section(subject: Subject) -> None:
    """`render` returns a Section with a title of one line and markup, or None."""
    found = subject.once("section", lambda: render(subject))
    if found is None:
        return
    if not isinstance(found, Section):
        fail(f"render returned {type(found).__name__}, neither a Section nor None")
    if not isinstance(found.title, str) or not found.title.strip() or "\n" in found.title.strip():
        fail(f"the title is {found.title!r}")
    if not isinstance(found.html, str) or not found.html.strip():
        fail(f"the html of {found.title!r} is {found.html!r}; return None when there is nothing to say")


@check(Kind.REPORT_SECTION, hint="What is not known is empty or None: look before reading, return None without data.")
def any_run_gets_an_answer(subject: Subject) -> None:
    """A run in any state gets a Section or None: empty, killed, running, failed, finished."""
    for what, run in runs().items():
        try:
            found = render(subject, run)
        except Exception as error:
            fail(f"a run that is {what} makes it raise {type(error).__name__}: {error}")
        if found is not None and not isinstance(found, Section):
            fail(f"of a run that is {what} it returns {type(found).__name__}")


@check(Kind.REPORT_SECTION, hint="Draw with nasdistill.report.svg; embed pictures as data: URLs; leave scripts out.")
def stands_alone(subject: Subject) -> None:
    """The markup loads nothing and runs nothing: no scripts, no event handlers, no addresses of pictures or styles."""
    found = loads(said(subject).html)
    if found:
        fail(f"it has {', '.join(found[:3])}")


@check(Kind.REPORT_SECTION, hint="Pass every name through nasdistill.report.svg.text or html.escape(name).")
def names_stay_text(subject: Subject) -> None:
    """Names and reasons in a run's data never become markup, in text or in attributes."""
    said(subject)
    found = render(subject, {**named_run(NASTY, NASTY, NASTY), **subject.context("run", {})})
    if found is not None and any(tag == "bad-tag" for tag, _ in Reader(found.html).tags):
        place = found.html.index("<bad-tag")
        fail(f"a name with <bad-tag> in it becomes an element: ... {found.html[max(0, place - 40) : place + 8]} ...")


@check(Kind.REPORT_SECTION, hint="Close what you open, in order; give ids once.")
def markup_nests(subject: Subject) -> None:
    """Elements nest and are closed; no id and no attribute occurs twice."""
    problems = Reader(said(subject).html).problems
    if problems:
        fail("; ".join(problems[:3]))


@check(Kind.REPORT_SECTION, hint='Give <svg> role="img" and aria-label, <img> alt, and <th> scope.')
def pictures_have_words(subject: Subject) -> None:
    """Drawings and pictures say in words what they show, and headings of tables whether of a row or a column."""
    for tag, values in Reader(said(subject).html).tags:
        wanted = {"svg": ("role", "aria-label"), "img": ("alt",), "th": ("scope",)}.get(tag, ())
        lacking = [key for key in wanted if not values.get(key)]
        if lacking:
            fail(f"<{tag}> has no {' and no '.join(lacking)}")


@check(Kind.REPORT_SECTION, hint="Put numbers, texts, lists and dicts into `data`.")
def data_is_json(subject: Subject) -> None:
    """`data` is JSON, without NaN, for runs in any state."""
    for what, run in {"as the example has it": a_run(subject), **runs()}.items():
        try:
            found = render(subject, run)
        except Exception:  # a check of its own says so
            continue
        if found is None:
            continue
        try:
            json.dumps(dict(found.data), allow_nan=False)
        except (TypeError, ValueError) as error:
            fail(f"the data of a run that is {what} are not JSON: {error}")


@check(Kind.REPORT_SECTION, hint="Sort copies: sorted(run['front'], ...).")
def leaves_the_run_alone(subject: Subject) -> None:
    """The data of the run are as before: other sections read them, too."""
    run = a_run(subject)
    before = copy.deepcopy(run)
    render(subject, run)
    changed = [key for key in {**before, **run} if before.get(key) != run.get(key)]
    if changed:
        fail(f"it changes {', '.join(map(repr, changed))} of the run")


@check(Kind.REPORT_SECTION, hint="Keep nothing in the section between calls, and draw no random numbers.")
def depends_on_the_run_only(subject: Subject) -> None:
    """Rendered twice by one section, under another global random state, a run gives the same text."""
    said(subject)
    section: ReportSection = subject.create()
    texts = []
    for state in (0, 1):
        with seeded(state, "render"):
            found = section.render(a_run(subject))
        texts.append("" if found is None else f"{found.title}\n{found.html}")
    one, other = texts
    if one != other:
        place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, texts)))
        fail(f"rendered twice, it says {one[max(0, place - 20) : place + 20]!r} and "
             f"{other[max(0, place - 20) : place + 20]!r}")  # fmt: skip
