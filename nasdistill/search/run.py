"""A whole search: from a configuration to a finished run directory."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch

from nasdistill.distill import evaluate, evaluate_test, no_better_than_chance
from nasdistill.errors import NasdistillError, UsageError, is_fatal, one_line
from nasdistill.host import Host
from nasdistill.host.adapting import adapt_config
from nasdistill.host.configcheck import check_strategy
from nasdistill.interfaces import Candidate
from nasdistill.measure import count_macs, environment
from nasdistill.search.baselines import record_baselines
from nasdistill.search.events import Event, Listener, many, silent
from nasdistill.search.facts import software, task_facts, write_assets
from nasdistill.search.opening import (
    check_files,
    check_frozen,
    check_plugins,
    frozen,
    latency_budget,
    make_meters,
    read_config,
    resume_command,
)
from nasdistill.search.parts import (
    Components,
    Parts,
    check_targets,
    create_components,
    locate_teacher,
    open_parts,
    parameter_count,
)
from nasdistill.search.plan import make_plan
from nasdistill.search.result import build_result, student_id, write_result
from nasdistill.search.session import Session
from nasdistill.search.stopping import Interrupted, Stopper
from nasdistill.search.study import Proposals, set_aside_damaged
from nasdistill.search.work import StopSearch
from nasdistill.search.workers import Orders, Workers
from nasdistill.spec.config import RunConfig
from nasdistill.store import ASSETS, RunDirectory, save_student, weights_hash

_EPOCH = re.compile(r"\bepoch (\d+) of (\d+)\b")
"""How a teacher that is being trained names its progress (see :meth:`nasdistill.interfaces.Teacher.open`)."""


def run_search(
    config: RunConfig,
    out: Path,
    *,
    host: Host | None = None,
    listener: Listener = silent,
    config_text: str | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Run a search and return its result object.

    Args:
        config: what to do.
        out: a missing or empty folder.
        host: where components come from; a fresh one by default.
        listener: told what happens.
        config_text: the user's own file, kept beside the resolved configuration.
        notes: lines for the plan: what the caller decided about the configuration.

    Raises:
        UsageError: wrong names, options, data, teacher or output folder; nothing is left behind.
        TargetUnavailableError: a target's runtime is missing.
        KeyboardInterrupt: as it came in, saying what is kept of the run.
    """
    host = host or Host.load(disable=config.plugins.disable)
    locate_teacher(host, config.teacher.name)  # a wrong name is told with what it may have meant
    config = adapt_config(config, host)
    components = create_components(config, host)
    check_strategy(components.strategy, components.setting)
    check_targets(components)
    existed = out.exists()
    run = RunDirectory.create(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.owned())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.training.threads)
        try:
            run.write("config.json", config.to_json())
            run.write("frozen.json", frozen(config, components))
            if config_text is not None:
                run.write_text("config.toml", config_text)
            parts = _set_up(run, components, config, listener)
            stopper = Stopper(lambda text: listener(Event("message", text)))
            session = _open_session(run, parts, listener, stack, stopper)
        except BaseException as error:
            # Nothing has been found out yet, so nothing is worth keeping: leave the folder as it was.
            stack.close()
            shutil.rmtree(run.path, ignore_errors=True)
            if existed:
                run.path.mkdir(exist_ok=True)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("nothing was tried yet, so nothing is kept of the run") from None
            if is_fatal(error):
                raise NasdistillError(
                    f"cannot write the run to {out}: {one_line(error)}", hint="Make room, or choose another --out."
                ) from error
            raise
        return _search(run, session, listener, stopper, notes)


def resume_search(
    path: Path,
    *,
    host: Host | None = None,
    listener: Listener = silent,
    workers: int | None = None,
) -> dict[str, Any]:
    """Go on with a run that was interrupted, killed, or ran out of disk, and return its result object.

    What is on record is not done again. With a target whose numbers repeat and at most one worker, the result is the
    one that the run would have had, to the last bit.

    Args:
        path: the run's folder; it may have been moved.
        host: where components come from; a fresh one by default.
        listener: told what happens.
        workers: instead of the configured number of worker processes.

    Raises:
        UsageError: no run, another process is at it, or components, axes, data or teacher differ from those it was
            started with; every difference is named.
    """
    run = RunDirectory.open(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.owned())
        if run.state() == "finished":
            listener(Event("message", f"{path} is finished; there is nothing to go on with"))
            return build_result(run)
        config = read_config(run)
        if workers is not None:
            config = config.model_copy(update={"workers": config.workers.model_copy(update={"count": workers})})
        host = host or Host.load(disable=config.plugins.disable)
        for text in check_files(run, host):
            listener(Event("message", f"warning: {text}"))
        check_plugins(run, host)
        components = create_components(config, host)
        check_strategy(components.strategy, components.setting)
        check_targets(components)
        check_frozen(run, config, components)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(config.training.threads)
        stopper = Stopper(lambda text: listener(Event("message", text)))
        try:
            parts = _set_up(run, components, config, listener)
            session = _open_session(run, parts, listener, stack, stopper)
        except Exception as error:
            if is_fatal(error):
                raise _cannot_write(run, error) from error
            raise
        return _search(run, session, listener, stopper)


