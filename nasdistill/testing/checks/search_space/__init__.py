"""Checks of search spaces: the points, what says something about a point, and the networks that points stand for.

They look at the default point, the point of all first choices and two random ones, on images of 1 x 8 x 8 and
3 x 16 x 16 with ten classes, unless an example says otherwise.
"""

from __future__ import annotations

from nasdistill.testing.checks.search_space import cases, moves, networks, offers, points

CONTEXT = {
    "io": "the `IOSpec` of the networks, or a tuple of several",
    "inherit_from": (
        "a function from an `IOSpec` to a network that a student can start from; a point of the space itself "
        "unless given"
    ),
}
"""What an example's context may name."""

__all__ = ["cases", "moves", "networks", "offers", "points"]
