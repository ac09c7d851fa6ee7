"""Checks of tasks: the same data in every process, every sample once, a loss and a metric that mean what they say."""

from __future__ import annotations

from nasdistill.testing.checks.task import batches, cases, data, epochs, losses, models

CONTEXT = {
    "other_options": "options under which the data are others: the fingerprint must tell",
    "model": (
        "a callable from the task's `IOSpec` to a network that fits; a small one, which reads the first "
        "input, unless given"
    ),
}
"""What an example's context may name."""

__all__ = ["batches", "cases", "data", "epochs", "losses", "models"]
