"""Wheels built from the checkout and installed into clean environments, as a user would have them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clean_environment import CleanEnvironment

ROOT = Path(__file__).parents[2]


def pytest_configure(config: pytest.Config) -> None:
    """Know pytest-xdist's marker where that is not installed."""
    config.addinivalue_line("markers", "xdist_group(name): run by one worker of a parallel run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what builds wheels and environments in one worker (with ``--dist loadgroup``)."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("packaging"))


@pytest.fixture(scope="session")
def build_wheels(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Return a function that builds wheels from source folders, in one go."""
    pytest.importorskip("hatchling", reason="wheels are built with hatchling, which the extra `dev` brings")

    def build(*sources: Path) -> list[Path]:
        folder = tmp_path_factory.mktemp("dist")
        # Copies: whatever a build leaves behind, the checkout stays clean.
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [*command, "--wheel-dir", str(folder), *map(str, sources)], capture_output=True, text=True, check=False,
            env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )  # fmt: skip
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
