"""Each stage of loading, with real modules and real distributions; a broken plugin harms no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_distributions import PROXY_PLUGIN, write_distribution, write_proxy_plugin

from nasdistill.errors import BrokenComponentError, UnknownComponentError
from nasdistill.host import Host, PluginError, Stage
from nasdistill.host.bundled import BUNDLED
from nasdistill.spec.component import Kind


def load_beside_a_good_plugin(site: Path) -> Host:
    """Load with one more, working plugin, and check that it and the bundled ones came through."""
    write_proxy_plugin(site, "zz_good", "fine")
    host = Host.load()
    assert host.canonical(Kind.PROXY, "fine") == "zz_good:fine"
    loaded = {plugin.module for plugin in host.plugins() if plugin.state == "loaded"}
    assert loaded >= {*BUNDLED, "zz_good_module"}
    return host


def the_problem(host: Host):
    assert len(host.problems) == 1, host.problems
    return host.problems[0]


def test_bundled_plugins_load_without_problems():
    host = Host.load(third_party=False, strict=True)
    assert host.problems == []
    assert [plugin.name for plugin in host.plugins()] == [module.removeprefix("nasdistill_") for module in BUNDLED]
    assert all(plugin.bundled and plugin.api == 1 for plugin in host.plugins())


def test_a_third_party_plugin_loads_like_a_bundled_one(site: Path):
    write_proxy_plugin(site, "acme", "cosine")
    host = Host.load()
    record = host.record(Kind.PROXY, "cosine")
    assert (record.id, record.plugin, record.distribution, record.version) == (
        "acme:cosine", "acme", "nasdistill-acme", "1.2",
    )  # fmt: skip
    proxy = host.create(Kind.PROXY, "cosine", {"power": 3})
    assert proxy.id == "acme:cosine"
    assert proxy.options.power == 3
    assert proxy.host is host


def test_an_entry_point_may_name_an_object_in_a_module(site: Path):
    source = """
    from nasdistill import hookimpl
    from nasdistill.spec.component import ProxySpec

    class Plugin:
        NASDISTILL_API = 1
        @hookimpl
        def nasdistill_proxies(self):
            return (ProxySpec("one", "nowhere:One", "one") for _ in range(1))

    class Holder:
        plugin = Plugin()
    """
    write_distribution(
        site, "objects", modules={"objects_module": source}, entries={"objects": "objects_module:Holder.plugin"}
    )
    assert Host.load().canonical(Kind.PROXY, "one") == "objects:one"


def test_import_error_is_one_problem_and_is_chained_when_named(site: Path):
    write_distribution(
        site,
        "broken-dist",
        modules={"broken_module": "import a_module_that_is_not_there"},
        entries={"broken": "broken_module"},
    )
    host = load_beside_a_good_plugin(site)
    problem = the_problem(host)
    assert (problem.plugin, problem.distribution, problem.version, problem.stage) == (
        "broken", "broken-dist", "1.2", Stage.IMPORT,
    )  # fmt: skip
    assert "a_module_that_is_not_there" in problem.cause
    assert "\n" not in str(problem)
    assert "--no-plugin broken" in str(problem)
    with pytest.raises(BrokenComponentError, match=r"broken-dist 1\.2") as caught:
        host.create(Kind.PROXY, "broken:anything")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(UnknownComponentError, match="no proxy named 'anything'") as unknown:
        host.create(Kind.PROXY, "anything")
    assert "broken" in unknown.value.hint


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys; sys.exit(3)", "sys.exit(3)"),
        ("raise SystemExit", "sys.exit(None)"),
        ("def :", "SyntaxError"),
        ("raise RuntimeError('several\\nlines')", "RuntimeError: several"),
        ("raise RuntimeError", "RuntimeError"),
        ("raise KeyError('x')", "KeyError"),
    ],
)
def test_what_a_module_does_at_import_is_isolated(site: Path, source: str, words: str):
    write_distribution(site, "broken-dist", modules={"broken_module": source}, entries={"broken": "broken_module"})
    problem = the_problem(load_beside_a_good_plugin(site))
    assert problem.stage is Stage.IMPORT
    assert words in problem.cause
    assert "\n" not in str(problem)


def test_an_interrupt_while_importing_is_the_users(site: Path):
    write_distribution(
        site, "slow", modules={"slow_module": "raise KeyboardInterrupt"}, entries={"slow": "slow_module"}
    )
    with pytest.raises(KeyboardInterrupt):
        Host.load()


@pytest.mark.parametrize("value", ["no_such_module", "acme_module:missing", "not a value!", ""])
def test_a_wrong_entry_point_value(site: Path, value: str):
    write_distribution(site, "acme-dist", modules={"acme_module": ""}, entries={"acme": value})
    assert the_problem(load_beside_a_good_plugin(site)).plugin == "acme"


@pytest.mark.parametrize(
    ("api", "works"), [("1", True), ("2", False), ("0", False), ("True", False), ("'1'", False), ("None", False)]
)
def test_api_version(site: Path, api: str, works: bool):
    source = f"NASDISTILL_API = {api}\n" + PROXY_PLUGIN.format(component="cosine", module="acme_module")
    write_distribution(site, "acme-dist", modules={"acme_module": source}, entries={"acme": "acme_module"})
    host = load_beside_a_good_plugin(site)
    assert [problem.stage for problem in host.problems] == ([] if works else [Stage.API_VERSION])
    assert ("acme:cosine" in [record.id for record in host.specs(Kind.PROXY)]) is works


def test_an_unknown_hook_takes_the_plugin_out_and_leaves_no_trace(site: Path):
    source = PROXY_PLUGIN.format(component="cosine", module="acme_module") + (
        "\n@hookimpl\ndef nasdistill_proxy():\n    return []\n"
    )
    write_distribution(site, "acme-dist", modules={"acme_module": source}, entries={"acme": "acme_module"})
    host = load_beside_a_good_plugin(site)
    problem = the_problem(host)
    assert problem.stage is Stage.REGISTER
    assert "nasdistill_proxy" in problem.cause
    assert "nasdistill_proxies" in problem.hint
    assert host.specs(Kind.PROXY)[-1].plugin == "zz_good"
    assert "acme:cosine" not in [record.id for record in host.specs()]


def test_wrong_hook_arguments(site: Path):
    source = PROXY_PLUGIN.format(component="cosine", module="acme_module").replace("proxies():", "proxies(registry):")
    write_distribution(site, "acme-dist", modules={"acme_module": source}, entries={"acme": "acme_module"})
    problem = the_problem(load_beside_a_good_plugin(site))
    assert problem.stage is Stage.REGISTER
    assert "registry" in problem.cause


HOOK = """
from nasdistill import hookimpl
from nasdistill.spec.component import LossSpec, ProxySpec, SearchSpaceSpec

