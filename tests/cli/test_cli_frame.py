"""The frame: help without imports, exit codes, messages, plugins' commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_distributions import write_distribution
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nasdistill.cli import main
from nasdistill.cli.app import Parser, split_common
from nasdistill.cli.table import COMMANDS
from nasdistill.errors import UsageError

HEAVY = {"torch", "numpy", "optuna", "networkx", "pydantic", "rich", "transformers", "pluggy", "timm", "diffusers"}
LOADED = """
import json, sys
sys.argv = ["nasdistill", *json.loads(sys.argv[1])]
code = 0
if sys.argv[1:] != ["import"]:
    from nasdistill.cli import main
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
else:
    import nasdistill
print()
print(json.dumps([code or 0, sorted(sys.modules)]))
"""


def loaded_by(*words: str) -> set[str]:
    """Top-level modules loaded by a call of the command line, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(words)], capture_output=True, text=True, check=True, timeout=120
    )
    code, modules = json.loads(done.stdout.strip().splitlines()[-1])
    assert code == 0, done.stderr
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("word", ["--help", "--version", "import"])
def test_nothing_heavy_is_loaded(word: str):
    assert not HEAVY & loaded_by(word)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_light_and_complete(command: str):
    assert not HEAVY & loaded_by(command, "--help")


def test_help_of_an_action_is_light():
    assert not HEAVY & loaded_by("plugins", "show", "--help")


def test_listing_plugins_loads_no_component():
    loaded = loaded_by("plugins", "list", "--json")
    assert "pluggy" in loaded
    assert not (HEAVY - {"pluggy"}) & loaded


def test_help_is_the_table(cli_here):
    done = cli_here("--help")
    assert done.returncode == 0
    for name, (_, summary) in COMMANDS.items():
        assert name in done.stdout
        assert summary in done.stdout
    assert done.stderr == ""


