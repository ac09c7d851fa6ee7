"""Checks of teachers: what is opened is frozen, answers what it is asked, and is known by its fingerprint.

A teacher that trains keeps what it trained in the cache folder; the checks of one example share a folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError, NasdistillError, UsageError
from nasdistill.interfaces import Batch, Site, StepInfo, Task, Teacher, TeacherSession, Trace
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.task import AnyNet, example_task, tiny_task
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import few, same
from nasdistill.testing.subject import Subject
from nasdistill.trace import make_tracer

CONTEXT = {
    "locator": "what to open, or a function that writes it into a folder; else the first of `locators`, or nothing",
    "task": "name of the task; a small one on digits, of the kit, unless given",
    "task_options": "its options, or a function of a folder that returns them",
    "other_locator": "a locator of a teacher with other weights (or a function), whose fingerprint must be another one",
    "other_options": "options of a teacher with other weights, whose fingerprint must be another one",
}
"""What an example's context may name."""

LOGITS = Site("logits")


def cache(subject: Subject) -> Path:
    """Return the cache folder of an example; it is removed with the subject."""

    def make() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="nasdistill-teacher-"))
        weakref.finalize(subject, shutil.rmtree, folder, ignore_errors=True)
        return folder

    return subject.once("cache", make)


def task_for(subject: Subject) -> Task:
    """Return the prepared task of the example."""
    return subject.once("task", lambda: example_task(subject))


def locator_of(subject: Subject) -> str:
    """Return what the example opens."""
    given = subject.made("locator")
    known = () if given is not None else subject.load().locators()
    return str(given) if given is not None else str(known[0]) if known else ""


def opened(
    subject: Subject, locator: str | None = None, *, task: Task | None = None, options: Any = None, state: int = 0,
    said: list[Any] | None = None, folder: Path | None = None,
) -> TeacherSession:  # fmt: skip
    """Open a new teacher; `state` is the global random state, which must play no part."""
    with seeded(state, "open"):
        teacher: Teacher = subject.create(options)
        return teacher.open(
            locator_of(subject) if locator is None else locator,
            task_for(subject) if task is None else task,
            cache_dir=cache(subject) if folder is None else folder,
            progress=None if said is None else said.append,
        )


def shared(subject: Subject) -> TeacherSession:
    """Return a session for checks that change nothing of it."""
    return subject.once("session", lambda: opened(subject))


def a_batch(task: Task, size: int = 6) -> Batch:
    """Return the first samples of the training split, plain."""
    with seeded(0, "batch"):
        return next(iter(task.batches("train", batch_size=size)))


def ask(subject: Subject, session: TeacherSession, *sites: Site, size: int = 6, state: int = 0) -> Trace:
    """Return a session's trace of the same few samples, with the logits when no site is named."""
    task = task_for(subject)
    with seeded(state, "trace"):
        return session.trace(
            a_batch(task, size), frozenset(sites or (LOGITS,)), StepInfo(), make_tracer(task.forward, session.label)
        )


def a_student(subject: Subject) -> nn.Module:
    """Return a student in training."""
    with seeded(subject.seed, "student"):
        return AnyNet(task_for(subject).io).train()


@exercise(Kind.TEACHER)
def use(subject: Subject) -> list[Any]:
    """Open it and ask for the logits of a few samples."""
    task, folder = task_for(subject), cache(subject)
    with subject.seeded():
        teacher: Teacher = subject.create()
        session = teacher.open(locator_of(subject), task, cache_dir=folder)
        trace = session.trace(a_batch(task), frozenset({LOGITS}), StepInfo(), make_tracer(task.forward))
        return [session.label, trace.logits]


@check(Kind.TEACHER, gate=True, hint="Return a TeacherSession; SingleTeacher is one for a single frozen network.")
def gives_a_session(subject: Subject) -> None:
    """`open` returns a session with a label, a fingerprint and at least one network."""
    session = shared(subject)
    if not isinstance(session, TeacherSession):
        fail(f"open returned {type(session).__name__}, not a TeacherSession")
    for name in ("label", "fingerprint"):
        text = getattr(session, name, None)
        if not isinstance(text, str) or not text.strip():
            fail(f"the session's {name} is {text!r}")
    if not isinstance(session.model, nn.Module):
        fail(f"the session's model is {type(session.model).__name__}, not a network")
    if not session.members or not all(isinstance(member, nn.Module) for member in session.members):
        fail(f"the session's members are {session.members!r}")


@check(Kind.TEACHER, hint="Call model.eval().requires_grad_(False) on every member.")
def networks_are_frozen(subject: Subject) -> None:
    """Every network is in eval mode and no parameter wants a gradient, before and after it answered."""
    session = opened(subject)
    for when in ("when opened", "after an answer"):
        for member in session.members:
            training = [name or "the network" for name, module in member.named_modules() if module.training]
            if training:
                fail(f"{when}, {training[0]} is in training mode")
            free = [name for name, parameter in member.named_parameters() if parameter.requires_grad]
            if free:
                fail(f"{when}, {free[0]} wants a gradient")
        ask(subject, session)


