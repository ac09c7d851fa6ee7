"""The fronts of the contract suite: functions, the command, and what pytest sees."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time
import types

import pytest
import zoo_common
from fake_distributions import HANGS, write_distribution

from nasdistill.errors import UnknownComponentError, UsageError
from nasdistill.host import Host, timelimit
from nasdistill.spec.architecture import Axis
from nasdistill.spec.component import Kind
from nasdistill.testing import (
    CheckFailed,
    Example,
    check_component,
    check_plugin,
    isolated_host,
    parametrize_with_checks,
    probing,
)
from nasdistill.testing.checks.search_space import points
from nasdistill.testing.checks.search_space.points import axes_are_the_same_in_every_call
from nasdistill.testing.kit.space import TINY_SPACE
from nasdistill.testing.pluginchecks import plugin_checks
from nasdistill.testing.results import CheckResult, failures
from nasdistill.testing.subject import Subject

CHATTY = zoo_common.spec("chatty", zoo_common.Chatty)
SOUND = zoo_common.spec("sound", zoo_common.Sound)


def test_failures_are_raised_together_and_name_component_rule_and_fix():
    with pytest.raises(AssertionError) as caught:
        check_component(CHATTY)
    text = str(caught.value)
    assert text.startswith("proxy local:chatty: prints_nothing failed: proxy local:chatty (in process): it prints")
    assert "rule: Nothing is printed to standard output" in text
    assert "likely fix: Log, or return what you have to say" in text


def test_an_expected_failure_is_no_failure_and_keeps_its_reason():
    results = check_component(CHATTY, expected_failures={"prints_nothing": "it is a demonstration"})
    (known,) = [item for item in results if item.status == "xfailed"]
    assert known.check == "prints_nothing"
    assert known.message == "it is a demonstration"
    assert not failures(results)


def test_an_expectation_that_is_no_longer_true_fails():
    results = check_component(SOUND, expected_failures={"prints_nothing": "it talks"}, on_fail="record")
    (wrong,) = failures(results)
    assert wrong.status == "xpassed"
    assert "it talks" in wrong.message


def test_an_expectation_of_no_check_is_refused():
    with pytest.raises(UsageError, match=r"'prints_noting'.*Did you mean 'prints_nothing'"):
        check_component(SOUND, expected_failures={"prints_noting": "?"})


def test_an_expectation_that_would_hide_all_other_checks_is_refused(monkeypatch):
    raising = zoo_common.spec("raises", zoo_common.Raises)
    with pytest.raises(UsageError, match=r"local:raises names 'works'; where that fails the other checks are skipped"):
        check_component(raising, expected_failures={"works": "it is new"}, on_fail="record")
    monkeypatch.setattr(zoo_common.Raises, "expected_failures", {"can_be_created": "it is new"}, raising=False)
    with pytest.raises(UsageError, match="nothing would be checked"):
        check_component(raising, on_fail="record")


def test_expectations_of_the_class_count(monkeypatch):
    monkeypatch.setattr(zoo_common.Chatty, "expected_failures", {"prints_nothing": "so it says"}, raising=False)
    assert not failures(check_component(CHATTY, on_fail="record"))


def test_examples_are_checked_one_by_one(monkeypatch):
    examples = (Example(name="first"), Example(), Example(name="third"))
    results = check_component(SOUND, examples=examples)
    assert {item.example for item in results} == {"first", "example 1", "third"}
    once = [item.example for item in results if item.check == "is_documented"]
    assert once == ["first"]  # rules of the class, not of its use


def test_results_are_json_and_say_how_long_they_took():
    results = check_component(SOUND)
    values = json.loads(json.dumps([item.to_json() for item in results]))
    assert set(values[0]) == {field.name for field in dataclasses.fields(CheckResult)}
    assert all(value["seconds"] >= 0 for value in values)


def test_listeners_hear_every_check_before_and_after():
    heard, begun = [], []

    def begins(item):
        assert len(heard) == len(begun)
        begun.append(item.title)

    results = check_component(SOUND, on_result=heard.append, on_start=begins)
    assert heard == results
    assert begun == [f"proxy local:sound: {item.check}" for item in results]


def test_what_components_print_goes_to_stderr(capsys):
    check_component(CHATTY, on_fail="record")
    said = capsys.readouterr()
    assert said.out == ""
    assert "scored!" in said.err


def test_an_interrupt_goes_through(monkeypatch):
    def interrupt(self, candidate):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo_common.Raises, "score", interrupt)
    with pytest.raises(KeyboardInterrupt):
        check_component(zoo_common.spec("raises", zoo_common.Raises), on_fail="record")


def test_axes_that_differ_in_number_only_are_told():
    calls = itertools.count()

    class Space:
        def axes(self):
            return (Axis("depth", (1, 2), 1), Axis("late", (1, 2), 1))[: 1 + next(calls)]

    with pytest.raises(CheckFailed, match=r"axes\(\) of a second call differ: axis 1 is None and \('late', "):
        axes_are_the_same_in_every_call(types.SimpleNamespace(create=Space))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")
def test_a_check_that_hangs_has_failed_when_its_time_is_over(monkeypatch):
    """The limit's own clock jumps instead of the test waiting for it."""
    monkeypatch.setattr(timelimit, "time", time)
    hang = {}
    exec(HANGS.removesuffix("hang()\n"), hang)

    def score(self, candidate):
        hang["hang"]()
        time.sleep(600)

    monkeypatch.setattr(zoo_common.Raises, "score", score)
    results = check_component(zoo_common.spec("raises", zoo_common.Raises), on_fail="record", timeout=60)
    (hanging,) = failures(results)
    assert hanging.check == "works"
    assert hanging.message == "proxy local:raises (in process): no end within 60 s"