def test_a_commands_help_names_the_common_options(cli):
    done = cli("doctor", "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
    assert "--no-plugin NAME" in done.stdout


def test_no_command_is_wrong_usage(cli_here):
    done = cli_here()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: nasdistill COMMAND" in done.stderr


def test_version(cli_here):
    from nasdistill import __version__

    assert cli_here("--version").stdout == f"nasdistill {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch"], "no command 'serch'. Did you mean 'search'?"),
        (["qqqq"], "no command 'qqqq'. Known:"),
        (["--verison"], "unknown option --verison. Did you mean '--version'"),
        (["plugins", "list", "--knd", "proxy"], "unknown argument --knd. Did you mean '--kind'"),
        (["doctor", "surplus"], "unknown argument surplus"),
        (["plugins"], "ACTION"),
        (["plugins", "lst"], "invalid choice: 'lst'"),
        (["doctor", "--js"], "unknown argument --js. Did you mean '--json'?"),
        (["--no-plugin"], "--no-plugin needs the name of a plugin"),
        (["doctor", "--no-plugin", "--json"], "--no-plugin needs the name of a plugin"),
        (["config", "show", "nowhere.toml"], "cannot read configuration nowhere.toml"),
    ],
)
def test_wrong_usage_is_one_message_and_exit_code_2(cli_here, words: list[str], message: str):
    done = cli_here(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_common_options_stand_anywhere_before_the_separator():
    common, rest = split_common(["-q", "score", "--no-plugin", "a", "--arch", "x", "-vv", "--no-plugin=b", "--", "-q"])
    assert rest == ["score", "--arch", "x", "--", "-q"]
    assert (common.quiet, common.verbose, common.debug, common.no_plugin) == (True, 2, False, ["a", "b"])
    with pytest.raises(UsageError):
        split_common(["score", "--no-plugin"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.one_of(st.text(), st.sampled_from(["-", "--", "-q", "--no-plugin", "--x=1", "list"])), min_size=1)
)
def test_any_words_end_in_an_exit_code(words: list[str], capsys: pytest.CaptureFixture[str]):
    code = main(words)
    streams = capsys.readouterr()
    assert code in (0, 2)
    assert "Traceback" not in streams.err
    assert not streams.err.startswith("error: this is a bug")


def test_options_are_not_abbreviated():
    parser = Parser(prog="x")
    parser.add_argument("--trials")
    common, _ = split_common([])
    with pytest.raises(UsageError, match="--tria"):
        parser.parse_all(["--tria", "3"], common)


COMMAND_PLUGIN = """
from nasdistill import hookimpl
from nasdistill.spec.component import CommandSpec

@hookimpl
def nasdistill_commands():
    return [CommandSpec(name, f"acme_commands:{name}", f"does {name}") for name in (
        "hello", "interrupt", "bug", "full", "memory", "wrong", "search", "closed", "leave", "loud",
    )]
"""
COMMANDS_MODULE = """
import errno
import sys

from nasdistill.errors import NasdistillError, UsageError

def add_arguments(parser):
    parser.add_argument("--name", default="world")

def hello(args):
    print(f"hello {args.name}")

def interrupt(args):
    raise KeyboardInterrupt

def bug(args):
    return {}["missing"]

def full(args):
    raise OSError(errno.ENOSPC, "whatever the system says", "runs/x")

def memory(args):
    raise MemoryError

def wrong(args):
    raise UsageError("that was wrong", hint="Do it right.")

def search(args):
    return 7

def closed(args):
    for number in range(100000):
        print(number)
    return 0

def leave(args):
    sys.exit(5)

def loud(args):
    from nasdistill.cli import output
    output.info("progress")
    output.detail("detail")
    output.warn("careful")
    output.print_table(("a", "b"), [("x", None), ("long cell", 12)], right=("b",))
    return 0
"""


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A folder with a plugin that brings commands."""
    folder = tmp_path / "site"
    write_distribution(
        folder,
        "acme-dist",
        modules={"acme_plugin": COMMAND_PLUGIN, "acme_commands": COMMANDS_MODULE},
        entries={"acme": "acme_plugin"},
    )
    return folder


def test_a_plugins_command_runs(cli, acme: Path):
    done = cli("hello", "--name", "there", site=acme)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello there\n", "")
    assert "does hello" in cli("hello", "--help", site=acme).stdout


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("interrupt", 130, "interrupted\n"),
        ("bug", 1, "error: command 'acme:bug' (acme-dist 1.2) failed: KeyError: 'missing'\n"),
        ("full", 1, "error: No space left on device: runs/x\n"),
        ("memory", 1, "error: out of memory"),
        ("wrong", 2, "error: that was wrong\n  Do it right.\n"),
        ("leave", 5, ""),
    ],
)
def test_every_end_has_its_exit_code(cli_here, acme: Path, command: str, code: int, message: str):
    done = cli_here(command, site=acme)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(cli_here, acme: Path):
    done = cli_here("bug", "--debug", site=acme)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert 'return {}["missing"]' in done.stderr


def test_a_bug_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import nasdistill.cli.config

    def broken(args: object) -> int:
        raise TypeError("first line\nsecond line")

    monkeypatch.setattr(nasdistill.cli.config, "run", broken)
    assert main(["config", "schema"]) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[0] == "error: this is a bug in nasdistill: TypeError: first line"
    assert "--debug" in err
    assert "Traceback" not in err


def test_a_built_in_command_wins_and_the_id_still_reaches_the_other(cli, acme: Path):
    assert "--trials" in cli("search", "--help", site=acme).stdout
    assert cli("acme:search", site=acme).returncode == 7


def test_a_reader_that_leaves_early_is_no_error(acme: Path):
    environment = {**os.environ, "PYTHONPATH": str(acme)}
    line = f"{sys.executable} -m nasdistill closed | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "0\n"
    assert done.stderr == ""


def test_quiet_verbose_and_piped_tables(cli_here, acme: Path):
    table = "a           b\n---------  --\nx\nlong cell  12\n"
    done = cli_here("loud", site=acme)
    assert (done.stdout, done.stderr) == (table, "progress\nwarning: careful\n")
    assert cli_here("loud", "-q", site=acme).stderr == ""
    assert cli_here("loud", "-v", site=acme).stderr == "progress\ndetail\nwarning: careful\n"


def test_a_table_on_a_terminal(acme: Path):
    master, slave = os.openpty()
    environment = {**os.environ, "PYTHONPATH": str(acme), "TERM": "xterm-256color", "COLUMNS": "80", "NO_COLOR": "1"}
    with os.fdopen(slave, "wb") as terminal:
        subprocess.run(
            [sys.executable, "-m", "nasdistill", "loud"],
            stdout=terminal, stderr=subprocess.DEVNULL, env=environment, check=True, timeout=120,
        )  # fmt: skip
    with os.fdopen(master, "rb") as screen:
        text = screen.read1(65536).decode()
    assert "long cell" in text
    assert "---" not in text  # rich draws its own line
    assert not re.search(r"\x1b\[(3[0-9]|9[0-7]|38|48)", text)  # no colours with NO_COLOR


def test_a_broken_plugin_is_one_line_and_the_command_still_works(cli, acme: Path):
    write_distribution(
        acme, "broken-dist", modules={"broken_module": "import missing_thing"}, entries={"broken": "broken_module"}
    )
    done = cli("hello", site=acme)
    assert (done.returncode, done.stdout) == (0, "hello world\n")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("warning: plugin 'broken' (broken-dist 1.2) failed at import: ModuleNotFoundError")
    assert "--no-plugin broken" in done.stderr
    assert cli("hello", "--no-plugin", "broken", site=acme).stderr == ""
    assert cli("hello", site=acme, env={"NASDISTILL_DISABLE_PLUGINS": "broken-dist"}).stderr == ""
    strict = cli("hello", site=acme, env={"NASDISTILL_STRICT_PLUGINS": "1"})
    assert strict.returncode == 1
    assert strict.stderr.startswith("error: plugin 'broken'")
    assert "nothing to leave out" in cli("hello", "--no-plugin", "nonsense", site=acme).stderr


def test_a_command_that_claims_a_common_option(cli_here, tmp_path: Path):
    source = COMMANDS_MODULE.replace('"--name", default="world"', '"-h", default="world"')
    folder = tmp_path / "site"
    write_distribution(
        folder,
        "acme-dist",
        modules={"acme_plugin": COMMAND_PLUGIN, "acme_commands": source},
        entries={"acme": "acme_plugin"},
    )
    done = cli_here("hello", site=folder)
    assert done.returncode == 1
    assert "acme-dist" in done.stderr
    assert "conflicting option" in done.stderr
