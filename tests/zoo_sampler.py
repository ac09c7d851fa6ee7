"""Sampler factories that are sound but for one thing."""

from __future__ import annotations

import optuna
from zoo_base import Broken

from nasdistill.interfaces import SamplerFactory
from nasdistill.spec.component import SamplerSpec


class Sound(SamplerFactory):
    """Uniform draws."""

    def create(self, *, seed, directions, trials):
        return optuna.samplers.RandomSampler(seed=seed)


class Deaf(Sound):
    """Ignores the seed."""

    def create(self, *, seed, directions, trials):
        return optuna.samplers.RandomSampler(seed=0)


class TwoOnly(Sound):
    """Wants two objectives."""

    def create(self, *, seed, directions, trials):
        first, second = directions
        return super().create(seed=seed, directions=(first, second), trials=trials)


class Reading(optuna.samplers.RandomSampler):
    def sample_relative(self, study, trial, search_space):
        self.best = min((t.values[0] for t in study.get_trials(deepcopy=False) if t.state.is_finished()), default=0)
        return super().sample_relative(study, trial, search_space)


class Naive(Sound):
    """Reads the values of every finished trial."""

    def create(self, *, seed, directions, trials):
        return Reading(seed=seed)


class Fixed(optuna.samplers.RandomSampler):
    def __init__(self, seed):
        super().__init__(seed=seed)
        self.number = seed

    def sample_independent(self, study, trial, name, distribution):
        return distribution.choices[self.number % len(distribution.choices)]


class Stuck(Sound):
    """Proposes one point per seed."""

    def create(self, *, seed, directions, trials):
        return Fixed(seed)


class Penalising(optuna.samplers.RandomSampler):
    """Knows constraints as the plain numbers that they were in earlier versions of Optuna."""

    def sample_relative(self, study, trial, search_space):
        done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        self.violations = [sum(number for number in past.constraints if number > 0) for past in done]
        return super().sample_relative(study, trial, search_space)


class Outdated(Sound):
    """Weighs trials by constraints of an older form."""

    def create(self, *, seed, directions, trials):
        return Penalising(seed=seed)


def spec(name, cls):
    return SamplerSpec(name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",))


SOUND = [spec("sound", Sound)]
BROKEN = [
    Broken("seed_matters", spec("deaf", Deaf), "the same 5 points"),
    Broken("serves_one_objective", spec("two_only", TwoOnly), "ValueError"),
    Broken("takes_failed_trials", spec("naive", Naive), "TypeError"),
    Broken("takes_constraints", spec("outdated", Outdated), "TypeError"),
    Broken("explores", spec("stuck", Stuck), "only 1 distinct"),
]
