"""Independent uniform draws."""

from __future__ import annotations

import optuna

from nasdistill.interfaces import SamplerFactory


class Uniform(SamplerFactory):
    """Independent uniform draws."""

    def create(self, *, seed, directions, trials):
        return optuna.samplers.RandomSampler(seed=seed)
