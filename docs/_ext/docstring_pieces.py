"""What is done to docstrings on their way to the page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_TYPES = {"torch.nn.modules.module.": "torch.nn.", "torch._C.": "torch.", "collections.abc.": "", "pathlib._local.": ""}


def connect(app: Sphinx) -> None:
    """Register with Sphinx."""
    app.connect("autodoc-process-docstring", _bars)
    app.connect("autodoc-process-docstring", _fields, priority=600)  # after napoleon
    app.connect("doctree-read", _once)
    app.connect("html-collect-pages", _sources, priority=400)  # before viewcode


def _bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep the bars of a docstring's formulas: to reStructuredText ``|x|`` would name a substitution."""
    for number, line in enumerate(lines):
        pieces = re.split(r"(``.*?``|`[^`]*`)", line)
        lines[number] = "".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(pieces))


def _fields(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Write a class's attributes under the names that their types are known by, and say which may be None."""
    for number, line in enumerate(lines):
        found = re.match(r":vartype (\w+):", line)
        if found is not None:
            for long, short in _TYPES.items():
                lines[number] = lines[number].replace(long, short)
            start = next(i for i in range(number, -1, -1) if lines[i].startswith(f":ivar {found[1]}:"))
            if "| None" in line and not re.search(r"\bNone\b", " ".join(lines[start:number])):
                last = next(i for i in range(number - 1, -1, -1) if lines[i].strip())
                lines[last] += " May be None."


def _once(app: Sphinx, tree: nodes.document) -> None:
    """Leave out the bare list of attributes below a class whose text describes them, and link to the text instead."""
    for described in tree.findall(addnodes.desc):
        places = {}
        for field in described[-1].children[:]:
            for entry in field.children if isinstance(field, nodes.field_list) else ():
                if entry[0].astext() == "Variables":
                    entry[0][0] = nodes.Text("Attributes")
                    items = list(entry[1].findall(nodes.list_item)) or [entry[1]]
                    places |= {next(iter(item.findall(nodes.paragraph)))[0].astext(): item for item in items}
        for member in described[-1].children[:]:
            if isinstance(member, addnodes.desc) and member["objtype"] == "attribute" and not member[-1].children:
                place = places.get(str(member[0]["fullname"]).rpartition(".")[2])
                if place is not None:
                    place["ids"] += member[0]["ids"]
                    described[-1].remove(member)


def _sources(app: Sphinx) -> list[Any]:
    """Forget modules without source, which viewcode would list and not write."""
    modules = getattr(app.env, "_viewcode_modules", {})
    for name in [name for name, found in modules.items() if not found]:
        del modules[name]
    return []
