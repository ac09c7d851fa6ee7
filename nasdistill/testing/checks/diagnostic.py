"""Checks of diagnostics: numbers, tables and figures that can be shown, of models that are the same afterwards.

They look at two small transformers through the real tracer, on digits, unless an example names others.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from nasdistill.errors import NasdistillError
from nasdistill.interfaces import Batch, Diagnostic, Finding, Task
from nasdistill.measure.guard import Guard
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.models import SmallViT, built, maker
from nasdistill.testing.kit.task import example_task
from nasdistill.testing.kit.watched import WatchedTask
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import few, same
from nasdistill.testing.subject import Subject
from nasdistill.trace import make_tracer

CONTEXT = {
    "models": (
        "name -> what makes the network: `SmallResNet` or another one of `nasdistill.testing.kit.models`, or "
        "`package.module:callable`; two small transformers unless given"
    ),
    "task": "name of the task; a small one on digits, of the kit, unless given",
    "task_options": "its options",
}
"""What an example's context may name."""

SIMPLE = (str, int, float, bool, type(None))


def models_of(subject: Subject) -> dict[str, nn.Module]:
    """Return new models in eval mode."""
    chosen: Mapping[str, Any] | None = subject.context("models")
    if chosen is None:
        return {"teacher": built(SmallViT, 16, 3, seed=1).eval(), "student": built(SmallViT, 16, 2).eval()}
    found = {}
    for number, (name, what) in enumerate(chosen.items()):
        with seeded(number, "model"):
            found[name] = maker(what)().eval()
    return found


def task_of(subject: Subject) -> WatchedTask:
    """Return a prepared task that notices what is done with it."""
    return WatchedTask(example_task(subject, samples=100))


def batches_of(task: Task) -> list[Batch]:
    """Return two batches."""
    return list(itertools.islice(task.batches("validation", batch_size=8), 2))


def names_no_models(subject: Subject) -> bool:
    """Whether the example leaves the models to the check."""
    return subject.context("models") is None


def examine(
    subject: Subject,
    models: Mapping[str, nn.Module] | None = None,
    task: Task | None = None,
    batches: Sequence[Batch] | None = None,
) -> Finding:
    """Look at models with a fresh component. The caller seeds the global generators."""
    task = task_of(subject) if task is None else task
    batches = batches_of(task) if batches is None else batches
    diagnostic: Diagnostic = subject.create()
    return diagnostic.examine(
        models_of(subject) if models is None else models, task, batches, make_tracer(task.forward)
    )


def plain(subject: Subject) -> Finding:
    """Return the finding on all models, for checks that only look."""

    def make() -> Finding:
        with subject.seeded():
            return examine(subject)

    return subject.once("finding", make)


def told(found: Finding) -> list[Any]:
    """Return a finding in a form that compares."""
    return [
        dict(found.values),
        {name: list(rows) for name, rows in found.tables.items()},
        dict(found.figures),
        found.text,
    ]


@exercise(Kind.DIAGNOSTIC)
def use(subject: Subject) -> list[Any]:
    """Look at two small models and two batches."""
    with subject.seeded():
        found = examine(subject)
    return told(found) if isinstance(found, Finding) else []


@check(Kind.DIAGNOSTIC, gate=True, hint="Return Finding(values=..., tables=..., figures=..., text=...).")
def returns_a_finding(subject: Subject) -> None:
    """`examine` returns a Finding with values, tables or figures under names."""
    found = plain(subject)
    if not isinstance(found, Finding):
        fail(f"it returns {type(found).__name__}, not a Finding")
    parts = {"values": found.values, "tables": found.tables, "figures": found.figures}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            fail(f"{name} is {type(part).__name__}, not a mapping")
        if not all(isinstance(key, str) and key.strip() for key in part):
            fail(f"{name} has the keys {', '.join(map(repr, part))}")
    if not any(parts.values()):
        fail("it finds neither values nor tables nor figures")


@check(Kind.DIAGNOSTIC, hint="Leave a value out that is not defined, and say so in the text.")
def values_are_numbers(subject: Subject) -> None:
    """`values` are finite Python numbers."""
    for name, value in plain(subject).values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            fail(f"values[{name!r}] is {value!r} ({type(value).__name__})")


@check(Kind.DIAGNOSTIC, hint="One mapping per row; put what is nested into columns of their own, None where unknown.")
def tables_are_flat(subject: Subject) -> None:
    """A table is a list of rows with the same columns in the same order, which hold texts, finite numbers or None."""
    for name, rows in plain(subject).tables.items():
        if isinstance(rows, str | Mapping) or not isinstance(rows, Sequence):
            fail(f"tables[{name!r}] is {type(rows).__name__}, not a list of rows")
        for number, row in enumerate(rows):
            where = f"row {number} of tables[{name!r}]"
            if not isinstance(row, Mapping) or not row:
                fail(f"{where} is {row!r}, not a mapping with columns")
            if list(row) != list(rows[0]):
                fail(f"{where} has the columns {', '.join(map(str, row))}; the first has "
                     f"{', '.join(map(str, rows[0]))}")  # fmt: skip
            for column, value in row.items():
                if type(value) not in SIMPLE or (isinstance(value, float) and not math.isfinite(value)):
                    fail(f"{where} has in column {column!r} {value!r} ({type(value).__name__})")


