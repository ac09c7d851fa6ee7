"""What authors and users of a plugin are told at the moment that something is not as they think."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_distributions import write_distribution

HOOKS = """
    from nasdistill import hookimpl
    from nasdistill.spec.component import ProxySpec, ProxyTags

    @hookimpl
    def nasdistill_proxies():
        return [ProxySpec("mine", "acme_scores:Mine", "a proxy"{tags})]
"""
SCORES = """
    from nasdistill.interfaces import Proxy, ProxyScore

    class Mine(Proxy):
        def score(self, candidate):
            return ProxyScore(1.0)
"""
ARCH = ("--space", "resnet_s0", "--arch", '{"width": 8}')


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A plugin in order, with a component of another name."""
    modules = {"acme_hooks": HOOKS.format(tags=""), "acme_scores": SCORES}
    write_distribution(tmp_path / "site", "acme-scores", modules=modules, entries={"acme": "acme_hooks"})
    return tmp_path / "site"


def test_a_plugin_that_breaks_says_where_to_those_who_ask(cli_here, tmp_path):
    modules = {"broken_hooks": HOOKS.format(tags=", tags=ProxyTags(need_data=False)")}
    write_distribution(tmp_path / "site", "broken-dist", modules=modules, entries={"broken": "broken_hooks"})
    plain = cli_here("plugins", "list", site=tmp_path / "site").stderr
    assert "unexpected keyword argument 'need_data'. Did you mean 'needs_data'" in plain
    assert "if it is yours, see nasdistill --debug plugins check broken" in plain
    line = f"  at {tmp_path}/site/broken_hooks.py:"
    assert line not in plain
    assert line in cli_here("-v", "plugins", "list", site=tmp_path / "site").stderr
    whole = cli_here("--debug", "plugins", "list", site=tmp_path / "site").stderr
    assert "Traceback (most recent call last)" in whole
    assert "tags=ProxyTags(need_data=False)" in whole


def test_a_disabled_plugin_says_how_to_have_it_back(cli_here, acme):
    assert cli_here("plugins", "disable", "acme", site=acme).returncode == 0
    for words in (("plugins", "check", "acme"), ("score", *ARCH, "--proxy", "mine")):
        done = cli_here(*words, site=acme)
        assert done.returncode == 2
        assert "nasdistill plugins enable acme" in done.stderr
    done = cli_here("plugins", "check", "acme", site=acme, env={"NASDISTILL_DISABLE_PLUGINS": "acme"})
    assert "NASDISTILL_DISABLE_PLUGINS" in done.stderr


def test_disabling_what_is_bundled_says_what_that_means(cli_here, acme):
    assert "whatever names its components fails" in cli_here("plugins", "disable", "attention").stderr
    assert cli_here("plugins", "disable", "acme", site=acme).stderr == ""


def test_a_package_that_is_not_installed_yet(cli_here, tmp_path):
    done = cli_here("plugins", "check", "foo_bar")
    assert done.returncode == 2
    assert "Plugins are found in installed packages" in done.stderr
    assert "Known" not in done.stderr
    folder = tmp_path / "nasdistill-foo-bar"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    for name in ("foo_bar", "nasdistill-foo-bar", "./nasdistill-foo-bar"):
        done = cli_here("plugins", "check", name)
        assert done.returncode == 2
        assert "pip install -e ./nasdistill-foo-bar" in done.stderr


def test_a_plugin_that_is_asked_for_and_is_not_there(cli_here):
    done = cli_here("plugins", "list", env={"NASDISTILL_PLUGINS": "nosuch"})
    assert "plugin 'nosuch' failed at metadata: NASDISTILL_PLUGINS asks for it" in done.stderr


def test_a_renamed_file_says_how_its_targets_are_written(cli_here, tmp_path):
    import textwrap

    text = textwrap.dedent(HOOKS.format(tags="")).replace("acme_scores:", "idea_one:") + textwrap.dedent(SCORES)
    (tmp_path / "idea_two.py").write_text(text)
    done = cli_here("score", *ARCH, "--plugin", "idea_two.py", "--proxy", "mine")
    assert done.returncode == 1
    assert "FILE:Class, here 'idea_two:Mine'" in done.stderr


def test_kinds_are_understood_in_the_plural_and_not_misspelt(cli_here, tmp_path):
    done = cli_here("plugins", "new", "kk", "--kind", "losss")
    assert done.returncode == 2
    assert "Did you mean 'loss'" in done.stderr
    for kind in ("losses", "proxies", "search-spaces"):
        assert cli_here("plugins", "new", "kk", "--kind", kind, "--out", kind).returncode == 0


def test_every_action_shows_the_options_of_every_command(cli_here):
    text = cli_here("plugins", "check", "--help").stdout
    assert text.count("--debug") == 1
    assert text.count("--help") == 1


def test_a_search_names_file_and_table_as_validate_does(cli_here, tmp_path):
    (tmp_path / "bad.toml").write_text('[[space]]\nname = "resnet_s0"\n[[proxy]]\nname = "nwott"\n')
    said = [cli_here(*words).stderr for words in (("search", "bad.toml"), ("config", "validate", "bad.toml"))]
    assert said[0] == said[1]
    assert "bad.toml: [[proxy]] no proxy named 'nwott'" in said[0]
    assert not (tmp_path / "runs").exists()


def test_leaving_the_program_is_said_with_its_place(cli_here, tmp_path):
    modules = {"acme_hooks": HOOKS.format(tags=""), "acme_scores": SCORES.replace("class Mine(Proxy):", """
    class Mine(Proxy):
        def batches_needed(self):
            raise SystemExit(3)
""")}  # fmt: skip
    write_distribution(tmp_path / "site", "acme-scores", modules=modules, entries={"acme": "acme_hooks"})
    done = cli_here("score", *ARCH, "--proxy", "mine", site=tmp_path / "site")
    assert done.returncode == 1
    assert f"a component ended the command: it called sys.exit(3) ({tmp_path}/site/acme_scores.py:" in done.stderr
