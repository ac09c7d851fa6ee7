"""A teacher small enough for tests, and trained: it knows the digits, so there is something to learn from it."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import nn

from nasdistill.seeds import torch_generator, torch_threads
from nasdistill.testing.kit.models import SmallResNet, built, call, digits, digits_loss

TRAINING, EPOCHS, BATCH_SIZE = 1200, 6, 64
"""The first digits are trained on, so often, in batches of this size; the others are left to judge by."""


def tiny_teacher() -> nn.Module:
    """Return a :class:`~nasdistill.testing.kit.models.SmallResNet` that was trained on digits, frozen and in eval mode.

    It takes ``(B, 1, 8, 8)`` and gives ``(B, 10)``. The first call trains it, on one thread and with a fixed seed, in
    about a second; every call returns a copy of its own.
    """
    return copy.deepcopy(_trained())


def accuracy(model: nn.Module, start: int = TRAINING, end: int = 1797) -> float:
    """Return the share of the digits from `start` to `end` that a network in eval mode recognises."""
    batch = digits(end - start, start)
    assert batch.labels is not None
    with torch.no_grad():
        return float(call(model, batch).argmax(1).eq(batch.labels).double().mean())


@cache
def _trained() -> nn.Module:
    with torch_threads(1), torch.enable_grad():  # the weights are the same everywhere on a machine
        model = built(SmallResNet).train()
        steps = EPOCHS * -(-TRAINING // BATCH_SIZE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        everything, generator = digits(TRAINING), torch_generator(0, "tiny teacher")
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(TRAINING, generator=generator), BATCH_SIZE):
                batch = everything.select(rows)
                loss = digits_loss(call(model, batch), batch)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return model.eval().requires_grad_(False)
