"""What exists is documented, under the signature that it has; what is documented exists.

Pages by hand are compared with the code. Pages made from the code are made here once more and compared with what can be
found out another way, so that a generator that forgets something is noticed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import operator
import re
import sys

import pytest
from docs_blocks import DOCS, ROOT, pages

from nasdistill import errors
from nasdistill.cli import app
from nasdistill.cli.table import COMMANDS
from nasdistill.host import hookspecs
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.registry import INTERFACES
from nasdistill.interfaces import __all__ as PUBLIC
from nasdistill.spec.component import SPEC_CLASSES, Kind
from nasdistill.spec.config import RunConfig

SOURCES = [path for root in ("nasdistill", "plugins", "search_spaces") for path in sorted((ROOT / root).rglob("*.py"))]


@pytest.fixture(scope="module")
def generated():
    """The module that makes parts of pages; it stands beside the pages, not in a package."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        yield importlib.import_module("generated_pages")
    finally:
        sys.path.remove(str(DOCS / "_ext"))


@pytest.fixture(scope="module")
def site(generated):
    """Every page's text with the generated parts in place, by its path below ``docs``."""
    return {
        str(path.relative_to(DOCS)): generated.fill(path.read_text(encoding="utf-8"))
        for path in pages()
        if path.is_relative_to(DOCS)
    }


def rows(text: str) -> list[str]:
    """The first cells of all tables, without their marks, sorted; what is there twice comes twice."""
    return sorted(cell.strip("` ").split("`")[0] for cell in re.findall(r"^\| (.*?) \|", text, re.MULTILINE))


def tables(text: str) -> list[str]:
    """The tables of a page."""
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def headings(text: str) -> list[str]:
    return [line.lstrip("#").strip() for line in re.findall(r"^#+ .*$", text, re.MULTILINE)]


def signature(function) -> str:
    """The signature as it is written; annotations are texts here."""
    return str(inspect.signature(function)).replace("'", "")


def of_class(name: str, page: str) -> str:
    """The table of methods of a class on a page."""
    return re.split(r"\n{py:class}|\n#", page.split(f".{name}`:")[1])[0]


# -- hooks, kinds, interfaces -----------------------------------------------------------------------------------------


def test_every_hook_of_the_specification_has_a_kind():
    found = {name for name, value in vars(hookspecs).items() if hasattr(value, "nasdistill_spec")}
    assert found == set(HOOKS)
    assert set(HOOKS.values()) == set(Kind)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_has_a_heading_with_its_signature_in_its_guide(hook):
    guide = DOCS / "guides" / f"{HOOKS[hook].value.replace('_', '-')}.md"
    text = guide.read_text(encoding="utf-8")
    assert f"{hook}{signature(getattr(hookspecs, hook))}" in headings(text)
    assert text.count(f"def {hook}(") == 1, "the guide shows one implementation"


def test_the_page_of_hooks_has_every_signature(site):
    page = site["reference/hooks.md"]
    assert [title for title in headings(page) if title.startswith("nasdistill_")] == [f"{hook}()" for hook in HOOKS]
    for hook in HOOKS:
        assert f"`{hook}{signature(getattr(hookspecs, hook))}`" in page


@pytest.mark.parametrize("kind", INTERFACES, ids=str)
def test_a_guide_lists_what_its_interface_wants(kind, site):
    """Every abstract method of the interface, with its parameters, and every other public one."""
    page = site[f"guides/{kind.value.replace('_', '-')}.md"]
    interface = importlib.import_module("nasdistill.interfaces")
    first = INTERFACES[kind][0].rpartition(":")[2]
    table = of_class(first, page)
    for name, value in vars(getattr(interface, first)).items():
        plain = getattr(value, "__func__", value)
        if not name.startswith("_") and (inspect.isfunction(plain) or isinstance(value, property)):
            line = next(line for line in table.splitlines() if re.match(rf"\| \w+ \| {{py:obj}}`{name}\b", line))
            assert getattr(value, "__isabstractmethod__", False) == line.startswith("| must")
            if inspect.isfunction(plain):
                names = set(inspect.signature(plain).parameters) - {"self", "cls"}
                assert all(re.search(rf"\b{parameter}\b", line) for parameter in names)


