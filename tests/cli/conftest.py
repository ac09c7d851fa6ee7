"""Runs the command line: in a process of its own, as a user does, or in this one, where torch is loaded already."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def clean_environment(tmp_path: Path, site: Path | None, extra: dict[str, str] | None) -> dict[str, str]:
    """The environment without our switches, with folders for cache and settings of the test's own."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("NASDISTILL_")}
    variables |= {"NASDISTILL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    variables["NASDISTILL_CONFIG_HOME"] = str(tmp_path / "config")
    if site is not None:
        variables["PYTHONPATH"] = str(site)
    return variables | (extra or {})


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NASDISTILL_PLUGINS", "NASDISTILL_DISABLE_PLUGINS", "NASDISTILL_STRICT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(tmp_path: Path) -> Run:
    """Run ``python -m nasdistill ...`` in `tmp_path`; `site` is a folder of plugins, `env` adds variables."""

    def run(*words: str, site: Path | None = None, env: dict[str, str] | None = None):
        return subprocess.run(
            [sys.executable, "-m", "nasdistill", *words],
            capture_output=True, text=True, env=clean_environment(tmp_path, site, env), cwd=tmp_path,
            stdin=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip

    return run


@pytest.fixture
def cli_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The same in this process."""
    from nasdistill.cli import main

    before = set(sys.modules)
    for name in [name for name in os.environ if name.startswith("NASDISTILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*words: str, site: Path | None = None, env: dict[str, str] | None = None):
        for name, value in clean_environment(tmp_path, None, env).items():
            monkeypatch.setenv(name, value)
        if site is not None and str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()
        capsys.readouterr()
        code = main(words)
        streams = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, streams.out, streams.err)

    logger = logging.getLogger("nasdistill")
    handlers, level = logger.handlers[:], logger.level
    yield run
    logger.handlers[:] = handlers  # -v writes to the stderr of this test
    logger.setLevel(level)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
