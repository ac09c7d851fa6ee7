"""The configuration: wrong input of any kind becomes one readable error that names the key."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.errors import ConfigError
from nasdistill.spec.config import RunConfig, Schedule, load_config, load_preset, parse_config, preset_names

toml_values = st.recursive(
    st.booleans() | st.integers(-(2**31), 2**31) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*RunConfig.model_fields, "serch", "x", ""])


def test_every_preset_is_valid():
    assert "digits" in preset_names()
    for name in preset_names():
        config = load_preset(name)
        assert parse_config(config.to_json(), where="again") == config, "the resolved form reads back the same"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"serch": {}}, ["serch", "Did you mean 'search'"]),
        ({"search": {"trails": 3}}, ["search.trails", "Did you mean 'trials'"]),
        ({"search": {"trials": "many"}}, ["search.trials", "integer", "many"]),
        ({"search": {"trials": 0}}, ["search.trials", "greater than or equal to 1"]),
        ({"space": []}, ["space", "at least one"]),
        ({"target": [{"name": "a"}, {"name": "a"}]}, ["target", "twice"]),
        ({"objective": {"losses": [{"name": "kd", "wieght": 1}]}}, ["wieght", "weight"]),
        ({"training": {"lr": math.inf}}, ["training.lr", "finite"]),
        ([], ["expected tables"]),
    ],
)
def test_errors_name_the_key_and_the_nearest_valid_one(values, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(values, where="my.toml")
    for word in ["my.toml", *words]:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


@given(st.dictionaries(keys, toml_values, max_size=3))
@settings(max_examples=300)
def test_any_tables_are_read_or_refused_in_words(values):
    try:
        assert isinstance(parse_config(values, where="f"), RunConfig)
    except ConfigError as error:
        assert str(error).startswith("f: ")


@given(st.binary(max_size=80))
@settings(max_examples=150)
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("config") / "c.toml"
    path.write_bytes(data)
    try:
        load_config(path)
    except ConfigError as error:
        assert "c.toml" in str(error)


@pytest.mark.parametrize("text", ["a = " + "1" * 5000, "a = " + "[" * 100_000], ids=["digits", "depth"])
def test_toml_that_python_cannot_hold_is_refused_in_words(tmp_path, text):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.toml is not valid TOML"):
        load_config(tmp_path / "c.toml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load_config(tmp_path / "nothing.toml")


def test_schedules():
    ramp = Schedule(start=0.0, end=2.0, begin=0.25, finish=0.75)
    assert [ramp.at(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert Schedule(start=1.0, end=0.0, shape="cosine").at(0.5) == pytest.approx(0.5)
    assert Schedule(start=1.0, end=0.0, finish=0.5, shape="step").at(0.49) == 1.0
    assert Schedule(start=1.0, end=0.0, finish=0.5, shape="step").at(0.5) == 0.0
