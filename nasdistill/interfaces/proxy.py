"""Training-free proxies: one number for an untrained network, higher is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.batch import Batch
from nasdistill.spec.io import Cost, IOSpec


@dataclass(frozen=True, slots=True)
class ProxyInput:
    """What a proxy may look at.

    Attributes:
        model: a fresh copy of the student, in the declared mode and initialisation: a proxy may do to it what it likes.
        teacher: a fresh copy of the teacher in the same mode, for proxies tagged ``needs_teacher``; None otherwise.
        batches: at least one batch, copied; more where the proxy's options ask for them (`Proxy.batches_needed`).
        forward: ``forward(model, batch) -> (B, K)``, the task's way of calling a model.
        loss: ``loss(output, batch) -> scalar``, the task's own loss (mean over the batch).
        io: input and output of the task.
        cost: analytic cost of the student, where the space gives one.
        generator: the only source of randomness.
    """

    model: nn.Module
    teacher: nn.Module | None
    batches: tuple[Batch, ...]
    forward: Callable[[nn.Module, Batch], Tensor]
    loss: Callable[[Tensor, Batch], Tensor]
    io: IOSpec
    cost: Cost | None
    generator: torch.Generator

    @property
    def batch(self) -> Batch:
        """The first batch."""
        return self.batches[0]


@dataclass(frozen=True, slots=True)
class ProxyScore:
    """A proxy's answer.

    Attributes:
        value: the score, higher is better. NaN and infinities become a recorded failure, ranked last.
        parts: named components (per layer, per term), for reports and for pool aggregation.
        note: a caveat that belongs beside the value, one line (``"the semantic term is undefined here"``); empty
            when there is none.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


class Proxy(Component, ABC):
    """A training-free score.

    Contract (checked for every proxy): the host hands over copies, seeds, times, and verifies afterwards that nothing
    of the caller's changed (weights, buffers, gradients, modes, hooks, random state); the same seed gives the same
    score; the order of the batch does not matter unless declared stochastic; depth 1 and width 1 work.
    """

    @abstractmethod
    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the score of one candidate."""

    def batches_needed(self) -> int:
        """Return how many batches `score` reads."""
        return 1

    def aggregate(self, pool: Sequence[ProxyScore]) -> list[float]:
        """Return one value per pool member, for proxies tagged `pool`; the default keeps each own value."""
        return [score.value for score in pool]
