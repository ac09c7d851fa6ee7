"""Names, late loading and creation of components."""

from __future__ import annotations

import copy
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fake_distributions import PROXY_PARTS, PROXY_PLUGIN, write_distribution, write_proxy_plugin

from nasdistill import hookimpl
from nasdistill.errors import (
    AmbiguousComponentError,
    BrokenComponentError,
    ConfigError,
    MissingExtraError,
    UnknownComponentError,
    UsageError,
)
from nasdistill.host import Host
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.registry import INTERFACES
from nasdistill.interfaces import ComponentFactory
from nasdistill.spec.component import (
    SPEC_CLASSES,
    CommandSpec,
    Kind,
    LossSpec,
    ProxySpec,
    ProxyTags,
    Requirement,
    TeacherSpec,
)


def hook(name: str, specs: list[object]):
    """A hook implementation that returns these specs."""
    return hookimpl(specname=name)(lambda: specs)


def host_with(**plugins: list[object]) -> Host:
    """A host with plugins that return these specs."""
    host = Host(strict=True)
    for plugin, specs in plugins.items():
        module = types.ModuleType(f"plugin_{plugin}")
        for name, kind in HOOKS.items():
            setattr(module, name, hook(name, [spec for spec in specs if spec.kind is kind]))
        host.add(module, plugin)
    return host


def proxy(name: str, target: str = "nowhere:Nothing", **fields: object) -> ProxySpec:
    return ProxySpec(name, target, f"the proxy {name}", **fields)


def test_every_kind_has_hook_spec_and_interface():
    assert set(HOOKS.values()) == set(Kind) == set(SPEC_CLASSES)
    assert set(INTERFACES) == set(Kind) - {Kind.COMMAND}
    for names in INTERFACES.values():
        for text in names:
            module, _, name = text.partition(":")
            assert isinstance(getattr(__import__(module, fromlist=[name]), name), type)


def test_a_host_is_a_component_factory():
    assert isinstance(Host(), ComponentFactory)


def test_a_copy_of_a_component_keeps_its_host():
    host = Host()
    assert copy.deepcopy({"host": host})["host"] is host


def test_canonical_and_short_names():
    host = host_with(acme=[proxy("cosine", tags=ProxyTags(needs_labels=True)), LossSpec("cosine", "a:B", "a loss")])
    assert host.canonical(Kind.PROXY, "cosine") == host.canonical(Kind.PROXY, "acme:cosine") == "acme:cosine"
    assert host.tags(Kind.PROXY, "cosine").needs_labels
    assert host.spec(Kind.LOSS, "cosine").summary == "a loss"
    assert host.canonical("proxy", "cosine") == "acme:cosine"  # kinds are accepted as text


def test_an_ambiguous_short_name_lists_the_ids():
    host = host_with(acme=[proxy("cosine")], other=[proxy("cosine")])
    with pytest.raises(AmbiguousComponentError, match="acme:cosine, other:cosine") as caught:
        host.canonical(Kind.PROXY, "cosine")
    assert caught.value.exit_code == 2
    assert host.canonical(Kind.PROXY, "other:cosine") == "other:cosine"


def test_unknown_names_get_close_matches():
    host = host_with(acme=[proxy("synflow"), LossSpec("kd", "a:B", "a loss")])
    with pytest.raises(UnknownComponentError, match="Did you mean 'synflow'"):
        host.canonical(Kind.PROXY, "sinflow")
    with pytest.raises(UnknownComponentError, match="Did you mean 'acme:synflow'"):
        host.canonical(Kind.PROXY, "acme:synflo")
    with pytest.raises(UnknownComponentError, match="There is a loss of that name"):
        host.canonical(Kind.PROXY, "kd")
    with pytest.raises(UsageError, match="Did you mean 'proxy'"):
        host.specs("proxi")


def test_an_empty_kind_says_so():
    with pytest.raises(UnknownComponentError, match="None is available"):
        Host().canonical(Kind.RECIPE, "anything")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm:resnet18", ("teachers:timm", "resnet18")),
        ("timm", ("teachers:timm", "")),
        ("teachers:timm:resnet18", ("teachers:timm", "resnet18")),
        ("teachers:timm", ("teachers:timm", "")),
        ("torch:package.module:callable", ("teachers:torch", "package.module:callable")),
        ("teachers:torch:package.module:callable", ("teachers:torch", "package.module:callable")),
        ("torch:/a/path:x", ("teachers:torch", "/a/path:x")),
        ("torch:", ("teachers:torch", "")),
    ],
)
def test_locate_splits_a_teacher(text: str, expected: tuple[str, str]):
    host = host_with(teachers=[TeacherSpec("timm", "a:B", "timm"), TeacherSpec("torch", "a:B", "torch")])
    assert host.locate(Kind.TEACHER, text) == expected