@hookimpl
def nasdistill_search_spaces():
    return [SearchSpaceSpec("earlier", "nowhere:Space", "was fine")]

@hookimpl
def nasdistill_proxies():
    {body}
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ZeroDivisionError('oh')", "ZeroDivisionError: oh"),
        ("import sys; sys.exit(1)", "sys.exit(1)"),
        ("return None", "returned None"),
        ("return 3", "not iterable"),
        ("return ProxySpec('a', 'b:C', 'd')", "one spec instead of an iterable"),
        ("return (1 / 0 for _ in range(1))", "ZeroDivisionError"),
    ],
)
def test_a_failing_hook_takes_its_whole_plugin_out(site: Path, body: str, words: str):
    write_distribution(
        site, "acme-dist", modules={"acme_module": HOOK.format(body=body)}, entries={"acme": "acme_module"}
    )
    host = load_beside_a_good_plugin(site)
    problem = the_problem(host)
    assert problem.stage is Stage.HOOK
    assert words in problem.cause
    with pytest.raises(BrokenComponentError) as caught:
        host.load(Kind.SEARCH_SPACE, "earlier")  # registered before the proxies' hook failed
    assert caught.value.__cause__ is problem.exception
    assert {plugin.name: plugin.state for plugin in host.plugins()}["acme"] == "broken"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("LossSpec('bad', 'a:B', 'c')", "must return ProxySpec objects, not LossSpec"),
        ("'bad'", "must return ProxySpec objects, not str"),
        ("ProxySpec('Bad Name', 'a:B', 'c')", "must match"),
        ("ProxySpec('bad', 'no colon', 'c')", "must look like"),
        ("ProxySpec('bad', 'a:B', 'two\\nlines')", "one non-empty line"),
        ("ProxySpec('bad', 'a:B', 'c', options='x')", "must look like"),
        ("ProxySpec('bad', 'a:B', 'c', references='arXiv:1')", "references"),
        ("ProxySpec('bad', 'a:B', 'c', requires=('onnx',))", "requires"),
        ("ProxySpec('bad', 'a:B', 'c', tags={})", "tags must be ProxyTags, not dict"),
        ("ProxySpec('bad', 3, 'c')", "target 3"),
        ("ProxySpec(None, 'a:B', 'c')", "name None"),
    ],
)
def test_a_bad_spec_is_left_out_alone(site: Path, spec: str, words: str):
    body = f"return [{spec}, ProxySpec('good', 'a:B', 'c')]"
    write_distribution(
        site, "acme-dist", modules={"acme_module": HOOK.format(body=body)}, entries={"acme": "acme_module"}
    )
    host = load_beside_a_good_plugin(site)
    problem = the_problem(host)
    assert problem.stage is Stage.SPEC
    assert words in problem.cause
    assert host.canonical(Kind.PROXY, "good") == "acme:good"
    assert host.canonical(Kind.SEARCH_SPACE, "earlier") == "acme:earlier"
    if problem.component == "acme:bad":
        with pytest.raises(BrokenComponentError, match="acme-dist"):
            host.canonical(Kind.PROXY, "bad")


