"""What a component could leave behind in the process, and whether two results are the same."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from nasdistill.measure.guard import Guard, RandomGuard


class ProcessState:
    """Switches, hooks and random states of the process, as they were at construction."""

    def __init__(self) -> None:
        self._guard = Guard({})
        self._random = RandomGuard()
        self._filters = list(warnings.filters)
        self._environment = dict(os.environ)
        self._path = list(sys.path)
        self._folder = os.getcwd()

    def changes(self) -> list[str]:
        """Return what changed, as short phrases, and put back what can be put back."""
        found = self._guard.settle() + self._random.changes()
        if list(warnings.filters) != self._filters:
            found.append("the warning filters")
        variables = sorted(
            name for name in {*self._environment, *os.environ} if self._environment.get(name) != os.environ.get(name)
        )
        if variables:
            found.append(f"the environment ({', '.join(variables)})")
        if list(sys.path) != self._path:
            found.append("sys.path")
        if os.getcwd() != self._folder:
            found.append("the working directory")
        self.restore()
        return found

    def restore(self) -> None:
        """Put back what :meth:`changes` compares, random states excepted."""
        self._guard.settle()
        warnings.filters[:] = self._filters  # type: ignore[index]
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        sys.path[:] = self._path
        os.chdir(self._folder)


def first_difference(one: Sequence[Any], other: Sequence[Any]) -> tuple[int, Any, Any] | None:
    """Return where two sequences part and what each has there (None beyond its end); None when they are equal."""
    pairs = enumerate(zip_longest(one, other))
    return next(((place, a, b) for place, (a, b) in pairs if a != b), None)


def same(first: Any, second: Any, where: str = "result") -> str:
    """Return where two results differ, bit for bit, as a phrase; empty when they do not.

    Understands tensors, arrays, numbers (NaN equals NaN), text, mappings, sequences and dataclasses.
    """
    if type(first) is not type(second):
        return f"{where} is a {type(first).__name__} once and a {type(second).__name__} once"
    if isinstance(first, torch.Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return f"{where} has shape {tuple(first.shape)} once and {tuple(second.shape)} once"
        if torch.equal(first, second) or (
            torch.equal(first.isnan(), second.isnan()) and bool((first.nan_to_num() == second.nan_to_num()).all())
        ):
            return ""
        gap = (first.detach().double() - second.detach().double()).abs().max()
        return f"{where} differs by up to {float(gap):.3g}"
    if isinstance(first, np.ndarray):
        return same(torch.as_tensor(first), torch.as_tensor(second), where)
    if isinstance(first, float):
        equal = first == second or (math.isnan(first) and math.isnan(second))
        return "" if equal else f"{where} is {first!r} once and {second!r} once"
    if isinstance(first, Mapping):
        if list(first) != list(second):
            return f"{where} has the keys {', '.join(map(str, first))} once and {', '.join(map(str, second))} once"
        return next(filter(None, (same(first[key], second[key], f"{where}[{key!r}]") for key in first)), "")
    if isinstance(first, Sequence) and not isinstance(first, str | bytes):
        if len(first) != len(second):
            return f"{where} has {len(first)} items once and {len(second)} once"
        pairs = enumerate(zip(first, second, strict=True))
        return next(filter(None, (same(a, b, f"{where}[{i}]") for i, (a, b) in pairs)), "")
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = (item.name for item in dataclasses.fields(first))
        return next(filter(None, (same(getattr(first, n), getattr(second, n), f"{where}.{n}") for n in fields)), "")
    return "" if first == second else f"{where} is {first!r} once and {second!r} once"


def few(texts: Sequence[str], most: int = 3) -> str:
    """Return the first of several texts, for a message, and whether there are more."""
    return f"{', '.join(texts[:most])}{' and more' if len(texts) > most else ''}"
