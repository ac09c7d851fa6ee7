"""Architectures: equal in every process, and no text of any kind gets past the reader with anything but words."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasdistill.errors import ArchitectureError
from nasdistill.spec.architecture import Architecture, Axis

values = st.text(max_size=5) | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
params = st.dictionaries(st.text(min_size=1, max_size=6), values, max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(params)
def test_json_round_trip(items):
    arch = Architecture.of("p:s", items)
    again = Architecture.from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert hash(again) == hash(arch)
    assert again.fingerprint == arch.fingerprint


@given(params, st.randoms(use_true_random=False))
def test_the_order_of_parameters_does_not_matter(items, rng):
    shuffled = list(items.items())
    rng.shuffle(shuffled)
    assert Architecture.of("p:s", dict(shuffled)).fingerprint == Architecture.of("p:s", items).fingerprint


def test_int_and_float_are_different_points():
    assert Architecture.of("p:s", {"a": 1}).fingerprint != Architecture.of("p:s", {"a": 1.0}).fingerprint


def test_fingerprint_is_equal_in_another_process():
    arch = Architecture.of("p:s", {"b": "zwei", "a": 0.1, "é": 3})
    code = (
        "from nasdistill.spec.architecture import Architecture;"
        "print(Architecture.of('p:s', {'a': 0.1, '\\u00e9': 3, 'b': 'zwei'}).fingerprint)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert out.stdout.strip() == arch.fingerprint


@given(json_values)
@settings(max_examples=300)
def test_any_json_is_read_or_refused_in_words(value):
    try:
        arch = Architecture.from_json(value)
    except ArchitectureError as error:
        assert str(error)
    else:
        assert isinstance(value, dict)
        assert arch.space == value["space"]


@given(st.dictionaries(st.sampled_from(["format", "space", "params", "space_version", "x"]), json_values))
def test_near_misses_are_refused_in_words(value):
    try:
        Architecture.from_json(value)
    except ArchitectureError as error:
        assert str(error)


@given(st.text(max_size=60))
def test_any_text_is_refused_in_words(text):
    with pytest.raises(ArchitectureError):
        Architecture.load("{" + text)


@pytest.mark.parametrize(
    "text",
    [
        '{"space": "p:s", "params": {"a": ' + "1" * 5000 + "}}",
        '{"space": "p:s", "params": {"a": ' + "[" * 100_000,
        '{"space": "\\ud800", "params": {"a": 1}}',
        '{"space": "p:s", "params": {"\\udfff": 1}}',
        '{"space": "p:s", "params": {"a": "\\ud800x"}}',
        '{"space": "p:s", "params": {"a": 1e999}}',
    ],
    ids=["digits", "depth", "space", "axis", "value", "infinity"],
)
def test_json_that_python_cannot_hold_is_refused_in_words(text):
    with pytest.raises(ArchitectureError) as caught:
        Architecture.load(text)
    assert len(str(caught.value).encode()) < 400


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ArchitectureError, match="missing"):
        Architecture.load(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchitectureError, match="binary"):
        Architecture.load(tmp_path / "binary.json")


def test_save_and_load(tmp_path):
    arch = Architecture.of("p:s", {"a": 1}, version=3)
    arch.save(tmp_path / "a.json")
    assert Architecture.load(tmp_path / "a.json") == arch


def test_an_axis_refuses_a_default_it_does_not_offer():
    with pytest.raises(ValueError, match="must be one of"):
        Axis("depth", (1, 2), 3)
