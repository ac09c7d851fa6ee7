"""The plan shown before a run: spaces, teacher, targets, rungs, and how long it may take by a timed pilot."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence

import torch

from nasdistill.distill import train
from nasdistill.errors import ISOLATED
from nasdistill.interfaces import INHERITED, SearchSpace
from nasdistill.measure.proxies import ProxyOutcome
from nasdistill.search.events import FINAL_LATENCY, SUPERNET, Event
from nasdistill.search.parts import Parts, parameter_count, space_summary
from nasdistill.search.session import Session
from nasdistill.search.summary import abbreviated
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture

_FRONT = 8
"""Students on a front, for the estimate: about so many are timed once more at the end."""


def make_plan(parts: Parts, session: Session, notes: Sequence[str] = ()) -> Event:
    """Return the plan as an event: a few lines, with a time estimate from a timed pilot.

    Its facts have ``rungs``, the strategy's rows and one for the final timing, each with the ``seconds`` it may take;
    ``seconds`` in all; and ``timeout``, the limit on proposing, None without one.

    Args:
        parts: what the run works with.
        session: measures the pilot.
        notes: lines to add: what was decided about the configuration.
    """
    lines = [
        f"space    {row['space']}: {_count(row['size'])} architectures, {row['axes']} axes"
        for row in space_summary(parts.spaces)
    ]
    teacher = session.teacher_reports[session.primary_target].latency
    lines.append(
        f"teacher  {parts.teacher.label}: {abbreviated(parameter_count(parts.teacher.model))} parameters, "
        f"{teacher.value_ms:.3f} ms on {session.primary_target}"
    )
    lines.append(f"targets  {', '.join(session.meters)}")
    asked = parts.config.search.trials
    if session.trials != asked:
        strategy = parts.components.strategy.id.split(":", 1)[-1]
        lines.append(f"trials   {session.trials} architectures: {strategy}'s number for search.trials = {asked}")
    rows = parts.components.strategy.plan(session.trials)
    for row in rows:
        if row.get("per") == SUPERNET:
            chosen = row.get("only") or [shared.subspace for shared in session.supernets()]
            row["candidates"] *= sum(shared.subspace in chosen for shared in session.supernets())
    seconds = pilot(parts, session, scoring=any(row["rung"] == INHERITED for row in rows))
    for row in rows:
        cost = seconds.get(row["rung"], 0.0)
        if "epochs" in row:
            cost = seconds["epoch"] * row["epochs"] * row.get("passes", 1)
        row["seconds"] = cost * row["candidates"]
        detail = f", {row['epochs']} epoch{'s' * (row['epochs'] != 1)} each" if "epochs" in row else ""
        detail += f" ({row['note']})" if "note" in row else ""
        lines.append(f"rung     {row['rung']}: about {row['candidates']} candidates{detail}, {_time(row['seconds'])}")
    if rows:
        latency = parts.config.latency
        timed = 1 + min(_FRONT, rows[-1]["candidates"])  # with the teacher
        once = seconds["latency"] * latency.final_pairs / latency.max_pairs
        rows.append({"rung": FINAL_LATENCY, "candidates": 1, "seconds": once * timed * len(session.meters)})
        lines.append(f"rung     {FINAL_LATENCY}: the front on every target, {_time(rows[-1]['seconds'])}")
    total = sum(row["seconds"] for row in rows)
    timeout = parts.config.search.timeout
    lines += [f"note     {note}" for note in notes]
    if timeout is not None:
        lines.append(f"limit    nothing new is proposed after {_time(timeout)}; what is under way is finished")
    lines.append(f"estimate {_time(total)} in all, from a pilot of one candidate per space")
    return Event("plan", "\n".join(lines), facts={"rungs": rows, "seconds": total, "timeout": timeout})


def pilot(parts: Parts, session: Session, *, scoring: bool = False) -> dict[str, float]:
    """Return mean seconds of the proxies, of one measurement and of one epoch, over one candidate per space.

    With `scoring` also those of a pass over the validation split, which an inherited score is.

    The rungs let mostly small candidates through, so the pilot takes the second smallest of nine random ones. The
    timed epoch comes after one with the same data: what the teacher does once for all students is not counted.

    Raises:
        NasdistillError: all proxies that decide fail on everything.
    """
    found: dict[str, list[float]] = {"proxies": [], "latency": [], "epoch": [], INHERITED: []}
    failures: list[dict[str, str | None]] = []
    further: list[tuple[SearchSpace, Architecture]] = []
    task, config = parts.task, parts.config
    seed = config.search.seed
    once = config.training.model_copy(update={"distinct_epochs": 1})
    for space in parts.spaces.values():
        try:
            rng = random.Random(derive_seed(seed, "pilot", space.id))
            archs = sorted((space.sample(rng) for _ in range(9)), key=lambda arch: space.cost(arch, task.io).macs)
            arch = archs[1]
            further += [(space, archs[4]), (space, archs[7])]
            with seeded(seed, "pilot"):
                model = space.build(arch, task.io).eval()
            start = time.monotonic()
            outcomes = session.bench.run_proxies(model.to(parts.device), space.cost(arch, task.io))
            found["proxies"].append(time.monotonic() - start)
            failures.append(_failures(outcomes))
            start = time.monotonic()
            session.meters[session.primary_target].report(model.cpu(), session.example(), name="pilot")
            found["latency"].append(time.monotonic() - start)
            if scoring:
                start = time.monotonic()
                with torch.no_grad():
                    for batch in task.batches("validation", batch_size=config.training.batch_size):
                        task.forward(model, batch)
                found[INHERITED].append(time.monotonic() - start)
            result = train(
                model,
                task,
                parts.teacher,
                config.objective,
                once,
                epochs=2,
                seed=0,
                data_seed=derive_seed(seed, "data"),
                host=parts.host,
                cache=parts.cache,
                layer_map=space.layer_map(arch, parts.geometry) or None,
                device=parts.device,
            )
            found["epoch"].append(result.history[-1].seconds)
        except ISOLATED:
            continue  # an estimate is not worth failing for; the trial itself will say what is wrong
    _check_proxies(parts, session, failures, further)
    return {name: sum(values) / len(values) if values else 0.0 for name, values in found.items()}


def _check_proxies(
    parts: Parts,
    session: Session,
    failures: list[dict[str, str | None]],
    further: Sequence[tuple[SearchSpace, Architecture]],
) -> None:
    """Refuse a search that is decided by proxies which fail on everything: the pilot's candidates, then a few more.

    Raises:
        NasdistillError: naming them and the cause.
    """
    watch, io = session.proxy_watch, parts.task.io
    for space, arch in further:
        if not watch.hopeless(failures):
            return
        try:
            with seeded(parts.config.search.seed, "pilot"):
                model = space.build(arch, io).eval()
            failures.append(_failures(session.bench.run_proxies(model.to(parts.device), space.cost(arch, io))))
        except ISOLATED:
            continue
    watch.refuse(failures)


def _failures(outcomes: Mapping[str, ProxyOutcome]) -> dict[str, str | None]:
    """Return proxy -> what went wrong, None where it has a score."""
    return {
        name: (outcome.problem or "no score") if outcome.value is None else None for name, outcome in outcomes.items()
    }


def _count(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number:.1e}"


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
