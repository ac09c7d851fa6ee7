"""``nasdistill score``: the JSON contract, the table, and bad input."""

from __future__ import annotations

import json
import math

import pytest
from fake_distributions import write_distribution
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nasdistill.errors import NasdistillError

SMALL = '{"width": 8, "stages": 1, "stage0.blocks": 1}'
TEACHER = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8, classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.pool(self.stem(x)).flatten(1))

def seven():
    return Net(classes=7)
"""


@pytest.fixture
def score(cli_here):
    """Run ``nasdistill score --json`` and return the parsed object."""

    def run(*words, **options):
        result = cli_here("score", *words, "--json", **options)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return run


def test_the_json_contract(score):
    rows = score("--space", "resnet_s0", "--arch", SMALL, "--proxy", "params", "--proxy", "nwot", "--proxy", "zico")
    assert len(rows) == 1
    assert list(rows[0]) == ["architecture", "scores", "problems", "seconds"]
    assert rows[0]["architecture"]["space"] == "spaces:resnet_s0"
    assert rows[0]["architecture"]["params"]["width"] == 8
    assert list(rows[0]["scores"]) == ["params", "nwot", "zico"] == list(rows[0]["seconds"])
    assert all(math.isfinite(value) for value in rows[0]["scores"].values())
    assert all(value > 0 for value in rows[0]["seconds"].values())
    assert rows[0]["problems"] == {}


def test_the_seed_decides(score):
    words = ("--sample", "2", "--space", "resnet_s0", "--proxy", "snip")
    first, second, other = score(*words, "--seed", "1"), score(*words, "--seed", "1"), score(*words, "--seed", "2")
    assert [row["scores"] for row in first] == [row["scores"] for row in second]
    assert [row["architecture"] for row in first] == [row["architecture"] for row in second]
    assert [row["architecture"] for row in first] != [row["architecture"] for row in other]


def test_architectures_from_arguments_files_and_lists(score, tmp_path):
    sampled = score("--sample", "1", "--proxy", "params", "--proxy", "macs")
    assert [row["architecture"]["space"] for row in sampled] == ["spaces:conv_vit", "spaces:resnet_s0"]
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    one.write_text(json.dumps(sampled[0]["architecture"]))
    many.write_text(json.dumps([row["architecture"] for row in sampled]))
    short = {"space": "resnet_s0", "params": sampled[1]["architecture"]["params"]}
    again = score(
        "--arch", str(one), "--arch", str(many), "--arch", json.dumps(short), "--proxy", "params", "--proxy", "macs"
    )
    expected = [sampled[0], *sampled, sampled[1]]
    assert [row["architecture"] for row in again] == [row["architecture"] for row in expected]
    assert [row["scores"] for row in again] == [row["scores"] for row in expected]


def test_what_commands_print_is_taken_as_it_is(cli_here, score, tmp_path):
    done = cli_here("spaces", "sample", "resnet_s0", "-n", "2", "--seed", "1", "--json")
    sampled = json.loads(done.stdout)
    (tmp_path / "sampled.json").write_text(done.stdout)
    rows = score("--arch", "sampled.json", "--arch", json.dumps(sampled[1]), "--proxy", "params")
    assert [row["architecture"] for row in rows] == [sampled[i]["architecture"] for i in (0, 1, 1)]
    assert [row["scores"]["params"] for row in rows] == [sampled[i]["params"] for i in (0, 1, 1)]
    (tmp_path / "scored.json").write_text(json.dumps(rows))
    assert score("--arch", "scored.json", "--proxy", "params")[0]["scores"] == rows[0]["scores"]
    bad = {**sampled[0], "architecture": {**sampled[0]["architecture"], "params": "none"}}
    done = cli_here("score", "--arch", json.dumps([bad]), "--proxy", "params")
    assert done.returncode == 2
    assert "[0]: architecture" in done.stderr


def test_students_are_taken_with_the_options_of_their_space(cli_here, score, host, tmp_path):
    from nasdistill.spec.component import Kind
    from nasdistill.spec.io import IOSpec
    from nasdistill.store import save_student

    io = IOSpec("image", (1, 8, 8), 10)
    options = {"width": [24], "depth": [1, 2], "heads": [1], "head_dim": 0}
    space = host.create(Kind.SEARCH_SPACE, "conv_vit", options)
    arch = space.default()
    save_student(tmp_path / "student", space.build(arch, io), arch, io, {}, space_options=options)
    (row,) = score("--arch", "student", "--proxy", "params")
    assert row["architecture"] == arch.to_json()
    assert row["scores"]["params"] == space.cost(arch, io).params
    measured = cli_here("measure", "--arch", "student", "--target", "simulated", "--pairs", "5", "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)[0]["architecture"] == arch.to_json()
    for words, said in (
        (("--space", "resnet_s0", "--arch", "student"), "it belongs to space spaces:conv_vit"),
        (("--arch", "."), "neither a run nor a saved student"),
        (("--arch", "x" * 5000), "cannot read architecture file"),
    ):
        done = cli_here("score", *words, "--proxy", "params")
        assert done.returncode == 2
        assert said in done.stderr


def test_proxies_of_the_configuration_and_their_options(score, tmp_path):
    config = tmp_path / "score.toml"
    config.write_text('[[proxy]]\nname = "proxies:synflow"\noptions = { log = false }\n[[space]]\nname = "resnet_s0"\n')
    rows = score("--config", str(config), "--sample", "1")
    assert list(rows[0]["scores"]) == ["proxies:synflow"]
    arch = json.dumps(rows[0]["architecture"])
    log = score("--arch", arch, "--proxy", "synflow")[0]["scores"]["synflow"]
    assert rows[0]["scores"]["proxies:synflow"] == pytest.approx(math.exp(log))
    named = score("--config", str(config), "--arch", arch, "--proxy", "synflow")[0]["scores"]["synflow"]
    assert named == rows[0]["scores"]["proxies:synflow"]


def test_options_on_the_command_line(cli_here, score):
    words = ("--space", "resnet_s0", "--arch", SMALL, "--proxy", "proxies:synflow", "--proxy", "params")
    plain, same, other = (
        score(*words, *extra)[0]["scores"]["proxies:synflow"]
        for extra in ((), ("--set", "proxy.synflow.log=true"), ("--set", "proxy.proxies:synflow.log=false"))
    )
    assert plain == same != other
    assert score(*words, "--set", "training.batch_size=16")[0]["scores"]["params"] > 0
    for item, said in (
        ("proxy.jacov.x=1", "no proxy 'jacov' is asked for"),
        ("proxy.synflow=1", "write proxy.NAME.KEY=VALUE"),
        ("proxy.synflow.logg=1", "logg"),
    ):
        result = cli_here("score", *words, "--set", item)
        assert result.returncode == 2
        assert said in result.stderr


def test_the_teacher_is_opened_for_proxies_that_compare_with_one(score, tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text(TEACHER)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("--space", "resnet_s0", "--arch", SMALL, "--teacher", "torch:my_net:Net")
    row = score(*words, "--proxy", "diswot", "--proxy", "cka")[0]
    assert -4.0 <= row["scores"]["diswot"] < 0.0
    assert 0.0 < row["scores"]["cka"] <= 1.0
    assert row["problems"] == {}
    wide = score("--space", "resnet_s0", "--arch", '{"width": 16}', *words[4:], "--proxy", "diswot")[0]
    assert "64 features" in wide["problems"]["diswot"]
    assert wide["scores"]["diswot"] < -2.0


def test_the_table_shows_size_beside_every_score(cli_here):
    result = cli_here("score", "--space", "resnet_s0", "--arch", SMALL, "--proxy", "nwot", "--proxy", "params")
    heading, _, row = result.stdout.splitlines()
    assert heading.split()[:4] == ["architecture", "params", "macs", "nwot"]
    assert heading.count("params") == 1
    assert "width=8" in row
    assert result.returncode == 0


def test_a_proxy_that_raises_is_a_null_with_a_problem(cli_here, score, tmp_path):
    write_distribution(
        tmp_path / "site",
        "acme-scores",
        modules={
            "acme_hooks": """
                from nasdistill import hookimpl
                from nasdistill.spec.component import ProxySpec

                @hookimpl
                def nasdistill_proxies():
                    names = ("bad", "nan", "rude", "quitter", "chatty")
                    return [ProxySpec(name, f"acme_scores:{name.title()}", "a proxy") for name in names]
            """,
            "acme_scores": """
                import torch
                from nasdistill.interfaces import Proxy, ProxyScore

                class Bad(Proxy):
                    def score(self, candidate):
                        raise RuntimeError("it does not work\\nat all")

                class Nan(Proxy):
                    def score(self, candidate):
                        return ProxyScore(float("nan"))

                class Quitter(Proxy):
                    def score(self, candidate):
                        raise SystemExit(3)

                class Chatty(Proxy):
                    def score(self, candidate):
                        print("look at me")
                        return ProxyScore(2.0)

                class Rude(Proxy):
                    def score(self, candidate):
                        torch.set_default_dtype(torch.float64)
                        return ProxyScore(1.0)
            """,
        },
        entries={"acme": "acme_hooks"},
    )
    words = ("--space", "resnet_s0", "--arch", SMALL, "--arch", '{"width": 16}')
    words += ("--proxy", "bad", "--proxy", "nan", "--proxy", "rude", "--proxy", "acme:bad", "--proxy", "params")
    words += ("--proxy", "quitter", "--proxy", "chatty")
    for row in score(*words, site=tmp_path / "site"):
        assert row["scores"].pop("params") > 0
        assert row["scores"].pop("chatty") == 2.0  # what it prints is kept off the JSON
        assert row["scores"] == {"bad": None, "nan": None, "rude": None, "acme:bad": None, "quitter": None}
        assert row["problems"]["quitter"] == "it called sys.exit(3)"
        assert row["problems"]["bad"] == row["problems"]["acme:bad"] == "RuntimeError: it does not work"
        assert row["problems"]["nan"] == "its score is nan"
        assert "default dtype" in row["problems"]["rude"]
    result = cli_here("score", *words, site=tmp_path / "site")
    assert result.returncode == 0
    assert result.stderr.count("it does not work") == 2  # once per name, however many architectures
    assert "2 architectures" in result.stderr
    assert "look at me" not in result.stdout
    assert "look at me" in result.stderr


POOLED = {
    "acme_hooks": """
        from nasdistill import hookimpl
        from nasdistill.spec.component import ProxySpec, ProxyTags

        @hookimpl
        def nasdistill_proxies():
            return [ProxySpec("place", "acme_scores:Place", "a rank", tags=ProxyTags(pool=True))]
    """,
    "acme_scores": """
        from nasdistill.interfaces import Proxy, ProxyScore

        class Place(Proxy):
            def score(self, candidate):
                if candidate.cost.params > 100_000:
                    raise ValueError("too large")
                return ProxyScore(float(candidate.cost.params))

            def aggregate(self, pool):
                values = [score.value for score in pool]
                return [float(sorted(values).index(value) + 1) for value in values]
    """,
}


def test_a_proxy_over_a_pool_ranks_all_architectures_given(cli_here, score, tmp_path):
    write_distribution(tmp_path / "site", "acme-scores", modules=POOLED, entries={"acme": "acme_hooks"})
    words = ["--space", "resnet_s0", "--proxy", "place"]
    for width in (16, 8, 32):
        words += ["--arch", json.dumps({"width": width, "stages": 3 if width == 32 else 1})]
    rows = score(*words, site=tmp_path / "site")
    assert [row["scores"]["place"] for row in rows] == [2.0, 1.0, None]
    assert rows[2]["problems"] == {"place": "ValueError: too large"}
    (tmp_path / "pool.toml").write_text('[[proxy]]\nname = "place"\n')
    result = cli_here("search", str(tmp_path / "pool.toml"), "--out", str(tmp_path / "run"), site=tmp_path / "site")
    assert result.returncode == 2
    assert "proxy acme:place ranks a pool of candidates as a whole" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--proxy", "nwot"), "nothing to score"),
        (("--sample", "0"), "--sample"),
        (("--sample", "1", "--proxy", "synflw"), "synflow"),
        (("--sample", "1", "--space", "resnet_s1"), "resnet_s0"),
        (("--sample", "1", "--preset", "digit"), "digits"),
        (("--sample", "1", "--teacher", "timn:resnet18", "--proxy", "cka"), "timm"),
        (("--sample", "1", "--config", "missing.toml"), "missing.toml"),
        (("--sample", "1", "--config", "a", "--preset", "b"), "not both"),
        (("--arch", "missing.json"), "missing.json"),
        (("--arch", "{"), "not valid JSON"),
        (("--arch", SMALL), "it names no space"),
        (("--space", "resnet_s0", "--arch", '{"width": 17}'), "width = 17 is not one of"),
        (("--space", "resnet_s0", "--arch", '{"widht": 8}'), "'width'"),
        (("--space", "resnet_s0", "--arch", '{"width": [8]}'), "width"),
        (("--space", "resnet_s0", "--arch", "[3]"), "[0]"),
        (("--arch", '{"space": "resnet_s0", "params": {}}'), "is missing"),
        (("--arch", '{"space": "resnet", "params": {}}'), "resnet_s0"),
        (("--space", "conv_vit", "--arch", '{"space": "resnet_s0", "params": {}}'), "belongs to space"),
        (("--sample", "1", "--data", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_clear_message(cli_here, words, said):
    result = cli_here("score", *words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_teacher_that_does_not_fit_is_refused(cli_here, tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text(TEACHER)
    monkeypatch.syspath_prepend(tmp_path)
    result = cli_here("score", "--sample", "1", "--teacher", "torch:my_net:seven", "--proxy", "cka")
    assert result.returncode == 2
    assert "7" in result.stderr
    assert "10" in result.stderr


KEYS = ("space", "params", "width", "stages", "format", "format_version", "space_version", "stage0.blocks")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values, named=st.booleans())
def test_any_json_is_an_architecture_or_a_clear_error(host, value, named):
    from nasdistill.cli.architectures import Spaces, read_architecture

    spaces = Spaces(host)
    try:
        found, arch = read_architecture(spaces, value, "x", [spaces.get("resnet_s0")] if named else [])
    except NasdistillError as error:
        assert str(error)
        assert error.exit_code == 2
    else:
        assert found.validate(arch) == []


def test_another_task_brings_its_own_proxies(cli_here):
    done = cli_here("score", "--task", "text_classification", "--space", "encoder", "--sample", "1", "--json")
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    assert set(row["scores"]) == {"params", "macs"}