@check(Kind.DIAGNOSTIC, hint="Make figures as plotly does: figure.to_plotly_json() with lists, or the dict by hand.")
def figures_are_plotly(subject: Subject) -> None:
    """A figure is JSON that plotly accepts, with at least one trace."""
    figures = plain(subject).figures
    if not figures:
        skip("it draws no figures")
    import plotly.graph_objects

    for name, figure in figures.items():
        try:
            again = json.loads(json.dumps(figure, allow_nan=False))
        except (TypeError, ValueError) as error:
            fail(f"figures[{name!r}] is not JSON: {error}")
        try:
            drawn = plotly.graph_objects.Figure(again)
        except (TypeError, ValueError) as error:
            fail(f"plotly refuses figures[{name!r}]: {' '.join(str(error).split())[:300]}")
        if not drawn.data:
            fail(f"figures[{name!r}] shows nothing: it has no data")


@check(Kind.DIAGNOSTIC, hint="Say in a sentence or two what large and small values mean.")
def says_how_to_read_it(subject: Subject) -> None:
    """`text` says how to read the finding."""
    text = plain(subject).text
    if not isinstance(text, str) or not text.strip():
        fail(f"text is {text!r}")


@check(Kind.DIAGNOSTIC, hint="Use the tracer, which needs no hooks of yours; put modes and gradients back.")
def models_are_left_alone(subject: Subject) -> None:
    """The models are as before, in whichever mode they come: weights, gradients, statistics, modes, hooks."""
    for mode in (False, True):
        models = {name: model.train(mode) for name, model in models_of(subject).items()}
        guard = Guard(models)
        with subject.seeded():
            examine(subject, models)
        changed = guard.settle()
        if mode:  # a forward in training mode moves the statistics of batch norms, which is the tracer's doing
            changed = [text for text in changed if not text.startswith("the values of")]
        if changed:
            fail(f"it changes {few(changed)}")


@check(Kind.DIAGNOSTIC, hint="Clone what you change of a batch.")
def batches_are_left_alone(subject: Subject) -> None:
    """The batches are not changed."""
    task = task_of(subject)
    with subject.seeded():
        examine(subject, task=task)
    changed = task.disturbed()
    if changed:
        fail(f"it changes {', '.join(changed)} of the batches")


@check(Kind.DIAGNOSTIC, hint="Draw, if you must, from nasdistill.seeds.torch_generator with a fixed seed.")
def depends_on_what_it_sees_alone(subject: Subject) -> None:
    """The same models and batches give the same finding, whatever the global random state is."""
    results = []
    for seed in (subject.seed + 1, subject.seed + 2):
        with seeded(seed):
            results.append(told(examine(subject)))
    difference = same(results[0], results[1], "the finding")
    if difference:
        fail(f"with other global seeds: {difference}")


@check(Kind.DIAGNOSTIC, hint="Compute under torch.enable_grad() what needs gradients.")
def grad_mode_plays_no_part(subject: Subject) -> None:
    """Where gradients are switched off, it finds the same."""
    try:
        with subject.seeded(), torch.no_grad():
            found = told(examine(subject))
    except Exception as error:
        fail(f"under torch.no_grad() it raises {type(error).__name__}: {error}")
    difference = same(told(plain(subject)), found, "the finding")
    if difference:
        fail(f"under torch.no_grad(): {difference}")


@check(Kind.DIAGNOSTIC, hint="Look at whatever models there are, or raise a UsageError that names those you need.")
def one_model_is_enough_or_refused(subject: Subject) -> None:
    """With one model only, it finds something, or says with an error of nasdistill which models it needs."""
    for name, model in models_of(subject).items():
        _finds_or_refuses(subject, f"with the {name} alone", {name: model})


@check(
    Kind.DIAGNOSTIC,
    applies=names_no_models,
    hint="Ask nasdistill.trace.describe which sites a model has, and raise MismatchError where they are missing.",
)
def other_networks_work_or_are_refused(subject: Subject) -> None:
    """Networks of another kind are looked at, too, or refused with an error of nasdistill."""
    models = {"teacher": maker("SmallResNet"), "student": maker("Mlp")}
    with seeded(subject.seed, "models"):
        made = {name: make().eval() for name, make in models.items()}
    _finds_or_refuses(subject, "with a convolutional network and a perceptron", made)


@check(Kind.DIAGNOSTIC, hint="Read labels only where they are, or raise a DataError that asks for them.")
def labels_may_be_missing(subject: Subject) -> None:
    """Batches without labels are looked at, or refused with an error of nasdistill."""
    task = task_of(subject)
    batches = [replace(batch, labels=None) for batch in batches_of(task)]
    _finds_or_refuses(subject, "without labels", models_of(subject), batches)


# -- details ----------------------------------------------------------------------------------------------------------


def _finds_or_refuses(
    subject: Subject, situation: str, models: Mapping[str, nn.Module], batches: Sequence[Batch] | None = None
) -> None:
    """Look in an unusual situation: something is found, or the error is one of ours."""
    try:
        with subject.seeded():
            found = examine(subject, models, batches=batches)
    except NasdistillError as error:
        if not str(error).strip():
            fail(f"{situation} it refuses without a word")
    except Exception as error:
        fail(f"{situation} it raises {type(error).__name__}: {error}")
    else:
        if not (found.values or found.tables or found.figures or found.text):
            fail(f"{situation} it finds nothing and does not say why")
