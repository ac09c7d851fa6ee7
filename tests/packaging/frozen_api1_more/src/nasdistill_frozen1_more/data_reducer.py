"""Samples drawn without replacement, by the generator that is given."""

from __future__ import annotations

import torch

from nasdistill.errors import UsageError
from nasdistill.interfaces import DataReducer, ReducedData


class Drawn(DataReducer):
    """See the module's text."""

    def reduce(self, task, *, student, build, budget, queried=(), generator=None):
        taken = set(queried)
        free = torch.tensor([i for i in range(task.size("train")) if i not in taken], dtype=torch.int64)
        if not len(free):
            raise UsageError("every sample was queried already")
        generator = generator or torch.Generator().manual_seed(0)
        return ReducedData(indices=free[torch.randperm(len(free), generator=generator)[:budget]], report={})
