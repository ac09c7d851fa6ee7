"""Distillation losses: what to compare between a student's and a teacher's signals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from nasdistill.interfaces.base import ComponentFactory, Example, HostReference
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.signals import ModelGeometry, SiteNeeds, Trace
from nasdistill.spec.options import ComponentOptions, parse_options

Terms = dict[str, Tensor]
"""Named scalar terms; their sum is the loss's value."""


class DistillationLoss(nn.Module, ABC):
    """A distillation loss; an ``nn.Module`` because it may own projectors, critics or routers.

    Life: construct -> `build` once with both geometries -> `sites` -> `forward` every step. Owned parameters reach the
    optimiser (with the student's) and never reach the export.

    Contract (checked for every loss): finite scalars; 0 at identity where declared; no gradient into the teacher;
    repeating the batch leaves the value unchanged; padded positions have no influence; impossible pairs are refused
    in `build` with both shapes named; reads only the sites that it asked for.

    Attributes:
        options_model: pydantic model of the options.
        examples, expected_failures: as in :class:`nasdistill.interfaces.Component`.
        wants_teacher_grad: True only for losses that train the teacher too (co-training); teacher signals arrive
            detached otherwise.
        options: validated options.
        id: canonical id, set by the host.
    """

    options_model: ClassVar[type[ComponentOptions]] = ComponentOptions
    examples: ClassVar[tuple[Example, ...]] = (Example(),)
    expected_failures: ClassVar[Mapping[str, str]] = {}
    wants_teacher_grad: ClassVar[bool] = False

    def __init__(self, options: Any = None, *, host: ComponentFactory | None = None) -> None:
        super().__init__()
        self.id = type(self).__name__
        self.options: Any = parse_options(self.options_model, options, where=self.id)
        self._host = HostReference(host)

    @property
    def host(self) -> ComponentFactory:
        """The factory that made this loss; RuntimeError when it was built by hand without one."""
        return self._host.get(self.id)

    @abstractmethod
    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Resolve layers and create owned parts for this pair of models.

        Args:
            student: geometry of the student.
            teacher: geometry of the teacher.
            layer_map: student layer -> teacher layer, from the search space (or evenly spread).

        Raises:
            MismatchError: this pair cannot be compared; both shapes are named.
        """

    @abstractmethod
    def sites(self) -> SiteNeeds:
        """Return the sites that `forward` reads, resolved; only these are captured. Called after `build`."""

    @abstractmethod
    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return named scalar terms, already weighted among themselves, averaged over the batch."""

    def after_step(self, step: StepInfo) -> None:
        """Update state that is not trained by the optimiser (queues, running statistics); called after the step."""
