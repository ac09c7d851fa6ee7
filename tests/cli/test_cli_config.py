"""``nasdistill config``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from nasdistill.cli.config import to_toml
from nasdistill.spec.config import load_preset, parse_config, preset_text


def test_init_prints_or_writes_the_preset_and_overwrites_nothing(cli_here, tmp_path: Path):
    assert cli_here("config", "init").stdout == preset_text("digits")
    done = cli_here("config", "init", "--out", "mine.toml")
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "mine.toml").read_text() == preset_text("digits")
    (tmp_path / "mine.toml").write_text("precious")
    again = cli_here("config", "init", "--out", "mine.toml")
    assert again.returncode == 2
    assert "mine.toml exists already" in again.stderr
    assert (tmp_path / "mine.toml").read_text() == "precious"
    assert cli_here("config", "init", "--preset", "digts").stderr.startswith(
        "error: no preset named 'digts'. Did you mean 'digits'"
    )


def test_show_is_complete_and_reads_back_equal(cli_here, tmp_path: Path):
    expected = load_preset("digits")
    shown = cli_here("config", "show")
    assert parse_config(tomllib.loads(shown.stdout), where="shown") == expected
    assert json.loads(cli_here("config", "show", "--json").stdout) == expected.to_json()
    (tmp_path / "mine.toml").write_text("[search]\ntrials = 7\n")
    values = json.loads(cli_here("config", "show", "mine.toml", "--json").stdout)
    assert values["search"]["trials"] == 7
    assert values["training"]["batch_size"] == 64  # a default
    assert cli_here("config", "show", "mine.toml", "--preset", "digits").returncode == 2


def test_toml_keeps_schedules_and_drops_what_is_none():
    values = load_preset("digits").to_json()
    values["objective"]["task_weight"] = {"start": 1.0, "end": 0.0, "begin": 0.0, "finish": 1.0, "shape": "cosine"}
    text = to_toml(values)
    assert "timeout" not in tomllib.loads(text)["search"]
    assert tomllib.loads(text)["objective"]["task_weight"]["shape"] == "cosine"


def test_schema_is_a_json_schema(cli):
    schema = json.loads(cli("config", "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["additionalProperties"] is False
    assert "training" in schema["properties"]


GOOD = """
[[proxy]]
name = "params"

[search]
strategy = "funnel"
strategy_options = { short_epochs = 1, full_epochs = 2 }
"""


def test_validate_accepts_the_preset(cli_here, tmp_path: Path):
    (tmp_path / "preset.toml").write_text(preset_text("digits"))
    done = cli_here("config", "validate", "preset.toml")
    assert done.returncode == 0, done.stderr
    assert "preset.toml is valid" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"params"', '"parms"', ["wrong.toml", "[[proxy]]", "no proxy named 'parms'", "'params'"]),
        ('"params"', '"nobody:params"', ["[[proxy]]", "nobody:params"]),
        ("short_epochs = 1", "short_epoch = 1", ["search.strategy", "unknown key 'short_epoch'", "'short_epochs'"]),
        ("short_epochs = 1", "short_epochs = 0", ["search.strategy", "short_epochs", "(given: 0)"]),
        ("short_epochs = 1", "short_epochs = 'many'", ["search.strategy", "short_epochs", "integer"]),
        ('"funnel"', '"funel"', ["search.strategy", "Did you mean 'funnel'"]),
        ("[search]", "[serch]", ["wrong.toml", "unknown key 'serch'", "'search'"]),
        ("[search]", "[teacher]\nname = 'tim:resnet18'\n[search]", ["[teacher]", "'tim'", "'timm'"]),
        ("[search]", "[search", ["wrong.toml is not valid TOML"]),
    ],
)
def test_validate_names_the_key_the_file_and_the_nearest_match(
    cli_here, tmp_path: Path, old: str, new: str, words: list[str]
):
    assert old in GOOD
    (tmp_path / "wrong.toml").write_text(GOOD.replace(old, new))
    done = cli_here("config", "validate", "wrong.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_validate_lists_every_mistake(cli_here, tmp_path: Path):
    (tmp_path / "wrong.toml").write_text(GOOD.replace("params", "parms").replace("funnel", "funel"))
    done = cli_here("config", "validate", "wrong.toml")
    assert done.returncode == 2
    assert "'parms'" in done.stderr
    assert "'funel'" in done.stderr


def test_validate_with_a_plugin_disabled_by_the_file(cli_here, tmp_path: Path):
    (tmp_path / "wrong.toml").write_text(GOOD + '[plugins]\ndisable = ["proxies"]\n')
    done = cli_here("config", "validate", "wrong.toml")
    assert done.returncode == 2
    assert "no proxy named 'params'" in done.stderr
