"""The sub-networks of a space or of one of its named sub-spaces: which there are, and the ladder from small to large.

A sub-space restricts some axes; ``SubSpace("")`` restricts none and stands for the whole space. An axis that does not
matter for a point (an inactive one) is not looked at.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping

from nasdistill.errors import ArchitectureError, UsageError, did_you_mean
from nasdistill.interfaces.space import SearchSpace, SubSpace
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Architecture, Value
from nasdistill.spec.io import IOSpec

WHOLE = SubSpace("")
"""All of a space."""

_TRIES = 10_000


def find_subspace(space: SearchSpace, name: str) -> SubSpace:
    """Return a space's sub-space by name; the empty name is the whole space.

    Raises:
        UsageError: there is none of this name.
    """
    known = {subspace.name: subspace for subspace in space.subspaces()}
    if name and name not in known:
        raise UsageError(f"space {space.id} has no sub-space {name!r}. {did_you_mean(name, known)}")
    return known[name] if name else WHOLE


def contains(space: SearchSpace, subspace: SubSpace, arch: Architecture) -> bool:
    """Return whether a point of `space` lies in a sub-space."""
    return all(
        arch.params[axis.name] in subspace.choices.get(axis.name, axis.choices)
        for axis in space.axes()
        if axis.is_active(arch.params)
    )


def raw_count(space: SearchSpace, subspace: SubSpace) -> int:
    """Return the product of the allowed choices: an upper bound on the number of points."""
    return math.prod(len(choices) for choices in _allowed(space, subspace).values())


def members(space: SearchSpace, subspace: SubSpace) -> Iterator[Architecture]:
    """Yield every point of a sub-space once, in a fixed order."""
    allowed = _allowed(space, subspace)
    seen = set()
    for values in itertools.product(*allowed.values()):
        arch = _point(space, dict(zip(allowed, values, strict=True)))
        if arch is not None and arch not in seen:
            seen.add(arch)
            yield arch


def draw_member(space: SearchSpace, subspace: SubSpace, rng: random.Random) -> Architecture:
    """Return a random point of a sub-space: every axis uniform, redrawn until the space's constraints hold.

    Raises:
        ArchitectureError: none was found.
    """
    allowed = _allowed(space, subspace)
    for _ in range(_TRIES):
        arch = _point(space, {name: rng.choice(choices) for name, choices in allowed.items()})
        if arch is not None:
            return arch
    raise ArchitectureError(f"space {space.id}: no valid point of sub-space {subspace.name!r} in {_TRIES} random draws")


def ladder(
    space: SearchSpace, io: IOSpec, subspace: SubSpace = WHOLE, *, limit: int = 1024, seed: int = 0
) -> tuple[Architecture, ...]:
    """Return the points of a sub-space from the smallest to the largest, by the number of parameters.

    The analytic cost of a space equals the parameters of the module that it builds and of the one that its supernet
    extracts, so nothing is built here. MACs and then the architecture's id order points of equal size.

    Args:
        space: the space.
        io: input and output of its networks.
        subspace: which part of it.
        limit: where there are more points than this, a random sample of that many, and both ends by ascent from axis
            to axis.
        seed: of that sample.
    """
    if raw_count(space, subspace) <= limit:
        found = set(members(space, subspace))
    else:
        rng = random.Random(derive_seed(seed, "ladder", space.id, subspace.name))
        start = draw_member(space, subspace, rng)
        found = {_end(space, io, subspace, start, sign) for sign in (-1, 1)}
        for _ in range(2 * limit):
            if len(found) >= limit:
                break
            found.add(draw_member(space, subspace, rng))
    if not found:
        raise ArchitectureError(f"space {space.id}: sub-space {subspace.name!r} has no valid point")
    return tuple(sorted(found, key=lambda arch: _size(space, io, arch)))


def _size(space: SearchSpace, io: IOSpec, arch: Architecture) -> tuple[int, int, str]:
    cost = space.cost(arch, io)
    return cost.params, cost.macs, arch.id


def _end(space: SearchSpace, io: IOSpec, subspace: SubSpace, start: Architecture, sign: int) -> Architecture:
    """Return the largest (`sign` 1) or smallest point that is reached by changing one axis after the other."""
    allowed, best = _allowed(space, subspace), start
    while True:
        before = best
        for name, choices in allowed.items():
            near = [_point(space, {**best.params, name: choice}) for choice in choices]
            points = [best, *(arch for arch in near if arch is not None and contains(space, subspace, arch))]
            best = max(points, key=lambda arch: (sign * space.cost(arch, io).params, sign * space.cost(arch, io).macs))
        if best == before:
            return best


def _allowed(space: SearchSpace, subspace: SubSpace) -> dict[str, tuple[Value, ...]]:
    """Return axis -> choices. Raises UsageError for an axis or a choice that the space does not have."""
    axes = {axis.name: axis for axis in space.axes()}
    for name, choices in subspace.choices.items():
        if name not in axes or not choices or not set(choices) <= set(axes[name].choices):
            raise UsageError(
                f"space {space.id}: sub-space {subspace.name!r} allows {name} = {choices}, not of the axis"
            )
    return {name: tuple(subspace.choices.get(name, axis.choices)) for name, axis in axes.items()}


def _point(space: SearchSpace, params: Mapping[str, Value]) -> Architecture | None:
    """Return the canonical point, or None where it violates a constraint."""
    clean = space.canonical(params)
    return None if space.constraints(clean) else Architecture.of(space.id, clean, space.version)
