"""Everything a report is made of, read from a run directory: plain data, whatever state the run is in.

The mapping is the run's result object (see ``docs/contracts.md``) with more keys; a part that is missing or damaged is
empty, and a sentence in ``gaps`` says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from nasdistill.errors import NasdistillError, one_line
from nasdistill.files import read_json
from nasdistill.library.building import absent_plugins
from nasdistill.report.drawing import graph_json
from nasdistill.search.result import build_result
from nasdistill.store import RunDirectory

if TYPE_CHECKING:
    from nasdistill.host import Host
    from nasdistill.interfaces import SearchSpace

Value = TypeVar("Value")


def collect(run: RunDirectory, host: Host | None = None) -> dict[str, Any]:
    """Return what is known of a run.

    Args:
        run: finished, running or killed.
        host: gives the search spaces, for the architectures' graphs; without it those are left out.

    Returns:
        The result object's keys, and ``gaps`` (what is missing, in words), ``written`` (time), ``status``, ``config``,
        ``environment``, ``teacher_record``, ``final``, ``baselines``, ``outcomes`` (one per trial), ``events``,
        ``disk`` (student -> bytes of weights), ``graphs`` (student -> graph, see
        :func:`nasdistill.report.drawing.graph_json`), ``axes`` (space -> list of ``name``, ``choices``, ``always``).
    """
    gaps: list[str] = []

    def part(what: str, read: Callable[[], Value], missing: Value) -> Value:
        try:
            return read()
        except (NasdistillError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            gaps.append(f"{what}: {one_line(error)}")
            return missing

    def table(name: str) -> dict[str, Any]:
        value = part(name, lambda: run.read(name), None)
        return value if isinstance(value, dict) else {}

    empty: dict[str, Any] = {}
    result = part("the result", lambda: build_result(run), empty)
    data: dict[str, Any] = {**_EMPTY, **result}
    data |= {
        "run": data["run"] or str(run.path),
        "name": run.path.resolve().name,
        "written": time.time(),
        "status": table("status.json"),
        "config": table("config.json"),
        "environment": table("environment.json"),
        "teacher_record": table("teacher.json"),
        "final": table("final.json"),
        "baselines": table("baselines.json").get("baselines") or [],
        "outcomes": list(run.outcomes()),
        "events": [event for event in run.events() if isinstance(event, dict)],
        "gaps": gaps,
    }
    data["disk"] = {student["id"]: _bytes(run, student["id"]) for student in data["front"]}
    spaces: dict[str, SearchSpace] = {}
    if host is not None:
        absent = absent_plugins(data["environment"].get("plugins") or (), host)
        if absent is not None:
            gaps.append(f"what {absent[0]} would add, not here now. {absent[1]}")
        spaces = part("the search spaces", lambda: _spaces(data["config"], host), spaces)
    data["axes"] = part("the spaces' axes", lambda: {name: _axes(space) for name, space in spaces.items()}, empty)
    data["graphs"] = part("the architectures' graphs", lambda: _graphs(run, data, spaces), empty)
    return data


_EMPTY: Mapping[str, Any] = {
    "run": "", "state": "unknown", "metric": None, "front": [], "seconds": {}, "proxies": {}, "reasons": [],
    "proxy_failures": [], "state_reason": None,
    "trials": {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "repeated": 0},
    "teacher": {"name": None, "score": None, "test_score": None, "latency_ms": {}, "params": None, "macs": None},
}  # fmt: skip


def _bytes(run: RunDirectory, student: str) -> int | None:
    """Return the size of a saved student's weights."""
    path = run.student(student) / "model.safetensors"
    return path.stat().st_size if path.is_file() else None


def _spaces(config: Mapping[str, Any], host: Host) -> dict[str, SearchSpace]:
    """Return the run's spaces by canonical id."""
    from nasdistill.spec.component import Kind

    found = [host.create(Kind.SEARCH_SPACE, item["name"], item.get("options")) for item in config.get("space", [])]
    return {space.id: space for space in found}


def _axes(space: SearchSpace) -> list[dict[str, Any]]:
    return [{"name": axis.name, "choices": list(axis.choices), "always": axis.active is None} for axis in space.axes()]


def _graphs(run: RunDirectory, data: Mapping[str, Any], spaces: Mapping[str, SearchSpace]) -> dict[str, Any]:
    """Return the graph of every student of the front whose space is here."""
    from nasdistill.spec.architecture import Architecture
    from nasdistill.spec.io import IOSpec

    raw = (run.read("task.json") or {}).get("io")
    found = {}
    for student in data["front"]:
        space = spaces.get(student["architecture"]["space"])
        file = run.student(student["id"]) / "architecture.json"
        own = read_json(file).get("io") if raw is None and file.is_file() else raw
        if space is not None and own is not None:
            graph = space.graph(Architecture.from_json(student["architecture"]), IOSpec.from_json(own))
            found[student["id"]] = graph_json(graph)
    return found
