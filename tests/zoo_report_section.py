"""Report sections: the report's own, which are sound, and some that are sound but for one thing."""

from __future__ import annotations

from zoo_base import Broken

from nasdistill.interfaces import ReportSection, Section
from nasdistill.report.sections import SECTIONS
from nasdistill.report.svg import text
from nasdistill.spec.component import ReportSectionSpec


class Sound(ReportSection):
    """The students and how good they are."""

    def render(self, run):
        if not run["front"]:
            return None
        rows = "".join(self.row(student) for student in self.students(run))
        head = '<tr><th scope="col">student</th><th scope="col">score</th></tr>'
        return Section("Students", f"<table>{head}{rows}</table>{self.more(run)}", self.data(run))

    def students(self, run):
        return sorted(run["front"], key=lambda student: student["score"])

    def row(self, student):
        return f'<tr title="{text(student["id"])}"><td>{text(student["id"])}</td><td>{student["score"]:.3f}</td></tr>'

    def more(self, run):
        return '<p><a href="https://example.org/about">About scores</a></p>'

    def data(self, run):
        return {"students": len(run["front"])}


class Silent(ReportSection):
    """Never has anything to say."""

    def render(self, run):
        return None


class Bare(Sound):
    """Returns its markup alone."""

    def render(self, run):
        section = super().render(run)
        return section and section.html


class Hasty(Sound):
    """Reads the first student of an empty front."""

    def render(self, run):
        self.best = run["front"][0]
        return super().render(run)


class Scripted(Sound):
    """Brings a script."""

    def more(self, run):
        return "<script>alert(1)</script>"


class Fetching(Sound):
    """Shows a picture from elsewhere."""

    def more(self, run):
        return '<img alt="logo" src="https://example.org/logo.png">'


class Styled(Sound):
    """Loads a texture."""

    def more(self, run):
        return '<p style="background: url(https://example.org/paper.png)">paper</p>'


class Clickable(Sound):
    """Runs something at a click."""

    def more(self, run):
        return '<p onclick="alert(1)">more</p>'


class Trusting(Sound):
    """Shows names as they are."""

    def row(self, student):
        return f"<tr><td>{student['id']}</td></tr>"


class HalfTrusting(Sound):
    """Escapes the text and forgets the quotes of an attribute."""

    def row(self, student):
        name = student["id"]
        return f"<tr title='{name}'><td>{text(name)}</td></tr>"


class Open(Sound):
    """Leaves a paragraph open."""

    def more(self, run):
        return "<p>more"


class Crossed(Sound):
    """Closes in the wrong order."""

    def more(self, run):
        return "<p><b>more</p></b>"


class Twins(Sound):
    """Uses an id twice."""

    def more(self, run):
        return '<p id="a">one</p><p id="a">two</p>'


class Wordless(Sound):
    """Draws without words."""

    def more(self, run):
        return '<svg role="img" viewBox="0 0 1 1"></svg>'


class Sets(Sound):
    """Has a set among its numbers."""

    def data(self, run):
        return {"students": {student["id"] for student in run["front"]}}


class Sorting(Sound):
    """Sorts the front where it stands."""

    def students(self, run):
        run["front"].sort(key=lambda student: -student["score"])
        return run["front"]


class Counting(Sound):
    """Counts how often it was asked."""

    def __init__(self, options=None, *, host=None):
        super().__init__(options, host=host)
        self._count = 0

    def more(self, run):
        self._count += 1
        return f"<p>edition {self._count}</p>"


OWN = {}
for _name, _render in SECTIONS:
    OWN[_name] = type(f"Own{_name.title()}", (ReportSection,), {
        "__doc__": f"The section {_name} of the report.", "render": lambda self, run, draw=_render: draw(run),
        "__module__": __name__,
    })  # fmt: skip
    globals()[OWN[_name].__name__] = OWN[_name]


def spec(name, cls):
    return ReportSectionSpec(name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",))


SOUND = [spec("sound", Sound), spec("silent", Silent), *(spec(name, cls) for name, cls in OWN.items())]
BROKEN = [
    Broken("returns_a_section", spec("bare", Bare), "returned str"),
    Broken("any_run_gets_an_answer", spec("hasty", Hasty), "a run that is empty makes it raise IndexError"),
    Broken("stands_alone", spec("scripted", Scripted), "<script>"),
    Broken("stands_alone", spec("fetching", Fetching), "https://example.org/logo.png"),
    Broken("stands_alone", spec("styled", Styled), "url(https://example.org/paper.png)"),
    Broken("stands_alone", spec("clickable", Clickable), "onclick of <p>"),
    Broken("names_stay_text", spec("trusting", Trusting), "becomes an element"),
    Broken("names_stay_text", spec("half_trusting", HalfTrusting), "becomes an element"),
    Broken("markup_nests", spec("open", Open), "<p> is not closed"),
    Broken("markup_nests", spec("crossed", Crossed), "</p> comes where </b> should"),
    Broken("markup_nests", spec("twins", Twins), "the id 'a' occurs twice"),
    Broken("pictures_have_words", spec("wordless", Wordless), "<svg> has no aria-label"),
    Broken("data_is_json", spec("sets", Sets), "not JSON"),
    Broken("leaves_the_run_alone", spec("sorting", Sorting), "it changes 'front'"),
    Broken("depends_on_the_run_only", spec("counting", Counting), "edition 2"),
]
