"""Optuna's samplers by name.

TPE is made multivariate: Optuna's own default for several objectives models each parameter alone. All spaces are flat
and always complete, so relative samplers see every parameter in every trial.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

import optuna
from pydantic import Field

from nasdistill.interfaces import SamplerFactory
from nasdistill.spec.options import ComponentOptions


class TpeOptions(ComponentOptions):
    """Options of `tpe`."""

    startup: int | None = Field(
        None, ge=1, description="Random trials first; a third of all (at most 10) if not given."
    )
    candidates: int = Field(48, ge=1, description="Draws per proposal, of which the best is taken.")


class Tpe(SamplerFactory):
    """Multivariate TPE (Watanabe 2023, arXiv:2304.11127); several objectives by non-dominated rank and hypervolume."""

    options_model: ClassVar[type[ComponentOptions]] = TpeOptions
    options: TpeOptions

    def create(self, *, seed: int, directions: Sequence[str], trials: int) -> optuna.samplers.BaseSampler:
        """Return the sampler."""
        startup = self.options.startup or min(10, max(1, trials // 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=startup,
                n_ei_candidates=self.options.candidates,
                multivariate=True,
                constant_liar=True,
                seed=seed,
            )


class Nsga2Options(ComponentOptions):
    """Options of `nsga2`."""

    population: int | None = Field(
        None,
        ge=2,
        description="Complete trials of a generation; a quarter of all trials (at least 4) if not given.",
    )


class Nsga2(SamplerFactory):
    """NSGA-II (Deb et al. 2002).

    Draws are uniform until `population` trials are complete; only then are parents chosen, once per generation of that
    size. Trials that a strategy dropped on the way do not count, so with few complete trials (under the funnel perhaps
    a third of those proposed) a population of a quarter of all trials leaves one generation after the random one, or
    none. A short study gains from a small population, which in turn holds only part of a front: TPE serves it better.
    """

    options_model: ClassVar[type[ComponentOptions]] = Nsga2Options
    options: Nsga2Options

    def create(self, *, seed: int, directions: Sequence[str], trials: int) -> optuna.samplers.BaseSampler:
        """Return the sampler."""
        return optuna.samplers.NSGAIISampler(population_size=self.options.population or max(4, trials // 4), seed=seed)


class Gp(SamplerFactory):
    """Gaussian process with (constrained, multi-objective) log expected improvement."""

    def create(self, *, seed: int, directions: Sequence[str], trials: int) -> optuna.samplers.BaseSampler:
        """Return the sampler."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=min(10, max(1, trials // 3)))


class Qmc(SamplerFactory):
    """Scrambled Sobol sequence: even coverage without learning."""

    reseed: ClassVar[bool] = False

    def create(self, *, seed: int, directions: Sequence[str], trials: int) -> optuna.samplers.BaseSampler:
        """Return the sampler."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_asynchronous_seeding=False)


class Random(SamplerFactory):
    """Independent uniform draws."""

    def create(self, *, seed: int, directions: Sequence[str], trials: int) -> optuna.samplers.BaseSampler:
        """Return the sampler."""
        return optuna.samplers.RandomSampler(seed=seed)
