"""Checks of recipes, on a runner that trains a little and writes down much (:mod:`nasdistill.testing.kit.runner`)."""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError
from torch import nn

from nasdistill.distill.recipes import CARRIED
from nasdistill.errors import NasdistillError, TrialFailure, one_line
from nasdistill.interfaces import Recipe, RecipeRunner, SearchSpace, Stage
from nasdistill.interfaces.recipe import Origin
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import explain, parse_options
from nasdistill.testing.kit.inputs import network, outputs, samples
from nasdistill.testing.kit.runner import SOURCES, RecordingRunner, StageRun, stand_in
from nasdistill.testing.registry import CheckFailed, check, exercise, fail, skip
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject

CONTEXT = {
    "model": (
        "what makes the student: `SmallViT` or another one of `nasdistill.testing.kit.models`, or "
        "`package.module:callable`"
    ),
    "batch": "`package.module:callable`, which returns the batch that the network takes; digits unless given",
    "teacher": (
        "what makes the network behind every teacher's name, written like `model`; one like the student unless given"
    ),
    "space": (
        "the space that the student is a point of, for recipes that ask for others: `package.module:callable`, which "
        "returns one for images of 1 x 8 x 8 in ten classes; then instead of `model` and `teacher` the student is the "
        "point `architecture` (the default one unless given) and the teacher the default one"
    ),
    "architecture": "the parameters of the student's point of `space`",
}
"""What an example's context may name."""

DIGITS = IOSpec("image", (1, 8, 8), 10)
FILE_NAME = re.compile(r"^[A-Za-z0-9][\w. -]*$")


def run(subject: Subject, recipe: Recipe | None = None, **changes: Any) -> tuple[RecordingRunner, Any]:
    """Run a recipe (a fresh one) on a fresh student; return the runner and what the recipe returned.

    `changes` are arguments of the runner.
    """
    what: Any = subject.context("model", "SmallResNet")
    teacher: Any = subject.context("teacher", what)
    batch = samples(subject.context("batch"))
    if subject.context("space") is not None:
        space = _space(subject.context("space"))
        point = space.architecture(subject.context("architecture", {}))
        what, teacher = partial(space.build, point, DIGITS), partial(space.build, space.default(), DIGITS)
        changes = {"origin": Origin(space, point, DIGITS), **changes}
    student = network(what, batch)
    runner = RecordingRunner(
        subject.host, student, lambda size, start: samples(subject.context("batch"), size, start),
        stand_in(teacher, batch), **{"seed": 0, **changes},
    )  # fmt: skip
    recipe = subject.create() if recipe is None else recipe
    protocol: RecipeRunner = runner
    with subject.seeded():
        found = recipe.run(student, protocol)
    runner.finish()
    return runner, found


def looked(subject: Subject) -> tuple[RecordingRunner, Any]:
    """Return a run for checks that only look."""
    return subject.once("run", lambda: run(subject))


def stages(subject: Subject) -> list[StageRun]:
    """Return the stages of a run, for checks that only look."""
    return looked(subject)[0].stages


def told(outcome: tuple[RecordingRunner, Any]) -> list[Any]:
    """Return what became of a recipe, for comparison."""
    runner, found = outcome
    weights = dict(found.state_dict()) if isinstance(found, nn.Module) else type(found).__name__
    return [[item.stage for item in runner.stages], weights]


@exercise(Kind.RECIPE)
def use(subject: Subject) -> list[Any]:
    """Train a small student, each stage for a few steps."""
    return told(run(subject))


# -- gates ------------------------------------------------------------------------------------------------------------


@check(Kind.RECIPE, gate=True, hint="Hand the student to runner.train, and return the student of the last result.")
def returns_a_trained_network(subject: Subject) -> None:
    """`run` goes through at least one stage and returns a module with finite outputs of the student's shape."""
    runner, found = looked(subject)
    if not isinstance(found, nn.Module):
        fail(f"it returns {type(found).__name__}, not a module")
    if not runner.stages:
        fail("it returns without one call of runner.train")
    batch = samples(subject.context("batch"), 4)
    output = outputs(found, batch)
    expected = outputs(runner.student, batch).shape
    if output.shape != expected or not bool(output.isfinite().all()):
        fail(f"its network gives {tuple(output.shape)}, all finite: {bool(output.isfinite().all())}; the student "
             f"gives {tuple(expected)}")  # fmt: skip


# -- stages -----------------------------------------------------------------------------------------------------------


@check(Kind.RECIPE, hint="Number the names of stages that repeat: round_1, round_2.")
def stage_names_are_unique(subject: Subject) -> None:
    """Stages have different names, which can be names of files: checkpoints and seeds go by them."""
    for name, times in Counter(item.stage.name for item in stages(subject)).items():
        if times > 1:
            fail(f"{times} stages are called {name!r}")
        if not FILE_NAME.match(name):
            fail(f"stage {name!r} cannot name a file")