def test_the_same_id_twice_keeps_the_first(site: Path):
    body = "return [ProxySpec('twin', 'first:B', 'first'), ProxySpec('twin', 'second:B', 'second')]"
    write_distribution(
        site, "acme-dist", modules={"acme_module": HOOK.format(body=body)}, entries={"acme": "acme_module"}
    )
    host = load_beside_a_good_plugin(site)
    assert "already" in the_problem(host).cause
    assert host.spec(Kind.PROXY, "twin").summary == "first"


def test_two_plugins_of_one_name_keep_the_first(site: Path):
    write_proxy_plugin(site, "acme", "cosine", distribution="a-dist")
    write_distribution(
        site, "b-dist",
        modules={"other_module": PROXY_PLUGIN.format(component="other", module="other_module")},
        entries={"acme": "other_module"},
    )  # fmt: skip
    host = Host.load()
    problem = the_problem(host)
    assert (problem.stage, problem.distribution) == (Stage.METADATA, "b-dist")
    assert "a-dist" in problem.cause
    assert [record.id for record in host.specs() if record.plugin == "acme"] == ["acme:cosine"]
    assert [(p.distribution, p.state) for p in host.plugins() if p.name == "acme"] == [
        ("a-dist", "loaded"),
        ("b-dist", "broken"),
    ]


def test_a_third_party_plugin_cannot_take_a_bundled_name(site: Path):
    write_distribution(
        site, "intruder",
        modules={"intruder_module": PROXY_PLUGIN.format(component="cosine", module="intruder_module")},
        entries={"proxies": "intruder_module"},
    )  # fmt: skip
    host = load_beside_a_good_plugin(site)
    assert the_problem(host).distribution == "intruder"
    assert host.record(Kind.PROXY, "synflow").distribution == "nasdistill"


def test_unreadable_entry_points_of_one_distribution(site: Path):
    write_distribution(site, "garbled", modules={}, entry_points_text="[nasdistill]\nthis line has no equals sign\n")
    write_distribution(site, "unrelated", modules={}, entry_points_text="[other_tool]\nneither has this\n")
    host = load_beside_a_good_plugin(site)
    problem = the_problem(host)
    assert (problem.distribution, problem.stage) == ("garbled", Stage.METADATA)


def test_a_distribution_without_metadata_file(site: Path):
    write_distribution(
        site, "bare", metadata=False, entries={"bare": "bare_module"},
        modules={"bare_module": PROXY_PLUGIN.format(component="cosine", module="bare_module")},
    )  # fmt: skip
    assert Host.load().record(Kind.PROXY, "cosine").distribution == "unknown"


