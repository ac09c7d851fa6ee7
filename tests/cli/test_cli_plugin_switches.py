"""``plugins disable`` and ``enable``, ``--plugin FILE.py``, and all sorts of broken plugins installed at once."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from fake_distributions import HANGS, PROXY_PLUGIN, write_distribution, write_proxy_plugin

LEAVES_A_TRACE = "from pathlib import Path\nPath({trace!r}).touch()\nraise RuntimeError('imported')\n"


def test_a_locked_out_user_removes_the_culprit(cli_here, tmp_path: Path):
    site, trace = tmp_path / "site", tmp_path / "imported"
    source = LEAVES_A_TRACE.format(trace=str(trace))
    write_distribution(site, "acme-dist", modules={"acme_module": source}, entries={"acme": "acme_module"})
    file = tmp_path / "config" / "plugins.toml"
    done = cli_here("plugins", "disable", "acne", site=site)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no plugin or distribution 'acne' is installed. Did you mean 'acme'" in done.stderr
    for words in (f"acme is disabled: {file}\n", f"acme is disabled already: {file}\n"):
        done = cli_here("plugins", "disable", "acme", site=site)
        assert (done.returncode, done.stdout, done.stderr) == (0, words, "")
    assert not trace.exists()
    listed = cli_here("plugins", "list", site=site)
    assert "warning" not in listed.stderr
    [row] = [line for line in listed.stdout.splitlines() if line.startswith("acme ")]
    assert row.split() == ["acme", "acme-dist", "1.2", "disabled", "by", str(file)]
    shown = cli_here("plugins", "show", "acme", site=site)
    assert f"disabled by {file}" in shown.stdout
    assert not trace.exists()
    for words in (f"acme is enabled: {file}\n", f"acme is not disabled in {file}\n"):
        assert cli_here("plugins", "enable", "acme", site=site).stdout == words
    assert not trace.exists()
    listed = cli_here("plugins", "list", site=site)
    assert "failed at import: RuntimeError: imported" in listed.stderr
    [row] = [line for line in listed.stdout.splitlines() if line.startswith("acme ")]
    assert row.split() == ["acme", "acme-dist", "1.2", "broken", "at", "import"]


def test_an_environment_variable_that_says_otherwise_is_named(cli_here, tmp_path: Path):
    write_proxy_plugin(tmp_path / "site", "acme", "cosine")
    disabled = cli_here("plugins", "disable", "acme", site=tmp_path / "site", env={"NASDISTILL_PLUGINS": "acme"})
    assert "plugin 'acme' still loads while NASDISTILL_PLUGINS names it" in disabled.stderr
    enabled = cli_here("plugins", "enable", "acme", site=tmp_path / "site", env={"NASDISTILL_PLUGINS": ""})
    assert "plugin 'acme' is still disabled by NASDISTILL_PLUGINS" in enabled.stderr
    flag = cli_here("plugins", "list", "--no-plugin", "acme", site=tmp_path / "site")
    [row] = [line for line in flag.stdout.splitlines() if line.startswith("acme ")]
    assert row.endswith("by --no-plugin or [plugins] disable")


def test_a_broken_file_of_settings_is_one_warning(cli_here, tmp_path: Path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "plugins.toml").write_text("disable = [")
    done = cli_here("plugins", "list", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)
    [line] = done.stderr.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'config' / 'plugins.toml'} cannot be read")
    refused = cli_here("plugins", "disable", "proxies")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Mend it or delete it." in refused.stderr


def test_names_of_the_file_that_are_gone_are_told(cli_here, tmp_path: Path):
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "plugins.toml").write_text('disable = ["gone"]')
    assert "also disables gone, not installed here" in cli_here("plugins", "list").stderr


FILE = """
from nasdistill import hookimpl
from nasdistill.interfaces import Proxy, ProxyScore
from nasdistill.spec.component import CommandSpec, ProxySpec
from nasdistill.spec.options import ComponentOptions

class Options(ComponentOptions):
    '''Options.'''
    power: int = 2

class Score(Proxy):
    options_model = Options
    def score(self, request):
        return ProxyScore(4.5)

def hello(args):
    print("hello from a file")

@hookimpl
def nasdistill_proxies():
    return [ProxySpec("mine", "one_off_cli:Score", "scores something", options="one_off_cli:Options")]

@hookimpl
def nasdistill_commands():
    return [CommandSpec("hello", "one_off_cli:hello", "says hello")]
