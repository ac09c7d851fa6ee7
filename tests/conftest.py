"""Shared fixtures: one thread, the host, the folder of real data."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from nasdistill.bridge import prepare_imports

prepare_imports()  # tests import timm and torchvision directly
torch.set_num_threads(1)


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