def test_a_misnamed_entry_point(site: Path):
    write_distribution(site, "acme-dist", modules={"acme_module": ""}, entries={"Acme-Plugin": "acme_module"})
    problem = the_problem(load_beside_a_good_plugin(site))
    assert (problem.plugin, problem.stage) == ("Acme-Plugin", Stage.METADATA)


@pytest.mark.parametrize("way", ["argument", "environment", "distribution"])
def test_a_disabled_plugin_is_listed_and_not_imported(site: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    write_distribution(
        site, "acme-dist", modules={"acme_module": "raise RuntimeError('imported')"}, entries={"acme": "acme_module"}
    )
    if way == "environment":
        monkeypatch.setenv("NASDISTILL_DISABLE_PLUGINS", "other, acme")
        host = Host.load()
        assert host.unknown_switches == ("other",)
    else:
        host = Host.load(disable=["acme" if way == "argument" else "acme-dist"])
    assert host.problems == []
    assert {plugin.name: plugin.state for plugin in host.plugins()}["acme"] == "disabled"
    with pytest.raises(UnknownComponentError, match="which is disabled"):
        host.canonical(Kind.PROXY, "acme:cosine")


def test_a_bundled_plugin_can_be_disabled():
    host = Host.load(third_party=False, disable=["proxies"])
    assert host.specs(Kind.PROXY) == []


def test_only_these(site: Path, monkeypatch: pytest.MonkeyPatch):
    write_proxy_plugin(site, "acme", "cosine")
    write_proxy_plugin(site, "zz_other", "sine")

    def third_party(host: Host) -> list[str]:
        return [record.id for record in host.specs() if record.distribution != "nasdistill"]

    assert third_party(Host.load()) == ["acme:cosine", "zz_other:sine"]
    assert third_party(Host.load(only=["acme"])) == ["acme:cosine"]
    assert third_party(Host.load(third_party=False)) == []
    monkeypatch.setenv("NASDISTILL_PLUGINS", "zz_other")
    assert third_party(Host.load()) == ["zz_other:sine"]
    monkeypatch.setenv("NASDISTILL_PLUGINS", "")
    assert third_party(Host.load()) == []
    assert Host.load().specs(Kind.STRATEGY)  # bundled plugins are not concerned
    monkeypatch.setenv("NASDISTILL_PLUGINS", "acne")
    problem = the_problem(Host.load())
    assert "no installed distribution" in problem.cause
    assert "'acme'" in problem.hint


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_strict_raises_with_the_cause(site: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    write_distribution(site, "broken-dist", modules={"broken_module": "1 / 0"}, entries={"broken": "broken_module"})
    if way == "environment":
        monkeypatch.setenv("NASDISTILL_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="broken-dist") as caught:
        Host.load(strict=True if way == "argument" else None)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_what_a_plugin_prints_is_one_notice_and_does_not_reach_stdout(site: Path, capsys: pytest.CaptureFixture[str]):
    source = "print('hello from a plugin\\n\\nand more')\n" + PROXY_PLUGIN.format(
        component="cosine", module="acme_module"
    ).replace("return [", "print('called'); return [")
    write_distribution(site, "acme-dist", modules={"acme_module": source}, entries={"acme": "acme_module"})
    host = Host.load()
    assert capsys.readouterr() == ("", "")
    imported, called = host.notices
    assert imported.startswith(
        "plugin 'acme' (acme-dist 1.2) printed 'hello from a plugin' and 2 more lines at import."
    )
    assert "nasdistill plugins disable acme" in imported
    assert "printed 'called' at hook." in called
    assert "\n" not in imported + called
    assert host.problems == []
    assert host.canonical(Kind.PROXY, "cosine") == "acme:cosine"


def test_two_hosts_do_not_know_each_other(site: Path):
    write_proxy_plugin(site, "acme", "cosine")
    first, second = Host.load(), Host.load(third_party=False)
    assert first.canonical(Kind.PROXY, "cosine") == "acme:cosine"
    with pytest.raises(UnknownComponentError):
        second.canonical(Kind.PROXY, "cosine")