def test_without_docstrings_there_are_no_rules():
    code = "from nasdistill.testing.registry import all_checks; all_checks()"
    done = subprocess.run([sys.executable, "-OO", "-B", "-c", code], capture_output=True, text=True, check=False)
    assert "UsageError: the contract checks need docstrings, which python -OO drops" in done.stderr


def test_an_unknown_component_is_named():
    with pytest.raises(UnknownComponentError, match=r"synflwo.*synflow"):
        check_component("synflwo", host=isolated_host())
    with pytest.raises(UsageError, match=r"no plugin named 'proxis'. Did you mean 'proxies'"):
        check_plugin("proxis", host=isolated_host())


def test_a_name_of_two_kinds_wants_a_kind():
    host = isolated_host()
    with pytest.raises(UsageError, match="strategies:random"):
        check_component("random", host=host)
    assert check_component("random", kind=Kind.SAMPLER, host=host)


def test_a_plugin_is_checked_whole():
    host = isolated_host(SOUND, CHATTY)
    results = check_plugin("local", host=host, on_fail="record")
    assert [item.check for item in failures(results)] == ["prints_nothing"]
    assert {item.component for item in results} == {"local", "local:sound", "local:chatty"}
    assert not failures(
        check_plugin("local", host=host, expected_failures={"chatty": {"prints_nothing": "known"}}, on_fail="record")
    )
    with pytest.raises(UsageError, match="nobody"):
        check_plugin("local", host=host, expected_failures={"nobody": {}})


def test_a_malformed_spec_is_a_failure_of_its_plugin():
    bad = dataclasses.replace(SOUND, summary="two\nlines")
    results = check_plugin("local", host=isolated_host(bad, strict=False), on_fail="record")
    assert [item.check for item in failures(results)] == ["loads", "brings_components"]
    assert "summary must be one non-empty line" in failures(results)[0].message


def test_pytest_sees_ids_skips_and_strict_xfails():
    mark = parametrize_with_checks(
        "local", host=isolated_host(SOUND, CHATTY), expected_failures={"local:chatty": {"prints_nothing": "known"}}
    )
    parameters = {item.id: item for item in mark.args[1]}
    assert "local:sound-score_is_finite" in parameters
    assert "local-imports_light" in parameters
    known = parameters["local:chatty-prints_nothing"]
    assert known.marks[0].kwargs["strict"]
    with pytest.raises(AssertionError, match="it prints 'scored!'"):
        known.values[0]()
    parameters["local:sound-prints_nothing"].values[0]()
    only = parametrize_with_checks("local", host=isolated_host(SOUND), kind="proxy").args[1]
    assert all(item.id.startswith("local:sound") for item in only)


