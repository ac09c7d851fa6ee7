"""What leaves a plugin out, what goes before what, and the user's own file."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_distributions import PROXY_PLUGIN, write_distribution, write_proxy_plugin

from nasdistill.errors import UnknownComponentError, UsageError
from nasdistill.files import config_folder
from nasdistill.host import Host
from nasdistill.host.switches import (
    Switches,
    disable_for_user,
    enable_for_user,
    read_user_file,
    user_file,
    write_user_file,
)
from nasdistill.spec.component import Kind
from nasdistill.testing import isolated_host

IMPORTED = "raise RuntimeError('imported')"


def states(host: Host) -> dict[str, str]:
    return {plugin.name: plugin.state for plugin in host.plugins() if not plugin.bundled}


def test_the_folder_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("NASDISTILL_CONFIG_HOME", str(tmp_path / "own"))
    assert config_folder() == tmp_path / "own"
    monkeypatch.delenv("NASDISTILL_CONFIG_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "shared"))
    assert config_folder() == tmp_path / "shared" / "nasdistill"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert config_folder() == tmp_path / "home" / ".config" / "nasdistill"


def test_a_plugin_disabled_for_the_user_is_not_imported_until_it_is_enabled(site: Path):
    write_distribution(site, "acme-dist", modules={"acme_module": IMPORTED}, entries={"acme": "acme_module"})
    assert disable_for_user("acme") is True
    assert disable_for_user("acme") is False
    assert read_user_file() == ("acme",)
    host = Host.load()
    assert host.problems == host.notices == []
    record = host.plugin("acme")
    assert record is not None
    assert (record.state, record.disabled_by) == ("disabled", str(user_file()))
    with pytest.raises(UnknownComponentError, match="which is disabled") as error:
        host.canonical(Kind.PROXY, "acme:cosine")
    assert "nasdistill plugins enable acme" in error.value.hint
    with pytest.raises(UnknownComponentError) as error:
        host.canonical(Kind.PROXY, "cosine")
    assert "Disabled plugins, which may have it: acme." in error.value.hint
    assert enable_for_user("acme") is True
    assert enable_for_user("acme") is False
    assert [problem.plugin for problem in Host.load().problems] == ["acme"]


def test_a_bundled_plugin_and_its_own_names_only(site: Path):
    disable_for_user("proxies")
    assert Host.load().specs(Kind.PROXY) == []
    with pytest.raises(UsageError, match="no plugin or distribution 'nasdistill'"):
        disable_for_user("nasdistill")


def test_unknown_names_are_refused_and_nothing_is_written(site: Path):
    write_proxy_plugin(site, "acme", "cosine")
    for action in (disable_for_user, enable_for_user):
        with pytest.raises(UsageError, match=r"'acne' is installed\. Did you mean 'acme'"):
            action("acne")
    assert not user_file().exists()


def test_a_distribution_stands_for_all_its_plugins(site: Path):
    modules = {f"{name}_module": PROXY_PLUGIN.format(component=name, module="x") for name in ("one", "two", "three")}
    write_distribution(site, "Many_Things", modules=modules, entries={name.partition("_")[0]: name for name in modules})
    disable_for_user("many-things")  # as pip spells it
    assert states(Host.load()) == {"one": "disabled", "two": "disabled", "three": "disabled"}
    enable_for_user("two")  # the others stay as they are
    assert states(Host.load()) == {"one": "disabled", "two": "loaded", "three": "disabled"}
    disable_for_user("two")
    enable_for_user("Many_Things")
    assert set(states(Host.load()).values()) == {"loaded"}
    assert read_user_file() == ()


def test_a_name_that_is_gone_can_be_enabled(site: Path):
    write_user_file(["gone"])
    assert enable_for_user("gone") is True
    assert read_user_file() == ()


def test_a_distribution_with_unreadable_metadata_can_be_disabled(site: Path):
    write_distribution(site, "garbled", modules={}, entry_points_text="[nasdistill]\nno equals sign\n")
    [problem] = Host.load().problems
    assert "nasdistill plugins disable garbled" in problem.hint
    disable_for_user("garbled")
    assert Host.load().problems == []


def test_disabling_one_of_two_plugins_of_one_name_lets_the_other_in(site: Path):
    write_proxy_plugin(site, "acme", "cosine", distribution="a-dist")
    write_distribution(
        site, "b-dist", modules={"other": PROXY_PLUGIN.format(component="sine", module="other")},
        entries={"acme": "other"},
    )  # fmt: skip
    [problem] = Host.load().problems
    assert "nasdistill plugins disable b-dist" in problem.hint
    disable_for_user("a-dist")
    host = Host.load()
    assert host.problems == []
    assert host.record(Kind.PROXY, "acme:sine").distribution == "b-dist"
    assert [(p.distribution, p.state) for p in host.plugins() if p.name == "acme"] == [
        ("b-dist", "loaded"),
        ("a-dist", "disabled"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("disable = [", "TOMLDecodeError"),
        ("disabled = ['acme']", "unknown key 'disabled'"),
        ("disable = 'acme'", "not a list"),
        ("disable = [1]", "not a list"),
        ("\xff", "UnicodeDecodeError"),
        (None, "directory"),
    ],
)
def test_a_user_file_that_cannot_be_read_is_one_notice(site: Path, text: str | None, words: str):
    write_proxy_plugin(site, "acme", "cosine")
    path = user_file()
    if text is None:
        path.mkdir(parents=True)
    else:
        path.parent.mkdir()
        path.write_bytes(text.encode("latin-1"))
    host = Host.load()
    [notice] = host.notices
    assert str(path) in notice
    assert words in notice
    assert "disables nothing" in notice
    assert "\n" not in notice
    assert host.canonical(Kind.PROXY, "cosine") == "acme:cosine"
    with pytest.raises(UsageError, match=words):  # and nobody's file is written over
        disable_for_user("acme")
    assert path.is_dir() if text is None else path.read_bytes() == text.encode("latin-1")


def test_a_user_without_a_home_has_no_settings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "nasdistill.host.switches.config_folder", lambda: (_ for _ in ()).throw(RuntimeError("no home"))
    )
    assert Host.load(only=[], user_settings=True).notices == []


def test_a_linked_user_file_stays_a_link(site: Path, tmp_path: Path):
    (tmp_path / "dotfiles.toml").write_text("disable = []\n")
    user_file().parent.mkdir()
    user_file().symlink_to(tmp_path / "dotfiles.toml")
    disable_for_user("proxies")
    assert user_file().is_symlink()
    assert "proxies" in (tmp_path / "dotfiles.toml").read_text()


def test_the_first_that_has_something_to_say_decides():
    def by(name: str, *, bundled: bool = False, one_off: bool = False, **fields: object) -> str:
        return Switches(**fields).disabled_by([name], bundled=bundled, one_off=one_off)

    path = str(user_file())
    everything = {"disable": ("a",), "environment": ("a", "b"), "only": ("a", "b", "c"), "user": ("a", "b", "c", "d")}
    assert by("a", **everything) == "--no-plugin or [plugins] disable"
    assert by("b", **everything) == "NASDISTILL_DISABLE_PLUGINS"
    assert by("c", **everything) == ""  # asked for, whatever the user's file says
    assert by("d", **everything) == "NASDISTILL_PLUGINS"
    assert by("d", **everything, bundled=True) == path
    assert by("d", **everything, one_off=True) == ""
    assert by("b", **everything, one_off=True) == "NASDISTILL_DISABLE_PLUGINS"
    assert by("d", user=("d",)) == path
    assert by("d") == ""


def test_the_arguments_say_the_same_later(site: Path, monkeypatch: pytest.MonkeyPatch):
    """What a worker process is given: neither the user's file nor the environment is asked again."""
    for name in ("aa", "bb", "cc"):
        write_proxy_plugin(site, name, f"proxy_{name}")
    write_distribution(site, "zz-dist", modules={"zz_module": IMPORTED}, entries={"zz": "zz_module"})
    write_user_file(["aa", "proxies"])
    monkeypatch.setenv("NASDISTILL_DISABLE_PLUGINS", "bb")
    host = Host.load(disable=["losses"])
    assert states(host) == {"aa": "disabled", "bb": "disabled", "cc": "loaded", "zz": "broken"}
    write_user_file(["cc"])
    monkeypatch.delenv("NASDISTILL_DISABLE_PLUGINS")
    again = Host.load(**host.arguments)
    assert [record.id for record in again.specs()] == [record.id for record in host.specs()]
    assert again.problems == []  # what broke, or hung, is not tried again
    write_user_file(["aa", "proxies"])
    monkeypatch.setenv("NASDISTILL_PLUGINS", "aa")
    host = Host.load()
    monkeypatch.delenv("NASDISTILL_PLUGINS")
    again = Host.load(**host.arguments)
    assert [record.id for record in again.specs()] == [record.id for record in host.specs()]
    assert states(again) == {"aa": "loaded", "bb": "disabled", "cc": "disabled", "zz": "disabled"}


def test_a_host_without_third_parties_heeds_no_user(site: Path):
    write_user_file(["proxies"])
    assert Host.load(third_party=False).specs(Kind.PROXY)
    assert not Host.load(third_party=False, user_settings=True).specs(Kind.PROXY)


def test_a_host_may_be_loaded_without_the_environment(site: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("aa", "bb"):
        write_proxy_plugin(site, name, f"proxy_{name}")
    monkeypatch.setenv("NASDISTILL_DISABLE_PLUGINS", "aa,proxies")
    monkeypatch.setenv("NASDISTILL_PLUGINS", "bb")
    host = Host.load(environment=False)
    assert states(host) == {"aa": "loaded", "bb": "loaded"}
    assert host.specs(Kind.PROXY)
    write_user_file(["losses"])
    isolated = isolated_host()
    assert {plugin.state for plugin in isolated.plugins()} == {"loaded"}