@check(Kind.RECIPE, hint="Give each stage epochs=... or steps=...")
def budgets_are_stated(subject: Subject) -> None:
    """Each stage has epochs or steps, one of the two, more than zero."""
    for item in stages(subject):
        epochs, steps = item.stage.epochs, item.stage.steps
        value = epochs if steps is None else steps
        if (epochs is None) == (steps is None) or value is None or not 0 < value < math.inf:
            fail(f"stage {item.stage.name!r} has epochs={epochs} and steps={steps}")


@check(Kind.RECIPE, hint="Name losses as nasdistill plugins list does, with a weight or a table of their options.")
def losses_exist(subject: Subject) -> None:
    """Every stage has losses; each is `task` or a component, with a weight or a table of options that it knows."""
    for item in stages(subject):
        stage = item.stage
        if not stage.losses:
            fail(f"stage {stage.name!r} has no losses, so there is nothing to train on")
        for name, value in stage.losses.items():
            problem = _loss_problem(subject, name, value)
            if problem:
                fail(f"stage {stage.name!r}, loss {name!r}: {problem}")


@check(
    Kind.RECIPE, hint="Write NAME:LOCATOR of an installed teacher, or call runner.register_teacher before the stage."
)
def teachers_are_known(subject: Subject) -> None:
    """A stage's teacher is one that can be opened, or one registered before; losses other than `task` have one."""
    runner, _ = looked(subject)
    for item in runner.stages:
        stage = item.stage
        if stage.teacher is None:
            comparing = [name for name in stage.losses if name != "task"]
            if comparing:
                fail(f"stage {stage.name!r} has no teacher for {', '.join(comparing)}")
        elif stage.teacher not in item.registered:
            try:
                runner.locate(stage.teacher)
            except NasdistillError as error:
                fail(f"the teacher {stage.teacher!r} of stage {stage.name!r} is not registered, and: {error}")


@check(Kind.RECIPE, hint='Patterns are those of fnmatch, on the names of named_parameters(): "head.*".')
def trains_something(subject: Subject) -> None:
    """Each pattern of `trains` fits a parameter of the student of that stage, and there is at least one."""
    for item in stages(subject):
        if not item.stage.trains or item.unmatched:
            what = ", ".join(map(repr, item.unmatched)) or "()"
            fail(f"in stage {item.stage.name!r} no parameter is named like {what}")


@check(Kind.RECIPE, hint="Hand the student on yourself; only what losses have trained is carried.")
def carries_what_can_be_carried(subject: Subject) -> None:
    """`carry` names what a runner carries from one stage to the next: `losses`."""
    for item in stages(subject):
        for part in item.stage.carry:
            if part not in CARRIED:
                fail(f"stage {item.stage.name!r} carries {part!r}; what can be carried is {', '.join(CARRIED)}")


@check(Kind.RECIPE, hint='Use the keys of the table [training]: {"lr": 1e-4, "schedule": "cosine"}.')
def training_options_exist(subject: Subject) -> None:
    """`optimizer` holds training options with values that they can have."""
    for item in stages(subject):
        try:
            TrainingConfig.model_validate({**TrainingConfig().model_dump(), **item.stage.optimizer})
        except ValidationError as error:
            fail(f"optimizer of stage {item.stage.name!r}: {explain(error, TrainingConfig)}")


@check(Kind.RECIPE, hint='"task" is the data of the task itself.')
def data_sources_exist(subject: Subject) -> None:
    """`data` names a source that a runner can have: task, general or reduced."""
    for item in stages(subject):
        if item.stage.data not in SOURCES:
            fail(f"stage {item.stage.name!r} takes its data from {item.stage.data!r}; there are {', '.join(SOURCES)}")


@check(Kind.RECIPE, hint="Let run and plan make their stages by the same code.")
def plan_agrees(subject: Subject) -> None:
    """What `plan` tells beforehand is run: these stages, in this order, with these teachers, losses and budgets."""
    recipe: Recipe = subject.create()
    planned = list(recipe.plan())
    if not planned:
        skip("it gives no plan")
    strange = [item for item in planned if not isinstance(item, Stage)]
    if strange:
        fail(f"the plan holds {type(strange[0]).__name__}, not a Stage")
    ran = [item.stage for item in stages(subject)]
    seconds = {stage.alternate for stage in (*planned, *ran)}  # a second stage is run by the first
    rest = iter(ran)
    for stage in planned:
        if stage.name in seconds:
            continue
        match = next((other for other in rest if other.name == stage.name), None)
        if match is None:
            order = ", ".join(item.name for item in ran)
            fail(f"stage {stage.name!r} of the plan is not run in its place; run are {order}")
        for name in ("teacher", "data", "epochs", "steps"):
            if getattr(stage, name) != getattr(match, name):
                fail(f"stage {stage.name!r} is planned with {name}={getattr(stage, name)!r}, and run with "
                     f"{getattr(match, name)!r}")  # fmt: skip
        if set(stage.losses) != set(match.losses):
            fail(f"stage {stage.name!r} is planned with the losses {', '.join(stage.losses)}, and run with "
                 f"{', '.join(match.losses)}")  # fmt: skip