def _set_up(run: RunDirectory, components: Components, config: RunConfig, listener: Listener) -> Parts:
    """Open the parts and write down what the run is, where that is not written down already.

    Raises:
        UsageError: data or teacher are not those that the run was started with.
    """

    def message(text: str) -> None:
        epoch = _EPOCH.search(text)
        if epoch is None:
            listener(Event("message", text))
        else:
            listener(Event("epoch", text, "teacher", int(epoch[1]), int(epoch[2])))

    start = time.monotonic()
    listener(Event("phase", "opening the data and the teacher"))
    parts = open_parts(components, config, message=message)
    known = run.read("teacher.json")
    if known is not None:
        for name, then, now in (
            ("teacher", known["fingerprint"], parts.teacher.fingerprint),
            ("data", known["task_fingerprint"], parts.task.fingerprint),
        ):
            if then != now:
                raise UsageError(
                    f"{run.path} cannot be resumed: its {name} has changed (fingerprint {then} then, {now} now)",
                    hint=f"Put the old {name} back, or start a new run.",
                )
        return parts
    listener(Event("phase", "evaluating the teacher"))
    plugins = [plugin.origin() for plugin in components.host.plugins() if plugin.state == "loaded"]
    run.write("environment.json", {**environment(), "plugins": plugins})
    task, teacher = parts.task, parts.teacher
    write_assets(task, run.path / ASSETS)
    run.write("task.json", task_facts(config, task))
    result = evaluate(teacher.model, task, "validation")
    metric = task.metric
    warning = no_better_than_chance(teacher.label, task, result)
    run.write(
        "teacher.json",
        {
            "name": config.teacher.name,
            "label": teacher.label,
            "fingerprint": teacher.fingerprint,
            "task_fingerprint": task.fingerprint,
            "metric": {"name": metric.name, "higher_is_better": metric.higher_is_better, "unit": metric.unit},
            "score": result.score,
            "loss": result.loss,
            "params": parameter_count(teacher.model),
            "macs": count_macs(teacher.model.cpu(), task.example(1)),
            "targets": {},
            "warning": warning,
        },
    )
    teacher.model.to(parts.device)
    message(f"teacher {teacher.label}: validation {metric.name} {result.score:.4f} ({time.monotonic() - start:.0f} s)")
    if warning is not None:
        message(f"warning: {warning}")
    return parts


def _open_session(
    run: RunDirectory, parts: Parts, listener: Listener, stack: contextlib.ExitStack, stopper: Stopper
) -> Session:
    """Open the meters (closed by `stack`), the workers and the study, and measure the teacher: a target it fails on
    ends here.
    """
    config = parts.config
    meters = make_meters(run, parts)
    for meter in meters.values():
        stack.callback(meter.close)
    higher = parts.task.metric.higher_is_better
    primary = next(iter(meters))
    if set_aside_damaged(run.path / "study.db"):
        listener(Event("message", "study.db is damaged; it is made anew from the trials' records"))
    proposals = Proposals(
        run.study_url,
        parts.spaces,
        parts.components.sampler,
        metric_names=[parts.task.metric.name, f"latency_ms {primary.split(':', 1)[-1]}"],
        directions=["maximize" if higher else "minimize", "minimize"],
        seed=config.search.seed,
        trials=parts.components.strategy.trials(config.search.trials),
    )
    stack.callback(proposals.close)
    crew = None
    if config.workers.count:
        orders = Orders(run.path.resolve(), parts.host.arguments)
        crew = Workers(
            orders, config.workers.count, timeout=config.workers.timeout, memory_gb=config.workers.memory_gb,
            message=lambda text: listener(Event("message", text)),
        )  # fmt: skip
        stack.callback(crew.close)
    session = Session(run, parts, proposals, meters, listener, crew=crew, should_stop=stopper)
    trials = session.restore()
    if trials:
        listener(Event("message", f"going on with {run.path}: {many(trials, 'trial')} on record"))
    listener(Event("phase", "measuring the teacher"))
    # Milliseconds are comparable within one calibration: whoever goes on with this run needs it.
    run.write("calibration.json", {name: meter.calibration for name, meter in meters.items()})
    session.measure_teacher()
    _record_teacher(run, session)
    return session


