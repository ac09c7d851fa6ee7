"""The plugins that come in the same wheel, by module name.

They are named here rather than by entry points, so that a new one works in a checkout without reinstalling; from here
on they take the same way as every other plugin.
"""

from __future__ import annotations

BUNDLED: tuple[str, ...] = (
    "nasdistill_attention",
    "nasdistill_diagnostics",
    "nasdistill_exporters",
    "nasdistill_losses",
    "nasdistill_proxies",
    "nasdistill_recipes",
    "nasdistill_spaces",
    "nasdistill_strategies",
    "nasdistill_targets",
    "nasdistill_tasks",
    "nasdistill_teachers",
    "nasdistill_transforms",
)

PREFIX = "nasdistill_"


def plugin_name(module: str) -> str:
    """Return a bundled plugin's name: its module's name without the prefix."""
    return module.removeprefix(PREFIX)
