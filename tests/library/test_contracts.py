"""What docs/contracts.md says of ``export --json``, ``distill --json`` and the Python names is what there is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from export_toys import DIGITS, scramble
from toys_search import write_digits

import nasdistill
from nasdistill.spec.component import Kind
from nasdistill.store import save_student

TEXT = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
NAMES = re.compile(r"`([^`]+)`")


def section(heading: str) -> str:
    [found] = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## )", TEXT, re.DOTALL | re.MULTILINE)
    return found


def keys(text: str) -> set[str]:
    return {name for row in re.findall(r"^\| (`.*?) \| .* \|$", text, re.MULTILINE) for name in NAMES.findall(row)}


@pytest.fixture
def student(host, tmp_path):
    space = host.create(Kind.SEARCH_SPACE, "resnet_s0")
    arch = space.architecture({"width": 8, "stages": 1, "stage0.blocks": 1})
    save_student(tmp_path / "student", scramble(space.build(arch, DIGITS)), arch, DIGITS, {})
    return nasdistill.load_student(tmp_path / "student")


@pytest.mark.parametrize("to", ["torch", "onnx", "hf"])
def test_exports_say_what_is_documented(student, tmp_path, to):
    text = section("`nasdistill export RUN_OR_STUDENT DIR --to FORMAT --json`")
    own = re.search(rf"`{to}`: (.*?)(?=`(?:onnx|hf)`: |where `max_abs`|$)", text, re.DOTALL)
    named = {name for name in NAMES.findall(re.sub(r"\{.*?\}", "", own[1], flags=re.DOTALL))}
    facts = student.export(to, tmp_path / "out")
    assert set(facts) == keys(text) | named
    if "parity" in facts:
        assert set(facts["parity"]) == set(NAMES.findall(re.search(r"`parity` \{(.*?)\}", own[1], re.DOTALL)[1]))


def test_distill_says_what_is_documented(host, tmp_path, monkeypatch, capsys):
    from nasdistill.cli import main

    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path / "cache"))
    data = write_digits(tmp_path / "digits.npz", 60)
    space = host.create(Kind.SEARCH_SPACE, "resnet_s0")
    arch = json.dumps(space.architecture({"width": 8, "stages": 1, "stage0.blocks": 1}).to_json())
    words = ["distill", arch, "--teacher", "timm:test_resnet", "--data", str(data), "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    text = section("`nasdistill distill ARCH --epochs N --out DIR --json`")
    assert set(result) == keys(text)
    assert set(result["validation"]) == {"score", "loss", "n"}
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result | {"student": "."}


def test_the_python_names_are_there(student):
    text = section("Python")
    for name in keys(text):
        assert hasattr(nasdistill, name.partition("(")[0]), name
    for owner, object_ in (("Run", nasdistill.Run), ("Student", student)):
        [row] = re.findall(rf"^\| `{owner}` \| (.*) \|$", text, re.MULTILINE)
        for name in NAMES.findall(row):
            plain = name.partition("(")[0]
            assert hasattr(object_, plain) or plain in nasdistill.Run.__annotations__, name
