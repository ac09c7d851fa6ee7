"""The sections of the report that come with nasdistill, in the order in which they stand.

Each is a function from the data of :func:`nasdistill.report.collect.collect` to a
:class:`~nasdistill.interfaces.Section`, or to None where there is nothing to say: the signature of
:meth:`nasdistill.interfaces.ReportSection.render`. Those of plugins follow after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nasdistill.interfaces import Section
from nasdistill.report.sections.architectures import architectures
from nasdistill.report.sections.baselines import baselines
from nasdistill.report.sections.course import costs, curves, progress
from nasdistill.report.sections.front import front, headline
from nasdistill.report.sections.importance import importance
from nasdistill.report.sections.outcomes import outcomes
from nasdistill.report.sections.proxies import proxies
from nasdistill.report.sections.reproduce import reproduce
from nasdistill.report.sections.students import students

SECTIONS: tuple[tuple[str, Callable[[Mapping[str, Any]], Section | None]], ...] = (
    ("headline", headline),
    ("front", front),
    ("students", students),
    ("baselines", baselines),
    ("architectures", architectures),
    ("proxies", proxies),
    ("importance", importance),
    ("progress", progress),
    ("curves", curves),
    ("costs", costs),
    ("outcomes", outcomes),
    ("reproduce", reproduce),
)
"""Anchor and function of every section."""
