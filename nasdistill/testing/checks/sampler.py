"""Checks of sampler factories: the sampler proposes in the studies that a search runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import optuna

from nasdistill.spec.component import Kind
from nasdistill.testing.registry import check, exercise, fail
from nasdistill.testing.subject import Subject

CHOICES: dict[str, list[Any]] = {"width": [8, 16, 32, 64], "kernel": [3, 5], "attention": ["softmax", "linear", "flow"]}
Direction = Literal["minimize", "maximize"]
TRIALS = 11  # one more than the random start of most samplers


def proposals(
    subject: Subject,
    *,
    seed: int | None = None,
    directions: Sequence[Direction] = ("minimize", "minimize"),
    trials: int = TRIALS,
    constrained: bool = False,
    failing: bool = False,
) -> list[dict[str, Any]]:
    """Return what a sampler proposes, one trial after the other, over a study of categorical parameters."""
    factory = subject.create()
    sampler = factory.create(seed=subject.seed if seed is None else seed, directions=directions, trials=trials)
    if not isinstance(sampler, optuna.samplers.BaseSampler):
        fail(f"create returned {type(sampler).__name__}, not an Optuna sampler")
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(directions=list(directions), sampler=sampler)
            for number in range(trials):
                trial = study.ask()
                params = {name: trial.suggest_categorical(name, values) for name, values in CHOICES.items()}
                found.append(params)
                if failing and number % 3 == 1:
                    state = optuna.trial.TrialState.FAIL if number % 2 else optuna.trial.TrialState.PRUNED
                    study.tell(trial, state=state)
                    continue
                if constrained:
                    trial.set_constraint("size", float(params["width"] - 48))
                values = [-params["width"] / 64 - params["kernel"] / 50, params["width"] * params["kernel"] / 100.0]
                study.tell(trial, values[: len(directions)])
    finally:
        optuna.logging.set_verbosity(level)
    return found


@exercise(Kind.SAMPLER)
def use(subject: Subject) -> list[dict[str, Any]]:
    """Propose the first points of a study of two objectives."""
    with subject.seeded():
        return proposals(subject, trials=5)


@check(Kind.SAMPLER, hint="Pass `seed` to the Optuna sampler.")
def seed_matters(subject: Subject) -> None:
    """Another seed gives other proposals."""
    if proposals(subject, seed=1, trials=5) == proposals(subject, seed=2, trials=5):
        fail("seeds 1 and 2 propose the same 5 points")


@check(Kind.SAMPLER, hint="Choose a sampler by len(directions), or one that serves any number.")
def serves_one_objective(subject: Subject) -> None:
    """A study of one objective is served too."""
    proposals(subject, directions=("maximize",))


@check(Kind.SAMPLER, hint="Do not read the values of trials that are not complete.")
def takes_failed_trials(subject: Subject) -> None:
    """Failed and pruned trials, which have no values, do not stop it."""
    proposals(subject, failing=True, trials=TRIALS + 4)


@check(Kind.SAMPLER, hint="Read trial.constraints; a `constraints_func` of your own is not called.")
def takes_constraints(subject: Subject) -> None:
    """Trials that carry constraints do not stop it."""
    proposals(subject, constrained=True)


@check(Kind.SAMPLER, hint="A sampler that proposes one point for ever cannot search.")
def explores(subject: Subject) -> None:
    """It proposes more than a few distinct points of a space of 24."""
    distinct = {tuple(point.values()) for point in proposals(subject)}
    if len(distinct) < 4:
        fail(f"{TRIALS} proposals hold only {len(distinct)} distinct points")