@pytest.mark.parametrize("text", ["tim:resnet18", "teachers:tim:resnet18", "", ":", "teachers:"])
def test_locate_refuses_what_does_not_exist(text: str):
    host = host_with(teachers=[TeacherSpec("timm", "a:B", "timm")])
    with pytest.raises(UnknownComponentError):
        host.locate(Kind.TEACHER, text)


def test_specs_are_sorted_by_kind_and_id():
    host = host_with(zeta=[proxy("a")], acme=[proxy("b"), LossSpec("a", "a:B", "loss")])
    assert [(record.kind, record.id) for record in host.specs()] == [
        (Kind.PROXY, "acme:b"), (Kind.PROXY, "zeta:a"), (Kind.LOSS, "acme:a"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module_anywhere:Thing", "ModuleNotFoundError"),
        ("parts_module:Missing", "has no 'Missing'"),
        ("parts_module:Scor", "Did you mean 'Score'"),
        ("parts_module:Options", "does not derive from Proxy"),
        ("parts_module:function", "does not derive from Proxy"),
        ("parts_module:Abstract", "does not implement score"),
        ("exiting_module:Score", "sys.exit"),
    ],
)
def test_a_component_that_cannot_be_loaded(site: Path, target: str, words: str):
    parts = PROXY_PARTS + "\ndef function(): pass\nclass Abstract(Proxy): pass\n"
    write_distribution(
        site, "parts", modules={"parts_module": parts, "exiting_module": "raise SystemExit(1)"}, entries={}
    )
    host = host_with(acme=[proxy("bad", target), proxy("good", "parts_module:Score")])
    with pytest.raises(BrokenComponentError, match="acme:bad") as caught:
        host.load(Kind.PROXY, "bad")
    assert words in str(caught.value)
    assert host.load(Kind.PROXY, "good").__name__ == "Score"


def test_a_failing_import_is_chained():
    host = host_with(acme=[proxy("bad", "no_such_module_anywhere:Thing")])
    with pytest.raises(BrokenComponentError) as caught:
        host.load(Kind.PROXY, "bad")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_each_level_of_attention_is_accepted(site: Path):
    source = """
    from nasdistill.interfaces import AttentionCore, ModelAttention, ModuleAttention

    class Core(AttentionCore):
        def forward(self, q, k, v, ctx): ...
        @classmethod
        def cost(cls, geometry, n, m, options=None): ...

    class Module(ModuleAttention):
        @classmethod
        def from_softmax(cls, view, options=None, *, host=None): ...
        def forward(self, x, ctx, source=None): ...
        @classmethod
        def cost(cls, geometry, n, m, options=None): ...

    class Model(ModelAttention):
        def convert(self, model, views, layers, calibration): ...
    """
    from nasdistill.interfaces import AttentionGeometry
    from nasdistill.spec.component import AttentionSpec

    write_distribution(site, "levels", modules={"levels_module": source}, entries={})
    specs = [AttentionSpec(name.lower(), f"levels_module:{name}", name) for name in ("Core", "Module", "Model")]
    host = host_with(acme=specs)
    core = host.create(Kind.ATTENTION, "core", geometry=AttentionGeometry(dim=8, heads=2, head_dim=4))
    assert core.id == "acme:core"
    assert core.geometry.dim == 8
    assert host.create(Kind.ATTENTION, "model").id == "acme:model"
    with pytest.raises(UsageError, match="module-level"):
        host.create(Kind.ATTENTION, "module")
    with pytest.raises(BrokenComponentError, match="geometry"):
        host.create(Kind.ATTENTION, "core")  # a core needs the sizes of its layer


def test_options_are_checked_under_the_canonical_id(site: Path):
    write_proxy_plugin(site, "acme", "cosine")
    host = Host.load()
    with pytest.raises(ConfigError, match=r"acme:cosine: unknown key 'powr'.*'power'"):
        host.create(Kind.PROXY, "cosine", {"powr": 1})
    with pytest.raises(ConfigError, match="power: "):
        host.create(Kind.PROXY, "cosine", {"power": "much"})
    with pytest.raises(ConfigError, match="table"):
        host.create(Kind.PROXY, "cosine", 3)
    model = host.options_model(Kind.PROXY, "cosine")
    assert host.create(Kind.PROXY, "cosine", model(power=5)).options.power == 5


