"""From a name and a kind to a package that installs, checks and works: rendered in memory, then written as a whole."""

from __future__ import annotations

import ast
import datetime
import functools
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nasdistill._version import __version__
from nasdistill.errors import UsageError
from nasdistill.files import atomic_folder, free_folder
from nasdistill.host.bundled import BUNDLED, plugin_name
from nasdistill.scaffold.kinds import KindFacts
from nasdistill.spec.component import NAME_PATTERN, Kind

LICENSES: Mapping[str, str] = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "none": ""}
"""What ``--license`` understands -> SPDX expression."""

LONGEST_NAME = 30
_AUTHOR = re.compile(r"^(?P<name>[^<>@\"\\\n]+?)\s*(?:<(?P<email>[^<>\s\"\\]+@[^<>\s\"\\]+)>)?$")


@dataclass(frozen=True, slots=True)
class NewPlugin:
    """A plugin to be written.

    Attributes:
        name: of the plugin and of its component: ``acme`` makes ``acme:acme`` in ``nasdistill-acme``.
        facts: of its kind.
        license: a key of `LICENSES`.
        author: ``Name`` or ``Name <address>``; empty for nobody.
    """

    name: str
    facts: KindFacts
    license: str = "apache-2.0"
    author: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be a plugin.

        Raises:
            UsageError: says which rule the name or the author breaks.
        """
        problem = _name_problem(self.name)
        if problem:
            raise UsageError(f"{self.name!r} cannot be a plugin's name: {problem}", hint="Such as: my_proxy")
        if self.license not in LICENSES:
            raise UsageError(f"no license {self.license!r}; known: {', '.join(LICENSES)}")
        if self.author and (_AUTHOR.match(self.author) is None or not self.author.isprintable()):
            raise UsageError(f"author {self.author!r} is not of the form 'Name' or 'Name <address>'")

    @property
    def package(self) -> str:
        """The import package."""
        return f"nasdistill_{self.name}"

    @property
    def distribution(self) -> str:
        """What pip installs."""
        return self.package.replace("_", "-")

    @property
    def component(self) -> str:
        """Canonical id of the component."""
        return f"{self.name}:{self.name}"

    @property
    def stem(self) -> str:
        """The name as classes are named: ``my_proxy`` gives ``MyProxy``."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    @property
    def class_name(self) -> str:
        """The component's class: ``acme`` gives ``AcmeProxy``, and so does ``acme_proxy``."""
        suffix = self.facts.suffix
        return self.stem if self.stem.endswith(suffix) and self.stem != suffix else self.stem + suffix

    @property
    def source(self) -> str:
        """The component's file, within the folder."""
        return f"src/{self.package}/{self.name}.py"


def _name_problem(name: str) -> str:
    """Return why a text cannot be a plugin's name; empty when it can."""
    if NAME_PATTERN.match(name) is None:
        return "it must be a lower-case letter, then lower-case letters, digits and underscores"
    if name.endswith("_") or "__" in name:
        return "underscores stand between letters or digits, one at a time"
    if keyword.iskeyword(name):
        return "it is a word of the Python language"
    if len(name) > LONGEST_NAME:
        return f"it has {len(name)} letters, more than {LONGEST_NAME}"
    if name in {plugin_name(module) for module in BUNDLED}:
        return "a plugin that comes with nasdistill is called so"
    if name == "contract":
        return "tests/test_contract.py is the test of the contract"
    if name.startswith("nasdistill"):
        return "the package is called nasdistill-NAME anyway, so leave nasdistill out"
    return ""


def render(plugin: NewPlugin) -> dict[str, str]:
    """Return path within the folder -> content of every file.

    Raises:
        UsageError: its classes would be called as something that they import.
    """
    facts = plugin.facts
    found = _AUTHOR.match(plugin.author)
    values = {
        "name": plugin.name,
        "package": plugin.package,
        "distribution": plugin.distribution,
        "component": plugin.component,
        "facts": facts,
        "kind": facts.kind.value,
        "cls": plugin.class_name,
        "options": plugin.stem + "Options",
        "target": "run" if facts.kind is Kind.COMMAND else plugin.class_name,
        "license": LICENSES[plugin.license],
        "author": found["name"] if found else "",
        "email": (found["email"] or "") if found else "",
        "holder": found["name"] if found else f"the authors of {plugin.distribution}",
        "year": datetime.datetime.now(tz=datetime.UTC).year,
        "minimum": ".".join(__version__.split(".")[:2]),
    }
    templates = {
        "pyproject.toml": "pyproject.toml.j2",
        "README.md": "README.md.j2",
        ".gitignore": "gitignore.j2",
        f"src/{plugin.package}/__init__.py": "init.py.j2",
        plugin.source: f"components/{facts.kind.value}.py.j2",
        "tests/test_contract.py": "test_contract.py.j2",
        f"tests/test_{plugin.name}.py": f"tests/{facts.kind.value}.py.j2",
    }
    if LICENSES[plugin.license]:
        templates["LICENSE"] = f"licenses/{plugin.license}.txt.j2"
    values["use"] = _fill(f"use/{facts.kind.value}.md.j2", values).rstrip("\n")
    files = {path: _fill(template, values) for path, template in templates.items()}
    files[f"src/{plugin.package}/py.typed"] = ""
    _check_names(plugin, files[plugin.source])
    return files


def write(files: Mapping[str, str], folder: Path) -> None:
    """Write rendered files as a new folder: all of them or none.

    Raises:
        UsageError: the folder exists and is not empty, or is the working directory.
        OSError: it cannot be written.
    """
    with atomic_folder(free_folder(folder, hint="Choose --out.")) as temporary:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8", newline="\n")


def _check_names(plugin: NewPlugin, source: str) -> None:
    """Refuse a name whose classes hide what the component's file imports."""
    imported, defined = set(), set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            defined.add(node.name)
    taken = sorted(imported & defined)
    if taken:
        raise UsageError(
            f"{plugin.name!r} cannot be the name of this {plugin.facts.label}: its class would be called {taken[0]}, "
            "which it has to import",
            hint="Choose another name.",
        )


@functools.cache
def _environment() -> object:
    """Return the template engine; jinja2 is imported when something is rendered."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("templates", *name.split("/")).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, object]) -> str:
    """Return a template with its blanks filled."""
    from typing import cast

    import jinja2

    text: str = cast("jinja2.Environment", _environment()).get_template(template).render(values)
    return text
