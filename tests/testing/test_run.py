"""The fronts of the contract suite: functions, the command, and what pytest sees."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import zoo_common
from fake_distributions import write_distribution

from nasdistill.errors import UnknownComponentError, UsageError
from nasdistill.host import Host
from nasdistill.spec.component import Kind
from nasdistill.testing import (
    CheckFailed,
    Example,
    check_component,
    check_plugin,
    isolated_host,
    parametrize_with_checks,
)
from nasdistill.testing.results import CheckResult, failures

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


def test_listeners_hear_every_result():
    heard = []
    results = check_component(SOUND, on_result=heard.append)
    assert heard == results


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


def checked(folder, monkeypatch, name, *, extra="", requires="()"):
    """Install a plugin as a distribution, check it, and return check -> message of what failed."""
    module = f"{name}_module"
    modules = {module: PLUGIN.format(extra=extra, module=module, requires=requires), f"{module}_parts": PARTS}
    write_distribution(folder, f"nasdistill-{name}", modules=modules, entries={name: module})
    monkeypatch.syspath_prepend(str(folder))
    results = check_plugin(name, on_fail="record", host=Host.load(only=[name], strict=False))
    return {item.check: item.message for item in failures(results)}


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


@pytest.mark.parametrize(
    ("name", "extra", "says"),
    [
        ("heavy", "import torch", "imports torch"),
        ("noisy", "print('hello from noisy')", "prints 'hello from noisy'"),
        ("phoning", CONNECT, "connects to ('127.0.0.1', 9)"),
    ],
)
def test_what_a_plugin_does_when_it_is_listed_is_seen(tmp_path, monkeypatch, name, extra, says):
    found = checked(tmp_path, monkeypatch, name, extra=extra)
    assert list(found) == ["imports_light"]
    assert says in found["imports_light"]


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
    done = nasdistill_cli("plugins", "check", "proxies:params")
    assert "proxies:params  ok" in done.stdout
    assert "checking proxy proxies:params" in done.stderr
    assert nasdistill_cli("plugins", "check", "paramz").code == 2


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


def test_failing_a_check_is_an_assertion():
    assert issubclass(CheckFailed, AssertionError)
