"""Shared fixtures: one thread, the host, the folder of real data; a cache of the test run's own."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Generator
from functools import partial
from pathlib import Path
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
