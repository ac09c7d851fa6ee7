"""The teacher cut to its first blocks: what a front is worth is seen beside the simplest student there is.

The blocks that follow each other in a model of one width (a transformer's layers) can be left out without any other
change. A few depths are evaluated with the teacher's own weights; on request one of them is also distilled, as long as
the longest-trained student of the front and in the same way. Whatever goes wrong here is written down and ends nothing.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from typing import Any

from torch import nn

from nasdistill.distill import evaluate, evaluate_test, train
from nasdistill.errors import ISOLATED, NasdistillError, is_fatal, one_line
from nasdistill.measure import count_macs
from nasdistill.search.events import Event, Listener
from nasdistill.search.parts import parameter_count
from nasdistill.search.session import Session
from nasdistill.search.together import TEACHER, time_together
from nasdistill.search.work import StopSearch
from nasdistill.seeds import derive_seed
from nasdistill.spec.measurement import Budget
from nasdistill.store import RunDirectory
from nasdistill.trace.tracer import even_layer_map

FILE = "baselines.json"


def record_baselines(run: RunDirectory, session: Session, listener: Listener, budget: Budget) -> None:
    """Measure and evaluate the truncated teacher, distil it where asked to, and write ``baselines.json``; done once.

    Args:
        run: where it is written.
        session: whose front is final.
        listener: told what happens.
        budget: of the latency measurement, as for the front.

    Raises:
        StopSearch: the user asked to stop; nothing is written, and a resumed run does it again.
    """
    front = session.front()
    if session.parts.config.search.baselines == "none" or not front or run.read(FILE) is not None:
        return
    start = time.monotonic()
    try:
        found = _baselines(session, listener, budget, max(c.epochs for c in front))
    except (StopSearch, KeyboardInterrupt):
        raise
    except ISOLATED as error:
        if is_fatal(error):
            raise OSError(one_line(error)) from error
        listener(Event("message", f"no baselines: {one_line(error)}"))
        found = []
    run.write(FILE, {"baselines": found})
    session.spent("baselines", time.monotonic() - start)


def depths(layers: int) -> list[int]:
    """Return how many blocks the cut teachers keep: one, about a third and about two thirds, fewest first."""
    return sorted({1, math.ceil(layers / 3), math.ceil(2 * layers / 3)} - {layers}) if layers > 1 else []


def truncated(model: nn.Module, layers: int, keep: int) -> nn.Module | None:
    """Return a copy of a model with only the first `keep` of its `layers` blocks, or None where that is not clear.

    The row is the one list of modules with exactly `layers` members of one class; a model with several is left alone.
    """
    rows = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and name and len(module) == layers
        if len({type(block) for block in module}) == 1
    ]
    if len(rows) != 1 or not 0 < keep < layers:
        return None
    cut = copy.deepcopy(model)
    parent, _, name = rows[0].rpartition(".")
    blocks = cut.get_submodule(rows[0])
    assert isinstance(blocks, nn.ModuleList | nn.Sequential)
    kept = list(blocks)[:keep]
    row = nn.ModuleList(kept) if isinstance(blocks, nn.ModuleList) else nn.Sequential(*kept)
    setattr(cut.get_submodule(parent) if parent else cut, name, row)
    return cut.requires_grad_(True)


def _baselines(session: Session, listener: Listener, budget: Budget, epochs: int) -> list[dict[str, Any]]:
    parts = session.parts
    layers = parts.geometry.layers
    models = {keep: truncated(parts.teacher.model.cpu(), layers, keep) for keep in depths(layers)}
    parts.teacher.model.to(parts.device)
    found = []
    for keep, model in models.items():
        if model is None:
            continue
        model.eval()
        name = f"teacher, {keep} of {layers} blocks"
        listener(Event("message", f"baseline: {name}"))
        facts = {
            "kind": "truncated", "blocks": keep, "of": layers, "params": parameter_count(model),
            "macs": count_macs(model, session.parts.task.example(1)), "targets": _time(session, model, budget),
        }  # fmt: skip
        found.append({"name": name, **facts, **_scores(session, model), "epochs": 0})
        if parts.config.search.baselines == "distilled" and keep == math.ceil(layers / 3):
            found.append({"name": f"{name}, distilled", **facts, **_distilled(session, model, layers, keep, epochs)})
    return found


def _distilled(session: Session, model: nn.Module, layers: int, keep: int, epochs: int) -> dict[str, Any]:
    """Train the cut teacher like a student and return its scores, or why there are none."""
    parts, config = session.parts, session.parts.config
    left = session.time_left()
    if left is not None and left <= 0:
        return {"epochs": 0, "score": None, "test_score": None, "problem": "not distilled: the time was up"}
    try:
        result = train(
            model.to(parts.device), parts.task, parts.teacher, config.objective, config.training, epochs=epochs,
            seed=derive_seed(session.seed, "train", "truncated", keep), data_seed=derive_seed(session.seed, "data"),
            host=parts.host, layer_map=even_layer_map(keep, layers), cache=parts.cache, device=parts.device,
            should_stop=session.should_stop, student_label=f"teacher cut to {keep} blocks",
        )  # fmt: skip
    except NasdistillError as error:
        return {"epochs": 0, "score": None, "test_score": None, "problem": f"not distilled: {one_line(error)}"}
    if result.stopped:
        raise StopSearch
    return {"epochs": epochs, **_scores(session, result.model)}


def _scores(session: Session, model: nn.Module) -> dict[str, float | None]:
    device, task = session.parts.device, session.parts.task
    return {
        "score": evaluate(model.to(device), task, "validation").score,
        "test_score": evaluate_test(model, task),
    }


def _time(session: Session, model: nn.Module, budget: Budget) -> dict[str, Any]:
    """Time a network on every target in the teacher's rounds; its milliseconds are on the scale of the front's.

    The front and this network were timed in different rounds: what compares them is the ratio to the teacher, so the
    milliseconds are that ratio times what the teacher took beside the front.
    """
    found: dict[str, Any] = {}
    teacher = session.parts.teacher.model.cpu()
    for name, meter in session.meters.items():
        models = {TEACHER: lambda: teacher, "truncated": model.cpu}
        try:
            report = time_together(meter, models, session.parts.task.example(1), budget)["truncated"]
        except NasdistillError:
            continue  # no latency on this target: a network that cannot be exported has none
        beside = session.teacher_reports.get(name)
        if beside is not None:
            ratio, scale = report.info["ratio"], beside.latency.value_ms
            latency = replace(
                report.latency, value_ms=ratio["value"] * scale, low_ms=ratio["low"] * scale,
                high_ms=ratio["high"] * scale,
            )  # fmt: skip
            report = replace(report, latency=latency)
        found[name] = report.to_json()
    session.parts.teacher.model.to(session.parts.device)
    return found
