"""What the checks of spaces look at: inputs, points, and networks built once for all of them."""

from __future__ import annotations

import random
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nasdistill.interfaces import SearchSpace
from nasdistill.seeds import seeded, torch_generator
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.testing.registry import exercise, fail
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject

IMAGES = (IOSpec("image", (1, 8, 8), 10), IOSpec("image", (3, 16, 16), 10))
STRANGE = (
    IOSpec("tokens", (16,), 4, 100), IOSpec("image", (8, 8), 4), IOSpec("image", (1, 1, 1), 4),
    IOSpec("series", (3, 32), 4),
)  # fmt: skip
"""Inputs of which most spaces cannot serve some."""
NAME = re.compile(r"^[A-Za-z]\w*(\.\w+)*$")
SMALL = 4_000
"""Up to this many raw points a space is enumerated."""


class Network(NamedTuple):
    """A point with its network, in eval mode, and three inputs."""

    io: IOSpec
    arch: Architecture
    model: nn.Module
    x: Tensor


def ios(subject: Subject, space: SearchSpace) -> list[IOSpec]:
    """Return the inputs that the space is tried on."""
    given = subject.context("io")
    if given is not None:
        return [given] if isinstance(given, IOSpec) else list(given)
    found = [io for io in IMAGES if space.accepts(io) is None]
    if not found:
        reasons = "; ".join(str(space.accepts(io)) for io in IMAGES)
        fail(f"it accepts none of the standard inputs ({reasons}), and its example's context gives no `io`")
    return found


def points(subject: Subject, space: SearchSpace) -> list[Architecture]:
    """Return the default point, the one of all first choices where there is one, and two random ones; distinct."""
    found = [space.default()]
    first = {axis.name: axis.choices[0] for axis in space.axes()}
    if not space.constraints(space.canonical(first)):
        found.append(space.architecture(first))
    found += samples(subject, space, 2)
    return list(dict.fromkeys(found))


def samples(subject: Subject, space: SearchSpace, count: int) -> list[Architecture]:
    """Return random points."""
    rng = random.Random(subject.seed)
    return [space.sample(rng) for _ in range(count)]


def inputs(io: IOSpec, batch: int, seed: int = 0) -> Tensor:
    """Return random inputs ``(B, *shape)``: token ids where the io has a vocabulary."""
    generator = torch_generator(seed, "inputs")
    if io.kind == "tokens":
        return torch.randint(io.vocabulary or 2, (batch, *io.shape), generator=generator)
    return torch.randn(batch, *io.shape, generator=generator)


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return a network's output tensor."""
    out = model(x)
    out = out if isinstance(out, Tensor) else getattr(out, "logits", out)
    if not isinstance(out, Tensor):
        fail(f"a network returns a {type(out).__name__}, not a tensor")
    return out


def build(subject: Subject, space: SearchSpace, arch: Architecture, io: IOSpec, seed: int = 0) -> nn.Module:
    """Return a point's network, its weights drawn from `seed`, in eval mode."""
    with seeded(subject.seed, "build", seed):
        model = space.build(arch, io)
    if not isinstance(model, nn.Module):
        fail(f"build returns a {type(model).__name__}, not a torch module")
    return model.eval()


def networks(subject: Subject) -> list[Network]:
    """Return networks that checks look at and none changes: all points on the first io, the default on the others."""

    def make() -> list[Network]:
        space = subject.create()
        first, *others = ios(subject, space)
        todo = [(first, arch) for arch in points(subject, space)] + [(io, space.default()) for io in others]
        return [Network(io, arch, build(subject, space, arch, io), inputs(io, 3)) for io, arch in todo]

    return subject.once("networks", make)


def first_case(subject: Subject) -> tuple[SearchSpace, IOSpec, list[Architecture]]:
    """Return a fresh space, the first io and the points."""
    space = subject.create()
    return space, ios(subject, space)[0], points(subject, space)


def told(arch: Architecture) -> str:
    """Return a point as a message shows it."""
    return f"at {dict(arch.params)}"


@exercise(Kind.SEARCH_SPACE)
def use(subject: Subject) -> list[Any]:
    """Draw two points, build and run their networks, ask for their cost and graph."""
    found: list[Any] = []
    with subject.seeded():
        space = subject.create()
        io = ios(subject, space)[0]
        for arch in samples(subject, space, 2):
            model = space.build(arch, io).eval()
            with torch.no_grad():
                found.append(logits(model, inputs(io, 2)))
            graph, cost = space.graph(arch, io), space.cost(arch, io)
            found += [dict(arch.params), dict(model.state_dict()), sorted(map(str, graph.nodes)), cost]
    return found


def networks_differ(subject: Subject, space: SearchSpace, first: Architecture, second: Architecture, io: IOSpec) -> str:
    """Return in what two points' networks differ, empty when in nothing; the cheap signs first."""
    if space.cost(first, io) != space.cost(second, io):
        return "the cost is another"
    if drawn(space, first, io) != drawn(space, second, io):
        return "the graph is another"
    one, two = (build(subject, space, arch, io) for arch in (first, second))
    if repr(one) != repr(two):
        return "the modules are others"
    if difference := same(dict(one.state_dict()), dict(two.state_dict()), "the state"):
        return difference
    with torch.no_grad():
        return same(logits(one, inputs(io, 2)), logits(two, inputs(io, 2)), "the output")


def drawn(space: SearchSpace, arch: Architecture, io: IOSpec) -> list[Any]:
    """Return a point's graph as data."""
    graph = space.graph(arch, io)
    nodes = sorted((str(node), sorted(map(str, data.items()))) for node, data in graph.nodes(data=True))
    return [nodes, sorted(f"{a} -> {b}" for a, b in graph.edges)]