@pytest.mark.parametrize("kind", Kind, ids=str)
def test_a_guide_leads_to_its_interface_spec_and_checks(kind, site):
    """Before its first section; what is linked by name, there and in the tables, exists and has a page."""
    page = site[f"guides/{kind.value.replace('_', '-')}.md"]
    top = page.split("\n## ")[0]
    wanted = [SPEC_CLASSES[kind].__name__, *(target.rpartition(":")[2] for target in INTERFACES.get(kind, ()))]
    assert not [name for name in wanted if f".{name}`" not in top]
    assert f"(../reference/checks/{kind.value}.md)" in top
    documented = set(re.findall(r"automodule:: (nasdistill[\w.]+)", "".join(site.values())))
    for target in re.findall(r"{py:\w+}`(?:~|[^`]*<)(nasdistill[\w.]+)>?`", page):
        module = next(name for name in documented if target.startswith(f"{name}."))
        operator.attrgetter(target.removeprefix(f"{module}."))(importlib.import_module(module))


def test_every_public_interface_has_a_page(site):
    modules = re.findall(r"automodule:: (nasdistill\.interfaces\.\w+)", "".join(site.values()))
    documented = {name for module in modules for name in vars(importlib.import_module(module))}
    assert set(PUBLIC) <= documented
    on_disk = {f"nasdistill.interfaces.{path.stem}" for path in (ROOT / "nasdistill" / "interfaces").glob("[a-z]*.py")}
    assert set(modules) == on_disk


def test_every_public_name_is_in_the_reference(site):
    import nasdistill
    from nasdistill import testing

    page = site["reference/python.md"]
    assert not [name for name in nasdistill.__all__ if f"nasdistill.{name}" not in page]
    page = site["reference/testing.md"] + site["reference/interfaces/base.md"]
    documented = {name for name in testing.__all__ if re.search(rf"nasdistill\.testing\.{name}\b", page)}
    # Signals of the checks' own, and what is documented with the interfaces.
    assert set(testing.__all__) - documented == {"BoundCheck", "CheckFailed", "CheckSkipped", "Example"}


def test_every_fixture_is_documented():
    from nasdistill import pytest_plugin

    source = inspect.getsource(pytest_plugin)
    fixtures = sorted(re.findall(r"^@pytest\.fixture\ndef (\w+)", source, re.MULTILINE))
    assert fixtures == sorted(re.findall(r"^``(\w+)``", pytest_plugin.__doc__ or "", re.MULTILINE))
    text = (DOCS / "howto" / "plugins.md").read_text(encoding="utf-8")
    assert not [name for name in fixtures if f"`{name}`" not in text]


# -- components and tags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind, ids=str)
def test_every_component_has_a_section(kind, host, site):
    page = site[f"reference/components/{kind.value}.md"]
    records = host.specs(kind)
    assert [title for title in headings(page) if ":" in title] == [record.id for record in records]
    for record in records:
        section = page.split(f"## {record.id}\n")[1].split("\n## ")[0]
        assert record.spec.summary in section
        assert all(reference in section for reference in record.spec.references)
        assert record.spec.left_out in section
        model = host.options_model(kind, record.id)
        assert set(model.model_fields if model else ()) <= set(rows(section))


def test_every_tag_has_a_row_with_its_default_and_meaning(site):
    page = site["reference/tags.md"]
    for kind in Kind:
        tags = getattr(SPEC_CLASSES[kind]("x", "x:x", "x"), "tags", None)
        for field in dataclasses.fields(tags) if tags is not None else ():
            section = page.split(f"component.{type(tags).__name__}`")[1].split("\n## ")[0]
            line = next(line for line in section.splitlines() if line.startswith(f"| `{field.name}` |"))
            assert f"`{getattr(tags, field.name)!r}`" in line
            assert line.split(" | ")[-1].strip(" |"), f"{field.name} has no meaning"


