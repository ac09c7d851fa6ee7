"""What keeps the house in order is itself in order: changelog fragments, hooks, pinned versions."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
KINDS = [item["directory"] for item in PYPROJECT["tool"]["towncrier"]["type"]]
FRAGMENTS = sorted(path for path in (ROOT / "changelog.d").glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_is_named_and_written_for_users(path):
    found = re.fullmatch(r"\+[a-z0-9-]+\.([a-z]+)\.md", path.name)
    assert found, "name it +a-few-words.KIND.md"
    assert found[1] in KINDS
    text = path.read_text(encoding="utf-8").strip()
    assert text.endswith((".", "`."))
    assert len(text) < 400, "one or two sentences"
    assert "\n" not in text


def test_the_kinds_of_fragments_are_explained():
    text = (ROOT / "changelog.d" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE) == KINDS


def test_every_direct_dependency_is_pinned_at_or_above_its_minimum():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {}
    for line in filter(None, lines):
        requirement = Requirement(line)
        pins[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    for text in wanted:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) == "nasdistill":
            continue
        assert requirement.specifier, f"{text} has no minimum"
        assert canonicalize_name(requirement.name) in pins, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_the_base_install_stays_lean():
    assert len(PYPROJECT["project"]["dependencies"]) <= 20
    heavy = {"onnx", "onnxruntime", "datasets", "ray", "sphinx", "pytest"}
    named = {re.split(r"[<>=\[;]", item)[0] for item in PYPROJECT["project"]["dependencies"]}
    assert not heavy & named


def test_hooks_run_what_the_gate_runs():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for tool in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert tool in hooks
        assert tool.split()[0] in gate


def test_the_source_distribution_has_everything():
    """Its own tests read nearly all of it."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    included = {*PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"], "pyproject.toml", ".gitignore"}
    assert {name.partition("/")[0] for name in listed.splitlines()} == included
