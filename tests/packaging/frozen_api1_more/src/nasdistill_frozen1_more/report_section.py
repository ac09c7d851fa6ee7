"""The students of the front, by name."""

from __future__ import annotations

from html import escape

from nasdistill.interfaces import ReportSection, Section


class Names(ReportSection):
    """See the module's text."""

    def render(self, run):
        names = [str(student["id"]) for student in run.get("front") or ()]
        if not names:
            return None
        items = "".join(f"<li>{escape(name)}</li>" for name in names)
        return Section("Frozen names", f"<ul>{items}</ul>", {"names": names})
