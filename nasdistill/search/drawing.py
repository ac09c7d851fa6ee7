"""Drawing architectures that were not proposed before: from the sampler's advice, at random, near others."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nasdistill.distill.subnetworks import contains, draw_member, members, raw_count
from nasdistill.interfaces import SearchSpace, SubSpace
from nasdistill.search.advice import Advice
from nasdistill.search.limits import Limits
from nasdistill.search.parts import Parts
from nasdistill.search.study import Proposals
from nasdistill.spec.architecture import Architecture

GIVE_UP = 20
"""Proposals in a row without a new architecture after which a space counts as exhausted."""

_GIVE_UP_FITTING = 200
"""The same for architectures that must keep the limits on size, which most of a space may not."""


class Drawing:
    """Knows what was proposed, and by whom.

    Args:
        parts: has the spaces.
        proposals: the study, whose sampler gives advice.
        limits: which sizes are feasible.
        check_stop: called between two draws; raises where the search is to end.

    Attributes:
        seen: architecture -> number of the trial it was proposed as.
        origins: architecture -> who came up with it: ``given``, ``sampler``, ``spread``, ``neighbour``. The report
            compares what was drawn at random with what the search found.
    """

    def __init__(self, parts: Parts, proposals: Proposals, limits: Limits, check_stop: Callable[[], None]) -> None:
        self.parts = parts
        self.proposals = proposals
        self.limits = limits
        self.seen: dict[Architecture, int] = {}
        self.origins: dict[Architecture, str] = {}
        self._check_stop = check_stop
        self._advice: Advice | None = None

    def suggest(self, values: Mapping[Architecture, Sequence[float]], n: int) -> list[Architecture]:
        """Return up to `n` new ones within the limits that the sampler would try next, given these values."""
        if self._advice is None:
            self._advice = Advice(self.proposals, len(next(iter(values.values()))) if values else 2)
        self._advice.tell(values)
        found: list[Architecture] = []
        misses, most = 0, _GIVE_UP_FITTING if self.limits.on_size else GIVE_UP
        while len(found) < n and misses < most:
            self._check_stop()
            architecture = self._advice.ask()
            new = architecture is not None and architecture not in self.seen and architecture not in found
            if architecture is not None and new and self._fits(architecture):
                found.append(architecture)
            else:
                misses += 1
        self.origins |= dict.fromkeys(found, "sampler")
        return found

    def spread(self, n: int, rng: random.Random, *, begin: int, feasible: bool) -> list[Architecture]:
        """Return up to `n` new random ones, from every space in turn, the `begin`-th (wrapped) first."""
        sources = [partial(space.sample, rng) for space in self.parts.spaces.values()]
        begin %= len(sources)
        found = self._fresh(n, sources[begin:] + sources[:begin], feasible)
        self.origins |= dict.fromkeys(found, "spread")
        return found

    def neighbours(
        self, parents: Sequence[Architecture], n: int, rng: random.Random, *, changes: int, feasible: bool
    ) -> list[Architecture]:
        """Return up to `n` new ones, each one mutation away from one of `parents` in turn."""
        sources = [partial(self.parts.space_of(parent).mutate, parent, rng, changes) for parent in parents]
        found = self._fresh(n, sources, feasible)
        self.origins |= dict.fromkeys(found, "neighbour")
        return found

    def members(
        self,
        space: SearchSpace,
        subspace: SubSpace,
        n: int,
        rng: random.Random,
        *,
        parents: Sequence[Architecture] = (),
        changes: int = 1,
    ) -> list[Architecture]:
        """Return up to `n` new ones of a sub-space within the limits: all, where there are no more; else random ones
        or, with `parents`, ones that are a mutation away from one of them in turn.
        """
        if parents:
            sources = [partial(space.mutate, parent, rng, changes) for parent in parents]
            found = self._fresh(n, sources, True, lambda architecture: contains(space, subspace, architecture))
            origin = "neighbour"
        elif raw_count(space, subspace) <= n:
            new = (architecture for architecture in members(space, subspace) if architecture not in self.seen)
            found, origin = [architecture for architecture in new if self._fits(architecture)], "given"
        else:
            found, origin = self._fresh(n, [partial(draw_member, space, subspace, rng)], True), "spread"
        self.origins |= dict.fromkeys(found, origin)
        return found

    def _fresh(
        self,
        n: int,
        sources: Sequence[Callable[[], Architecture]],
        feasible: bool,
        allowed: Callable[[Architecture], bool] = lambda architecture: True,
    ) -> list[Architecture]:
        """Draw from the sources in turn, leaving out what was proposed before; give up where nothing new comes."""
        found: list[Architecture] = []
        attempts = _GIVE_UP_FITTING if feasible and self.limits.on_size else GIVE_UP
        for attempt in range(attempts * n if sources else 0):
            if len(found) == n:
                break
            architecture = sources[attempt % len(sources)]()
            new = architecture not in self.seen and architecture not in found and allowed(architecture)
            if new and (not feasible or self._fits(architecture)):
                found.append(architecture)
        return found

    def _fits(self, architecture: Architecture) -> bool:
        """Return whether an architecture keeps the limits that its analytic cost decides."""
        if not self.limits.on_size:
            return True
        cost = self.parts.space_of(architecture).cost(architecture, self.parts.task.io)
        return all(value <= 0 for value in self.limits.size(cost).values())
