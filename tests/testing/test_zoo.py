"""The checks themselves: sound components pass all, a broken one fails exactly the check that is about its fault."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util

import pytest

from nasdistill.spec.component import Kind
from nasdistill.testing import CheckFailed, all_checks, check_component, generate_checks, isolated_host
from nasdistill.testing.checks.attention import features
from nasdistill.testing.results import failures

ZOOS = [name for name in ("common", *Kind) if importlib.util.find_spec(f"zoo_{name}")]
SOUND = [spec for name in ZOOS for spec in importlib.import_module(f"zoo_{name}").SOUND]
QUICK = [spec for name in ZOOS for spec in getattr(importlib.import_module(f"zoo_{name}"), "SOUND_IF_QUICK", [])]
BROKEN = [item for name in ZOOS for item in importlib.import_module(f"zoo_{name}").BROKEN]


@pytest.mark.parametrize("spec", SOUND, ids=lambda spec: f"{spec.kind.value}-{spec.name}")
def test_a_sound_component_passes_every_check(spec):
    assert check_component(spec, thorough=True)


@pytest.mark.parametrize("spec", QUICK, ids=lambda spec: f"{spec.kind.value}-{spec.name}")
def test_a_sound_component_passes_every_quick_check(spec):
    assert check_component(spec)


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_broken_component_fails_its_check_and_no_other(broken):
    thorough = next(item.thorough for item in all_checks() if item.name == broken.check)
    found = failures(check_component(broken.spec, thorough=thorough, on_fail="record"))
    assert [result.check for result in found] == [broken.check], "\n".join(map(str, found))
    assert broken.says in found[0].message
    assert broken.spec.name in found[0].message
    assert found[0].rule
    assert found[0].hint


def test_every_check_catches_somebody():
    caught = {(item.check, None if item.check in COMMON else item.spec.kind) for item in BROKEN}
    missing = [item for item in all_checks() if (item.name, item.kind) not in caught]
    assert [f"{item.kind or 'every kind'}: {item.name}" for item in missing] == []


COMMON = {item.name for item in all_checks() if item.kind is None}


@pytest.mark.parametrize("row", range(len(features.FEATURES)), ids=lambda row: features.FEATURES[row].words[-1])
def test_every_row_of_the_features_catches_somebody_alone(row, monkeypatch):
    """Without the row, one of the broken ones would pass: what the rows are worth, none of them for the others."""
    broken = [item for item in BROKEN if item.check == "undeclared_features_are_refused"]
    monkeypatch.setattr(features, "FEATURES", features.FEATURES[:row] + features.FEATURES[row + 1 :])
    passing = []
    for item in broken:
        host = isolated_host(item.spec)
        bound = generate_checks(host, host.record(item.spec.kind, f"local:{item.spec.name}"))
        (check,) = [one for one in bound if one.check.name == item.check]
        with contextlib.suppress(CheckFailed):
            check.check.run(check.subject)
            passing.append(item.spec.name)
    assert len(passing) == 1