"""


def test_a_file_works_for_every_command(cli_here, tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "one_off_cli.py").write_text(FILE)
    flag = ("--plugin", "notes/one_off_cli.py")
    done = cli_here("plugins", "list", *flag)
    assert "one_off_cli:mine" in done.stdout
    [row] = [line for line in done.stdout.splitlines() if line.startswith("one_off_cli  ")]
    assert row.split()[1] == "one_off_cli.py"
    assert row.endswith("enabled")
    shown = json.loads(cli_here("plugins", "show", "mine", "--json", "--plugin=notes/one_off_cli.py").stdout)
    assert (shown["id"], shown["distribution"]) == ("one_off_cli:mine", "one_off_cli.py")
    assert Path(shown["source"]["file"]) == tmp_path / "notes" / "one_off_cli.py"
    small = '{"width": 8, "stages": 1, "stage0.blocks": 1}'
    score = cli_here(*flag, "score", "--space", "resnet_s0", "--arch", small, "--proxy", "mine", "--json")
    assert score.returncode == 0, score.stderr
    assert "4.5" in score.stdout
    assert cli_here("spaces", "list", *flag).returncode == 0
    assert cli_here("hello", *flag).stdout == "hello from a file\n"
    assert cli_here("hello").returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plugin"], "--plugin needs a Python file"),
        (["--plugin", "--json"], "--plugin needs a Python file"),
        (["--plugin", "nowhere.py"], "plugin file nowhere.py cannot be read: No such file"),
        (["--plugin", "json.py"], "the name of an importable module"),
    ],
)
def test_files_that_cannot_be_are_wrong_usage(cli_here, tmp_path: Path, words: list[str], message: str):
    (tmp_path / "json.py").touch()
    done = cli_here("plugins", "list", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


PLAIN = (
    f"HANGS = {HANGS!r}\nfrom nasdistill import hookimpl\nfrom nasdistill.spec.component import LossSpec, ProxySpec\n"
)
HOOK = PLAIN + "@hookimpl\ndef nasdistill_proxies():\n    "
# distribution -> (source of its module, stage, words of the cause)
BROKEN = {
    "b01-import": ("import a_module_that_is_not_there", "import", "ModuleNotFoundError"),
    "b02-syntax": ("def :", "import", "SyntaxError"),
    "b03-exit": ("import sys\nsys.exit(3)", "import", "it called sys.exit(3)"),
    "b04-hang": (HANGS + "import time\ntime.sleep(600)", "import", "it took longer than 60 s"),
    "b05-newer": ("NASDISTILL_API = 2", "api-version", "written for plugin API 2"),
    "b06-hook-name": (HOOK.replace("proxies", "proxy") + "return []", "register", "unknown hook 'nasdistill_proxy'"),
    "b07-argument": (HOOK.replace("():", "(registry):") + "return []", "register", "registry"),
    "b08-raises": (HOOK + "return 1 / 0", "hook", "ZeroDivisionError"),
    "b09-none": (HOOK + "pass", "hook", "returned None instead of an iterable of ProxySpec"),
    "b10-midway": (HOOK + "yield ProxySpec('early', 'a:B', 'c')\n    raise OSError('gone')", "hook", "OSError: gone"),
    "b11-exit-in-hook": (HOOK + "raise SystemExit(4)", "hook", "it called sys.exit(4)"),
    "b12-hang-in-hook": (HOOK + f"exec({HANGS!r}); import time; time.sleep(600)", "hook", "it took longer than 60 s"),
    "b13-not-iterable": (HOOK + "return 3", "hook", "not iterable"),
    "b14-wrong-type": (HOOK + "return [LossSpec('x', 'a:B', 'c')]", "spec", "must return ProxySpec objects"),
    "b15-twice": (HOOK + "return [ProxySpec('x', 'a:B', 'c')] * 2", "spec", "b15_twice:x: the plugin has a proxy of"),
}  # fmt: skip


def test_all_broken_plugins_at_once(cli, tmp_path: Path):
    """Everything else works, and each is one line: what, which distribution, which stage, what next."""
    site = tmp_path / "site"
    for name, (source, _, _) in BROKEN.items():
        module = f"module_{name.replace('-', '_')}"
        write_distribution(
            site, name, version="3.4", modules={module: source}, entries={name.replace("-", "_"): module}
        )
    write_proxy_plugin(site, "good", "fine")
    write_proxy_plugin(site, "zgood", "fine_too", distribution="zz-good")
    clash = PROXY_PLUGIN.format(component="other", module="clash_module")
    write_distribution(site, "z-clash", modules={"clash_module": clash}, entries={"good": "clash_module"})
    loud = "print('hello')\n" + PROXY_PLUGIN.format(component="loud", module="loud_module")
    write_distribution(site, "z-loud", modules={"loud_module": loud}, entries={"loud": "loud_module"})
    write_distribution(site, "z-garbled", modules={}, entry_points_text="[nasdistill]\nno equals sign\n")

    done = cli("plugins", "list", "--json", site=site, env={"NASDISTILL_PLUGIN_TIMEOUT": "60"})
    assert done.returncode == 0
    ids = {entry["id"] for entry in json.loads(done.stdout)}
    assert {"proxies:synflow", "good:fine", "zgood:fine_too", "loud:loud", "b15_twice:x"} <= ids
    own = {entry for entry in ids if entry.startswith(("b0", "b1"))}
    assert own == {"b15_twice:x"}, "a plugin that breaks before the specs is out, whole"

    lines = done.stderr.splitlines()
    for name, (_, stage, words) in BROKEN.items():
        [line] = [line for line in lines if f"({name} 3.4)" in line]
        plugin = name.replace("-", "_")
        assert line.startswith(f"warning: plugin {plugin!r} ({name} 3.4) failed at {stage}: ")
        assert words in line
        next_step = (
            f"Update {name}" if stage == "spec" else f"nasdistill plugins disable {plugin}, or once: --no-plugin"
        )
        assert next_step in line
        lines.remove(line)
    rest = {
        "z-clash 1.2": "failed at metadata: nasdistill-good 1.2 has a plugin of that name already",
        "z-loud 1.2": "printed 'hello' at import. It was kept off stdout",
        "z-garbled 1.2": "failed at metadata: its entry points cannot be read",
    }
    for origin, words in rest.items():
        [line] = [line for line in lines if origin in line and words in line]
        assert "nasdistill plugins disable" in line
        lines.remove(line)
    assert lines == []


def test_a_user_who_is_nobody_has_no_settings_and_no_problem(cli, tmp_path: Path):
    """In a container the user may have neither a name nor a home."""
    env = {"NASDISTILL_CONFIG_HOME": "", "XDG_CONFIG_HOME": str(tmp_path / "none" / "such"), "HOME": os.devnull}
    done = cli("plugins", "list", "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_plugin_is_shown_as_documented(cli_here):
    text = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
    [told] = re.findall(r"^For a plugin: (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    keys = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", told)))
    assert set(json.loads(cli_here("plugins", "show", "proxies", "--json").stdout)) == keys
