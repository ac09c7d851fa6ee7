"""What comes out of a run: exporters and report sections; and how samplers are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.transform import Applied
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import IOSpec

if TYPE_CHECKING:
    import optuna

    from nasdistill.interfaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """A student to export.

    Attributes:
        model: the student in eval mode.
        architecture: its architecture.
        io: input and output.
        example: positional inputs.
        provenance: JSON-able record of where it comes from.
        folder: an empty folder to fill; it takes its final name when the exporter has returned.
        space: the space that built the model, with the options it was built with.
        name: the student's name.
        assets: folder with what serving needs beside the weights (a tokenizer); None when there is nothing.
        transforms: what the model went through after the space had built it; its modules are then no longer those of
            the space, so that `stock_model` and `modeling_source` describe another network.
    """

    model: nn.Module
    architecture: Architecture
    io: IOSpec
    example: tuple[Tensor, ...]
    provenance: Mapping[str, Any]
    folder: Path
    space: SearchSpace
    name: str = "student"
    assets: Path | None = None
    transforms: Sequence[Applied] = ()


class Exporter(Component, ABC):
    """Writes a student in some format, complete or not at all."""

    @abstractmethod
    def export(self, request: ExportRequest) -> dict[str, Any]:
        """Write the files and return facts (parity, sizes, opset).

        Two facts are told on the command line: ``notes``, a list of warnings, and ``opens_with``, the call that opens
        the folder where nasdistill is not.

        Raises:
            UsageError: this format does not exist for such a student.
            TrialFailure: reason ``"export_failed"``, or ``"parity"`` when what was written computes something else.
        """


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of the report.

    Attributes:
        title: heading.
        html: complete, self-contained markup without scripts from elsewhere.
        data: the numbers behind it, JSON-able.
    """

    title: str
    html: str
    data: Mapping[str, Any] = field(default_factory=dict)


class ReportSection(Component, ABC):
    """Adds a section to the report; a pure function of the run's recorded data.

    `nasdistill.report.charts`, `.markup` and `.svg` have drawings, tables and escaping
    that fit the page. The page forbids every request and every script but its own. A section that raises is replaced by
    a line that says so.
    """

    @abstractmethod
    def render(self, run: Mapping[str, Any]) -> Section | None:
        """Return the section, or None when there is nothing to say.

        Args:
            run: the run's result object with further keys, see :func:`nasdistill.report.collect.collect`. The run may
                be running or killed: what is not known is empty or None.
        """


class SamplerFactory(Component, ABC):
    """Makes an Optuna sampler.

    Attributes:
        reseed: whether every trial gets a sampler with its own seed (so that trial n does not depend on what the
            process did before); False for samplers whose seed names one sequence, such as quasi-Monte Carlo.
    """

    reseed: ClassVar[bool] = True

    @abstractmethod
    def create(self, *, seed: int, directions: Sequence[str], trials: int) -> optuna.samplers.BaseSampler:
        """Return a sampler for a study with these directions (``"minimize"``/``"maximize"``)."""
