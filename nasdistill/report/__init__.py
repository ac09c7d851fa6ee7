"""The report: one HTML file about a run, made from the run's folder alone.

The drawing functions of :mod:`nasdistill.report.charts`, the tables of :mod:`nasdistill.report.markup` and
:func:`nasdistill.report.svg.text`, which escapes, are there for sections of plugins too.
"""

from __future__ import annotations

from nasdistill.report.collect import collect
from nasdistill.report.write import Report, write_report

__all__ = ["Report", "collect", "write_report"]
