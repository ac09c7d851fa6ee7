"""Tags, hooks, interfaces, configuration keys, checks and papers, read from the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, get_args

from generated_components import anchor, docstring, host
from markdown_pieces import code, table
from pydantic import BaseModel
from value_words import default_words, field_words

from nasdistill import interfaces
from nasdistill.host import hookspecs
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.registry import INTERFACES, label
from nasdistill.spec.component import SPEC_CLASSES, Kind
from nasdistill.spec.config import RunConfig
from nasdistill.spec.systems import STATES, Realisation, System, realise, systems
from nasdistill.testing import all_checks
from nasdistill.testing.pluginchecks import plugin_checks
from nasdistill.testing.registry import context_names


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
        for member, value, plain in _members(cls):
            must = "must" if getattr(value, "__isabstractmethod__", False) else "may"
            text = member if isinstance(value, property) else signature(plain)
            summary = docstring(plain).split("\n\n")[0].replace("\n", " ")
            rows.append((must, f"{{py:obj}}`{text} <{cls.__module__}.{name}.{member}>`", summary))
        rows.sort(key=lambda row: row[0] != "must")
        parts += [f"{_link(cls)}:", table(("", "method", "what it does"), rows)]
    return "\n\n".join(parts) + "\n"


def see(kind: str) -> str:
    """Return a line of links for a guide: the interface and what it is given, the spec, the checks, what is bundled."""
    found = Kind(kind)
    classes: dict[str, type] = {}
    for target in INTERFACES.get(found, ()):
        cls = getattr(interfaces, target.rpartition(":")[2])
        classes[cls.__name__] = cls
        for _, _, plain in _members(cls):
            for name in re.findall(r"\w+", signature(plain)):
                named = getattr(interfaces, name, None)
                if isinstance(named, type) and named.__module__.startswith("nasdistill.interfaces."):
                    classes.setdefault(name, named)
    spec = SPEC_CLASSES[found]
    tags = getattr(spec("x", "x:x", "x"), "tags", None)
    specs = [spec] if tags is None else [spec, type(tags)]
    parts = [f"Interface: {', '.join(map(_link, classes.values()))}."] if classes else []
    parts += [f"Registration: {', '.join(map(_link, specs))}."]
    parts += [
        f"[What is checked](../reference/checks/{kind}.md)"
        + (", and what an `Example` may tell the checks" if context_names(found) else "")
        + f" · [what is bundled](../reference/components/{kind}.md)"
    ]
    return " ".join(parts) + "\n"


def _link(cls: type) -> str:
    return f"{{py:class}}`~{cls.__module__}.{cls.__name__}`"


def _members(cls: type) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, as it stands in the class, plain function) of a class's own public methods and properties."""
    for name, value in vars(cls).items():
        plain = inspect.unwrap(value.fget if isinstance(value, property) else getattr(value, "__func__", value))
        if not name.startswith("_") and inspect.isfunction(plain):
            yield name, value, plain


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
        rows = []
        for name, info in model.model_fields.items():
            text = info.description or ""
            inner = _models_in(info.annotation)
            if inner:
                many = "[]" if "tuple" in str(info.annotation) else ""
                where = f"{path}.{name}{many}".lstrip(".")
                text = text or (inner[0].__doc__ or "").splitlines()[0]
                text += f" See [`{where}`](#{re.sub(r'[^a-z_]', '', where)})."
            rows.append((code(name), field_words(info), default_words(info), text))
        parts += [f"## {path or 'top level'}", _markdown(summary)]
        parts += [table(("option", "value", "default", "meaning"), rows)]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return inspect.cleandoc(text).replace("``", "`")


def checks(kind: str = "") -> str:
    """Return the contract checks of a kind; without one the list of kinds, and the checks that all of them share."""
    if kind:
        found = [check for check in all_checks() if check.kind is Kind(kind)]
        return f"## Always\n\n{_check_sections(found)}\n{_context(kind)}"
    rows = []
    for item in Kind:
        found = [check for check in all_checks() if check.kind is item]
        slow = sum(check.thorough for check in found)
        rows.append((f"[{label(item)}](checks/{item.value}.md)", str(len(found)), str(slow or "")))
    parts = [table(("kind", "checks", "of them thorough"), rows), "## Of a plugin as a whole"]
    parts += [_check_section(check) for check in plugin_checks(host(), "proxies")]
    parts += ["## Of every kind", _check_sections([check for check in all_checks() if check.kind is None])]
    return "\n\n".join(parts) + "\n"


def _check_sections(found: list[Any]) -> str:
    parts = [_check_section(check) for check in found if not check.thorough]
    slow = [_check_section(check) for check in found if check.thorough]
    return "\n\n".join([*parts, *(["## Thorough checks", "Only with `--thorough`.", *slow] if slow else [])]) + "\n"


def _context(kind: str) -> str:
    """Return what an example of a component may say of its surroundings."""
    rows = [(code(name), meaning) for name, meaning in context_names(Kind(kind)).items()]
    if not rows:
        return ""
    return "\n\n".join([
        "## What an example's context may name",
        "`Example(context={...})` in the class's `examples` tells the checks what to work on; other names are errors.",
        table(("name", "what it is"), rows),
    ]) + "\n"  # fmt: skip


def _check_section(check: Any) -> str:
    rule, hint = (text.replace("``", "`") for text in (check.rule, check.hint))
    return f"### `{check.name}`\n\n{rule}\n\n*Likely fix:* {hint}"


def papers() -> str:
    """Return the systems that the toolkit covers, in a table with all there is to say, and those it is to cover."""
    every = realisations()
    counts = ", ".join(f"{sum(item.state == state for item in every)} {state}" for state in STATES)
    rows = []
    for item in sorted(every, key=lambda item: STATES.index(item.state)):
        if item.components:
            links = [
                f"[`{name}`](components/{spec.kind.value}.md#{anchor(spec.kind, name)})"
                for name, spec in item.components
            ]
            number, title = str(item.system.number), _system_title(item.system)
            rows.append((number, title, item.state, ", ".join(links), item.left_out))
    planned = [(str(item.system.number), _system_title(item.system)) for item in every if not item.components]
    return (
        f"{len(every)} systems: {counts}.\n\n"
        + table(("", "system", "state", "components", "left out"), rows)
        + "\n## Planned\n\nNothing of these is there yet; `nasdistill papers NUMBER` says which parts each needs.\n\n"
        + table(("", "system"), planned)
    )


def _system_title(system: System) -> str:
    return f"[{system.title}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else system.title


def realisations() -> list[Realisation]:
    """Return every system with what is bundled of it."""
    components = [(record.id, record.spec) for record in host().specs()]
    return [realise(system, components) for system in systems()]
