"""A folder on sys.path for plugins made by a test; nothing of it stays."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "NASDISTILL_PLUGINS", "NASDISTILL_DISABLE_PLUGINS", "NASDISTILL_STRICT_PLUGINS", "NASDISTILL_PLUGIN_TIMEOUT",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NASDISTILL_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and str(file).startswith(str(folder)):
            del sys.modules[name]
    importlib.invalidate_caches()
