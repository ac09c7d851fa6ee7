"""``nasdistill search`` and ``nasdistill show``."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path

import pytest
from toys_search import tiny, write_digits

from nasdistill.cli.config import to_toml
from nasdistill.cli.search import (
    add_arguments,
    closing_lines,
    override,
    without_preset_cut,
    without_preset_spaces,
)
from nasdistill.spec.config import RunConfig, parse_config, preset_text


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(tiny(write_digits(tmp_path / "digits.npz"), search__trials=2).to_json()))
    return path


def test_json_is_all_there_is_on_stdout_and_show_prints_the_same(cli_here, config: Path):
    done = cli_here("search", str(config), "--out", "run", "--trials", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "one line, whatever was printed before"
    result = json.loads(done.stdout)
    assert result["run"] == "run"
    assert result["trials"]["complete"] + result["trials"]["pruned"] + result["trials"]["failed"] == 3
    assert "estimate" in done.stderr
    shown = cli_here("show", "run", "--json")
    assert shown.stdout == done.stdout
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
    done = cli_here("search", str(config), "--out", "run")
    assert done.returncode == 130
    assert done.stderr == (
        "interrupted; finished trials are kept: nasdistill show run; nasdistill resume run goes on\n"
    ), "one line"
    assert "State: interrupted;" in cli_here("show", "run").stdout


def test_an_interrupt_before_the_first_trial_leaves_nothing_and_says_so(cli_here, tmp_path, config: Path, monkeypatch):
    from nasdistill.cli.progress import Display

    def interrupt(self, event):
        if event.text == "measuring the teacher":
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "__call__", interrupt)
    done = cli_here("search", str(config), "--out", "run")
    assert done.returncode == 130
    assert done.stderr == "interrupted; nothing was tried yet, so nothing is kept of the run\n"
    assert not (tmp_path / "run").exists()


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


def test_a_presets_latency_cut_holds_for_the_preset_only():
    def cut(*words: str) -> tuple[float | None, list[str]]:
        values = tomllib.loads(PRESET)
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        args = parser.parse_args(words)
        base = parse_config(values, where="preset")
        made = override(values, args, base)
        made, notes = without_preset_cut(made, args, base, parse_config(made, where="options"))
        assert values == tomllib.loads(PRESET), "the preset's tables are not changed"
        options = parse_config(made, where="options").search.strategy_options
        assert args.strategy or options["short_epochs"] == 8, "the other options stay"
        return options.get("max_latency_ratio"), notes

    for words in ([], ["--trials", "3"], ["--max-params", "10"], ["--target", "onnxruntime_cpu"], ["--seed", "4"]):
        assert cut(*words) == (0.1, [])
    for words, told in (
        (["--teacher", "timm:resnet18"], "another teacher"),
        (["--set", "teacher.name=timm:resnet18"], "another teacher"),
        (["--set", "teacher.options.epochs=3"], "another teacher"),
        (["--data", "images"], "other data"),
        (["--space", "resnet_s0"], "other search spaces"),
        (["--target", "torch_cpu"], "another first target"),
        (["--max-latency-ms", "0.5"], "a latency limit in milliseconds"),
        (["--teacher", "timm:resnet18", "--space", "resnet_s0"], "another teacher and other search spaces"),
    ):
        value, notes = cut(*words)
        assert value is None
        assert len(notes) == 1
        assert "max_latency_ratio = 0.1 is left out" in notes[0]
        assert told in notes[0]
    # What the user sets is the user's.
    assert cut("--teacher", "timm:a", "--set", "search.strategy_options.max_latency_ratio=0.3") == (0.3, [])
    assert cut("--teacher", "timm:a", "--strategy", "random") == (None, [])
    value, notes = cut("--teacher", "timm:a", "--set", "search.strategy_options.full_epochs=9")
    assert value is None, "another option that the user sets says nothing about the cut"
    assert len(notes) == 1


PRESET = """
[search]
strategy = "funnel"
strategy_options = { short_epochs = 8, max_latency_ratio = 0.1 }
"""


def test_the_plan_says_that_the_presets_cut_is_left_out(cli_here, tmp_path: Path, monkeypatch):
    """The whole way with the bundled preset: without its cut a small teacher has students, with it there is none."""
    data = write_digits(tmp_path / "digits.npz")
    small = tomllib.loads(preset_text("digits"))
    small["target"] = [{"name": "simulated"}]
    small["search"] |= {"trials": 2}
    small["search"]["strategy_options"] |= {"short_epochs": 1, "full_epochs": 1, "max_latency_ratio": 1e-6}
    small["space"] = [{"name": "resnet_s0", "options": {"blocks": [1], "width": [8, 16], "stages": [2]}}]
    text = to_toml(parse_config(small, where="test").to_json())
    monkeypatch.setattr("nasdistill.spec.config.preset_text", lambda name: text)
    words = ["search", "--preset", "digits", "--data", str(data), "--teacher", "timm:test_resnet", "--json"]
    done = cli_here(*words)
    assert done.returncode == 0, done.stderr
    assert "note     the preset's max_latency_ratio = 1e-06 is left out" in done.stderr
    assert json.loads(done.stdout)["front"]
    done = cli_here(*words, "--set", "search.strategy_options.max_latency_ratio=1e-6")
    assert "left out" not in done.stderr
    assert done.returncode == 1
    assert "error: no student was finished: 2 of 2 were pruned: slower than 1e-06 times the teacher" in done.stderr
    assert "--set search.strategy_options.max_latency_ratio=" in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["front"] == []
    assert [(entry["state"], entry["n"]) for entry in result["reasons"]] == [("pruned", 2)]
    shown = cli_here("show", result["run"])
    assert shown.returncode == 0
    assert "No student was finished: 2 of 2 were pruned: slower than 1e-06 times the teacher" in shown.stdout


def test_a_search_without_a_student_fails_and_names_the_limit(cli_here, config: Path):
    done = cli_here("search", str(config), "--out", "run", "--max-params", "10")
    assert done.returncode == 1
    assert "teacher" in done.stdout
    assert "error: no student was finished: 2 of 2 were pruned: over max_params = 10 parameters, the nearest at" in (
        done.stderr
    )
    assert "A larger --max-params keeps some of them." in done.stderr
    assert "nasdistill show --trials run" in done.stderr
    quiet = cli_here("-q", "search", str(config), "--out", "run2", "--timeout", "1e-6", "--json")
    assert quiet.returncode == 1
    assert quiet.stderr.startswith("error: no student was finished: no architecture was proposed\n")
    assert json.loads(quiet.stdout)["front"] == []


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], True),
        (["--teacher", "timm:vit_tiny_patch16_224"], False),
        (["--teacher", "timm:vit_tiny_patch16_224", "--preset", "digits"], True),
        (["--teacher", "timm:vit_tiny_patch16_224", "--space", "conv_vit"], True),
        (["--trials", "3"], True),
    ],
)
def test_the_default_presets_spaces_are_for_its_own_teacher(words: list[str], kept: bool):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(words)
    values = tomllib.loads(preset_text("digits"))
    base = parse_config(values, where="preset")
    values = override(values, args, base)
    config = parse_config(values, where="test")
    assert ("space" in without_preset_spaces(values, args, base, config)) == kept
