"""Transforms: turn a model into another (prune, convert, share, quantise, make a mixture of experts)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.signals import Site
from nasdistill.spec.io import Cost


@dataclass(slots=True)
class Transformed:
    """The result.

    Attributes:
        model: the new model; the input is unchanged.
        report: what was done, as JSON-able values (kept shares, ranks, energies).
        config: everything `rebuild` needs beside the weights, as JSON-able values.
        index_maps: site -> kept channel indices of the input model's site, so that losses and costs can follow.
        losses: auxiliary terms the model produces while training (load balance, budget); read after each forward.
        cost: analytic cost of one forward of one sample, where known (expected cost for conditional computation).
    """

    model: nn.Module
    report: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    index_maps: dict[Site, Tensor] = field(default_factory=dict)
    losses: Callable[[], Mapping[str, Tensor]] | None = None
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """A transform that a network went through, as plain data: `rebuild` repeats it on a fresh network.

    Attributes:
        name: canonical id.
        options: of the transform.
        config: what it returned for `rebuild`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"name": self.name, "options": dict(self.options), "config": dict(self.config)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Applied:
        """Read what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(str(value["name"]), dict(value["options"]), dict(value["config"]))


class Transform(Component, ABC):
    """A model-to-model step.

    Contract (checked for every transform): there is a setting under which the result equals the input to 1e-5; applying
    `rebuild` to a fresh copy with `config` and loading the weights gives the same function; the input is unchanged.
    """

    @abstractmethod
    def apply(
        self, model: nn.Module, calibration: Sequence[Batch], forward: Callable[[nn.Module, Batch], Tensor]
    ) -> Transformed:
        """Return the transformed model.

        Args:
            model: left unchanged.
            calibration: labelled or unlabelled batches, for importance or statistics.
            forward: the task's way of calling a model.
        """

    @abstractmethod
    def rebuild(self, model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
        """Return the structure that `apply` made, from an untransformed model and the stored config, without data."""
