"""Shared fixtures: one thread, the host, the folder of real data; a cache of the test run's own."""

from __future__ import annotations

import gc
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from nasdistill.bridge import prepare_imports

prepare_imports()  # tests import timm and torchvision directly
torch.set_num_threads(1)

# A busy machine is no fault.
settings.register_profile("nasdistill", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("nasdistill")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's cache and switched-off plugins out of the tests.

    The workers of a parallel run inherit the folder: one teacher for all.
    """
    for variable in ("NASDISTILL_CACHE", "NASDISTILL_CONFIG_HOME"):
        if variable not in os.environ:
            folder = tempfile.mkdtemp(prefix="nasdistill-tests-")
            os.environ[variable] = folder
            config.add_cleanup(partial(os.environ.pop, variable, None))
            config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what is marked `slow`: a long test that comes last leaves the other processes without work.

    Otherwise the order stays the random one that pytest-randomly has made by now.
    """
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


ALONE = ("test_zoo.py", "test_tags.py")
"""Files of many tests that share nothing: these go to whichever process is free."""
DIGITS_TEACHER = ("test_kd_gain", "test_builtin_digits_reaches_98_percent")
"""Tests that need the digits' teacher, which the first of them trains."""


def unit(test: str) -> str:
    """Return the name of what a test is run together with, by one process of a parallel run.

    That is its file, for the sake of the fixtures that its tests share; in `test_bundled.py` it is a component, of
    which the first check finds out what the others ask for, and all spaces, which share a process of another kind.
    """
    file, _, name = test.partition("::")
    component = re.search(r"test_bundled\.py::test_contract\[(\w+)(:\w+)?", test)
    if component:
        return component[1] if component[1] == "spaces" else component[0]
    if name in DIGITS_TEACHER:
        return "the digits' teacher"
    if "packaging/" in file:
        return "packaging"
    return test if file.endswith(ALONE) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests by :func:`unit`, in the order of the collection; another `--dist` is as pytest-xdist has it."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    config.option.loadscopereorder = False  # by the number of tests, which says nothing of how long they take
    return ByUnit(config, log)


def pytest_collection_finish() -> None:
    """Leave what is imported by now, half a million objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed torch, which pytest-randomly does not: a test's numbers do not hang on what ran before it."""
    torch.manual_seed(crc32(item.nodeid.partition("@")[0].encode()))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> Generator[None, object, object]:
    """Seed what several tests share by itself, whichever of them comes first."""
    if fixturedef.scope == "function":
        return (yield)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(crc32(f"{fixturedef.baseid}::{fixturedef.argname}".encode()))
        return (yield)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets, or a counted skip."""
    folder = Path(os.environ.get("NASDISTILL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set NASDISTILL_DATA)")
    return folder


@pytest.fixture(scope="session")
def host():
    """The host with all bundled plugins and nothing else."""
    from nasdistill.host import Host

    return Host.load(third_party=False)
