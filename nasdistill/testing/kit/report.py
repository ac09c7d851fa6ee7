"""Made-up data of runs, in the form of :func:`nasdistill.report.collect.collect`, and a reader of markup.

A run of five trials: two students on the front, one beaten, one pruned, one failed; and the same run at other moments.
"""

from __future__ import annotations

import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

TARGET = "targets:simulated"
"""The target that everything was measured on."""


def latency(value: float) -> dict[str, Any]:
    """Return a target's record of `value` milliseconds."""
    return {
        "target": TARGET, "artefact_bytes": 1000, "info": {},
        "latency": {"value_ms": value, "low_ms": 0.9 * value, "high_ms": 1.2 * value},
    }  # fmt: skip


def brief(value: float) -> dict[str, float]:
    """Return a number with its interval."""
    return {"value": value, "low": 0.9 * value, "high": 1.2 * value}


def student(number: int, score: float, milliseconds: float, name: str = "spaces:toy") -> dict[str, Any]:
    """Return a student of the front, found by trial `number` in the space `name`."""
    return {
        "id": f"{number:04d}-abcdef", "score": score, "test_score": score - 0.01,
        "latency_ms": {TARGET: brief(milliseconds)}, "latency_ratio": {TARGET: brief(milliseconds / 4)},
        "params": 1000 * (number + 1), "macs": 5000, "architecture": {"space": name, "params": {"depth": number}},
    }  # fmt: skip


def outcome(number: int, state: str, score: float | None, milliseconds: float, **changes: Any) -> dict[str, Any]:
    """Return a trial's record; `changes` replace keys."""
    return {
        "number": number, "state": state, "rung": "full", "reason": "", "score": score, "constraints": {},
        "architecture": {"space": "spaces:toy", "params": {"depth": number % 3 + 1, "width": 8 * (number % 2 + 1)}},
        "targets": {TARGET: latency(milliseconds)}, "results": {"short": {"score": score or 0.1, "loss": 1.0, "n": 9}},
        "seconds": {"short": 1.0}, "rungs": {"short": {"epochs": 1}},
        "history": [{"rung": "short", "epoch": e, "total": 2.0 / (e + 1)} for e in range(3)], **changes,
    }  # fmt: skip


def run_data(**changes: Any) -> dict[str, Any]:
    """Return a finished run; `changes` replace keys."""
    front = [student(1, 0.90, 1.0), student(3, 0.97, 2.0)]
    outcomes = [
        outcome(0, "complete", 0.80, 1.5, origin="spread"),
        outcome(1, "complete", 0.90, 1.0, origin="spread"),
        outcome(2, "pruned", None, 3.0, reason="slower than 0.5 of the teacher (max_latency_ratio)"),
        outcome(3, "complete", 0.97, 2.0, origin="sampler"),
        outcome(4, "failed", None, 9.0, reason="nan_loss: the loss is nan at step 7"),
    ]
    events = [{"event": "started", "time": 100.0}]
    events += [
        {"event": "trial", "number": o["number"], "state": o["state"], "time": 101.0 + o["number"]} for o in outcomes
    ]
    quality = {"spearman": 0.5, "spearman_interval": [0.1, 0.8], "kendall": 0.4, "kendall_interval": [0.0, 0.7],
               "n": 5, "rung": "short", "top3_regret": 0.01}  # fmt: skip
    return {
        "run": "runs/toy", "name": "toy", "state": "finished", "written": 200.0, "status": {}, "config": {},
        "environment": {},
        "metric": {"name": "accuracy", "higher_is_better": True, "unit": "share"}, "gaps": [], "reasons": [],
        "teacher": {"name": "toy:teacher", "score": 0.98, "test_score": 0.97, "latency_ms": {TARGET: brief(4.0)},
                    "params": 90_000, "macs": 10**6},
        "front": front, "outcomes": outcomes, "events": events, "baselines": [], "graphs": {}, "axes": {}, "disk": {},
        "teacher_record": {}, "final": {}, "seconds": {"short": 4.0, "full": 9.0},
        "trials": {"complete": 3, "pruned": 1, "failed": 1, "running": 0, "repeated": 0},
        "proxies": {"params": {**quality, "spearman": 0.7}, "macs": quality, "nwot": {**quality, "spearman": 0.2}},
        **changes,
    }  # fmt: skip


