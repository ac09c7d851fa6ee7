"""Tags, hooks, interfaces, configuration keys, checks and papers, read from the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

from generated_components import anchor, docstring, host, options_table
from markdown_pieces import code, table
from pydantic import BaseModel

from nasdistill import interfaces
from nasdistill.cli.plugins import describe_options
from nasdistill.host import hookspecs
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.registry import label
from nasdistill.spec.component import SPEC_CLASSES, Kind
from nasdistill.spec.config import RunConfig
from nasdistill.spec.systems import STATES, Realisation, realise, systems


def signature(function: Any) -> str:
    """Return ``name(arguments) -> result`` as written in the source, without ``self``."""
    found = inspect.signature(function)
    parameters = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    return f"{function.__name__}{found.replace(parameters=parameters)}".replace("'", "")


def hook_signatures() -> dict[str, str]:
    """Return hook name -> signature."""
    return {name: signature(getattr(hookspecs, name)) for name in HOOKS}


def hooks() -> str:
    """Return a section for every hook."""
    parts = []
    for name, text in hook_signatures().items():
        kind = HOOKS[name]
        guide = f"../guides/{kind.value.replace('_', '-')}.md"
        parts += [f"## {name}()", f"`{text}`", docstring(getattr(hookspecs, name)),
                  f"[The guide]({guide}) · [what is bundled](components/{kind.value}.md)"]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def tag_rows(kind: Kind) -> list[tuple[str, str, str, str]]:
    """Return (name, type, default, meaning) of a kind's tags; none for a kind without."""
    default = getattr(SPEC_CLASSES[kind]("x", "x:x", "x"), "tags", None)
    if default is None:
        return []
    meaning = attribute_texts(type(default))
    return [
        (field.name, str(field.type), repr(getattr(default, field.name)), meaning.get(field.name, ""))
        for field in dataclasses.fields(default)
    ]


def attribute_texts(cls: type) -> dict[str, str]:
    """Return attribute -> text from the section ``Attributes:`` of a Google docstring."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        entry = re.match(r"^    (`?[\w, `]+`?): (.*)$", line)
        if entry:
            names = [name.strip(" `") for name in entry[1].split(",")]
            found.update(dict.fromkeys(names, entry[2]))
        elif line.startswith("     ") and names:
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
        else:
            names = []
    return {name: text.replace("``", "`") for name, text in found.items()}


def tags() -> str:
    """Return a table of tags for every kind that has some."""
    parts = []
    for kind in Kind:
        rows = tag_rows(kind)
        if rows:
            cells = [(code(name), code(of), code(default), text) for name, of, default, text in rows]
            parts += [f"## {label(kind)}", f"`nasdistill.spec.component.{_tags_class(kind)}`",
                      table(("tag", "type", "default", "meaning"), cells)]  # fmt: skip
    without = [label(kind) for kind in Kind if not tag_rows(kind)]
    return "\n\n".join([*parts, f"Without tags: {', '.join(without)}.\n"])


def _tags_class(kind: Kind) -> str:
    return type(SPEC_CLASSES[kind]("x", "x:x", "x").tags).__name__  # type: ignore[attr-defined]


def interface(*names: str) -> str:
    """Return what a plugin author implements and may override: a table of methods for each class named."""
    parts = []
    for name in names:
        cls = getattr(interfaces, name)
        rows = []
        for member, value in vars(cls).items():
            plain = inspect.unwrap(value.fget if isinstance(value, property) else getattr(value, "__func__", value))
            if member.startswith("_") or not inspect.isfunction(plain):
                continue
            must = "must" if getattr(value, "__isabstractmethod__", False) else "may"
            text = member if isinstance(value, property) else signature(plain)
            summary = docstring(plain).split("\n\n")[0].replace("\n", " ")
            rows.append((must, code(text), summary))
        rows.sort(key=lambda row: row[0] != "must")
        parts += [f"`{cls.__module__.rpartition('.')[0]}.{name}`:", table(("", "method", "what it does"), rows)]
    return "\n\n".join(parts) + "\n"


def config_tables() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield (dotted path, summary, model) of every table of the configuration; lists of tables end in ``[]``."""
    yield "", RunConfig.__doc__ or "", RunConfig
    yield from _tables_below("", RunConfig)


def _tables_below(path: str, model: type[BaseModel]) -> Iterator[tuple[str, str, type[BaseModel]]]:
    for name, info in model.model_fields.items():
        for inner in _models_in(info.annotation):
            many = "[]" if "tuple" in str(info.annotation) else ""
            where = f"{path}{name}{many}"
            yield where, inner.__doc__ or "", inner
            yield from _tables_below(f"{where}.", inner)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def config_keys() -> str:
    """Return a section for every table of the configuration, with its keys."""
    parts = []
    for path, summary, model in config_tables():
        title = f"## {path}" if path else "## top level"
        rows = describe_options(model)
        for row in rows:
            info = model.model_fields[row["name"]]
            inner = _models_in(info.annotation)
            if inner and not row["help"]:
                row["help"] = f"The table below: {(inner[0].__doc__ or '').splitlines()[0]}"
            if inner and isinstance(info.annotation, type):
                row["default"] = {}
        parts += [title, _markdown(summary), options_table(rows)]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return inspect.cleandoc(text).replace("``", "`")


def checks() -> str:
    """Return the contract checks, kind by kind."""
    from nasdistill.testing import all_checks
    from nasdistill.testing.pluginchecks import plugin_checks

    whole = [(code(check.name), *_cells(check)) for check in plugin_checks(host(), "proxies")]
    parts = ["## a plugin as a whole", table(("check", "rule", "likely fix"), whole)]
    for kind in [None, *Kind]:
        found = [check for check in all_checks() if check.kind is kind]
        if found:
            parts += [f"## {'every kind' if kind is None else label(kind)}"]
            parts += [table(("check", "rule", "likely fix"), [(_check_name(check), *_cells(check)) for check in found])]
    return "\n\n".join(parts) + "\n"


def _check_name(check: Any) -> str:
    return code(check.name) + (" (thorough)" if check.thorough else "")


def _cells(check: Any) -> tuple[str, str]:
    return check.rule.replace("``", "`"), check.hint


def papers() -> str:
    """Return the table of systems that the toolkit covers or will cover."""
    every = realisations()
    counts = ", ".join(f"{sum(item.state == state for item in every)} {state}" for state in STATES)
    rows = []
    for item in every:
        system = item.system
        title = f"[{system.title}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else system.title
        links = [
            f"[`{name}`](components/{spec.kind.value}.md#{anchor(spec.kind, name)})" for name, spec in item.components
        ]
        rows.append((str(system.number), title, item.state, ", ".join(links), item.left_out))
    return f"{len(every)} systems: {counts}.\n\n" + table(("", "system", "state", "components", "left out"), rows)


def realisations() -> list[Realisation]:
    """Return every system with what is bundled of it."""
    components = [(record.id, record.spec) for record in host().specs()]
    return [realise(system, components) for system in systems()]
