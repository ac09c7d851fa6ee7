"""A sampler's advice on what to try next, by values that a strategy gives.

The study of a run holds what was measured, and most samplers learn from finished trials alone. A search that is led by
something else (proxies, predictions) keeps a second study in memory: the sampler proposes there, and each time sees all
trials so far with the values of that moment, which may change for old trials too (a rank within a growing pool does).
What comes of a proposal becomes an ordinary trial of the run's study.

Nothing of it is kept on disk: a resumed run asks again, trial by trial, and gets the same answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import TrialState

from nasdistill.search.study import Proposals
from nasdistill.spec.architecture import Architecture


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
            self._study = optuna.create_study(
                directions=["minimize"] * objectives, sampler=proposals.sampler(0, ["minimize"] * objectives)
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
                # This is the study's own object. Only its values change, and nobody else looks at this study;
                # building it anew costs a second for a few hundred trials.
                trial.values = list(found)
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
