"""What a run writes down of its task and software, for whoever loads a student later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nasdistill._version import __version__
from nasdistill.files import atomic_folder
from nasdistill.host import Host
from nasdistill.interfaces import Task
from nasdistill.spec.config import RunConfig


def task_facts(config: RunConfig, task: Task) -> dict[str, Any]:
    """Return what a student's user must know of the task: input and output, preprocessing, metric; no paths."""
    metric = task.metric
    return {
        "name": config.task.name,
        "fingerprint": task.fingerprint,
        "io": task.io.to_json(),
        "metric": {"name": metric.name, "higher_is_better": metric.higher_is_better, "unit": metric.unit},
        "preprocessing": dict(task.preprocessing),
        "samples": task.size("train"),
    }


def write_assets(task: Task, folder: Path) -> None:
    """Write what a task's students need beside their weights, complete or not at all; no folder where it is nothing."""
    if folder.exists():
        return
    with atomic_folder(folder) as temporary:
        task.write_assets(temporary)
    if not any(folder.iterdir()):
        folder.rmdir()


def software(host: Host) -> dict[str, Any]:
    """Return the version of nasdistill and the plugins of others that were loaded, with theirs."""
    others = [p for p in host.plugins() if not p.bundled and p.state == "loaded"]
    return {
        "nasdistill": __version__,
        "plugins": [plugin.origin() for plugin in others],
    }
