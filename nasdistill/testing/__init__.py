"""The contract suite: what every component of a kind promises, as checks that its author runs.

Three fronts over one generator. In a test file of a plugin package, one line is enough::

    from nasdistill.testing import parametrize_with_checks

    @parametrize_with_checks("acme")
    def test_contract(check):
        check()

From Python without pytest, :func:`check_component` and :func:`check_plugin`; on the command line,
``nasdistill plugins check NAME``.

A component may say how it wants to be created (its class attribute `examples`) and which checks it is known to fail,
with the reason (`expected_failures`). Everything else follows from its kind and its tags: a capability that is declared
is tested, and one that is not must be refused.

The names below load on first use; importing this package imports neither torch nor pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.interfaces.base import Example
    from nasdistill.testing.generator import BoundCheck, generate_checks
    from nasdistill.testing.hosts import isolated_host
    from nasdistill.testing.registry import Check, CheckFailed, CheckSkipped, all_checks, check, fail, skip
    from nasdistill.testing.results import CheckResult
    from nasdistill.testing.run import check_component, check_plugin, parametrize_with_checks
    from nasdistill.testing.subject import Subject

_LAZY = {
    "BoundCheck": "nasdistill.testing.generator",
    "Check": "nasdistill.testing.registry",
    "CheckFailed": "nasdistill.testing.registry",
    "CheckResult": "nasdistill.testing.results",
    "CheckSkipped": "nasdistill.testing.registry",
    "Example": "nasdistill.interfaces.base",
    "Subject": "nasdistill.testing.subject",
    "all_checks": "nasdistill.testing.registry",
    "check": "nasdistill.testing.registry",
    "check_component": "nasdistill.testing.run",
    "check_plugin": "nasdistill.testing.run",
    "fail": "nasdistill.testing.registry",
    "generate_checks": "nasdistill.testing.generator",
    "isolated_host": "nasdistill.testing.hosts",
    "parametrize_with_checks": "nasdistill.testing.run",
    "skip": "nasdistill.testing.registry",
}

__all__ = [
    "BoundCheck", "Check", "CheckFailed", "CheckResult", "CheckSkipped", "Example", "Subject", "all_checks", "check",
    "check_component", "check_plugin", "fail", "generate_checks", "isolated_host", "parametrize_with_checks", "skip",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _LAZY:
        import importlib

        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
