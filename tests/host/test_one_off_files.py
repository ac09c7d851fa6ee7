"""Plugins of one file: found by path, named after the file, run from the text that was read."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_distributions import write_distribution, write_proxy_plugin

from nasdistill.errors import BrokenComponentError, UsageError
from nasdistill.host import Host, Stage
from nasdistill.host.onefile import OneOffFile
from nasdistill.spec.component import Kind

ONE = """
from nasdistill import hookimpl
from nasdistill.interfaces import Proxy, ProxyScore
from nasdistill.spec.component import ProxySpec
from nasdistill.spec.options import ComponentOptions

class Options(ComponentOptions):
    '''Options.'''
    power: int = {power}

class Score(Proxy):
    options_model = Options
    def score(self, request):
        return ProxyScore(1.0)

@hookimpl
def nasdistill_proxies():
    return [ProxySpec("mine", "{stem}:Score", "scores something", options="{stem}:Options")]
"""


@pytest.fixture(autouse=True)
def _forget_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("one_off"):
            del sys.modules[name]


def write(folder: Path, stem: str = "one_off_a", *, power: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.py"
    path.write_text(ONE.format(stem=stem, power=power))
    return path


def test_a_file_is_a_plugin(tmp_path: Path):
    path = write(tmp_path / "notes")
    host = Host.load(third_party=False, files=[path])
    assert host.problems == []
    record = host.record(Kind.PROXY, "mine")
    assert (record.id, record.distribution) == ("one_off_a:mine", "one_off_a.py")
    proxy = host.create(Kind.PROXY, "one_off_a:mine", {"power": 3})
    assert proxy.options.power == 3
    assert type(proxy) is sys.modules["one_off_a"].Score  # so that it can be pickled and looked up
    assert pickle.loads(pickle.dumps(type(proxy))) is type(proxy)
    plugin = host.plugin("one_off_a")
    assert plugin is not None
    assert plugin.file == str(path)
    assert plugin.origin() == {
        "plugin": "one_off_a", "distribution": "one_off_a.py", "version": plugin.sha256[:12], "file": "one_off_a.py",
        "sha256": plugin.sha256,
    }  # fmt: skip
    assert [item.name for item in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def test_another_process_runs_the_text_that_was_read(tmp_path: Path):
    path = write(tmp_path)
    host = Host.load(third_party=False, files=[path])
    arguments = pickle.loads(pickle.dumps(host.arguments))
    path.write_text("edited while a search is on")
    again = Host.load(**arguments)
    assert again.create(Kind.PROXY, "mine").options.power == 2
    assert [p.sha256 for p in again.plugins()] == [p.sha256 for p in host.plugins()]


def test_a_changed_file_is_run_again(tmp_path: Path):
    assert Host.load(third_party=False, files=[write(tmp_path)]).create(Kind.PROXY, "mine").options.power == 2
    path = write(tmp_path, power=5)
    assert Host.load(third_party=False, files=[path, str(path)]).create(Kind.PROXY, "mine").options.power == 5
    elsewhere = write(tmp_path / "elsewhere", power=7)
    assert Host.load(third_party=False, files=[elsewhere]).create(Kind.PROXY, "mine").options.power == 7


def test_a_file_that_was_imported_already_is_that_module(site: Path):
    path = write(site)
    importlib.invalidate_caches()
    module = importlib.import_module("one_off_a")
    host = Host.load(third_party=False, files=[path])
    assert type(host.create(Kind.PROXY, "mine")) is module.Score


def test_a_traceback_shows_the_lines_of_the_file(tmp_path: Path):
    import traceback

    path = tmp_path / "one_off_a.py"
    path.write_text("def nothing():\n    pass\n\n1 / 0  # here\n")
    [problem] = Host.load(third_party=False, files=[path]).problems
    assert problem.exception is not None
    text = "".join(traceback.format_exception(problem.exception))
    assert f'"{path}", line 4' in text
    assert "1 / 0  # here" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.py", "cannot be read: No such file"),
        ("folder.py", "cannot be read: Is a directory"),
        ("notes.txt", "a Python file is needed"),
        ("Bad-Name.py", "'Bad-Name' cannot be the name of a plugin"),
        ("proxies.py", "there is a plugin 'proxies' already"),
        ("json.py", "the name of an importable module"),
        ("torch.py", "the name of an importable module"),
        ("math.py", "the name of an importable module"),
        ("colorsys.py", "the name of an importable module"),  # not imported yet
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, words: str):
    if name == "folder.py":
        (tmp_path / name).mkdir()
    elif name != "missing.py":
        (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=words) as error:
        Host.load(third_party=False, files=[tmp_path / name])
    assert name in str(error.value)
    assert error.value.exit_code == 2


def test_two_files_or_a_distribution_of_one_name(tmp_path: Path, site: Path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    with pytest.raises(UsageError, match=f"there is a plugin 'one_off_a' already .{first}"):
        Host.load(third_party=False, files=[first, second])
    write_proxy_plugin(site, "one_off_a", "cosine")
    with pytest.raises(UsageError, match=r"already \(nasdistill-one_off_a 1\.2\)"):
        Host.load(files=[first])


def test_a_folder_of_the_files_name_is_no_module(site: Path, monkeypatch: pytest.MonkeyPatch):
    (site / "one_off_a").mkdir()  # an empty folder in the working directory is importable, in Python's eyes
    path = write(site / "plugins")
    assert Host.load(third_party=False, files=[path]).canonical(Kind.PROXY, "mine") == "one_off_a:mine"


@pytest.mark.parametrize(
    ("source", "stage", "words"),
    [
        ("def :", Stage.IMPORT, "SyntaxError"),
        ("import nowhere_to_be_found", Stage.IMPORT, "ModuleNotFoundError"),
        ("\x00", Stage.IMPORT, "null bytes"),
        ("", Stage.REGISTER, "it implements no hook, such as nasdistill_"),
        ("def nasdistill_proxies():\n    return []\n", Stage.REGISTER, "nasdistill_proxies without @hookimpl"),
        ("NASDISTILL_API = 9", Stage.API_VERSION, "plugin API 9"),
        (ONE.format(stem="wrong:stem", power=1), Stage.SPEC, "must look like"),
    ],
)
def test_a_broken_file_is_one_problem(tmp_path: Path, source: str, stage: Stage, words: str):
    path = tmp_path / "one_off_a.py"
    path.write_text(source)
    host = Host.load(third_party=False, files=[path])
    [problem] = host.problems
    assert (problem.plugin, problem.distribution, problem.stage) == ("one_off_a", "one_off_a.py", stage)
    assert words in problem.cause
    assert "Mend one_off_a.py" in problem.hint
    assert "\n" not in str(problem)
    assert host.specs(Kind.LOSS)
    if stage in (Stage.IMPORT, Stage.REGISTER):
        with pytest.raises(BrokenComponentError, match=r"one_off_a\.py"):
            host.canonical(Kind.PROXY, "one_off_a:mine")
    if stage is Stage.IMPORT:
        assert "one_off_a" not in sys.modules


def test_a_file_heeds_what_this_call_says_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path)
    monkeypatch.setenv("NASDISTILL_PLUGINS", "")
    assert Host.load(files=[path]).canonical(Kind.PROXY, "mine")
    host = Host.load(files=[path], disable=["one_off_a"])
    assert host.unknown_switches == ()
    assert host.plugin("one_off_a").state == "disabled"


def test_components_in_the_file_reach_other_plugins(tmp_path: Path, site: Path):
    """A target is imported by name: a component may stand in an installed package, too."""
    write_distribution(site, "helpers", modules={"one_off_helpers": "factor = 3"}, entries={})
    path = write(tmp_path)
    path.write_text("import one_off_helpers\n" + path.read_text().replace("= 2", "= one_off_helpers.factor"))
    assert Host.load(third_party=False, files=[path]).create(Kind.PROXY, "mine").options.power == 3


def test_reading_a_file_resolves_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "notes")
    monkeypatch.chdir(tmp_path / "notes")
    assert OneOffFile.read("one_off_a.py").path == str(tmp_path / "notes" / "one_off_a.py")
