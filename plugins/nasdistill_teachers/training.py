"""Plain supervised training, bit-reproducible: how bundled teachers come to be.

AdamW with decay on matrices and kernels only, linear warm-up and cosine decay, label smoothing, clipped gradients,
stochastic depth, and an exponential moving average of weights and buffers, which is the result. It runs on one thread:
sums then have one order, and two trainings give equal bits.

Stochastic depth, "Deep Networks with Stochastic Depth", arXiv 1603.09382: in a step, block l of L is skipped with
probability ``p l / (L - 1)``; a block that runs counts ``1 / (1 - p l / (L - 1))`` times, so that the expectation is
that of the whole network and nothing has to be scaled afterwards (the paper scales at test time). The draw is per
batch, as there, so a skipped block also costs nothing.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasdistill.errors import NasdistillError
from nasdistill.interfaces.task import Split, Task
from nasdistill.seeds import seeded, torch_threads


@dataclass(frozen=True, slots=True)
class SupervisedPlan:
    """A training plan.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate.
        weight_decay: decay of matrices and kernels.
        warmup: share of the steps with a rising learning rate.
        label_smoothing: share of the target spread over all classes.
        ema: decay per step of the averaged weights.
        clip: largest gradient norm.
        drop_path: probability p of skipping the last block; needs a network with residual `blocks`.
        seed: of order, augmentation and whatever the model draws.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    ema: float = 0.99
    clip: float = 1.0
    drop_path: float = 0.0
    seed: int = 0


def train(model: nn.Module, task: Task, plan: SupervisedPlan, say: Callable[[str], None]) -> nn.Module:
    """Train `model` in place on the training split and return its moving average, in eval mode.

    Args:
        model: gives ``(B, K)`` logits; on the CPU.
        task: a prepared classification task.
        plan: see :class:`SupervisedPlan`.
        say: told about every epoch, with the time that is left.

    Raises:
        NasdistillError: the loss is not finite.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.lr)
    total = plan.epochs * math.ceil(task.size("train") / plan.batch_size)
    rising = max(1, round(plan.warmup * total))
    average = copy.deepcopy(model)
    step, begin = 0, time.perf_counter()
    with torch_threads(1), seeded(plan.seed, "supervised training"), torch.enable_grad():
        for epoch in range(plan.epochs):
            model.train()
            for batch in task.batches("train", batch_size=plan.batch_size, epoch=epoch, seed=plan.seed, train=True):
                share = (step + 1) / rising if step < rising else 0.5 + 0.5 * math.cos(math.pi * step / total)
                for group in optimizer.param_groups:
                    group["lr"] = plan.lr * share
                assert batch.labels is not None  # classification data
                with _stochastic_depth(model, plan.drop_path):
                    output = task.forward(model, batch)
                loss = F.cross_entropy(output, batch.labels, label_smoothing=plan.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
                optimizer.step()
                _follow(average, model, min(plan.ema, (1 + step) / (10 + step)))
                step += 1
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NasdistillError(f"training the teacher failed in epoch {epoch + 1}: the loss is {value}")
            done = epoch + 1
            left = (time.perf_counter() - begin) / done * (plan.epochs - done)
            say(f"epoch {done} of {plan.epochs}, loss {value:.3f}, about {left:.0f} s left")
    return average.eval().requires_grad_(False)


def accuracy(model: nn.Module, task: Task, split: Split) -> float:
    """Return the task's score of `model` (in eval mode) on a split."""
    with torch.no_grad(), torch_threads(1):
        pairs = [(task.forward(model, batch), batch.labels) for batch in task.batches(split, batch_size=256)]
    labels = torch.cat([label for _, label in pairs if label is not None])
    return task.score(torch.cat([output for output, _ in pairs]), labels)


@contextlib.contextmanager
def _stochastic_depth(model: nn.Module, rate: float) -> Iterator[None]:
    """Skip some of ``model.blocks`` in the forwards inside, drawn from torch's global generator."""
    blocks = list(cast("nn.ModuleList", model.blocks)) if rate > 0 else []
    for number, block in enumerate(blocks):
        skip = rate * number / max(1, len(blocks) - 1)
        block.forward = _skipped if bool(torch.rand(()) < skip) else _weighted(block.forward, 1 / (1 - skip))
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the instance's; the class has its own


def _skipped(x: Tensor, *_: Any) -> Tensor:
    """Return the input: the block without its residual branch."""
    return x


def _weighted(forward: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
    """Return `forward` with its residual part counted `factor` times."""
    if factor == 1:
        return forward
    return lambda x, *rest: torch.lerp(x, forward(x, *rest), factor)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every parameter and buffer of `average` a step of ``1 - decay`` towards `model`.

    The caller's decay grows from 0.1, so that the average forgets the initial weights within a short training.
    """
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
