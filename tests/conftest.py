"""Shared fixtures: one thread, the host, the folder of real data; a cache of the test run's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from nasdistill.bridge import prepare_imports

prepare_imports()  # tests import timm and torchvision directly
torch.set_num_threads(1)


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
