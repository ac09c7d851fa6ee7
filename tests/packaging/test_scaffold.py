"""``plugins new``: for every kind a package that builds, installs, passes its checks and is clean."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from itertools import cycle
from pathlib import Path

import pytest

from nasdistill.cli import main
from nasdistill.errors import UsageError
from nasdistill.scaffold import LICENSES, NewPlugin, kind_facts, package, render, write
from nasdistill.spec.component import Kind

ROOT = Path(__file__).parents[2]


def new(kind: Kind | str = "proxy", name: str = "acme", **changes) -> NewPlugin:
    return NewPlugin(name, kind_facts(kind), **changes)


@pytest.mark.slow
def test_every_kind_builds_installs_and_passes_its_checks(clean, build_wheels, tmp_path, monkeypatch, capsys):
    """All kinds beside each other in one clean environment, their tests in one pytest process."""
    monkeypatch.chdir(tmp_path)
    folders = []
    for kind, license in zip(Kind, cycle(LICENSES), strict=False):
        words = ["plugins", "new", f"my_{kind.value}", "--kind", kind.value, "--license", license, "--json"]
        assert main([*words, "--author", "A. Author <author@example.org>"]) == 0
        folders.append(tmp_path / json.loads(capsys.readouterr().out)["folder"])
    clean.install(*build_wheels(*folders))
    tests = [folder / "tests" for folder in folders]
    done = clean.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--import-mode=importlib", *tests)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 10 * len(folders)
    assert "failed" not in done.stdout
    # A last look from outside: the list says who brings what, and the command is a command.
    listed = json.loads(clean.cli("plugins", "list", "--json").stdout)
    mine = {item["id"]: item["kind"] for item in listed if item["plugin"].startswith("my_")}
    assert mine == {f"my_{kind.value}:my_{kind.value}": kind.value for kind in Kind}
    assert "--delimiter" in clean.cli("my_command", "--help").stdout


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is in the extra `dev`")
def test_what_is_written_is_clean(tmp_path):
    """By the settings of the packages themselves and, name or no name, by those of this project."""
    names = ("x", "a_name_of_twenty_six_char_s")
    for kind in Kind:
        for name in names:
            plugin = new(kind, name, license="none" if name == "x" else "mit")
            write(render(plugin), tmp_path / f"{kind.value}-{name}")
    # How imports are sorted depends on who is at home.
    ours = ["check", "--config", ROOT / "pyproject.toml", "--ignore", "I001", "--exclude", "tests"]
    for words in (["check"], ["format", "--check"], ours):
        command = [sys.executable, "-m", "ruff", *map(str, words), "--no-cache", "."]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", Kind)
def test_the_package_says_what_it_is(kind):
    plugin = new(kind, license="bsd-3-clause", author="A. Author <author@example.org>")
    files = render(plugin)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "nasdistill-acme"
    assert project["entry-points"] == {"nasdistill": {"acme": "nasdistill_acme"}}
    assert [item.partition(">")[0] for item in project["dependencies"]] == ["nasdistill"]
    assert project["license"] == "BSD-3-Clause"
    assert project["authors"] == [{"name": "A. Author", "email": "author@example.org"}]
    assert "A. Author" in files["LICENSE"]
    (decorator,) = re.findall(r"^@.*$", files["tests/test_contract.py"], re.MULTILINE)
    assert decorator == '@parametrize_with_checks("acme")'
    assert set(project["optional-dependencies"]) == {"test", "dev"}
    assert 'since="0.1.0",\n            maturity="experimental"' in files["src/nasdistill_acme/__init__.py"]
    assert re.search(r"^def test_", files["tests/test_acme.py"], re.MULTILINE)
    for part in ("pip install", "nasdistill plugins check acme", "## Make it yours", "## Use", "acme"):
        assert part in files["README.md"]
    assert plugin.source in files
    assert set(files) == {
        "pyproject.toml", "README.md", ".gitignore", "LICENSE", plugin.source,
        "tests/test_contract.py", "tests/test_acme.py",
        "src/nasdistill_acme/__init__.py", "src/nasdistill_acme/py.typed",
    }  # fmt: skip


def test_no_license_is_said_to_the_package_index():
    files = render(new(license="none"))
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert "LICENSE" not in files
    assert "license" not in project
    assert "Private :: Do Not Upload" in project["classifiers"]
    assert "authors" not in project


def test_kinds_go_by_their_plurals_and_misspelt_ones_by_close_matches():
    for text in ("search-space", "search_spaces", "space", "Search-Spaces"):
        assert kind_facts(text).kind is Kind.SEARCH_SPACE
    assert kind_facts("proxies").kind is Kind.PROXY
    with pytest.raises(UsageError, match=r"no kind 'prox'\. Did you mean 'proxy'"):
        kind_facts("prox")
    for kind in Kind:
        assert kind_facts(kind).references


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Acme", "lower-case letter"), ("1st", "lower-case letter"), ("a-b", "lower-case letter"), ("", "lower-case"),
        ("class", "word of the Python language"), ("a_", "underscores"), ("a__b", "underscores"),
        ("x" * 31, "31 letters"), ("contract", "test of the contract"),
        ("proxies", "comes with nasdistill"), ("nasdistill_acme", "leave nasdistill out"),
    ],
)  # fmt: skip
def test_names_that_cannot_be(name, reason):
    with pytest.raises(UsageError, match=reason):
        new(name=name)


def test_a_class_that_would_hide_what_it_needs_is_refused():
    with pytest.raises(UsageError, match="SingleTeacher"):
        render(new("teacher", "single"))
    with pytest.raises(UsageError, match="ComponentOptions"):
        render(new("proxy", "component"))
    assert "class ProxyProxy(Proxy)" in render(new("proxy", "proxy"))["src/nasdistill_proxy/proxy.py"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("synflow", "--kind", "proxy"), "there is a proxy 'synflow' already, proxies:synflow"),
        (("search", "--kind", "command"), "there is a command 'search' already, nasdistill search"),
        (("acme", "--kind", "proxi"), "Did you mean 'proxy'"),
        (("acme", "--kind", "proxy", "--license", "wtfpl"), "known: apache-2.0, mit, bsd-3-clause, none"),
        (("acme", "--kind", "proxy", "--author", "<nobody@nowhere>"), "not of the form 'Name'"),
        (("acme", "--kind", "proxy", "--author", "A\x07B"), r"author 'A\x07B' is not of the form 'Name'"),
        (("acme", "--kind", "proxy", "--author", "A\u2028B"), r"author 'A\u2028B' is not of the form 'Name'"),
        (("acme", "--kind", "proxy", "--out", "full"), "full exists and is not an empty folder; nothing was written"),
        (("acme", "--kind", "proxy", "--out", "."), "nothing was written"),
    ],
)
def test_refusals_leave_nothing(words, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert main(["plugins", "new", *words]) == 2
    assert reason in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "mine"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    real, count = Path.write_text, []

    def fail(self, *args, **kwargs):
        count.append(self)
        if len(count) == 4:
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(package.Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write(render(new()), tmp_path / "plugin")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_taken_and_the_next_steps_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert main(["plugins", "new", "acme", "--kind", "losses", "--out", "here"]) == 0
    said = capsys.readouterr()
    assert said.out == "here: nasdistill-acme with the loss acme:acme, 9 files\n"
    assert "pip install -e './here[test]'\n" in said.err
    assert "nasdistill plugins check acme\n" in said.err
    assert "here/src/nasdistill_acme/acme.py" in said.err
    assert (tmp_path / "here" / "src" / "nasdistill_acme" / "acme.py").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert (tmp_path / "here").stat().st_mode & 0o055, "as readable as any folder"
