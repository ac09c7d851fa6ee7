"""Checks of strategies, on a session whose landscape is a formula (:mod:`nasdistill.testing.kit.session`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from nasdistill.errors import UsageError
from nasdistill.interfaces import Candidate, SearchSession, SearchSetting, Strategy
from nasdistill.spec.component import Kind
from nasdistill.testing.hosts import isolated_host
from nasdistill.testing.kit.models import DIGITS
from nasdistill.testing.kit.session import PlannedSession
from nasdistill.testing.kit.space import TINY_SPACE
from nasdistill.testing.registry import CheckFailed, check, exercise, fail, skip
from nasdistill.testing.state import first_difference
from nasdistill.testing.subject import Subject

TRIALS = 12


def run(subject: Subject, **changes: Any) -> PlannedSession:
    """Run a fresh strategy on a fresh session; `changes` are arguments of the session."""
    space = subject.once("space", lambda: isolated_host(TINY_SPACE).create(Kind.SEARCH_SPACE, "local:tiny"))
    values: dict[str, Any] = {"trials": TRIALS, "seed": subject.seed, **changes}
    strategy: Strategy = subject.create()
    values["trials"] = strategy.trials(values["trials"])
    session = PlannedSession(space, DIGITS, **values)
    protocol: SearchSession = session
    setting = SearchSetting(
        ("tiny",), (session.primary_target,), tuple(session.proxies), values["trials"], ("tiny",), ("tiny",)
    )
    with subject.seeded():
        strategy.check(setting)
        strategy.run(protocol)
    return session


def told(session: PlannedSession) -> list[tuple[Any, ...]]:
    """Return what became of every trial, for comparison."""
    return [
        (c.number, "" if c.architecture is None else c.architecture.id, c.state, c.rung, c.epochs, c.reason)
        for c in session.history()
    ]


@exercise(Kind.STRATEGY)
def use(subject: Subject) -> list[tuple[Any, ...]]:
    """Search a space of 48 points with a dozen trials."""
    return told(run(subject))


@check(
    Kind.STRATEGY,
    gate=True,
    hint="Prune or complete what is left, also what is still waiting when the budget is spent.",
)
def tells_every_trial(subject: Subject) -> None:
    """When a strategy returns, no trial is left running."""
    _all_told(run(subject).history(), "at the end")


@check(Kind.STRATEGY, gate=True, hint="Distil the most promising candidates, then hand them to session.complete.")
def completes_students(subject: Subject) -> None:
    """A search that nothing disturbs completes at least one student, distilled and measured."""
    done = [c for c in run(subject).history() if c.state == "complete"]
    if not done:
        fail(f"none of {TRIALS} trials is complete")


@check(Kind.STRATEGY, hint="Call session.prune with a reason that a user understands.")
def gives_reasons(subject: Subject) -> None:
    """Every pruned trial has a reason."""
    silent = [c.number for c in run(subject).history() if c.state == "pruned" and not c.reason.strip()]
    if silent:
        fail(f"trials {', '.join(map(str, silent))} are pruned without a reason")


@check(Kind.STRATEGY, hint="Draw nothing yourself: ask the session, or derive from its seed and the history.")
def decides_by_the_session_alone(subject: Subject) -> None:
    """Trials depend on the session, not on the state of the process: a resumed search runs the strategy again."""
    runs = []
    for seed in (subject.seed, subject.seed + 1):
        other = Subject(subject.host, subject.record, subject.example, seed=seed)
        with torch.random.fork_rng(devices=[]):
            runs.append(told(run(other, seed=subject.seed)))
    difference = first_difference(*runs)
    if difference:
        fail("with other global seeds, trial {} is another: {} and {}".format(*difference))


@check(Kind.STRATEGY, hint="Go on with what the evaluating methods return: the candidates that are still alive.")
def survives_failing_trials(subject: Subject) -> None:
    """Trials that fail cost nothing but themselves: with every third failing, others are completed."""
    session = _undisturbed(subject, "every third training fails", fails=lambda number: number % 3 == 0)
    _all_told(session.history(), "with every third failing")
    if not any(c.state == "complete" for c in session.history()):
        fail(f"with every third training failing, nothing is complete: {_states(session)}")


@check(Kind.STRATEGY, hint="Expect empty lists wherever the session returns one.")
def survives_total_failure(subject: Subject) -> None:
    """When every training fails, the strategy returns in order."""
    session = _undisturbed(subject, "every training fails", fails=lambda number: True)
    _all_told(session.history(), "with every training failing")


@check(Kind.STRATEGY, hint="Stop when ask and propose return nothing.")
def ends_when_the_space_is_exhausted(subject: Subject) -> None:
    """A budget larger than the space ends when there is nothing new to propose."""
    session = _undisturbed(subject, "200 trials on a space of 48 points", trials=200)
    _all_told(session.history(), "on an exhausted space")


@check(Kind.STRATEGY, hint="Look at session.remaining before proposing; finish what was begun.")
def ends_when_time_is_up(subject: Subject) -> None:
    """When the time is up nothing more is proposed, and what was proposed is told."""
    session = _undisturbed(subject, "time is up after 5 trials", proposals_until_timeout=5)
    _all_told(session.history(), "after the time was up")


@check(Kind.STRATEGY, hint="A budget of one is the smallest search; rounds and shares have to round up.")
def works_with_one_trial(subject: Subject) -> None:
    """A budget of one trial gives a student."""
    session = _undisturbed(subject, "one trial", trials=1)
    if not any(c.state == "complete" for c in session.history()):
        fail(f"with one trial the outcome is {_states(session)}")


@check(Kind.STRATEGY, hint="Let `check` raise a UsageError that says what is missing, or return.")
def refuses_in_words(subject: Subject) -> None:
    """`check` takes any configuration, or refuses it with a UsageError: no proxies, several spaces and targets."""
    strategy: Strategy = subject.create()
    for setting, what in (
        (SearchSetting(("tiny",), ("local:target",), (), 1), "a search without proxies"),
        (SearchSetting(("one", "two"), ("local:one", "local:two"), ("params", "nwot"), 48), "two spaces and targets"),
    ):
        try:
            strategy.check(setting)
        except UsageError as error:
            if not error.message.strip():
                fail(f"check refuses {what} without a word")
        except Exception as error:
            fail(f"check of {what} raises {type(error).__name__}: {error}")


@check(Kind.STRATEGY, hint='Return rows of {"rung": str, "candidates": int, "epochs": number}.')
def plan_is_well_formed(subject: Subject) -> None:
    """`plan` returns rungs with their number of candidates, as JSON, for any budget."""
    strategy: Strategy = subject.create()
    for trials in (1, 8, 48):
        rows = strategy.plan(trials)
        try:
            json.dumps(rows, allow_nan=False)
        except (TypeError, ValueError) as error:
            fail(f"plan({trials}) is not JSON: {error}")
        for row in rows:
            if not isinstance(row.get("rung"), str) or not isinstance(row.get("candidates"), int):
                fail(f"plan({trials}) has the row {row}")
            if not 0 <= row["candidates"] <= strategy.trials(trials):
                fail(f"plan({trials}) expects {row['candidates']} candidates in rung {row['rung']!r}")
    if not strategy.plan(8):
        skip("it gives no plan")


# -- details ----------------------------------------------------------------------------------------------------------


def _undisturbed(subject: Subject, situation: str, **changes: Any) -> PlannedSession:
    """Run in a situation; an exception is the strategy's failure."""
    run_in: Callable[..., PlannedSession] = run
    try:
        return run_in(subject, **changes)
    except CheckFailed:
        raise
    except Exception as error:
        fail(f"when {situation}, it raises {type(error).__name__}: {error}")


def _all_told(candidates: list[Candidate], when: str) -> None:
    running = [c.number for c in candidates if c.alive]
    if running:
        fail(f"trials {', '.join(map(str, running))} are still running {when}")


def _states(session: PlannedSession) -> str:
    return ", ".join(f"{n} {state}" for state, n in Counter(c.state for c in session.history()).items()) or "no trial"
