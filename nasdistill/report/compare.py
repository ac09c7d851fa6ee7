"""Runs and saved students under one protocol: the same test split, the same target, the same rounds of timing.

What the runs recorded is not compared: two runs may have been made on different days, and milliseconds of different
days are not on one scale. Every network is loaded, evaluated on the test split of the first run's task, and timed head
to head with all others and, where it can be opened, the first run's teacher.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nasdistill.distill import evaluate
from nasdistill.errors import MismatchError, NasdistillError, TrialFailure, UsageError, one_line
from nasdistill.files import cache_folder
from nasdistill.host import Host
from nasdistill.interfaces import Prepared, Target, Task
from nasdistill.library import Run, Student, load_student
from nasdistill.library.building import absent_plugins
from nasdistill.measure import Meter, count_macs
from nasdistill.report.markup import (
    is_share,
    short,
)
from nasdistill.search.pareto import hypervolume, non_dominated
from nasdistill.search.parts import parameter_count
from nasdistill.spec.component import Kind
from nasdistill.spec.config import RunConfig
from nasdistill.spec.measurement import Budget

TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Entrant:
    """A student that takes part: its group (a run's name, or its folder's) and the student."""

    group: str
    student: Student

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.group}/{self.student.id}" if not self.group.endswith(self.student.id) else self.group


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part, and the run that sets the terms."""

    first: Run
    runs: dict[str, Run]
    entrants: tuple[Entrant, ...]


def gather(paths: Sequence[Path], host: Host) -> Field:
    """Return the fronts of runs and single students.

    Raises:
        UsageError: a path is neither, the same one twice, no run among them, or no student in any.
        MismatchError: they are not of one task; both fingerprints are named.
    """
    seen: dict[Path, Path] = {}
    runs: dict[str, Run] = {}
    entrants: list[Entrant] = []
    for path in paths:
        real = path.resolve()
        if real in seen:
            raise UsageError(f"{path} and {seen[real]} are the same folder")
        seen[real] = path
        if (path / "run.json").exists():
            run = Run.open(path, host=host)
            name = _free(real.name, runs)
            runs[name] = run
            entrants += [Entrant(name, student) for student in run.front]
        elif (path / "provenance.json").exists():
            student = load_student(path, host=host)
            entrants.append(Entrant(_free(real.name, {entrant.group for entrant in entrants}), student))
        else:
            raise UsageError(
                f"{path} is neither a run (run.json) nor a saved student (provenance.json)",
                hint="Saved students of a run are in RUN/students/ID.",
            )
    if not runs:
        raise UsageError(
            "no run among the folders: nothing says on which data and target to compare",
            hint="Give at least one run; its task and targets are used.",
        )
    if not entrants:
        raise UsageError("none of these runs has a finished student", hint="nasdistill show RUN says why.")
    first = next(iter(runs.values()))
    _same_task(first, runs, entrants)
    return Field(first, runs, tuple(entrants))


def _free(name: str, taken: Any) -> str:
    number, found = 1, name
    while found in taken:
        number, found = number + 1, f"{name}#{number + 1}"
    return found


def _same_task(first: Run, runs: dict[str, Run], entrants: Sequence[Entrant]) -> None:
    """Refuse what was not made on the first run's data: it may have trained on what is the test split here."""
    wanted = str(first.teacher.get("task_fingerprint"))
    found = [(f"run {run.path}", str(run.teacher.get("task_fingerprint"))) for run in runs.values()]
    found += [
        (f"student {e.name}", str((e.student.provenance.get("task") or {}).get("fingerprint")))
        for e in entrants
        if e.group not in runs
    ]
    for what, fingerprint in found:
        if fingerprint != wanted:
            raise MismatchError(
                f"{what} was made on other data than run {first.path}: task fingerprint {fingerprint}, not {wanted}",
                hint="Only students of one task (data, split and preprocessing) can be judged on one test split.",
            )


