"""``nasdistill measure``, in this process, on the simulator (exact) and on real targets (shape only)."""

from __future__ import annotations

import json

import pytest

from nasdistill.cli import main
from nasdistill.cli.architectures import Spaces, read_architectures
from nasdistill.errors import ArchitectureError, UnknownComponentError
from nasdistill.interfaces import PrepareRequest
from nasdistill.spec.component import Kind


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def measure(capsys, *words: str):
    code = main(["-q", "measure", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_json_has_every_network_on_every_target(capsys, host):
    space = host.create(Kind.SEARCH_SPACE, "resnet_s0")
    arch = json.dumps(space.default().to_json())
    code, rows = measure(
        capsys, "--arch", arch, "--arch", '{"width": 8}', "--space", "resnet_s0", "--target", "simulated",
        "--target", "onnxruntime_cpu", "--pairs", "5",
    )  # fmt: skip
    assert code == 0
    assert [row["target"] for row in rows] == ["targets:simulated"] * 2 + ["targets:onnxruntime_cpu"] * 2
    first, second = rows[0], rows[1]
    assert first["name"] == space.default().id
    assert first["architecture"]["params"] == dict(space.default().params)
    assert second["architecture"]["params"]["width"] == 8
    assert first["params"] > second["params"] > 0
    assert first["macs"] > second["macs"] > 0
    assert first["ratio"]["value"] == 1.0
    assert second["ratio"]["to"] == first["name"]
    assert second["ratio"]["value"] == pytest.approx(second["latency_ms"]["value"] / first["latency_ms"]["value"])
    real = rows[2]["report"]
    assert real["latency"]["pairs"] == 5
    assert real["max_rel_error"] < 1e-4
    assert real["artefact_bytes"] > 1000
    assert all(row["problem"] is None for row in rows)


def test_the_table_and_the_batch(capsys, host):
    assert main(["-q", "measure", "--space", "resnet_s0", "--target", "simulated", "--batch", "4"]) == 0
    table = capsys.readouterr().out
    default = host.create(Kind.SEARCH_SPACE, "resnet_s0").default()
    assert default.id in table
    assert f"ratio to {default.id}" in table
    _, four = measure(capsys, "--space", "resnet_s0", "--target", "simulated", "--batch", "4")
    _, one = measure(capsys, "--space", "resnet_s0", "--target", "simulated")
    assert four[0]["macs"] == 4 * one[0]["macs"]
    assert measure(capsys, "--space", "resnet_s0", "--target", "simulated")[1][0]["latency_ms"] == one[0]["latency_ms"]


def test_the_same_architecture_twice_is_two_rows(capsys):
    _, rows = measure(capsys, "--space", "resnet_s0", "--arch", "default", "--arch", "default", "--target", "simulated")
    assert rows[1]["name"] == rows[0]["name"] + "#2"


def test_a_network_that_fails_is_a_row_with_a_problem(capsys, monkeypatch):
    from nasdistill_targets.simulated import Simulated

    whole = Simulated.prepare

    def prepare(self, request: PrepareRequest):
        if request.name == "model1":
            raise ValueError("too deep")
        return whole(self, request)

    monkeypatch.setattr(Simulated, "prepare", prepare)
    words = ("--space", "resnet_s0", "--arch", "default", "--arch", '{"width": 8}', "--target", "simulated")
    code, rows = measure(capsys, *words)
    assert code == 1
    assert rows[0]["problem"] is None
    assert "too deep" in rows[1]["problem"]
    assert rows[1]["latency_ms"] is None
    assert main(["-q", "measure", *words]) == 1
    assert "prepare_failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "nothing to measure"),
        (("--space", "resnet_s0", "--batch", "0"), "--batch must be at least 1"),
        (("--space", "resnet_s0", "--pairs", "0"), "--pairs must be at least 1"),
        (("--space", "resnet_s0", "--target", "onnxruntime"), "onnxruntime_cpu"),
        (("--space", "resnet_s0", "--config", "a.toml", "--preset", "digits"), "not both"),
        (("--space", "resnet_s0", "--arch", '{"widht": 8}'), "widht"),
        (("--arch", "missing.json"), "missing.json"),
    ],
)
def test_wrong_use_is_one_message(capsys, words, says):
    assert main(["measure", *words]) == 2
    streams = capsys.readouterr()
    assert says in streams.err
    assert "Traceback" not in streams.err
    assert streams.out == ""


def test_reading_architectures(host, tmp_path):
    spaces = Spaces(host)
    space = spaces.get("resnet_s0")
    default = space.default()
    path = tmp_path / "architecture.json"
    default.save(path)
    bare = json.dumps({"space": "resnet_s0", "params": dict(default.params)})
    unnamed = json.dumps({"params": dict(default.params)})
    found = read_architectures(spaces, [str(path), bare, unnamed, "default", "{}", f"[{bare}, {{}}]"], ["resnet_s0"])
    assert [arch for _, arch in found] == [default] * 7
    assert all(item is space for item, _ in found)
    assert [item.id for item, _ in read_architectures(spaces, [str(path)])] == ["spaces:resnet_s0"]
    assert read_architectures(spaces, [str(path)], ["conv_vit", "resnet_s0"]) == [(space, default)]
    with pytest.raises(ArchitectureError, match="belongs to space spaces:resnet_s0, not to spaces:conv_vit"):
        read_architectures(spaces, [str(path)], ["conv_vit"])
    for text in ("default", '{"width": 8}', unnamed):
        for within in ((), ("conv_vit", "resnet_s0")):
            with pytest.raises(ArchitectureError, match="names no space"):
                read_architectures(spaces, [text], within)
    with pytest.raises(ArchitectureError, match="width"):
        read_architectures(spaces, [json.dumps({"space": "resnet_s0", "params": {**default.params, "width": 7}})])
    with pytest.raises(ArchitectureError, match="must be a string or a number"):
        read_architectures(spaces, ['{"width": [8]}'], ["resnet_s0"])
    with pytest.raises(UnknownComponentError, match="no search space named 'nope'"):
        read_architectures(spaces, ['{"space": "nope", "params": {}}'])


def test_spaces_are_made_with_their_options(host):
    from nasdistill.errors import ConfigError

    for given in ("conv_vit", "spaces:conv_vit"):
        with pytest.raises(ConfigError, match="no_such_option"):
            Spaces(host, {given: {"no_such_option": 1}}).get("conv_vit")
    assert Spaces(host, {"conv_vit": {"no_such_option": 1}}).get("resnet_s0").id == "spaces:resnet_s0"
