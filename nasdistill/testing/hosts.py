"""Hosts for tests: the bundled plugins and what the test hands over, nothing of the environment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from nasdistill.host import Host
from nasdistill.host.hookspecs import HOOKS
from nasdistill.host.markers import hookimpl
from nasdistill.spec.component import ComponentSpec, Kind


def isolated_host(*specs: ComponentSpec, plugin: str = "local", strict: bool = True) -> Host:
    """Return a host of its own with the bundled plugins and one plugin made of `specs`.

    Installed third-party plugins play no part, and neither do the switches of the environment and the user's file.

    Args:
        specs: the components of the plugin; none makes no plugin.
        plugin: its name, the first half of the components' ids.
        strict: raise at a plugin's problem; False records it in ``host.problems``.

    Raises:
        PluginError: a spec is malformed, or a name is taken twice.
    """
    host = Host.load(third_party=False, environment=False, strict=strict)
    if specs:
        host.add(plugin_of(specs), plugin)
    return host


def plugin_of(specs: Iterable[ComponentSpec]) -> object:
    """Return a plugin object that registers `specs`."""
    by_kind: dict[Kind, list[ComponentSpec]] = defaultdict(list)
    for spec in specs:
        by_kind[spec.kind].append(spec)
    hooks = {kind: hook for hook, kind in HOOKS.items()}

    def implementation(found: list[ComponentSpec]) -> Callable[[object], list[ComponentSpec]]:
        return hookimpl(lambda self: found)

    return type("LocalPlugin", (), {hooks[kind]: implementation(found) for kind, found in by_kind.items()})()