PLUGIN = """
from nasdistill import hookimpl
from nasdistill.spec.component import ProxySpec, ProxyTags, Requirement
{extra}
@hookimpl
def nasdistill_proxies():
    return [ProxySpec("mine", "{module}_parts:Mine", "one line", references=("original",), requires={requires},
                      tags=ProxyTags(needs_data=False, cost="analytic"))]
"""
PARTS = """
from zoo_common import Sound

class Mine(Sound):
    'Sound, in a file of its own.'
"""


def installed(folder, monkeypatch, name, *, extra="", requires="()"):
    """Install a plugin as a distribution and return a host that has it."""
    module = f"{name}_module"
    modules = {module: PLUGIN.format(extra=extra, module=module, requires=requires), f"{module}_parts": PARTS}
    write_distribution(folder, f"nasdistill-{name}", modules=modules, entries={name: module})
    monkeypatch.syspath_prepend(str(folder))
    return Host.load(only=[name], strict=False)


def checked(folder, monkeypatch, name, **changes):
    """Install a plugin, check it, and return check -> message of what failed."""
    host = installed(folder, monkeypatch, name, **changes)
    return {item.check: item.message for item in failures(check_plugin(name, on_fail="record", host=host))}


def test_an_installed_plugin_in_order_passes(tmp_path, monkeypatch):
    requires = '(Requirement("sklearn", "nasdistill[other]"),)'
    assert checked(tmp_path, monkeypatch, "orderly", requires=requires) == {}


CONNECT = """
import socket
try:
    with socket.socket() as phone:
        phone.connect(('127.0.0.1', 9))
except OSError:
    pass
"""


ASK = """
import urllib.request
try:
    urllib.request.urlopen("http://updates.invalid/ping", timeout=1)
except Exception:
    pass
"""
SEND = """
import contextlib, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone, contextlib.suppress(OSError):
    phone.sendto(b"hello", ("127.0.0.1", 9))
"""
LINGER = """
import sys, threading, time
if "pytest" not in sys.modules:
    threading.Thread(target=time.sleep, args=(600,)).start()
"""
LEAVE = """
import os, sys
if "pytest" not in sys.modules:
    os._exit(3)
"""
PART = """
import atexit, sys
if "pytest" not in sys.modules:
    atexit.register(print, "bye")
"""


@pytest.mark.parametrize(
    ("name", "extra", "says"),
    [
        ("heavy", "import torch", "imports torch"),
        ("noisy", "print('hello from noisy')", "prints 'hello from noisy'"),
        ("phoning", CONNECT, "connects to 127.0.0.1:9"),
        ("asking", ASK, "connects to updates.invalid:80"),
        ("sending", SEND, "connects to 127.0.0.1:9"),
        ("parting", PART, "prints 'bye'"),
        ("lingering", LINGER, "has not come to an end within 2 s"),
        ("leaving", LEAVE, "its module leaving_module cannot be imported alone: exit code 3, it says nothing"),
    ],
)
def test_what_a_plugin_does_when_it_is_listed_is_seen(tmp_path, monkeypatch, name, extra, says):
    if name == "lingering":
        monkeypatch.setattr(probing, "SECONDS", 2)
    host = installed(tmp_path, monkeypatch, name, extra=extra)
    results = {check.name: check.run() for check in plugin_checks(host, name)}
    assert [item.check for item in failures(results.values())] == ["imports_light"]
    assert says in results["imports_light"].message


TABLES = """
from nasdistill import hookimpl
from nasdistill.spec.component import ProxySpec, Requirement

NEEDS = (Requirement("zootables", "acme[tables]"),)

@hookimpl
def nasdistill_proxies():
    names = ("top", "body", "failing", "declared", "deep", "guarded", "late", "dynamic")
    needing = ("declared", "deep")
    return [ProxySpec(n, f"tabular.{n}:Mine", "one line", requires=NEEDS if n in needing else ()) for n in names]
"""
TABULAR = {
    "top": "import zootables.reader",
    "body": "class Mine:\n    from zootables import reader",
    "failing": "try:\n    import zootables\nexcept ImportError:\n    zootables = None\nzootables.reader",
    "declared": "import zootables.reader",
    "deep": "import zooframes",  # which zootables depends on
    "guarded": "try:\n    import zootables\nexcept ImportError:\n    zootables = None",
    "late": "def read():\n    import zootables",
    "dynamic": "import importlib\nimportlib.import_module('zooframes')",
}


