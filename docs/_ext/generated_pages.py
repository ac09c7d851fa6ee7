"""Sphinx extension: fills the parts of pages that are made from the code.

A page writes ``<!-- generated: NAME ARGUMENTS -->`` on a line of its own; when Sphinx reads the page, the line is
replaced by what ``GENERATORS[NAME](*ARGUMENTS)`` returns as Markdown. Nothing generated is written to the source tree,
so nothing can be out of date. The functions need no Sphinx: the tests call them too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generated_code import checks, config_keys, hooks, interface, papers, see, tags
from generated_commands import commands
from generated_components import components, kinds

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARKER = re.compile(r"^<!-- generated: ([^>]*?) -->$", re.MULTILINE)

GENERATORS = {
    "checks": checks,
    "commands": commands,
    "components": components,
    "config_keys": config_keys,
    "hooks": hooks,
    "interface": interface,
    "kinds": kinds,
    "papers": papers,
    "see": see,
    "tags": tags,
}


def fill(text: str) -> str:
    """Return a page's text with every marker replaced."""

    def replace(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return GENERATORS[name](*arguments)

    return MARKER.sub(replace, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    from docstring_pieces import connect

    app.connect("source-read", _read)
    app.connect("env-get-outdated", _outdated)
    connect(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = fill(source[0])


def _outdated(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Pages with generated parts are read in every build: the code may have changed."""
    return [
        name
        for name in env.found_docs
        if name not in added and MARKER.search(Path(env.doc2path(name)).read_text(encoding="utf-8"))
    ]