def test_a_failing_constructor_is_chained(site: Path):
    parts = PROXY_PARTS + (
        "\nclass Failing(Score):\n    def __init__(self, options=None, *, host=None):\n        raise ValueError('no')\n"
    )
    write_distribution(site, "parts", modules={"parts_module": parts}, entries={})
    host = host_with(acme=[proxy("bad", "parts_module:Failing")])
    with pytest.raises(BrokenComponentError, match="acme:bad could not be created: ValueError: no") as caught:
        host.create(Kind.PROXY, "bad")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_missing_extra_is_named_before_anything_is_imported(site: Path):
    write_distribution(site, "parts", modules={"parts_module": "raise RuntimeError('imported')"}, entries={})
    lacking = proxy("x", "parts_module:Score", requires=(
        Requirement("json", "never"), Requirement("no_such_runtime", "nasdistill[fast]"),
        Requirement("email.no_such_part", "nasdistill[fast]"),
    ))  # fmt: skip
    host = host_with(acme=[lacking])
    with pytest.raises(MissingExtraError, match=r"no_such_runtime, email\.no_such_part") as caught:
        host.create(Kind.PROXY, "x")
    assert caught.value.hint == "pip install 'nasdistill[fast]'"
    assert [item.module for item in host.missing(Kind.PROXY, "x")] == ["no_such_runtime", "email.no_such_part"]


def test_a_requirement_is_looked_up_without_importing_it(site: Path):
    write_distribution(
        site, "parts", modules={"parts_module": PROXY_PARTS, "heavy_runtime": "raise RuntimeError"}, entries={}
    )
    requires = (Requirement("heavy_runtime", "x"), Requirement("email.mime.text", "x"))
    host = host_with(acme=[proxy("x", "parts_module:Score", requires=requires)])
    assert host.create(Kind.PROXY, "x").id == "acme:x"
    assert "heavy_runtime" not in sys.modules


def test_a_blocked_module_counts_as_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    host = host_with(acme=[proxy("x", requires=(Requirement("onnxruntime", "nasdistill[onnx]"),))])
    assert [item.extra for item in host.missing(Kind.PROXY, "x")] == ["nasdistill[onnx]"]


def test_a_command_is_a_function(site: Path):
    write_distribution(site, "cmd", modules={"cmd_module": "def run(args): return 0\nvalue = 3\n"}, entries={})
    host = host_with(
        acme=[CommandSpec("hello", "cmd_module:run", "says hello"), CommandSpec("bad", "cmd_module:value", "bad")]
    )
    assert host.load(Kind.COMMAND, "hello").__name__ == "run"
    with pytest.raises(BrokenComponentError, match="not a function"):
        host.load(Kind.COMMAND, "bad")
    with pytest.raises(UsageError, match="is a command"):
        host.create(Kind.COMMAND, "hello")


def test_every_bundled_component_loads_and_has_the_right_interface():
    host = Host.load(third_party=False, strict=True)
    assert len(host.specs()) > 10
    for record in host.specs():
        found = host.load(record.kind, record.id)
        model = host.options_model(record.kind, record.id)
        assert model is None or model is getattr(found, "options_model", None), record.id


LOADING = """
import sys
from nasdistill.host import Host
host = Host.load()
assert host.specs(), "no components"
heavy = sorted({"torch", "numpy", "optuna", "networkx", "pydantic", "rich", "transformers", "timm"} & set(sys.modules))
print(",".join(heavy))
"""


def test_loading_the_host_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_constructor_that_ends_the_process_is_a_broken_component(site: Path):
    parts = PROXY_PARTS + "    def __init__(self, options=None, *, host=None):\n        raise SystemExit('no gpu')\n"
    modules = {"q_module": PROXY_PLUGIN.format(component="quitter", module="q_module"), "q_module_parts": parts}
    write_distribution(site, "q-dist", modules=modules, entries={"q": "q_module"})
    with pytest.raises(BrokenComponentError, match=r"q:quitter could not be created: it called sys.exit\('no gpu'\)"):
        Host.load().create(Kind.PROXY, "quitter")
