"""``nasdistill search`` and ``nasdistill show``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from toys_search import tiny, write_digits

from nasdistill.cli.config import to_toml
from nasdistill.cli.search import add_arguments, closing_lines, override
from nasdistill.spec.config import RunConfig, parse_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(tiny(write_digits(tmp_path / "digits.npz"), search__trials=2).to_json()))
    return path


def test_json_is_all_there_is_on_stdout_and_show_prints_the_same(cli_here, config: Path):
    done = cli_here("search", str(config), "--out", "run", "--trials", "3", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["run"] == "run"
    assert result["trials"]["complete"] + result["trials"]["pruned"] + result["trials"]["failed"] == 3
    assert "estimate" in done.stderr
    shown = cli_here("show", "run", "--json")
    assert json.loads(shown.stdout) == result
    table = cli_here("show", "run", "--trials").stdout
    assert "State: finished." in table
    assert all(student["id"] in table for student in result["front"])
    again = cli_here("search", str(config), "--out", "run")
    assert again.returncode == 2
    assert "nasdistill show run" in again.stderr


def test_quiet_leaves_only_the_result(cli_here, config: Path):
    done = cli_here("-q", "search", str(config), "--strategy", "random", "--set", "search.strategy_options.epochs=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Run: runs/mine" in done.stdout


def test_an_interrupt_is_130_and_show_says_so(cli_here, config: Path, monkeypatch):
    from nasdistill.cli.progress import Display

    def interrupt(self, event):
        if event.kind == "step":
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "__call__", interrupt)
    assert cli_here("search", str(config), "--out", "run").returncode == 130
    assert "State: interrupted." in cli_here("show", "run").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.toml"], ["missing.toml"]),
        (["--preset", "digts"], ["Did you mean 'digits'"]),
        (["--trials", "0"], ["preset digits with the command line's options", "search.trials"]),
        (["--set", "search.trails=3"], ["search.trails", "trials"]),
        (["--set", "search.trials"], ["KEY=VALUE"]),
        (["--space", "resnet_so"], ["resnet_s0"]),
        (["--trial", "3"], ["--trials"]),
        (["broken.toml", "--strategy", "random"], ["broken.toml: ", "search"]),
        (["broken.toml", "--preset", "digits"], ["not both"]),
    ],
)
def test_wrong_calls_are_2_and_leave_nothing(cli_here, tmp_path: Path, words: list[str], told: list[str]):
    (tmp_path / "broken.toml").write_text("search = 3\n")
    done = cli_here("search", *words)
    assert done.returncode == 2, done.stderr
    for text in told:
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def overridden(values: dict, *words: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    made = override(values, parser.parse_args(words), parse_config(values, where="file"))
    return parse_config(made, where="file and options")


def test_options_win_over_set_and_set_over_the_file():
    values = {"search": {"trials": 5, "seed": 1}}
    assert overridden(values).search.trials == 5
    assert overridden(values, "--set", "search.trials=6").search.trials == 6
    assert overridden(values, "--set", "search.trials=6", "--trials", "7").search.trials == 7
    assert overridden(values, "--trials", "7").search.seed == 1
    assert values == {"search": {"trials": 5, "seed": 1}}, "the file's tables are not changed"


def test_another_component_starts_from_its_own_defaults_and_the_same_one_keeps_its_options():
    values = {
        "search": {"strategy_options": {"round_size": 3}, "sampler_options": {"startup": 2}},
        "teacher": {"name": "builtin:digits", "options": {"epochs": 1}},
        "space": [{"name": "resnet_s0", "options": {"blocks": [1]}}],
    }
    same = overridden(values, "--strategy", "funnel", "--sampler", "tpe", "--teacher", "builtin:digits")
    assert same.search.strategy_options == {"round_size": 3}
    assert same.search.sampler_options == {"startup": 2}
    assert same.teacher.options == {"epochs": 1}
    other = overridden(values, "--strategy", "random", "--sampler", "qmc", "--teacher", "timm:resnet18")
    assert (other.search.strategy_options, other.search.sampler_options, other.teacher.options) == ({}, {}, {})
    spaces = overridden(values, "--space", "conv_vit", "--space", "resnet_s0").space
    assert [(s.name, s.options) for s in spaces] == [("conv_vit", {}), ("resnet_s0", {"blocks": [1]})]


def test_a_run_that_ended_early_says_that_test_scores_are_missing():
    result = {
        "run": "r", "teacher": {"test_score": None}, "trials": {"complete": 1, "pruned": 0, "failed": 0},
        "seconds": {}, "proxies": {}, "front": [{"test_score": None}],
    }  # fmt: skip
    assert any("Test scores are not known yet" in line for line in closing_lines(result))
    assert not any("Test scores" in line for line in closing_lines({**result, "front": [{"test_score": 0.9}]}))
    assert any("show --trials r" in line for line in closing_lines({**result, "front": []}))