# -- running ----------------------------------------------------------------------------------------------------------


@check(Kind.RECIPE, hint="Change networks only by runner.train and runner.transform; choose what trains by `trains`.")
def trains_through_the_runner(subject: Subject) -> None:
    """Networks change inside `runner.train` and `runner.transform` only: a resumed recipe is run again from there."""
    runner, _ = looked(subject)
    if runner.foreign:
        fail("; ".join(dict.fromkeys(runner.foreign)))


@check(Kind.RECIPE, hint="Build networks inside nasdistill.seeds.seeded, with a name of their own.")
def decides_by_the_runner_alone(subject: Subject) -> None:
    """Stages and weights do not depend on the state of the process: a resumed recipe runs in another one."""
    seeds = subject.seed + 1, subject.seed + 2
    others = [Subject(subject.host, subject.record, subject.example, seed=seed) for seed in seeds]
    difference = same(told(run(others[0])), told(run(others[1])))
    if difference:
        fail(f"with other global seeds: {difference}")


@check(Kind.RECIPE, hint="Keep what a run needs in local variables of `run`, not in self.")
def can_be_run_again(subject: Subject) -> None:
    """The same recipe run a second time does the same."""
    recipe: Recipe = subject.create()
    first, second = told(run(subject, recipe)), told(run(subject, recipe))
    difference = same(first, second)
    if difference:
        fail(f"a second run of one recipe differs: {difference}")


@check(Kind.RECIPE, hint="Bound every loop that waits for a score.")
def ends_without_progress(subject: Subject) -> None:
    """When no training helps, and every evaluation gives the worst score, it ends all the same."""
    try:
        run(subject, score=0.0)
    except (CheckFailed, NasdistillError) as error:
        if isinstance(error, CheckFailed):
            fail(f"when nothing helps, {error}")
    except Exception as error:
        fail(f"when nothing helps, it raises {type(error).__name__}: {error}")


@check(Kind.RECIPE, hint="Let errors of the runner pass; where a stage may fail, go on with the student that you have.")
def failures_pass_through(subject: Subject) -> None:
    """When a stage fails, its error is passed on, or the recipe goes on and returns a network."""
    for number in sorted({0, len(stages(subject)) - 1}):
        name = stages(subject)[number].stage.name
        error = TrialFailure("nan_loss", f"the loss of stage {name} is not a finite number")
        try:
            _, found = run(subject, fails=lambda n, number=number, error=error: error if n == number else None)
        except CheckFailed:
            raise
        except NasdistillError:
            continue
        except Exception as other:
            fail(f"when stage {name!r} fails, it raises {type(other).__name__}: {other}")
        if not isinstance(found, nn.Module):
            fail(f"when stage {name!r} fails, it returns {type(found).__name__}")


@check(Kind.RECIPE, hint="Catch NasdistillError where you must catch something, never BaseException.")
def interrupts_pass_through(subject: Subject) -> None:
    """An interrupt ends the recipe at once."""
    stop = KeyboardInterrupt("an interrupt of the check")
    try:
        run(subject, fails=lambda number: stop if number == 0 else None)
    except KeyboardInterrupt as error:
        if error is not stop:
            raise
        return
    except Exception as error:
        fail(f"an interrupt in the first stage becomes {one_line(error)}")
    fail("an interrupt in the first stage is swallowed, and it goes on")


# -- details ----------------------------------------------------------------------------------------------------------


def _space(named: Any) -> SearchSpace:
    """Return the space that a context names: a callable, or where it is."""
    if isinstance(named, str):
        module, _, attribute = named.partition(":")
        named = getattr(importlib.import_module(module), attribute)
    found: SearchSpace = named()
    return found


def _loss_problem(subject: Subject, name: str, value: Any) -> str:
    """Return what is wrong with one loss of a stage; empty when nothing is."""
    options = dict(value) if isinstance(value, Mapping) else {"weight": value}
    chosen = {key: options.pop(key) for key in ("weight", "optional") if key in options}
    try:
        if name == "task":
            ObjectiveConfig(task_weight=value)
            return ""
        LossConfig(name=name, options=options, **chosen)
        subject.host.canonical(Kind.LOSS, name)
        parse_options(subject.host.options_model(Kind.LOSS, name), options, where=name)
    except ValidationError as error:
        return explain(error, LossConfig)
    except NasdistillError as error:
        return str(error)
    return ""