def test_every_tag_of_a_kind_is_in_force_in_the_guides():
    """A guide uses tags that exist."""
    for kind in Kind:
        tags = getattr(SPEC_CLASSES[kind]("x", "x:x", "x"), "tags", None)
        text = (DOCS / "guides" / f"{kind.value.replace('_', '-')}.md").read_text(encoding="utf-8")
        if tags is not None:
            used = re.findall(rf"{type(tags).__name__}\((.*?)\)", text, re.DOTALL)
            names = {name for arguments in used for name in re.findall(r"(\w+)=", arguments)}
            assert names <= {field.name for field in dataclasses.fields(tags)}


# -- command line, configuration, environment, exit codes -------------------------------------------------------------


def options_of(parser: argparse.ArgumentParser) -> tuple[set[str], dict[str, argparse.ArgumentParser]]:
    flags: set[str] = set()
    inner: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        flags.update(action.option_strings)
        if isinstance(action.choices, dict):
            inner.update(action.choices)
    return flags - {"-h", "--help"}, inner


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_documented(command, site):
    page = site["reference/commands.md"]
    parser = app.Parser(prog=f"nasdistill {command}")
    importlib.import_module(COMMANDS[command][0].partition(":")[0]).add_arguments(parser)
    flags, inner = options_of(parser)
    found = {f"nasdistill {command}": flags}
    found |= {f"nasdistill {command} {name}": options_of(sub)[0] for name, sub in inner.items()}
    for words, options in found.items():
        section = re.split(r"\n#+ ", page.split(f"# {words}\n")[1])[0]
        assert not [flag for flag in options if not re.search(rf"(?<![\w-]){flag}(?![\w-])", section)], words


def test_every_json_output_is_described():
    """Each command with ``--json`` has its place in the page of machine-readable output."""
    text = (DOCS / "contracts.md").read_text(encoding="utf-8")
    for command, (target, _) in COMMANDS.items():
        parser = app.Parser(prog=command)
        importlib.import_module(target.partition(":")[0]).add_arguments(parser)
        flags, inner = options_of(parser)
        wanted = [command] if "--json" in flags else []
        wanted += [f"{command} {name}" for name, sub in inner.items() if "--json" in options_of(sub)[0]]
        for words in wanted:
            assert re.search(rf"^##.*`nasdistill {words}\b.*--json`", text, re.MULTILINE), f"{words} --json"


def keys(schema: dict, definitions: dict, path: str = "") -> set[str]:
    """Every key of a JSON schema, dotted."""
    found = set()
    for name, value in schema.get("properties", {}).items():
        found.add(f"{path}{name}")
        texts = re.findall(r"#/\$defs/(\w+)", str(value))
        for text in texts:
            found |= keys(definitions[text], definitions, f"{path}{name}.")
    return found


def test_every_configuration_key_is_documented(site):
    schema = RunConfig.model_json_schema()
    wanted = keys(schema, schema["$defs"])
    assert {"search.trials", "objective.losses.weight.start", "plugins.disable"} <= wanted
    found = []
    for section in site["reference/config.md"].split("\n## ")[1:]:
        table = section.splitlines()[0].replace("[]", "")
        prefix = "" if table == "top level" else f"{table}."
        found += [f"{prefix}{name}" for name in rows(section) if name not in ("option", "---")]
    assert sorted(found) == sorted(wanted)


def test_values_are_said_in_words(site):
    """The tables of options are for those who write a file: no type of Python's is in them."""
    found = set()
    for page in ("reference/config.md", *(f"reference/components/{kind.value}.md" for kind in Kind)):
        found |= set(re.findall(r"^\| `\w+` \| (.*?) \| .*? \| .* \|$", site[page], re.MULTILINE))
    assert {"whole number ≥ 1", "number > 0, or unset", "list of tables", "text", "`true` or `false`"} <= found
    assert not [text for text in found if re.search(r"\b(tuple|dict|int|str|float|bool|None|Any)\b|Config", text)]


