"""Where a training runs: device, number of processes and mixed precision, by Hugging Face Accelerate.

Accelerate keeps its state in process-wide singletons that refuse a second precision or device. A search trains many
students in one process, so each training gets fresh singletons and leaves the old ones as it found them. Only a process
group that ``accelerate launch`` asked for lives on: it cannot be opened twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin

from nasdistill.errors import UsageError
from nasdistill.interfaces.batch import Batch

Precision = Literal["no", "bf16", "fp16"]


@contextlib.contextmanager
def placed(device: str, precision: Precision) -> Iterator[Accelerator]:
    """Yield an Accelerator for one training.

    Args:
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for the best one that is here.
        precision: as :func:`available_precision` returned it.

    Raises:
        UsageError: there is no such device.
    """
    singletons = (PartialState, AcceleratorState, GradientState)
    saved = [dict(singleton._shared_state) for singleton in singletons]
    deterministic = torch.backends.cudnn.deterministic
    launched = saved[0].get("num_processes", 1) > 1
    for singleton in singletons:
        if not (launched and singleton is PartialState):
            singleton._shared_state.clear()
    try:
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=precision,
            # The engine accumulates by itself; without this an environment variable of the launcher would, too.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # A loss term may leave some of its parts out of a step (a router, a weight that is 0 for now).
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        if device not in ("auto", accelerator.device.type):
            raise UsageError(f"device {device!r} is not available; this machine offers {accelerator.device.type!r}")
        launched = accelerator.num_processes > 1
        torch.backends.cudnn.deterministic = True
        yield accelerator
    finally:
        torch.backends.cudnn.deterministic = deterministic
        for singleton, state in zip(singletons, saved, strict=True):
            if launched and singleton is PartialState:
                continue
            singleton._shared_state.clear()
            singleton._shared_state.update(state)


def available_precision(device: str, precision: Precision) -> tuple[Precision, str | None]:
    """Return the precision to train in, and a note when it is not the one asked for."""
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if precision == "fp16" and not on_gpu:
        return "no", "fp16 needs a GPU; trained in float32"
    if precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        return "no", "this GPU has no bf16; trained in float32"
    return precision, None


def shard(batch: Batch, accelerator: Accelerator) -> Batch:
    """Return this process's share of a batch, on its device: every n-th sample (all of a batch too small to share)."""
    world = accelerator.num_processes
    if world > 1 and batch.size >= world:
        batch = batch.select(torch.arange(accelerator.process_index, batch.size, world))
    return batch if accelerator.device.type == "cpu" else batch.to(accelerator.device)


def shard_rows(rows: int, batch_size: int, accelerator: Accelerator) -> int:
    """Return how many of the samples of a pass :func:`shard` gives to this process."""
    world, rank = accelerator.num_processes, accelerator.process_index
    full, rest = divmod(rows, batch_size)

    def share(size: int) -> int:
        return len(range(rank, size, world)) if size >= world else size

    return full * share(batch_size) + share(rest)
