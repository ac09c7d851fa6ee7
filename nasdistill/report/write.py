"""Writes a run's report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from nasdistill.errors import UsageError
from nasdistill.files import write_json, write_text
from nasdistill.report.collect import collect
from nasdistill.report.page import Part, banner_of, render_page, run_parts
from nasdistill.store import RunDirectory

if TYPE_CHECKING:
    from nasdistill.host import Host


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was written.

    Attributes:
        path: the HTML file.
        size: its bytes.
        state: of the run.
        sections: anchor, title, ``data`` and ``problem`` (None where there is none) of every section.
        gaps: what could not be read.
    """

    path: Path
    size: int
    state: str
    sections: tuple[Mapping[str, Any], ...]
    gaps: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what ``nasdistill report --json`` prints."""
        return {
            "report": str(self.path), "bytes": self.size, "state": self.state, "gaps": list(self.gaps),
            "sections": [dict(section) for section in self.sections],
        }  # fmt: skip


def write_report(run: RunDirectory, host: Host | None = None, out: Path | None = None) -> Report:
    """Write a run's report, whatever state the run is in.

    Args:
        run: the run.
        host: for drawings of the architectures and plugins' sections.
        out: the file; ``report/index.html`` in the run's folder by default.

    Raises:
        UsageError: the file cannot be written; an older one is untouched.
    """
    path = run.path / "report" / "index.html" if out is None else out
    data = collect(run, host)
    parts = run_parts(data, host)
    teacher = data["teacher"].get("name")
    title = f"{data['name']}: students of {teacher}" if teacher else str(data["name"])
    html = render_page(title, parts, banner=banner_of(data), gaps=data["gaps"], written=data["written"])
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="Give a file, such as --out report.html.")
    try:
        write_text(path, html)
    except OSError as error:
        raise UsageError(
            f"cannot write the report to {path}: {error.strerror or error}", hint="Choose another place with --out."
        ) from None
    sections = tuple(
        {"anchor": part.anchor, "title": part.title, "data": part.data, "problem": part.problem or None}
        for part in parts
    )
    return Report(path, len(html.encode()), data["state"], sections, tuple(data["gaps"]))


def write_comparison(result: Mapping[str, Any], folder: Path) -> Path:
    """Write a comparison as ``compare.json`` and ``index.html`` and return the latter.

    Raises:
        UsageError: the folder cannot be written to.
    """
    from nasdistill.report.sections.comparison import comparison_section

    section = comparison_section(dict(result))
    part = Part("comparison", section.title, Markup(section.html))
    title = "Comparison of " + ", ".join(dict.fromkeys(row["group"] for row in result["networks"] if row["group"]))
    path = folder / "index.html"
    try:
        write_json(folder / "compare.json", result)
        write_text(path, render_page(title, [part]))
    except OSError as error:
        raise UsageError(
            f"cannot write the comparison to {folder}: {error.strerror or error}", hint="Choose another --out."
        ) from None
    return path
