"""Wheels built from the checkout and installed into clean environments, as a user would have them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from clean_environment import CleanEnvironment

ROOT = Path(__file__).parents[2]
BUILD = """
import os, sys
from hatchling import build
for source in sys.argv[2:]:
    os.chdir(source)
    build.build_wheel(sys.argv[1])
"""


@pytest.fixture(scope="session")
def build_wheels(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Return a function that builds wheels from source folders, in one go."""
    pytest.importorskip("hatchling", reason="wheels are built with hatchling, which the extra `dev` brings")

    def build(*sources: Path) -> list[Path]:
        folder = tmp_path_factory.mktemp("dist")
        for source in sources:
            project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
            assert project["build-system"]["build-backend"] == "hatchling.build"
        # The hook that pip calls, without pip's processes: three for every source.
        done = subprocess.run(
            [sys.executable, "-c", BUILD, folder, *sources], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return sorted(folder.glob("*.whl"))

    return build


@pytest.fixture(scope="session")
def wheel(build_wheels: Callable[..., list[Path]]) -> Path:
    """The wheel of the checkout."""
    (found,) = build_wheels(ROOT)
    return found


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    """A clean environment of the module's own with the wheel; it takes about two seconds to make."""
    made = CleanEnvironment(tmp_path_factory.mktemp("clean"))
    made.install(wheel)
    return made


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that copies a source folder out of the checkout."""

    def copy(folder: Path) -> Path:
        ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "dist", "build", "*.egg-info")
        return Path(shutil.copytree(folder, tmp_path / folder.name, ignore=ignored))

    return copy
