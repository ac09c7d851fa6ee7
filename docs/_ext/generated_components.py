"""The bundled components, one section each, from their specs, options models and modules."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from markdown_pieces import code, table
from pydantic import BaseModel
from value_words import default_words, field_words

from nasdistill.cli.plugins import describe
from nasdistill.host import Host
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.registry import label
from nasdistill.spec.component import Kind
from nasdistill.spec.options import ComponentOptions, searchable_axes

ROOT = Path(__file__).parents[2]


@functools.cache
def host() -> Host:
    """Return a host with the bundled plugins and nothing else."""
    return Host.load(third_party=False)


def kinds() -> str:
    """Return the table of kinds: what is bundled, and by which hook a plugin brings more."""
    rows = []
    for hook, kind in HOOKS.items():
        number = len(host().specs(kind))
        page = f"[{label(kind)}](components/{kind.value}.md)"
        rows.append((page, str(number) if number else "none yet", code(f"{hook}()")))
    return table(("kind", "bundled", "hook"), rows)


def components(kind: str) -> str:
    """Return a section for every bundled component of a kind."""
    records = host().specs(Kind(kind))
    if not records:
        return "None is bundled yet; plugins can bring some.\n"
    listing = table(("id", "summary"), [(f"[`{r.id}`](#{anchor(r.kind, r.id)})", r.spec.summary) for r in records])
    return "\n".join([listing, *(_component(describe(host(), record)) for record in records)])


def anchor(kind: Kind, identifier: str) -> str:
    """Return the anchor of a component's section."""
    return f"{kind.value}-{identifier.replace(':', '-')}".replace("_", "-")


def _component(details: dict[str, Any]) -> str:
    if details["problem"]:
        raise RuntimeError(f"{details['id']}: {details['problem']}")
    module, _, name = details["target"].partition(":")
    file = Path(details["source"]["file"]).relative_to(ROOT)
    facts = [
        ("source", code(f"{file}:{details['source']['line']}")),
        ("references", ", ".join(map(_reference, details["references"]))),
        ("left out", details["left_out"]),
        ("needs", ", ".join(f"{code(r['module'])} (`pip install '{r['extra']}'`)" for r in details["requires"])),
        ("since", f"{details['since']}, {details['maturity']}"),
        ("tags", ", ".join(code(f"{tag} = {value!r}") for tag, value in details["tags"].items())),
    ]
    parts = [
        f"({anchor(Kind(details['kind']), details['id'])})=",
        f"## {details['id']}",
        details["summary"],
        table(("", ""), [fact for fact in facts if fact[1]]),
        options_table(host().options_model(Kind(details["kind"]), details["id"])),
        f"```{{eval-rst}}\n.. autoclass:: {module}.{name}\n   :no-members:\n```",
        docstring(importlib.import_module(module)),
    ]
    return "\n\n".join(parts) + "\n"


def options_table(model: type[BaseModel] | None) -> str:
    """Return the table of a model's options."""
    if model is None or not model.model_fields:
        return "No options."
    tried = searchable_axes(model) if issubclass(model, ComponentOptions) else {}
    rows = []
    for name, info in model.model_fields.items():
        text = info.description or ""
        if name in tried:
            text += f" A search may try {', '.join(map(code, tried[name]))}."
        rows.append((code(name), field_words(info), default_words(info), text))
    return table(("option", "value", "default", "meaning"), rows)


def docstring(thing: Any) -> str:
    """Return a docstring as Markdown: roles and double backticks become plain code."""
    text = inspect.getdoc(thing) or ""
    text = re.sub(r":[a-z]+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def _reference(text: str) -> str:
    if text.startswith("arXiv:"):
        return f"[{text}](https://arxiv.org/abs/{text.removeprefix('arXiv:')})"
    if text.startswith("doi:"):
        return f"[{text}](https://doi.org/{text.removeprefix('doi:')})"
    return f"<{text}>" if text.startswith("https://") else text