@check(Kind.TEACHER, hint="Draw weights under nasdistill.seeds.seeded(...), and hash weights and structure.")
def opens_the_same_again(subject: Subject) -> None:
    """Opened twice, it has the same fingerprint and gives the same answers.

    That holds whatever the global random state is, and whether it finds something in its cache or not.
    """
    first = opened(subject, state=1)
    with tempfile.TemporaryDirectory() as name:
        second = opened(subject, state=2, folder=Path(name))
    if first.fingerprint != second.fingerprint:
        fail(f"opened twice, its fingerprints are {first.fingerprint[:16]} and {second.fingerprint[:16]}")
    difference = same(ask(subject, first).logits, ask(subject, second).logits, "logits")
    if difference:
        fail(f"opened twice, its fingerprint is the same and its {difference}")


@check(Kind.TEACHER, hint="Hash the weights (nasdistill.weights.model_hash), not the name.")
def other_weights_other_fingerprint(subject: Subject) -> None:
    """A teacher with other weights has another fingerprint."""
    options, locator = subject.context("other_options"), subject.made("other_locator")
    if options is None and locator is None:
        skip("no example's context names `other_options` or `other_locator`, which give other weights")
    merged = None if options is None else {**subject.example.options, **options}
    other = opened(subject, locator, options=merged, state=3)
    if other.fingerprint == shared(subject).fingerprint:
        fail(f"with {dict(options) if options is not None else locator} the fingerprint is the same")


@check(Kind.TEACHER, hint="Check the fit in `open` with task.check(model, label).")
def logits_fit_the_task(subject: Subject) -> None:
    """The logits are finite, with a row per sample and the task's outputs on the last axis."""
    task = task_for(subject)
    found = ask(subject, shared(subject)).logits
    if found.ndim < 2 or (found.shape[0], found.shape[-1]) != (6, task.io.outputs):
        fail(f"the logits of 6 samples have the shape {tuple(found.shape)}, and the task is {task.io}")
    if not bool(found.isfinite().all()):
        fail("the logits are not finite")


@check(Kind.TEACHER, hint="Pass `sites` on to the tracer, or answer for each of them.")
def trace_has_the_sites(subject: Subject) -> None:
    """A trace has every site that was asked for and that the network has, with a row per sample."""
    session, task = shared(subject), task_for(subject)
    batch = a_batch(task)
    try:
        with seeded(0, "plan"):
            geometry = make_tracer(task.forward).plan(session.model, batch).geometry
    except NasdistillError:
        skip("the sites of its network cannot be found")
    # Maps and scores are computed from q and k by whoever reads them.
    names = {site.name: site for site in sorted(geometry.sites, key=str) if site.name not in ("scores", "attention")}
    asked = {LOGITS, *names.values()}
    trace = ask(subject, session, *asked)
    lacking = sorted(str(site) for site in asked if site not in trace)
    if lacking:
        fail(f"asked for {', '.join(sorted(map(str, asked)))}, the trace has no {', '.join(lacking)}")
    for site in asked:
        if len(trace[site]) != batch.size:
            fail(f"{site} has the shape {tuple(trace[site].shape)} for {batch.size} samples")


@check(Kind.TEACHER, hint="Compute answers under torch.no_grad(); return trace.detach().")
def answers_are_detached(subject: Subject) -> None:
    """No tensor of a trace has a gradient history, not even where gradients are on."""
    session = shared(subject)
    with torch.enable_grad():
        trace = ask(subject, session)
    for part in (trace, *trace.members):
        for site, signal in part.signals.items():
            if signal.tensor.requires_grad:
                fail(f"{site} of the trace requires a gradient")


@check(Kind.TEACHER, hint="Set the tag and the session's `cacheable` alike; False when answers change in a training.")
def cacheable_is_true(subject: Subject) -> None:
    """The tag and the session agree, and a cacheable teacher's answers never change, also while a student trains."""
    session = opened(subject)
    if session.cacheable is not subject.tags.cacheable:
        fail(f"the tag says cacheable={subject.tags.cacheable}, its session {session.cacheable}")
    if not session.cacheable:
        return  # it may answer alike all the same
    before = ask(subject, session, state=1).logits.clone()
    difference = same(before, ask(subject, session, state=2).logits, "logits")
    if difference:
        fail(f"asked twice for the same samples, its {difference}")
    _train(session, a_student(subject))
    difference = same(before, ask(subject, session, state=1).logits, "logits")
    if difference:
        fail(f"before and after a student's steps, its {difference}")