def compare(
    paths: Sequence[Path], host: Host, *, target: str | None = None, message: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Evaluate and time everything anew and return the comparison, JSON-able; see ``docs/contracts.md``.

    Args:
        paths: runs and saved students; the first run sets task, target and teacher.
        host: where components come from.
        target: where to time; the first run's first target by default.
        message: told what is being done.

    Raises:
        UsageError, MismatchError: as :func:`gather`; or the data is no longer what the run was made on.
        TargetUnavailableError: the target is not here.
    """
    field = gather(paths, host)
    config = field.first.config
    _check_plugins(field.first, host, own_target=target is None)
    task = _open_task(field.first, config, host, message)
    runtime = _target(config, host, target)
    notes: list[str] = []
    teacher = _open_teacher(field.first, host, task, message, notes)
    notes += [
        f"Run {name} had another teacher ({run.config.teacher.name}) than {field.first.path.name}."
        for name, run in field.runs.items()
        if run.teacher.get("fingerprint") != field.first.teacher.get("fingerprint")
    ]
    models: dict[str, nn.Module] = {} if teacher is None else {TEACHER: teacher}
    rows: list[dict[str, Any]] = []
    if teacher is not None:
        rows.append(_row(TEACHER, "", None, config.teacher.name))
    for entrant in field.entrants:
        row = _row(entrant.name, entrant.group, entrant.student, short(entrant.student.architecture.space))
        rows.append(row)
        try:
            if entrant.student.io != task.io:
                raise MismatchError(f"it takes {entrant.student.io}, the task gives {task.io}")
            models[entrant.name] = entrant.student.model()
        except NasdistillError as error:
            row["problem"] = "; ".join(filter(None, [one_line(error), error.hint]))
    for row in rows:
        model = models.get(row["name"])
        if model is not None:
            message(f"evaluating {row['name']} on the test split")
            row["test_score"] = evaluate(model, task, "test").score
            row["params"] = parameter_count(model)
            row["macs"] = count_macs(model, task.example(1))
    message(f"timing {len(models)} networks head to head on {runtime.id}")
    environment = _time(runtime, models, rows, task.example(1), _budget(config))
    metric = task.metric
    facts = {"name": metric.name, "higher_is_better": metric.higher_is_better, "unit": metric.unit}
    _mark_front(rows, metric.higher_is_better)
    return {
        "protocol": {
            "task": config.task.name, "task_fingerprint": task.fingerprint, "split": "test",
            "samples": task.size("test"), "target": runtime.id, "environment": environment,
            "baseline": TEACHER if teacher is not None else None,
        },
        "metric": facts,
        "runs": [
            {"name": n, "path": str(r.path), "state": r.state, "students": sum(e.group == n for e in field.entrants)}
            for n, r in field.runs.items()
        ],
        "networks": rows,
        "hypervolume": _volumes(rows, facts),
        "notes": notes,
    }  # fmt: skip


def _check_plugins(run: Run, host: Host, *, own_target: bool) -> None:
    """Refuse to compare where a plugin of the first run's task or target is not here.

    Raises:
        UsageError: naming it with the distribution and version that the run was made with.
    """
    wanted = [(Kind.TASK, run.config.task.name)] + ([(Kind.TARGET, run.config.target[0].name)] if own_target else [])
    for kind, name in wanted:
        try:
            host.canonical(kind, name)
        except NasdistillError as error:
            absent = absent_plugins(run.plugins, host)
            if absent is None:
                raise
            raise UsageError(
                f"{run.path} cannot be compared: {error.message} It was made with {absent[0]}, not here now",
                hint=absent[1],
            ) from error


def _open_task(run: Run, config: RunConfig, host: Host, message: Callable[[str], None]) -> Task:
    task: Task = host.create(Kind.TASK, config.task.name, config.task.options)
    task.prepare(cache_folder(), message)
    recorded = run.teacher.get("task_fingerprint")
    if task.fingerprint != recorded:
        raise MismatchError(
            f"the data of run {run.path} has changed: task fingerprint {task.fingerprint}, not {recorded} as recorded",
            hint="Put the data back that the run was made on.",
        )
    if not task.has_labels("test") or task.size("test") == 0:
        raise UsageError(f"the task of run {run.path} has no labelled test split to compare on")
    return task


def _target(config: RunConfig, host: Host, name: str | None) -> Target:
    name = config.target[0].name if name is None else name
    wanted = host.canonical(Kind.TARGET, name)
    options = next((t.options for t in config.target if host.canonical(Kind.TARGET, t.name) == wanted), None)
    target: Target = host.create(Kind.TARGET, name, options)
    return target


def _open_teacher(
    run: Run, host: Host, task: Task, message: Callable[[str], None], notes: list[str]
) -> nn.Module | None:
    """Return the first run's teacher, or None with a note where it cannot be opened here."""
    config = run.config
    try:
        name, locator = host.locate(Kind.TEACHER, config.teacher.name)
        teacher = host.create(Kind.TEACHER, name, config.teacher.options)
        session = teacher.open(locator, task, cache_dir=cache_folder(), progress=message)
    except NasdistillError as error:
        absent = absent_plugins(run.plugins, host)
        gone = f"; the run was made with {absent[0]}, not here now" if absent else ""
        notes.append(f"Without the teacher {config.teacher.name}: {one_line(error)}{gone}")
        return None
    model: nn.Module = session.model.cpu().eval()
    return model


def _budget(config: RunConfig) -> Budget:
    """Return the first run's limits for its final measurement."""
    latency = config.latency
    return Budget(
        max_seconds=latency.max_seconds,
        min_pairs=min(latency.min_pairs, latency.final_pairs),
        max_pairs=latency.final_pairs,
        relative_width=latency.relative_width / 2,
    )


def _row(name: str, group: str, student: Student | None, kind: str) -> dict[str, Any]:
    return {
        "name": name, "group": group, "kind": kind, "test_score": None,
        "recorded_test_score": None if student is None else student.test_score,
        "latency_ms": None, "ratio": None, "params": None, "macs": None, "front": False,
        "architecture": None if student is None else student.architecture.to_json(), "problem": None,
    }  # fmt: skip


def _time(
    target: Target,
    models: dict[str, nn.Module],
    rows: list[dict[str, Any]],
    example: tuple[Tensor, ...],
    budget: Budget,
) -> str:
    """Time all networks in the same rounds and write latency and ratio into their rows; return the fingerprint."""
    by_name = {row["name"]: row for row in rows}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        meter = stack.enter_context(Meter(target, Path(folder), budget, keep_artefacts=False))
        prepared: dict[str, Prepared] = {}
        for number, (name, model) in enumerate(models.items()):
            try:
                prepared[name] = meter.prepare(model, example, f"network{number}")
                stack.callback(prepared[name].close)
            except TrialFailure as failure:
                by_name[name]["problem"] = f"{failure.reason}: {failure.message}"
        if prepared:
            baseline = TEACHER if TEACHER in prepared else None
            for name, report in meter.report_prepared(prepared, baseline=baseline).items():
                by_name[name]["latency_ms"] = report.latency.brief()
                ratio = report.info.get("ratio")
                by_name[name]["ratio"] = None if ratio is None else {k: ratio[k] for k in ("value", "low", "high")}
        return str(meter.environment()["fingerprint"])


def _mark_front(rows: list[dict[str, Any]], higher: bool) -> None:
    """Mark the students that no other beats in both test score and latency."""
    known = [row for row in rows if row["name"] != TEACHER and row["latency_ms"] and row["test_score"] is not None]
    values = [((-1 if higher else 1) * row["test_score"], row["latency_ms"]["value"]) for row in known]
    for index in non_dominated(values):
        known[index]["front"] = True


def _volumes(rows: list[dict[str, Any]], metric: dict[str, Any]) -> dict[str, float]:
    """Return group -> hypervolume from one corner for all: the worst score and the slowest latency of everything here.

    It is a share of the rectangle to the ideal corner (0 ms, and 100 % or the best score).
    """
    sign = -1.0 if metric["higher_is_better"] else 1.0
    known = [row for row in rows if row["latency_ms"] and row["test_score"] is not None]
    points = {row["name"]: (sign * row["test_score"], row["latency_ms"]["value"]) for row in known}
    if not points:
        return {}
    corner = (max(a for a, _ in points.values()), max(b for _, b in points.values()))
    ideal = -1.0 if is_share(metric) and sign < 0 else min(a for a, _ in points.values())
    box = (corner[0] - ideal) * corner[1]
    groups = dict.fromkeys(row["group"] for row in known if row["group"])
    return {
        group: hypervolume([points[row["name"]] for row in known if row["group"] == group], corner) / box
        if box
        else 0.0
        for group in groups
    }
