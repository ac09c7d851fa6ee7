"""The table of the front: readable from 80 columns on, whatever the terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nasdistill.cli import output
from nasdistill.cli.search import print_front
from nasdistill.search.summary import abbreviated, summary_lines, target_names


def latency(value: float) -> dict[str, float]:
    return {"value": value, "low": 0.9 * value, "high": 1.1 * value}


def student(number: int, targets: list[str]) -> dict[str, Any]:
    return {
        "id": f"{number:04d}-ed90c4",
        "score": 0.9733,
        "test_score": None,
        "latency_ms": {target: latency(0.042 * number) for target in targets},
        "latency_ratio": {target: latency(0.063 * number) for target in targets},
        "params": 19_706 * number,
        "macs": 1_338_656 * number,
        "architecture": {"space": "spaces:resnet_s0"},
    }


def result_of(targets: list[str], unit: str = "share") -> dict[str, Any]:
    return {
        "teacher": {
            "name": "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
            "score": 0.9805,
            "test_score": 0.9861,
            "latency_ms": {target: latency(2.345) for target in targets},
            "params": 86_567_656,
            "macs": 16_867_000_000,
        },
        "metric": {"name": "accuracy" if unit == "share" else "perplexity", "unit": unit},
        "front": [student(number, targets) for number in (1, 2, 3)],
    }


TWO = ["targets:onnxruntime_cpu", "targets:torch_cpu"]


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("targets", [TWO[:1], TWO, [*TWO, "acme:jetson_orin_nano_gpu", "acme:browser_wasm"]])
def test_every_network_is_one_line_within_the_width(width: int, targets: list[str]):
    lines = summary_lines(result_of(targets), width)
    assert max(map(len, lines)) <= width
    rows = lines[3:7]
    assert [row.split()[0] for row in rows] == ["teacher", "0001-ed90c4", "0002-ed90c4", "0003-ed90c4"]
    for number, row in enumerate(rows[1:], start=1):
        assert f" {0.042 * number:.3f} " in row, "the first target's latency is always there"
    cells = {len(row.split()) for row in rows[1:]}
    assert len(cells) == 1
    # Cells end where their column's rule ends: numbers are aligned to the right and none is cut.
    ends = {match.end() for match in re.finditer("-+", lines[2])}
    assert all(match.end() in ends for row in rows for match in re.finditer(r"(?<=  )[\d.]+[kMG]?(?=  |$)", row))


def test_what_goes_when_it_gets_narrow_and_in_which_order():
    result = result_of(TWO)
    whole = summary_lines(result)
    assert summary_lines(result, 160) == whole
    assert "[0.038, 0.046]" in whole[4]
    assert "16,867,000,000" in whole[3]
    medium = summary_lines(result, 110)
    assert "[" not in medium[4]
    assert "16,867,000,000" in medium[3]
    assert "onnxruntime_cpu" in medium[0]
    narrow = summary_lines(result, 80)
    assert narrow[3].split()[-2:] == ["86.6M", "16.9G"]
    assert narrow[0].split() == ["accuracy", "%", "onnxruntime", "torch"]
    assert narrow[1].split() == ["student", "space", "val", "test", "ms", "ratio", "ms", "ratio", "params", "MACs"]
    many = [*TWO, "acme:jetson_orin_nano_gpu", "acme:browser_wasm", "acme:another_target"]
    assert summary_lines(result_of(many), 70)[-1].startswith("Not shown for want of width: ")


def test_scores_are_in_the_tasks_metric():
    shares = summary_lines(result_of(TWO))
    assert shares[0].split()[:2] == ["accuracy", "%"]
    assert shares[4].split()[2:4] == ["97.33", "-"]
    plain = summary_lines(result_of(TWO, unit=""))
    assert plain[0].split()[0] == "perplexity"
    assert "%" not in "".join(plain)
    assert plain[4].split()[2:4] == ["0.9733", "-"]
    bits = summary_lines(result_of(TWO, unit="bits"))
    assert bits[0].split()[:2] == ["perplexity", "bits"]


def test_a_run_that_was_killed_early_still_has_a_table():
    lines = summary_lines({"teacher": {"latency_ms": {}}, "metric": None, "front": []}, 80)
    assert lines[-1].split() == ["teacher", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (812, "812"), (999, "999"), (1000, "1.0k"), (4_960, "5.0k"), (99_940, "99.9k"), (99_960, "100k"),
     (133_696, "134k"), (999_400, "999k"), (999_600, "1.0M"), (2_100_000, "2.1M"), (16_867_000_000, "16.9G"),
     (5 * 10**15, "5000T")],
)  # fmt: skip
def test_counts_are_abbreviated(value: int, text: str):
    assert abbreviated(value) == text


def test_targets_are_shortened_only_while_they_differ():
    assert target_names(TWO) == ["onnxruntime_cpu", "torch_cpu"]
    assert target_names(TWO, whole=False) == ["onnxruntime", "torch"]
    assert target_names(["a:torch_cpu", "a:torch_cuda"], whole=False) == ["torch_cpu", "torch_cuda"]
    assert target_names(["a:torch_cpu", "b:torch_cpu"], whole=False) == ["a:torch", "b:torch"]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_on_a_terminal_of_that_width_nothing_wraps(width: int, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(output, "is_terminal", lambda stream=None: True)
    monkeypatch.setenv("COLUMNS", str(width))
    print_front(result_of(TWO))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[1:] == summary_lines(result_of(TWO), width)
    assert "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k" in lines[0]


def test_off_a_terminal_the_table_is_whole_whatever_columns_says(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_front(result_of(TWO))
    assert capsys.readouterr().out.splitlines()[1:] == summary_lines(result_of(TWO))
