"""The Optuna study of a run: several spaces as one flat parameter set, several objectives, named constraints.

Every axis of every space is suggested in every trial (multivariate samplers model the intersection of parameters),
under ``SPACE.axis``; with more than one space a categorical ``space`` says which of them counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
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
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=open_storage(url), study_name=STUDY_NAME, directions=self._directions, load_if_exists=True
            )
            self.study.set_metric_names(list(metric_names))
        self._freeze_axes()

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

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return all parameters of the study."""
        found: dict[str, BaseDistribution] = {}
        if len(self.spaces) > 1:
            found["space"] = CategoricalDistribution(list(self.spaces))
        for prefix, space in self.spaces.items():
            for axis in space.axes():
                found[f"{prefix}.{axis.name}"] = CategoricalDistribution(list(axis.choices))
        return found

    def ask(self) -> tuple[optuna.Trial, Architecture | None]:
        """Start a trial and return it with the architecture it proposes, None when that violates its space."""
        number = len(self.study.get_trials(deepcopy=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = self._sampler.create(
                seed=derive_seed(self._seed, "sampler", number if self._sampler.reseed else 0) % 2**32,
                directions=self._directions,
                trials=self._trials,
            )
            trial = self.study.ask(fixed_distributions=self.distributions())
        self._handles[trial.number] = trial
        return trial, self._read(trial.params)

    def enqueue(self, architecture: Architecture) -> optuna.Trial:
        """Start a trial for a given architecture."""
        prefix = next(p for p, space in self.spaces.items() if space.id == architecture.space)
        params: dict[str, Any] = {f"{prefix}.{name}": value for name, value in architecture.params.items()}
        for other, space in self.spaces.items():
            if other != prefix:
                params |= {f"{other}.{axis.name}": axis.default for axis in space.axes()}
        if len(self.spaces) > 1:
            params["space"] = prefix
        self.study.enqueue_trial(params)
        trial = self.study.ask(fixed_distributions=self.distributions())
        self._handles[trial.number] = trial
        return trial

    def _read(self, params: Mapping[str, Any]) -> Architecture | None:
        prefix = params["space"] if len(self.spaces) > 1 else next(iter(self.spaces))
        own = {name[len(prefix) + 1 :]: value for name, value in params.items() if name.startswith(f"{prefix}.")}
        try:
            return self.spaces[prefix].architecture(own)
        except ArchitectureError:
            return None

    def annotate(self, number: int, attributes: Mapping[str, str | int | float | bool | None]) -> None:
        """Store short scalars beside a running trial (shown by dashboards)."""
        trial = self._handles.get(number)
        if trial is not None:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)

    def constrain(self, number: int, violations: Mapping[str, float]) -> None:
        """Record constraint violations (<= 0 is feasible); a name already recorded is left as it is."""
        trial = self._handles.get(number)
        if trial is not None:
            known = trial.constraints
            for name, value in violations.items():
                if name not in known:
                    trial.set_constraint(name, value)

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Finish a trial; telling a finished one again does nothing."""
        self._handles.pop(number, None)
        self.study.tell(number, values=values, state=state, skip_if_finished=True)

    def frozen(self) -> list[FrozenTrial]:
        """Return all trials."""
        return self.study.get_trials(deepcopy=False)
