"""Checks of tasks: the same data in every process, every sample once, a loss and a metric that mean what they say.

An example's context may say ``other_options`` (options under which the data are others: the fingerprint must tell) and
``model`` (a callable from the task's :class:`~nasdistill.spec.io.IOSpec` to a network that fits; without it a small
network of the kit is used, which reads its first input).
"""

from __future__ import annotations

from nasdistill.testing.checks.task import batches, cases, data, epochs, losses, models

__all__ = ["batches", "cases", "data", "epochs", "losses", "models"]
