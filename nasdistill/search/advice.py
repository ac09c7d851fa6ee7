"""A sampler's advice on what to try next, by values that a strategy gives.

The study of a run holds what was measured, and most samplers learn from finished trials alone. A search that is led by
something else (proxies, predictions) keeps a second study in memory: the sampler proposes there, and each time sees all
trials so far with the values of that moment, which may change for old trials too (a rank within a growing pool does).
What comes of a proposal becomes an ordinary trial of the run's study.

Nothing of it is kept on disk: a resumed run asks again, trial by trial, and gets the same answers.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Container, Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from nasdistill.search.study import Proposals
from nasdistill.spec.architecture import Architecture


class _Revisable(optuna.storages.InMemoryStorage):
    """Trials whose values may change after they ended, which Optuna itself refuses.

    A new study with the new values for each proposal would do as well, but takes a second for a few hundred trials.
    """

    def __init__(self) -> None:
        super().__init__()
        self._revised: dict[int, FrozenTrial] = {}

    def revise(self, trial: FrozenTrial, values: Sequence[float]) -> None:
        """From now on, hand out a finished trial with these values."""
        if trial.values != list(values):
            changed = copy.copy(trial)
            changed.values = list(values)
            self._revised[trial.number] = changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials with their values of the moment."""
        trials = [self._revised.get(trial.number, trial) for trial in super().get_all_trials(study_id, False, states)]
        return copy.deepcopy(trials) if deepcopy else trials


class Advice:
    """Asks the configured sampler.

    Args:
        proposals: gives the sampler and the parameters.
        objectives: how many values each candidate has.
    """

    def __init__(self, proposals: Proposals, objectives: int) -> None:
        self._proposals = proposals
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # One sampler for the whole search: with a new one for every proposal, TPE would compare the parameters of
            # all trials anew each time, five times as long as all the rest after 250 trials.
            self._trials = _Revisable()
            self._study = optuna.create_study(
                storage=self._trials,
                directions=["minimize"] * objectives,
                sampler=proposals.sampler(0, ["minimize"] * objectives),
            )
        self._meaning: dict[int, Architecture] = {}

    def tell(self, values: Mapping[Architecture, Sequence[float]]) -> None:
        """Give every trial so far its values.

        Args:
            values: architecture -> objectives, lower is better. Proposals that are not among them count as failed;
                the sampler also learns from those that are no proposals of its own.
        """
        for trial in self._study.get_trials(deepcopy=False):
            known = self._meaning.get(trial.number)
            found = None if known is None else values.get(known)
            if trial.state == TrialState.RUNNING:
                state = TrialState.FAIL if found is None else TrialState.COMPLETE
                self._study.tell(trial.number, found, state)
            elif trial.state == TrialState.COMPLETE and found is not None:
                self._trials.revise(trial, found)
        own = set(self._meaning.values())
        for architecture, found in values.items():
            if architecture not in own:
                params, distributions = self._proposals.parameters(architecture), self._proposals.distributions()
                self._meaning[len(self._study.get_trials(deepcopy=False))] = architecture
                self._study.add_trial(
                    optuna.trial.create_trial(values=list(found), params=params, distributions={**distributions})
                )

    def ask(self) -> Architecture | None:
        """Return a proposal, None when it violates its space; it may be one that was proposed before."""
        number = len(self._study.get_trials(deepcopy=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self._study.ask(fixed_distributions={**self._proposals.distributions()})
        architecture = self._proposals.read(trial.params)
        if architecture is not None:
            self._meaning[number] = architecture
        return architecture