@check(Kind.TEACHER, hint="Raise UsageError with nasdistill.errors.did_you_mean(locator, known).")
def unknown_names_are_refused(subject: Subject) -> None:
    """A locator that names nothing is a UsageError that says it, with what is close where there is a list.

    A teacher that takes none (an empty tag `locator`) refuses any.
    """
    known = list(subject.load().locators())
    if known and not subject.tags.locator:
        fail(f"the tag locator is empty, and locators() has {known[0]!r}")
    wrong = "no-such-teacher-anywhere"
    text = _refusal(subject, wrong)
    if wrong not in text:
        fail(f"the error does not name the locator {wrong!r}: {text}")
    usual = locator_of(subject)
    if usual in known and f"{usual}x" not in known:
        text = _refusal(subject, f"{usual}x")
        if usual not in text.replace(f"{usual}x", ""):
            fail(f"{usual}x is refused without saying that there is {usual}: {text}")


@check(Kind.TEACHER, hint="Call task.check(model, label) in `open`; for what a teacher is made for, compare task.io.")
def refuses_tasks_that_do_not_fit(subject: Subject) -> None:
    """On a task of other images it answers in that task's form, or `open` raises MismatchError with both shapes."""
    task = tiny_task(channels=3, side=12, classes=4, samples=40)
    try:
        session = opened(subject, task=task)
    except MismatchError as error:
        text = str(error).replace(locator_of(subject), "")
        numbers = set(re.findall(r"\d+", text))
        if "12" not in numbers or numbers <= {"3", "12", "4"}:
            fail(f"the task has {task.io}; the error does not name this and what the teacher is made for: {error}")
        return
    except Exception as error:
        fail(f"opened for {task.io} it raised {type(error).__name__} instead of MismatchError: {error}")
    try:
        with torch.no_grad():
            found = tuple(task.forward(session.model, a_batch(task, 2)).shape)
    except Exception as error:
        fail(f"it opens for {task.io}, and its network does not take the images: {error}")
    if found != (2, 4):
        fail(f"it opens for {task.io}, and gives {found} for two images")


@check(Kind.TEACHER, hint="Add batch.size to self.queries in `trace`, or call the base class's.")
def queries_are_counted(subject: Subject) -> None:
    """`queries` is the number of samples answered: 0 when opened, then the sum of the batches."""
    session = opened(subject)
    counts = [session.queries]
    for size in (5, 3):
        ask(subject, session, size=size)
        counts.append(session.queries)
    if counts != [0, 5, 8]:
        fail(f"after 0, 5 and 8 samples `queries` is {counts[0]}, {counts[1]} and {counts[2]}")


@check(Kind.TEACHER, hint="Copy the student's weights; leave its mode and its parameters alone.")
def leaves_the_student_alone(subject: Subject) -> None:
    """Being told of a student and its steps, it changes nothing of the student."""
    session, student = opened(subject), a_student(subject)
    guard = Guard({"student": student})
    _tell(session, student)
    changed = guard.settle()
    if changed:
        fail(f"it changes {few(changed)}")


@check(Kind.TEACHER, hint="Write below cache_dir only.")
def writes_to_the_cache_only(subject: Subject) -> None:
    """Opening writes nothing into the working directory: whatever is kept stands in the cache folder."""
    task, folder = task_for(subject), cache(subject)
    with _elsewhere() as here:
        opened(subject, task=task, folder=folder)
        found = sorted(path.name for path in here.rglob("*"))
    if found:
        fail(f"it leaves {', '.join(found[:3])} in the working directory")


@check(Kind.TEACHER, hint='Call progress("one line") with texts, without line ends.')
def tells_in_lines(subject: Subject) -> None:
    """What `progress` is told are single lines of text."""
    said: list[Any] = []
    opened(subject, said=said)
    for line in said:
        if not isinstance(line, str) or "\n" in line:
            fail(f"progress was told {line!r}")


# -- details ----------------------------------------------------------------------------------------------------------


def _refusal(subject: Subject, locator: str) -> str:
    """Return the text of the UsageError that opening `locator` raises."""
    try:
        opened(subject, locator)
    except MismatchError as error:
        fail(f"{locator!r}, which names nothing, is refused as a misfit: {error}")
    except UsageError as error:
        return str(error)
    except Exception as error:
        fail(f"opening {locator!r} raised {type(error).__name__} instead of UsageError: {error}")
    what = "which names nothing" if subject.tags.locator else "and the tag says that it takes no locator"
    fail(f"opening {locator!r} succeeds, {what}")


def _tell(session: TeacherSession, student: nn.Module) -> None:
    """Announce a student and one step."""
    step = StepInfo(step=0, total_steps=2, generator=torch.Generator().manual_seed(0))
    session.start(student)
    session.before_step(student, step)
    session.after_step(student, step)


def _train(session: TeacherSession, student: nn.Module) -> None:
    """Announce a student and two steps that change it."""
    session.start(student)
    for number in range(2):
        step = StepInfo(step=number, total_steps=2, generator=torch.Generator().manual_seed(number))
        session.before_step(student, step)
        with torch.no_grad():
            for parameter in student.parameters():
                change: Tensor = torch.full_like(parameter, 0.1 * (number + 1))
                parameter.add_(change)
        session.after_step(student, step)


@contextlib.contextmanager
def _elsewhere() -> Iterator[Path]:
    """Work in a new folder."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)
