"""Why proposals did not become students of the front: their reasons, counted, each with what would change it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nasdistill.interfaces import Candidate
from nasdistill.search.events import many
from nasdistill.search.proxyhealth import failure_line

_OPTION = re.compile(r"\((\w+)\)$")
"""A strategy's reason ends with the option that decided, in brackets: ``slower than ... (max_latency_ratio)``."""

_LIMITS = {"latency_ms": "max_latency_ms", "params": "max_params", "macs": "max_macs"}
"""Constraint as candidates carry it -> key of the configuration's table `constraints`."""

_UNITS = {"latency_ms": " ms", "params": " parameters", "macs": " MACs"}


def reasons(
    candidates: Sequence[Candidate], limits: Mapping[str, float | None], primary: str | None, teacher_ms: float | None
) -> list[dict[str, Any]]:
    """Return the reasons of everything that cannot be in the front, the commonest first.

    Args:
        candidates: all proposals of a run.
        limits: the configuration's table `constraints`.
        primary: the target whose latency decides.
        teacher_ms: the teacher's latency on it.

    Returns:
        For each reason ``state`` (``pruned``, ``failed``, or ``complete`` for a finished student outside the limits),
        ``n``, ``reason`` and ``hint``, what would change it (empty where nothing simple does).
    """
    groups: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.state in ("pruned", "failed") or (candidate.state == "complete" and not candidate.feasible):
            groups.setdefault((candidate.state, _key(candidate)), []).append(candidate)
    found = []
    for (state, _), members in groups.items():
        reason, hint = _explain(members, limits, primary, teacher_ms)
        found.append({"state": state, "n": len(members), "reason": reason, "hint": hint})
    return sorted(found, key=lambda entry: -entry["n"])


def _key(candidate: Candidate) -> str:
    """Return what candidates with the same reason have in common: violated limits, or the text without its numbers."""
    broken = sorted(name for name, value in candidate.constraints.items() if value > 0)
    if broken:
        return "limit " + " ".join(broken)
    # "nan_loss: the loss is nan at step 7": what stands before the colon is the kind of failure.
    return candidate.reason.partition(":")[0] if candidate.state == "failed" else candidate.reason


def _explain(
    members: Sequence[Candidate], limits: Mapping[str, float | None], primary: str | None, teacher_ms: float | None
) -> tuple[str, str]:
    first = members[0]
    broken = sorted(name for name, value in first.constraints.items() if value > 0)
    if broken:
        return _over_limits(members, broken, limits)
    # A failure's text may end in brackets too: which model it is about, say.
    option = _OPTION.search(first.reason) if first.state == "pruned" else None
    latencies = [c.targets[primary].latency.value_ms for c in members if primary in c.targets]
    if option is None or not option[1].endswith("latency_ratio") or not latencies or not teacher_ms:
        hint = "" if option is None else f"--set search.strategy_options.{option[1]}=VALUE changes that limit."
        return first.reason, hint
    nearest = min(latencies)
    # Rounded up, so that the value given lets the nearest one through.
    ratio = math.ceil(100 * nearest / teacher_ms) / 100
    return (
        f"{first.reason}; the teacher takes {teacher_ms:.3f} ms, the fastest of them {nearest:.3f} ms",
        f"--set search.strategy_options.{option[1]}={ratio:.2f} or more keeps some of them.",
    )


def _over_limits(
    members: Sequence[Candidate], broken: Sequence[str], limits: Mapping[str, float | None]
) -> tuple[str, str]:
    texts, flags = [], []
    for name in broken:
        key = _LIMITS.get(name, name)
        flags.append(f"--{key.replace('_', '-')}")
        limit = limits.get(key)
        if limit is None:
            texts.append(f"over the limit on {name}")
            continue
        nearest = limit * (1 + min(c.constraints[name] for c in members))
        unit, digits = _UNITS.get(name, ""), ",.3f" if name == "latency_ms" else ",.0f"
        texts.append(f"over {key} = {limit:,g}{unit}, the nearest at {nearest:{digits}}{unit}")
    return " and ".join(texts), f"A larger {' and '.join(flags)} keeps some of them."


def nothing_finished(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a result's front is empty, and what to do next."""
    trials = result["trials"]
    total = sum(trials[state] for state in ("complete", "pruned", "failed", "running"))
    every = f"nasdistill show --trials {result['run']} lists every trial."
    if result.get("state") == "failed" and result.get("state_reason"):
        return f"no student was finished, since the run failed: {result['state_reason']}", every
    if result.get("state") in ("interrupted", "killed"):
        # What was pruned by then left nobody out: the others are still to come.
        open_trials = f" with {many(trials['running'], 'trial')} unfinished" if trials["running"] else ""
        what = f"no student was finished: the run was {result['state']}{open_trials}"
        return what, f"nasdistill resume {result['run']} goes on."
    if not total:
        return "no student was finished: no architecture was proposed", "A longer --timeout leaves time for some."
    # Somebody who was better survived: being dominated or passed over is never what left nobody.
    decisive = [e for e in result["reasons"] if not e["reason"].startswith(("dominated", "not among"))]
    dead = [entry for entry in result.get("proxy_failures", ()) if entry["failed"] == entry["of"]]
    if not decisive and dead:
        return f"no student was finished: {failure_line(dead[0])}", f"Choose another one with --proxy NAME. {every}"
    if not decisive:
        return "no student is finished", every
    top = decisive[0]
    if top["state"] == "complete":
        what = f"no student is within the limits: {top['n']} of {total} finished, but {top['reason']}"
    else:
        verb = "failed" if top["state"] == "failed" else "was pruned" if top["n"] == 1 else "were pruned"
        what = f"no student was finished: {top['n']} of {total} {verb}: {top['reason']}"
    return what, f"{top['hint']} {every}".strip()
