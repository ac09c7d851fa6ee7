"""nasdistill: find the student that answers in time.

>>> run = nasdistill.load("runs/x")  # doctest: +SKIP
>>> model = run.best(max_latency_ms=1.5).model()  # doctest: +SKIP

The names below load on first use: ``import nasdistill`` imports neither torch nor Optuna nor any plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nasdistill._version import __version__

if TYPE_CHECKING:
    from nasdistill.host.markers import hookimpl
    from nasdistill.library import Run, Student, build, load, load_run, load_student
    from nasdistill.spec.architecture import Architecture

_LAZY = {
    "Architecture": "nasdistill.spec.architecture",
    "Run": "nasdistill.library",
    "Student": "nasdistill.library",
    "build": "nasdistill.library",
    "hookimpl": "nasdistill.host.markers",
    "load": "nasdistill.library",
    "load_run": "nasdistill.library",
    "load_student": "nasdistill.library",
}

__all__ = [
    "Architecture", "Run", "Student", "__version__", "build", "hookimpl", "load", "load_run", "load_student",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _LAZY:
        import importlib

        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__})