def named_run(name: str, reason: str, axis: str) -> dict[str, Any]:
    """Return a finished run in which every free text is one of these."""
    data = run_data(name=name, state="failed", status={"reason": reason}, gaps=[reason])
    data["teacher"]["name"] = name
    data["metric"]["name"] = axis or "m"
    first = data["front"][0]
    first["id"] = f"0001-{name}"
    first["architecture"] = {"space": f"spaces:{axis}", "params": {axis: name}}
    data["outcomes"][4]["reason"] = reason
    data["outcomes"][3]["proxy_problems"] = {name: reason}
    data["proxies"][f"{name}x"] = data["proxies"]["nwot"]
    data["seconds"][axis] = 1.0
    data["environment"] = {"python": f"{name}x", "packages": {axis: name}, "plugins": [{"plugin": reason}]}
    node = {"id": name, "op": axis, "label": reason, "shape": [1], "params": 3}
    data["graphs"] = {first["id"]: {"nodes": [node], "edges": []}}
    data["baselines"] = [
        {"name": name, "epochs": 0, "score": 0.5, "targets": {TARGET: latency(1.0)}, "problem": reason}
    ]
    return data


def empty_run() -> dict[str, Any]:
    """Return what is collected from a run's folder in which nothing stands yet."""
    from nasdistill.report import collect
    from nasdistill.store import RunDirectory

    with tempfile.TemporaryDirectory() as folder:
        data = collect(RunDirectory.create(Path(folder) / "run"))
    return {**data, "run": "runs/toy", "written": 200.0}


def runs() -> dict[str, dict[str, Any]]:
    """Return runs in every state, by what they are."""
    whole = run_data()
    nothing: dict[str, Any] = {"front": [], "proxies": {}, "seconds": {}, "graphs": {}}
    failed = {"complete": 0, "pruned": 0, "failed": 5, "running": 0, "repeated": 0}
    return {
        "finished": whole,
        "empty": empty_run(),
        "killed before the first student": run_data(
            **nothing, state="killed", outcomes=[outcome(0, "running", None, 1.0, history=[], results={}, targets={})],
            events=whole["events"][:2], trials={**failed, "failed": 0, "running": 1},
        ),
        "killed with one student": run_data(
            state="killed", front=whole["front"][:1], outcomes=whole["outcomes"][:3], proxies={}
        ),
        "failed in every trial": run_data(
            **nothing, state="finished", trials=failed, outcomes=[outcome(i, "failed", None, 9.0) for i in range(5)]
        ),
        "running, the teacher not measured": run_data(
            **nothing, state="running", outcomes=[], events=[],
            teacher={**empty_run()["teacher"], "name": "toy:teacher"},
        ),
        "finished, lower is better": run_data(metric={"name": "error", "higher_is_better": False, "unit": ""}),
    }  # fmt: skip


class Reader(HTMLParser):
    """Reads markup strictly; what is wrong with its form stands in `problems`.

    Attributes:
        problems: elements that do not nest, attributes or ids that occur twice.
        tags: every element that was opened, with its attributes.
        links: the values of ``href``, ``src`` and ``action``.
        ids: the values of ``id``.
        text: the words outside scripts and styles.
    """

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self._words: list[str] = []
        self.feed(markup)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self._open]
        self.problems += [f"the id {name!r} occurs twice" for name in sorted({i for i in self.ids if self._twice(i)})]

    @property
    def text(self) -> str:
        """The words, spaces evened out."""
        return " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        values = dict(attrs)
        if len(values) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice: {attrs}")
        self.tags.append((tag, values))
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[key] or "" for key in ("href", "src", "action", "xlink:href") if key in values]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element without content."""
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        if not self._open:
            self.problems.append(f"</{tag}> closes nothing")
        elif self._open[-1] == tag:
            self._open.pop()
        else:
            self.problems.append(f"</{tag}> comes where </{self._open[-1]}> should")
            if tag in self._open:
                del self._open[len(self._open) - 1 - self._open[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        """Note words."""
        if not self._open or self._open[-1] not in ("script", "style"):
            self._words.append(data)

    def _twice(self, name: str) -> bool:
        return self.ids.count(name) > 1


def loads(markup: str) -> list[str]:
    """Return what in a piece of markup would load or run something, as short phrases.

    Links that a reader may follow (``<a href="https://...">``) load nothing.
    """
    found = []
    for tag, values in Reader(markup).tags:
        if tag in ("script", "iframe", "object", "embed", "base", "form", "link", "meta"):
            found.append(f"<{tag}>")
        found += [f"{key} of <{tag}>" for key in values if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "action", "srcset", "poster", "background", "data"):
            value = (values.get(key) or "").strip()
            follows = tag == "a" and key == "href" and value.lower().startswith(("https://", "http://"))
            if value and not follows and not value.startswith(("#", "data:")):
                found.append(f"<{tag} {key}={value!r}>")
    return found + re.findall(r"@import\b|url\((?!['\"]?(?:#|data:))[^)]*\)?", markup)
