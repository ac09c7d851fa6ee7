"""The host: finds plugins, keeps a broken one from harming the others, and hands out components by name.

Plugin modules import ``nasdistill.host.markers`` through ``nasdistill.hookimpl``, so the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasdistill.host.manager import Host
    from nasdistill.host.problems import PluginError, PluginProblem, Stage
    from nasdistill.host.records import PluginRecord
    from nasdistill.host.registry import ComponentRecord

_LAZY = {
    "ComponentRecord": "nasdistill.host.registry",
    "Host": "nasdistill.host.manager",
    "PluginError": "nasdistill.host.problems",
    "PluginProblem": "nasdistill.host.problems",
    "PluginRecord": "nasdistill.host.records",
    "Stage": "nasdistill.host.problems",
}

__all__ = ["ComponentRecord", "Host", "PluginError", "PluginProblem", "PluginRecord", "Stage"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _LAZY:
        import importlib

        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
