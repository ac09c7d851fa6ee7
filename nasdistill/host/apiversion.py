"""The version of the plugin interface.

A plugin module may state ``NASDISTILL_API = 1``: the interface it was written against; without it, 1 is assumed. The
host serves the current version and the one before. New hooks, new optional spec fields and new hook arguments do not
raise the number; a change that would break a plugin does.
"""

from __future__ import annotations

PLUGIN_API = 1
"""The interface that this host serves."""

OLDEST_API = max(1, PLUGIN_API - 1)
"""The oldest interface that this host still serves."""

API_ATTRIBUTE = "NASDISTILL_API"
"""Name of the attribute of a plugin module."""


def plugin_api(plugin: object) -> int:
    """Return the interface version that a plugin states.

    Raises:
        ValueError: it states something that is not a version, or one that this host does not serve.
    """
    stated = getattr(plugin, API_ATTRIBUTE, 1)
    if isinstance(stated, bool) or not isinstance(stated, int):
        raise ValueError(f"{API_ATTRIBUTE} must be an integer, not {stated!r}")
    if stated > PLUGIN_API:
        raise ValueError(f"it was written for plugin API {stated}, this nasdistill serves up to {PLUGIN_API}")
    if stated < OLDEST_API:
        raise ValueError(f"it was written for plugin API {stated}, this nasdistill serves {OLDEST_API} and later")
    return stated
