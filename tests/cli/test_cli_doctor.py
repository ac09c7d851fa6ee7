"""``nasdistill doctor``."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from fake_distributions import write_distribution

from nasdistill import hookimpl
from nasdistill.cli.doctor import examine
from nasdistill.host import Host
from nasdistill.spec.component import TargetSpec


def test_a_healthy_machine(cli, tmp_path: Path):
    done = cli("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report["complaints"]
    assert report["usable"] is True
    assert report["complaints"] == []
    assert report["machine"]["usable_cores"] >= 1
    assert report["torch"]["threads"] == 1  # OMP_NUM_THREADS
    assert report["packages"]["torch"].startswith("2.")
    assert report["extras"]["onnx"]["install"] == "nasdistill[onnx]"
    assert report["targets"]["targets:torch_cpu"] == {"ok": True, "reason": ""}
    assert report["cache"] == {"folder": str(tmp_path / "cache"), "exists": False, "writable": True, "mib": 0.0}
    assert not (tmp_path / "cache").exists()


def test_as_text(cli_here):
    done = cli_here("doctor")
    assert done.returncode == 0
    for words in ("processor", "memory", "torch", "targets:torch_cpu", "A search can run here."):
        assert words in done.stdout


def test_a_cache_that_cannot_be_written(cli_here, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    done = cli_here("doctor", env={"NASDISTILL_CACHE": str(tmp_path / "file")})
    assert done.returncode == 1
    assert "set NASDISTILL_CACHE" in done.stdout


def test_a_broken_third_party_plugin_is_reported_and_no_reason_to_stop(cli_here, tmp_path: Path):
    site = tmp_path / "site"
    write_distribution(site, "broken-dist", modules={"broken_module": "1 / 0"}, entries={"broken": "broken_module"})
    done = cli_here("doctor", "--json", site=site)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["problems"][0]["distribution"] == "broken-dist"


def test_targets_say_why_not(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("given")
    specs = [
        TargetSpec("raising", "doctor_parts:Raising", "raises in probe"),
        TargetSpec("nowhere", "not_a_module:X", "cannot be imported"),
    ]
    module.nasdistill_targets = hookimpl(specname="nasdistill_targets")(lambda: specs)
    from nasdistill.interfaces import Target

    class Raising(Target):
        def probe(self):
            raise RuntimeError("no device")

        def environment(self):
            return {}

        def prepare(self, request):
            raise NotImplementedError

    parts = types.ModuleType("doctor_parts")
    parts.Raising = Raising
    monkeypatch.setitem(__import__("sys").modules, "doctor_parts", parts)
    host = Host(strict=True)
    host.add(module, "given")
    report = examine(host)
    assert report["targets"]["given:raising"]["ok"] is False
    assert "no device" in report["targets"]["given:raising"]["reason"]
    assert "not_a_module" in report["targets"]["given:nowhere"]["reason"]
    assert report["usable"] is False
    assert any("no target works" in line for line in report["complaints"])


def test_a_bundled_plugin_with_a_problem_is_a_reason_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nasdistill.host.discovery.BUNDLED", ("nasdistill_targets", "nasdistill_of_another_version"))
    report = examine(Host.load(third_party=False))
    assert any("of_another_version" in line for line in report["complaints"])
