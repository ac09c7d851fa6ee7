"""Seeds: one root seed, from which every consumer derives its own by name.

Deriving by name (not by drawing from one generator) keeps runs reproducible when a step is added, skipped or redone.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(root: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on `root` and on every name, in order."""
    text = "\x1f".join([str(root), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(root: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """Return a ``torch.Generator`` seeded by :func:`derive_seed`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(root, *names))


@contextlib.contextmanager
def seeded(root: int, *names: str | int) -> Iterator[None]:
    """Run a block under derived global seeds (Python, NumPy, torch CPU and CUDA) and put the old states back.

    Layers draw their initial weights from torch's global generator, so building a model must happen in here.
    """
    import numpy as np
    import torch

    seed = derive_seed(root, *names)
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:  # the same for the CPU, without noting a stack trace for a GPU that will never be initialised (0.5 ms)
            torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Run a block with so many of torch's CPU threads and put the old number back.

    Sums are split over the threads: with one thread they have one order, and results do not depend on the machine.
    """
    import torch

    before = torch.get_num_threads()
    try:
        if before != number:
            torch.set_num_threads(number)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