def test_every_environment_variable_is_documented():
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    ours = set(re.findall(r"NASDISTILL_[A-Z_]+", text)) - {"NASDISTILL_API"}  # an attribute of plugin modules
    others = set(re.findall(r"""environ(?:\.get\(|\[)["']([A-Z_]+)["']""", text)) - {"PYTHONHASHSEED"}  # of checks
    documented = sorted(
        name for cell in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"\w+", cell)
    )
    assert [name for name in documented if name.startswith("NASDISTILL_")] == sorted(ours), "each once"
    assert others <= set(documented)
    assert not [name for name in documented if name not in text]


def test_exit_codes_are_those_of_the_errors():
    page = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    documented = {name: int(code) for name, code in re.findall(r"^\| `(\w+)` \| (\d+) \|$", page, re.MULTILINE)}
    found = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.NasdistillError)
    }
    assert documented == found
    assert {str(code) for code in found.values()} <= set(rows(page))


def test_nothing_is_told_twice(site):
    """No table of the reference has two rows of one name: the two would say different things one day."""
    for page, text in site.items():
        for table in tables(text) if page.startswith("reference/") else ():
            names = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
            assert sorted(names) == sorted(set(names)), f"{page}: {table}"


def test_the_readme_lists_what_is_bundled(host):
    """One row for each of these kinds, with every name in it."""
    wanted = {
        "teachers": Kind.TEACHER, "tasks": Kind.TASK, "search spaces": Kind.SEARCH_SPACE, "losses": Kind.LOSS,
        "attention": Kind.ATTENTION, "strategies": Kind.STRATEGY, "recipes": Kind.RECIPE, "targets": Kind.TARGET,
        "transforms": Kind.TRANSFORM, "diagnostics": Kind.DIAGNOSTIC, "exporters": Kind.EXPORTER,
    }  # fmt: skip
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for title, kind in wanted.items():
        row = re.search(rf"^\| {title} \| (.*) \|$", text, re.MULTILINE)
        assert row, title
        assert sorted(re.findall(r"`(\w+)`", row[1])) == sorted(record.spec.name for record in host.specs(kind)), title
    assert f"| {len(host.specs(Kind.LOSS))}: logits" in text


# -- checks, papers, links --------------------------------------------------------------------------------------------


def test_every_check_is_documented(site):
    from nasdistill.testing import all_checks

    for check in all_checks():
        page = site["reference/checks.md" if check.kind is None else f"reference/checks/{check.kind.value}.md"]
        section = page.split(f"### `{check.name}`\n")[1].split("\n#")[0]
        assert check.rule.replace("``", "`") in section
        assert check.hint.replace("``", "`") in section
        assert (check.thorough) == (f"### `{check.name}`\n" in page.partition("\n## Thorough")[2])


@pytest.mark.parametrize("kind", Kind, ids=str)
def test_every_name_that_an_example_may_say_is_documented(kind, site):
    from nasdistill.testing.registry import context_names

    page = site[f"reference/checks/{kind.value}.md"]
    part = page.partition("## What an example's context may name")[2]
    assert [name for name in rows(part) if name not in ("name", "---")] == sorted(context_names(kind))
    assert bool(part) == bool(context_names(kind))


def test_expected_failures_in_the_pages_name_checks():
    from nasdistill.testing import all_checks

    names = {check.name for check in all_checks()} | {"name_of_the_check"}
    for page in pages():
        for name in re.findall(r"expected_failures = \{\"(\w+)\"", page.read_text(encoding="utf-8")):
            assert name in names, f"{page}: {name}"


def test_every_system_is_in_the_table(site):
    from nasdistill.spec.systems import systems

    page = site["reference/papers.md"]
    for system in systems():
        assert re.search(rf"^\| {system.number} \| .*{re.escape(system.title[:30])}", page, re.MULTILINE)


def test_links_between_files_lead_somewhere():
    """Sphinx checks the pages' links; the README is read elsewhere, and pages link to files beside them."""
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"https?:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page in pages():
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            for name in names:
                listed |= {found.resolve() for found in page.parent.glob(f"{name}.md")}
    site = {page.resolve() for page in pages() if page.is_relative_to(DOCS)}
    assert listed == site - {DOCS / "index.md"}