def write_tables(folder):
    """Install a plugin whose components need tables in their ways, and the two packages that have some."""
    write_distribution(folder, "acme-tables", modules={"tables_plugin": TABLES}, entries={"tables": "tables_plugin"})
    (folder / "tabular").mkdir()
    for name, source in TABULAR.items():
        (folder / "tabular" / f"{name}.py").write_text(f"class Mine: pass\n{source}\n")
    for name, needs in (("zooframes", ""), ("zootables", "Requires-Dist: zooframes>=1\n")):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        (folder / name / "reader.py").touch()
        write_distribution(folder, name, modules={}, entry_points_text="")
        info = folder / f"{name}-1.2.dist-info"
        (info / "top_level.txt").write_text(name)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n{needs}")


def test_imports_that_nobody_declares_are_seen(tmp_path, monkeypatch):
    write_tables(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    host = Host.load(only=["tables"])

    def complete():
        (check,) = [item for item in plugin_checks(host, "tables") if item.name == "requires_is_complete"]
        return check.run()

    result = complete()
    assert result.status == "failed"
    assert result.message == (
        "plugin tables (acme-tables 1.2): tables:body imports zootables; tables:dynamic imports zooframes; "
        "tables:failing imports zootables; tables:top imports zootables, which neither nasdistill nor acme-tables "
        "depends on, and `requires` does not name"
    )
    metadata = tmp_path / "acme_tables-1.2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + 'Requires-Dist: zootables>=1; extra == "tables"\n')
    assert complete().status == "failed"
    metadata.write_text(metadata.read_text() + "Requires-Dist: zootables>=1\n")
    assert complete().status == "passed"


def test_a_component_that_lacks_a_package_is_skipped_and_says_what_to_install(tmp_path, monkeypatch, nasdistill_cli):
    requires = '(Requirement("no_such_thing", "acme[all]"),)'
    assert checked(tmp_path, monkeypatch, "lacking", requires=requires) == {}
    results = check_component("lacking:mine", host=Host.load(only=["lacking"]), thorough=True)
    assert len(results) > 20
    assert {(item.status, item.message) for item in results} == {
        ("skipped", "no_such_thing is not installed here: pip install 'acme[all]'")
    }
    done = nasdistill_cli("plugins", "check", "lacking:mine")
    assert done.code == 0
    assert "skipped" in done.stdout
    assert "pip install 'acme[all]'" in done.stdout


def test_an_empty_plugin_says_nothing_to_check(tmp_path, monkeypatch):
    write_distribution(tmp_path, "nasdistill-empty", modules={"empty_module": ""}, entries={"empty": "empty_module"})
    monkeypatch.syspath_prepend(str(tmp_path))
    results = check_plugin("empty", on_fail="record", host=Host.load(only=["empty"], strict=False))
    assert [item.check for item in failures(results)] == ["brings_components"]


def test_the_command(nasdistill_cli):
    done = nasdistill_cli("plugins", "check", "params", "--json")
    assert done.code == 0
    assert done.json["ok"] is True
    assert done.json["name"] == "params"
    assert {item["status"] for item in done.json["results"]} <= {"passed", "skipped"}
    done = nasdistill_cli("plugins", "check", "proxies:params", "-v")
    assert "proxies:params  ok" in done.stdout
    assert "checking proxy proxies:params: works\n" in done.stderr
    assert nasdistill_cli("plugins", "check", "paramz").code == 2
    done = nasdistill_cli("plugins", "check", "params", "--timeout", "soon")
    assert done.code == 2
    assert "'soon' is not a number of seconds" in done.stderr


ONE_FILE = """
import time
from zoo_common import Sound
from nasdistill import hookimpl
from nasdistill.spec.component import ProxySpec, ProxyTags
{hang}
class Hangs(Sound):
    'Never comes back.'
    def score(self, candidate):
        hang()
        time.sleep(600)

class Interrupted(Sound):
    'Somebody had enough of it.'
    def score(self, candidate):
        raise KeyboardInterrupt

@hookimpl
def nasdistill_proxies():
    return [ProxySpec(cls.__name__.lower(), f"{{__name__}}:{{cls.__name__}}", "one line", references=("original",),
                      tags=ProxyTags(needs_data=False, cost="analytic")) for cls in (Hangs, Interrupted)]
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")
def test_the_command_on_a_component_that_hangs(tmp_path, monkeypatch, nasdistill_cli):
    monkeypatch.setattr(timelimit, "time", time)
    file = tmp_path / "one_file_that_hangs.py"
    file.write_text(ONE_FILE.format(hang=HANGS.removesuffix("hang()\n")))
    done = nasdistill_cli("plugins", "check", "hangs", "--plugin", file, "--timeout", "60")
    assert done.code == 1
    assert "works failed: proxy one_file_that_hangs:hangs" in done.stdout
    assert "no end within 60 s" in done.stdout
    assert "checking proxy one_file_that_hangs:hangs\n" in done.stderr
    monkeypatch.setattr("nasdistill.cli.output.is_terminal", lambda stream=None: stream is sys.stderr)
    done = nasdistill_cli("plugins", "check", "interrupted", "--plugin", file)
    assert done.code == 130
    assert "\r\x1b[2Kchecking proxy one_file_that_hangs:interrupted: can_be_created\r\x1b[2Kchecking" in done.stderr
    assert done.stderr.endswith("\x1b[2Kinterrupted; it was proxy one_file_that_hangs:interrupted: works\n")


def test_the_command_on_a_broken_plugin(tmp_path, monkeypatch, nasdistill_cli):
    modules = {"crashing_module": "raise RuntimeError('half of it is missing')"}
    write_distribution(tmp_path, "nasdistill-crashing", modules=modules, entries={"crashing": "crashing_module"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("NASDISTILL_STRICT_PLUGINS", raising=False)
    done = nasdistill_cli("plugins", "check", "crashing")
    assert done.code == 1
    assert "half of it is missing" in done.stdout
    assert "likely fix:" in done.stdout


THEIRS = """
import sys

def test_light():
    heavy = {'torch', 'optuna', 'pydantic', 'numpy'} & set(sys.modules)
    assert not heavy, heavy
    assert not any(name.startswith('nasdistill.host') for name in sys.modules)

def test_fixtures(tiny_space, tiny_teacher, simulated_target, nasdistill_host, nasdistill_cli):
    import torch
    assert tiny_space.size() == 48
    assert tiny_teacher(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert simulated_target.probe().ok
    assert nasdistill_host.canonical('proxy', 'synflow') == 'proxies:synflow'
    assert nasdistill_cli('--version').stdout.startswith('nasdistill ')
"""


def test_the_pytest_plugin_imports_nothing_heavy_and_gives_fixtures(tmp_path):
    """A session of another project: no torch for a test that wants none; all fixtures for one that does."""
    (tmp_path / "test_theirs.py").write_text(THEIRS)
    off = [word for name in ("randomly", "hypothesispytest", "cacheprovider", "xdist") for word in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", *off, "test_theirs.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_spaces_of_a_plugin_share_a_process_and_one_that_breaks_it_off_harms_no_other(monkeypatch):
    asked, run = [], points.ask
    host = isolated_host(TINY_SPACE, dataclasses.replace(TINY_SPACE, name="other"))
    monkeypatch.setattr(points, "ask", lambda questions: asked.append(len(questions)) or run(questions))
    for name, counts in (("local:tiny", [2]), ("local:other", [2])):
        points.points_agree_across_processes(subject_of(host, name))
        assert asked == counts
    host = isolated_host(TINY_SPACE, dataclasses.replace(TINY_SPACE, name="other"))
    monkeypatch.setattr(points, "ask", lambda questions: "Killed" if len(questions) > 1 else run(questions))
    points.points_agree_across_processes(subject_of(host, "local:tiny"))
    monkeypatch.setattr(points, "ask", lambda questions: "Killed")
    with pytest.raises(CheckFailed, match="cannot be created in another process: Killed"):
        points.points_agree_across_processes(subject_of(host, "local:other"))


def subject_of(host, name):
    return Subject(host, host.record(Kind.SEARCH_SPACE, name), Example())


def test_failing_a_check_is_an_assertion():
    assert issubclass(CheckFailed, AssertionError)
