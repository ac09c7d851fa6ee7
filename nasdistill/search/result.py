"""The result object of a run: what ``search --json`` and ``show --json`` print, a pure function of the run
directory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nasdistill.interfaces import Candidate
from nasdistill.measure.rank import correlation, top_k_regret
from nasdistill.search.journal import candidate_from_json
from nasdistill.search.pareto import non_dominated
from nasdistill.search.proxyhealth import proxy_failures
from nasdistill.search.reasons import reasons
from nasdistill.spec.measurement import TargetReport
from nasdistill.store import RunDirectory


def student_id(candidate: Candidate) -> str:
    """Return the folder name of a trial's student: number and architecture."""
    assert candidate.architecture is not None
    return f"{candidate.number:04d}-{candidate.architecture.id[:6]}"


def build_result(run: RunDirectory) -> dict[str, Any]:
    """Return the result object of any run: finished, running or killed.

    Keys are stable: ``run``, ``state``, ``state_reason``, ``teacher``, ``front``, ``trials``, ``reasons``, ``seconds``,
    ``proxies``, ``proxy_failures``.
    Latencies are in milliseconds by target (the one that the search minimised first), scores in the task's metric.
    """
    config = run.read("config.json") or {}
    teacher = run.read("teacher.json") or {}
    final = run.read("final.json") or {}
    outcomes = list(run.outcomes())
    candidates = [candidate_from_json(value) for value in outcomes if "repeats" not in value]
    primary, state = teacher.get("primary_target"), run.state()
    latencies = _latencies(teacher.get("targets", {}), primary)
    return {
        "run": str(run.path),
        "state": state,
        "state_reason": (run.read("status.json") or {}).get("reason") if state in ("interrupted", "failed") else None,
        "teacher": {
            "name": config.get("teacher", {}).get("name"),
            "score": teacher.get("score"),
            "test_score": final.get("teacher_test_score"),
            "latency_ms": latencies,
            "params": teacher.get("params"),
            "macs": teacher.get("macs"),
        },
        "metric": teacher.get("metric"),
        "front": [_student(c, final, latencies) for c in front_of(candidates, primary, _higher(teacher))],
        "trials": {
            "complete": sum(c.state == "complete" for c in candidates),
            "pruned": sum(c.state == "pruned" for c in candidates),
            "failed": sum(c.state == "failed" for c in candidates),
            "running": sum(c.state == "running" for c in candidates),
            "repeated": len(outcomes) - len(candidates),
        },
        "reasons": reasons(candidates, config.get("constraints") or {}, primary, _value(latencies, primary)),
        "seconds": run.read("seconds.json") or {},
        "proxies": proxy_quality(candidates, _higher(teacher)),
        "proxy_failures": proxy_failures(outcomes, config.get("proxy") or ()),
    }


def write_result(run: RunDirectory) -> dict[str, Any]:
    """Write ``result.json`` and return the result object.

    In the file the run is ``"."``, where the file itself lies: a run directory may be moved.
    """
    result = build_result(run)
    run.write("result.json", {**result, "run": "."})
    return result


def front_of(candidates: Sequence[Candidate], primary: str | None, higher: bool) -> list[Candidate]:
    """Return the feasible non-dominated complete candidates, fastest first."""
    done = [c for c in candidates if c.state == "complete" and c.feasible and c.score is not None]
    rows = [_row(c, primary, higher) for c in done]
    keep = [(rows[i], done[i]) for i in non_dominated(rows)]
    return [candidate for _, candidate in sorted(keep, key=lambda pair: (pair[0][1], pair[1].number))]


def _row(candidate: Candidate, primary: str | None, higher: bool) -> tuple[float, float]:
    assert candidate.score is not None
    report = candidate.targets.get(primary or "")
    return (-candidate.score if higher else candidate.score), (report.latency.value_ms if report else math.inf)


def _higher(teacher: Mapping[str, Any]) -> bool:
    return bool((teacher.get("metric") or {}).get("higher_is_better", True))


def _latencies(targets: Mapping[str, Any], primary: str | None) -> dict[str, dict[str, float]]:
    """Return the teacher's latencies, the primary target's first (files have sorted keys)."""
    names = sorted(targets, key=lambda name: (name != primary, name))
    return {name: TargetReport.from_json(targets[name]).latency.brief() for name in names}


def _value(latencies: Mapping[str, Mapping[str, float]], target: str | None) -> float | None:
    return None if target is None or target not in latencies else latencies[target]["value"]


def _ratio(name: str, report: TargetReport, teacher: Mapping[str, Mapping[str, float]]) -> dict[str, float] | None:
    """Return the latency relative to the teacher: paired in the same rounds where that was measured, else divided."""
    paired = report.info.get("ratio")
    if paired is not None:
        return {key: paired[key] for key in ("value", "low", "high")}
    if name not in teacher:
        return None
    own, reference = report.latency.brief(), teacher[name]["value"]
    return {key: own[key] / reference for key in ("value", "low", "high")}


def _student(
    candidate: Candidate, final: Mapping[str, Any], teacher: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    assert candidate.architecture is not None
    assert candidate.cost is not None
    reports = candidate.targets
    names = [name for name in teacher if name in reports]
    return {
        "id": student_id(candidate),
        "score": candidate.score,
        "test_score": final.get("students", {}).get(str(candidate.number)),
        "latency_ms": {name: reports[name].latency.brief() for name in names},
        "latency_ratio": {name: _ratio(name, reports[name], teacher) for name in names},
        "params": candidate.cost.params,
        "macs": candidate.cost.macs,
        "architecture": candidate.architecture.to_json(),
    }


def proxy_quality(candidates: Sequence[Candidate], higher: bool) -> dict[str, dict[str, Any]]:
    """Return, per proxy, how well it ranked the students that were distilled later.

    Students are compared after the same rung (the one that most went through), because scores after different numbers
    of epochs are not comparable. `params` and `macs` are always among the proxies. Proxies that chose who is distilled
    have their range cut by that, and correlate less than they would over the whole space.
    """
    sign = 1.0 if higher else -1.0
    by_rung: dict[str, list[tuple[Candidate, float]]] = {}
    for candidate in candidates:
        for rung, result in candidate.results.items():
            by_rung.setdefault(rung, []).append((candidate, sign * result.score))
    if not by_rung:
        return {}
    rung, students = max(by_rung.items(), key=lambda item: len(item[1]))
    truth = [score for _, score in students]
    names = sorted({name for candidate, _ in students for name in candidate.proxies} | {"params", "macs"})
    found = {}
    for name in names:
        values = [_proxy_value(candidate, name) for candidate, _ in students]
        found[name] = {**_quality(values, truth), "rung": rung}
    return found


def _quality(scores: Sequence[float | None], truth: Sequence[float]) -> dict[str, Any]:
    """Return rank correlations with 95 % intervals, and the regret of training only the three best-scored."""
    found: dict[str, Any] = {"n": len(truth), "top3_regret": top_k_regret(scores, truth, 3)}
    for kind in ("spearman", "kendall"):
        value = correlation(kind, scores, truth, resamples=300)
        found[kind] = None if value is None else value.value
        found[f"{kind}_interval"] = None if value is None else [value.low, value.high]
    return found


def _proxy_value(candidate: Candidate, name: str) -> float | None:
    if name in candidate.proxies:
        return candidate.proxies[name]
    if candidate.cost is None:
        return None
    return float(candidate.cost.params if name == "params" else candidate.cost.macs)