def _search(
    run: RunDirectory, session: Session, listener: Listener, stopper: Stopper, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Run the strategy and finish the run, whatever ends it."""
    run.write("status.json", {"state": "running"})
    run.event("resumed" if session.resumed else "started")
    kept = f"finished trials are kept: nasdistill show {run.path}; {resume_command(run)} goes on"
    try:
        with stopper:
            if not session.resumed:
                start = time.monotonic()
                listener(Event("phase", "timing one candidate of each space"))
                plan = make_plan(session.parts, session, notes)
                session.spent("pilot", time.monotonic() - start)
                listener(plan)
            session.parts.components.strategy.run(session)
            finish(run, session, listener)
        run.write("status.json", {"state": "finished"})
        run.event("finished")
    except (KeyboardInterrupt, StopSearch) as stop:
        _end(run, "interrupted", "interrupted by the user")
        number = stopper.signal or signal.SIGINT
        raise Interrupted(kept, number) from (stop if isinstance(stop, Interrupted) else None)
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        _end(run, "failed", f"{type(error).__name__}: {error}")
        raise _cannot_write(run, error) from error
    except BaseException as error:
        _end(run, "failed", one_line(error))
        if is_fatal(error):
            raise _cannot_write(run, error) from error
        raise
    result = write_result(run)
    listener(Event("done", f"front of {many(len(result['front']), 'student')} in {run.path}"))
    return result


def _cannot_write(run: RunDirectory, error: BaseException) -> NasdistillError:
    return NasdistillError(
        f"the run in {run.path} cannot be written any further: {one_line(error)}",
        hint=f"Make room, then: {resume_command(run)}. Finished trials are kept: nasdistill show {run.path}.",
    )


def _end(run: RunDirectory, state: str, reason: str) -> None:
    """Note how a run ended, where there is still room for it; the reason for ending matters more."""
    with contextlib.suppress(OSError):
        run.write("status.json", {"state": state, "reason": reason})


def finish(run: RunDirectory, session: Session, listener: Listener) -> None:
    """Time the front head to head with the teacher, look at the test split once, and save the students."""
    parts = session.parts
    config = parts.config
    budget = latency_budget(config, config.latency.final_pairs)
    budget = replace(budget, relative_width=budget.relative_width / 2)
    front, timed = session.front(), set[int]()
    # The better timing reorders near neighbours: some leave the front, others join it and are timed with the rest.
    while any(c.number not in timed for c in front):
        timed |= {c.number for c in front}
        session.measure(front, budget=budget, together=True)
        _record_teacher(run, session)
        front = session.front()
    listener(Event("phase", "final report"))
    if parts.task.size("test") and parts.task.has_labels("test"):
        listener(Event("message", f"evaluating the teacher and {many(len(front), 'student')} on the test split"))
    else:
        listener(Event("message", "no test scores: the test split has no labels"))
    start = time.monotonic()
    tested = {str(c.number): _test_score(session, c) for c in front}
    run.write(
        "final.json",
        {
            "teacher_test_score": evaluate_test(parts.teacher.model, parts.task),
            "students": tested,
        },
    )
    for candidate in front:
        save_front_member(run, session, candidate, tested[str(candidate.number)])
    for folder in run.path.glob("students/*"):
        if folder.name not in {student_id(c) for c in front}:
            shutil.rmtree(folder)  # left by an earlier attempt to finish, with other timings
    session.spent("final report", time.monotonic() - start)
    record_baselines(run, session, listener, budget)
    shutil.rmtree(run.path / "artefacts", ignore_errors=True)


def _test_score(session: Session, candidate: Candidate) -> float | None:
    return evaluate_test(session.build(candidate).to(session.parts.device), session.parts.task)


def save_front_member(run: RunDirectory, session: Session, candidate: Candidate, tested: float | None) -> None:
    """Save a student with its provenance; `tested` is its score on the test split, None where that has no labels."""
    parts = session.parts
    arch, space = session.arch(candidate), session.space(candidate)
    objective, training = space.teaching(arch, parts.config.objective, parts.config.training)
    model = session.build(candidate).cpu()
    provenance = {
        "trial": candidate.number,
        "architecture": arch.fingerprint,
        "teacher": {"name": parts.config.teacher.name, "fingerprint": parts.teacher.fingerprint},
        "task": task_facts(parts.config, parts.task),
        "software": software(parts.host),
        "objective": objective.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "seed": parts.config.search.seed,
        "epochs": candidate.epochs,
        "start": session.bench.shelf.origin(candidate.start) if candidate.start else None,
        "validation": {"score": candidate.score, "loss": candidate.loss},
        "test": {"score": tested},
        "cost": {"params": candidate.cost.params, "macs": candidate.cost.macs} if candidate.cost else None,
        "primary_target": session.primary_target,
        "targets": {name: report.to_json() for name, report in candidate.targets.items()},
        "state_sha256": weights_hash(model),
    }
    options = space.options.model_dump(mode="json")
    save_student(
        run.student(student_id(candidate)), model, arch, parts.task.io, provenance, space_options=options,
        assets=run.path / ASSETS,
    )  # fmt: skip


def _record_teacher(run: RunDirectory, session: Session) -> None:
    facts = run.read("teacher.json") or {}
    facts["primary_target"] = session.primary_target
    facts["targets"] = {name: report.to_json() for name, report in session.teacher_reports.items()}
    # What the rungs decided by; the final timing replaces the values above.
    facts.setdefault("search_targets", facts["targets"])
    run.write("teacher.json", facts)
