"""Diagnostics: look at models and data, return tables and figures (attention sinks, layer similarity,
gradient conflict).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nasdistill.interfaces.base import Component
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import Tracer


@dataclass(frozen=True, slots=True)
class Finding:
    """A diagnostic's result.

    Attributes:
        values: headline numbers.
        tables: name -> rows (each a mapping column -> JSON-able value).
        figures: name -> a plotly figure as JSON-able dict.
        text: one paragraph of reading help.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text: str = ""


class Diagnostic(Component, ABC):
    """A look at models and data; changes nothing."""

    def check(self) -> None:
        """Refuse options with which :meth:`examine` cannot work; asked before models and data are opened.

        By default there is nothing to refuse. For what lies outside of the options, such as runs that are read.

        Raises:
            NasdistillError: names what is wrong.
        """
        return None

    @abstractmethod
    def examine(self, models: Mapping[str, nn.Module], task: Task, batches: Sequence[Batch], tracer: Tracer) -> Finding:
        """Return the finding.

        Args:
            models: name -> model (``"teacher"``, ``"student"``, ``"layers of ..."``).
            task: a prepared task.
            batches: what to look at.
            tracer: captures sites of any model.
        """
