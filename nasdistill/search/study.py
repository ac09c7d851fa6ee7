"""The Optuna study of a run: several spaces as one flat parameter set, several objectives, named constraints.

Every axis of every space is suggested in every trial (multivariate samplers model the intersection of parameters),
under ``SPACE.axis``; with more than one space a categorical ``space`` says which of them counts.
"""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from nasdistill.errors import ArchitectureError, UsageError
from nasdistill.files import content_hash
from nasdistill.interfaces import SamplerFactory, SearchSpace
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Architecture

STUDY_NAME = "search"
Direction = Literal["minimize", "maximize"]


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open a study's database; SQLite gets a write-ahead log that is not flushed at every commit.

    Every parameter of a trial is a commit of its own, about 10 ms each with SQLite's defaults on an ordinary disk. In
    this mode a crash of the process loses nothing; a power cut may lose the last commits, never the database.
    """
    storage = optuna.storages.RDBStorage(url)
    if storage.engine.dialect.name == "sqlite":

        def relax(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        event.listen(storage.engine, "connect", relax)
        storage.engine.dispose()  # connections opened before get the settings when they are opened again
    return storage


def set_aside_damaged(database: Path) -> bool:
    """Rename a study's database that SQLite cannot read whole; return whether it was.

    A resumed run then makes a new one from the trials' records.
    """
    if not database.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.DatabaseError as error:
        # No room, or nobody may write or read: that says nothing about what is in it. A file that ends too early is an
        # "I/O error" to SQLite.
        sound = any(word in str(error) for word in ("full", "locked", "readonly", "unable to open"))
    if not sound:
        for suffix in ("", "-wal", "-shm"):
            part = database.with_name(database.name + suffix)
            if part.exists():
                part.replace(part.with_name(part.name + ".damaged"))
    return not sound


@dataclass(slots=True)
class _Deferred:
    """A trial that the database does not know yet: what it will be told, and whether it is to be told at once."""

    architecture: Architecture
    opened: bool = False
    attributes: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    constraints: dict[str, float] = field(default_factory=dict)
    state: TrialState | None = None


class Proposals:
    """Asks an Optuna study for architectures and tells it the outcomes.

    Args:
        url: SQLAlchemy URL of the storage.
        spaces: short prefix -> space.
        sampler: makes the sampler; a new one is seeded for every trial, so trial n is the same whatever was done before
            in this process (what makes a resumed run equal an unbroken one).
        metric_names: names of the objectives, shown by dashboards.
        directions: ``"minimize"`` or ``"maximize"`` for each.
        seed: root seed.
        trials: how many are planned.
    """

    def __init__(
        self,
        url: str,
        spaces: Mapping[str, SearchSpace],
        sampler: SamplerFactory,
        *,
        metric_names: Sequence[str],
        directions: Sequence[Direction],
        seed: int,
        trials: int,
    ) -> None:
        self.spaces = dict(spaces)
        self._sampler = sampler
        self._seed = seed
        self._trials = trials
        self._directions: list[Direction] = list(directions)
        self._handles: dict[int, optuna.Trial] = {}
        self._deferred: dict[int, _Deferred] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=open_storage(url), study_name=STUDY_NAME, directions=self._directions, load_if_exists=True
            )
            self.study.set_metric_names(list(metric_names))
        self._freeze_axes()
        self._known = len(self.study.get_trials(deepcopy=False))

    def _freeze_axes(self) -> None:
        """Record the axes; refuse to go on with others (Optuna cannot change a categorical's choices)."""
        axes = {
            prefix: {axis.name: list(axis.choices) for axis in space.axes()} for prefix, space in self.spaces.items()
        }
        digest = content_hash(axes)
        known = self.study.user_attrs.get("axes_sha256")
        if known is None:
            self.study.set_user_attr("axes_sha256", digest)
        elif known != digest:
            raise UsageError(
                "the search spaces' axes differ from those this run was started with",
                hint="Install the plugin versions named in environment.json, or start a new run.",
            )

    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Return all parameters of the study."""
        found: dict[str, CategoricalDistribution] = {}
        if len(self.spaces) > 1:
            found["space"] = CategoricalDistribution(list(self.spaces))
        for prefix, space in self.spaces.items():
            for axis in space.axes():
                found[f"{prefix}.{axis.name}"] = CategoricalDistribution(list(axis.choices))
        return found

    def ask(self, number: int, known: Architecture | None = None) -> tuple[int, Architecture | None]:
        """Start trial `number` and return it with the architecture it proposes, None when that violates its space.

        A trial that the study already has is taken as it is, and one that was cut short while its parameters were
        drawn is drawn to its end: its sampler is seeded by its number. `known` is what a record says about a trial
        that the study lost.
        """
        self._settle(everything=True)
        trials = self.study.get_trials(deepcopy=False)
        if number >= len(trials) and known is not None:
            return self.enqueue(number, known)
        if number < len(trials) and trials[number].state.is_finished():
            return number, self.read(trials[number].params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = self.sampler(number, self._directions)
            trial = self._started(trials, number)
        self._handles[number] = trial
        return number, self.read(trial.params)

    def sampler(self, number: int, directions: Sequence[Direction]) -> optuna.samplers.BaseSampler:
        """Return a new sampler for the `number`-th proposal."""
        seed = derive_seed(self._seed, "sampler", number if self._sampler.reseed else 0) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._sampler.create(seed=seed, directions=directions, trials=self._trials)

    def enqueue(self, number: int, architecture: Architecture) -> tuple[int, Architecture | None]:
        """Start trial `number` for a given architecture; as :meth:`ask` where the study already has it."""
        self._settle(everything=True)
        return self._enqueue(number, architecture)

    def _enqueue(self, number: int, architecture: Architecture) -> tuple[int, Architecture | None]:
        trials = self.study.get_trials(deepcopy=False)
        if number < len(trials) and trials[number].state.is_finished():
            return number, self.read(trials[number].params)
        if number >= len(trials):
            self.study.enqueue_trial(self.parameters(architecture))
        trial = self._started(trials, number)
        self._handles[number] = trial
        return number, self.read(trial.params)

    def _started(self, trials: Sequence[FrozenTrial], number: int) -> optuna.Trial:
        """Return trial `number` with all its parameters: a new one, or one that an earlier process began."""
        if number < len(trials) and trials[number].state == TrialState.RUNNING:
            trial = optuna.Trial(self.study, trials[number]._trial_id)  # what study.ask() does with a fresh id
            for name, distribution in self.distributions().items():
                trial.suggest_categorical(name, distribution.choices)
            return trial
        trial = self.study.ask(fixed_distributions={**self.distributions()})
        self._known = max(self._known, trial.number + 1)
        if trial.number != number:
            raise UsageError(
                f"the study has trials that this run did not start (expected {number}, got {trial.number})",
                hint="Leave study.db to the run; copy it to experiment with it.",
            )
        return trial

    def defer(self, number: int, architecture: Architecture) -> tuple[int, Architecture | None]:
        """As :meth:`enqueue`, but the database is told later: when the trial is opened or finished, in one go.

        Optuna reads every open trial again for every parameter of a new one: 0.3 s with a hundred open, 1.5 s with
        five hundred. Trials have numbers in the order of their creation, so one that is undecided holds up those after
        it; what is held up is in the records, as is everything the database lost.
        """
        if number < self._known:
            return self.enqueue(number, architecture)
        own = self.read(self.parameters(architecture))
        if own is not None:
            self._deferred[number] = _Deferred(own)
            return number, own
        return self.enqueue(number, architecture)

    def open(self, numbers: Sequence[int]) -> None:
        """Let the database know of trials that were deferred, as running ones."""
        for number in numbers:
            if number in self._deferred:
                self._deferred[number].opened = True
        self._settle()

    def _settle(self, *, everything: bool = False) -> None:
        """Tell the database of deferred trials in the order of their numbers, up to the first that is undecided."""
        while self._deferred:
            number, waiting = next(iter(self._deferred.items()))
            if waiting.state is None and not waiting.opened and not everything:
                return
            del self._deferred[number]
            if waiting.state is None:
                self._enqueue(number, waiting.architecture)
                self.constrain(number, waiting.constraints)
                continue
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=waiting.state,
                    params=self.parameters(waiting.architecture),
                    distributions={**self.distributions()},
                    user_attrs=dict(waiting.attributes),
                    constraints=waiting.constraints,
                )
            )
            self._known = max(self._known, number + 1)

    def parameters(self, architecture: Architecture) -> dict[str, Any]:
        """Return the study's parameters for an architecture; those of other spaces have their defaults."""
        prefix = next(p for p, space in self.spaces.items() if space.id == architecture.space)
        params: dict[str, Any] = {f"{prefix}.{name}": value for name, value in architecture.params.items()}
        for other, space in self.spaces.items():
            if other != prefix:
                params |= {f"{other}.{axis.name}": axis.default for axis in space.axes()}
        if len(self.spaces) > 1:
            params["space"] = prefix
        return params

    def read(self, params: Mapping[str, Any]) -> Architecture | None:
        """Return the architecture that the study's parameters mean, None when they violate its space."""
        prefix = params["space"] if len(self.spaces) > 1 else next(iter(self.spaces))
        own = {name[len(prefix) + 1 :]: value for name, value in params.items() if name.startswith(f"{prefix}.")}
        try:
            return self.spaces[prefix].architecture(own)
        except ArchitectureError:
            return None

    def annotate(self, number: int, attributes: Mapping[str, str | int | float | bool | None]) -> None:
        """Store short scalars beside a running trial (shown by dashboards)."""
        if number in self._deferred:
            self._deferred[number].attributes |= attributes
        trial = self._handles.get(number)
        if trial is not None:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)

    def constrain(self, number: int, violations: Mapping[str, float]) -> None:
        """Record constraint violations (<= 0 is feasible); a name already recorded is left as it is."""
        if number in self._deferred:
            self._deferred[number].constraints = {**violations, **self._deferred[number].constraints}
        trial = self._handles.get(number)
        if trial is not None:
            known = trial.constraints
            for name, value in violations.items():
                if name not in known:
                    trial.set_constraint(name, value)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Finish a trial; telling a finished one again does nothing."""
        if number in self._deferred:
            if values is None:
                self._deferred[number].state = state
                return self._settle()
            self._settle(everything=True)
        self._handles.pop(number, None)
        self.study.tell(number, values=values, state=state, skip_if_finished=True)

    def close(self) -> None:
        """Let go of the database."""
        self.study._storage.remove_session()

    def frozen(self) -> list[FrozenTrial]:
        """Return all trials."""
        return self.study.get_trials(deepcopy=False)
