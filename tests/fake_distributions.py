"""Real distributions made on the spot: a module beside a dist-info folder is all that Python's metadata asks for."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path

PROXY_PLUGIN = """
from nasdistill import hookimpl
from nasdistill.spec.component import ProxySpec

@hookimpl
def nasdistill_proxies():
    return [ProxySpec("{component}", "{module}_parts:Score", "scores something")]
"""

PROXY_PARTS = """
from nasdistill.interfaces import Proxy, ProxyScore
from nasdistill.spec.options import ComponentOptions

class Options(ComponentOptions):
    '''Options.'''
    power: int = 2

class Score(Proxy):
    options_model = Options
    def score(self, request):
        return ProxyScore(1.0)
"""

HANGS = """
def hang():
    import signal, time, types
    from nasdistill.host import timelimit
    clock = timelimit.time.monotonic
    timelimit.time = types.SimpleNamespace(monotonic=lambda: clock() + 1000)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
hang()
"""
"""Begins the source of a plugin that hangs: the limit's own clock jumps instead of the test waiting for it.

So only what hangs runs out of time, however long the others take to load on a busy machine.
"""


def write_distribution(
    folder: Path,
    name: str,
    *,
    modules: dict[str, str],
    entries: dict[str, str] | None = None,
    version: str = "1.2",
    entry_points_text: str | None = None,
    metadata: bool = True,
) -> None:
    """Write modules and the metadata of an installed distribution into `folder`.

    Args:
        folder: a folder on (or to be put on) ``sys.path``.
        name: the distribution's name.
        modules: module name -> source.
        entries: entry points of group ``nasdistill``: name -> value.
        version: the distribution's version.
        entry_points_text: the whole entry_points.txt instead.
        metadata: whether to write the METADATA file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    if metadata:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = ["[nasdistill]", *(f"{key} = {value}" for key, value in (entries or {}).items())]
    text = "\n".join(lines) + "\n" if entry_points_text is None else entry_points_text
    (info / "entry_points.txt").write_text(text, encoding="utf-8")
    importlib.invalidate_caches()


def write_proxy_plugin(folder: Path, plugin: str, component: str, *, distribution: str | None = None) -> None:
    """Write a distribution whose plugin brings one working proxy."""
    module = f"{plugin}_module"
    write_distribution(
        folder,
        distribution or f"nasdistill-{plugin}",
        modules={
            module: PROXY_PLUGIN.format(component=component, module=module),
            f"{module}_parts": PROXY_PARTS,
        },
        entries={plugin: module},
    )
