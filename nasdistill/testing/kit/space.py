"""A search space small enough for tests, and complete: 48 networks of one or two residual blocks on images.

    x = act(stem(image));   x = x + project_i(act(conv_i(x)));   logits = head(mean(x))

Every layer is written once, in :meth:`TinySpace.layers`: cost and graph are read from there, so they cannot disagree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import Batch, InheritReport, ModelingSource, SearchSpace, SubSpace
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.component import SearchSpaceSpec, SpaceTags
from nasdistill.spec.io import Cost, IOSpec
from nasdistill.spec.options import ComponentOptions

if TYPE_CHECKING:
    import networkx as nx

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class TinyNet(nn.Module):
    """A 3 x 3 stem, residual blocks of a k x k and a 1 x 1 convolution, mean, classifier."""

    def __init__(
        self, channels: int, width: int, hidden: int, kernels: Sequence[int], activation: str, outputs: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, hidden, k, padding=k // 2) for k in kernels)
        self.projects = nn.ModuleList(nn.Conv2d(hidden, width, 1) for _ in kernels)
        self.head = nn.Linear(width, outputs)
        self.activation = activation

    def forward(self, image: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, K)``."""
        act = ACTIVATIONS[self.activation]
        x = act(self.stem(image))
        for conv, project in zip(self.convs, self.projects, strict=True):
            x = x + project(act(conv(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def tiny_net(config: Mapping[str, Any], parts: Mapping[str, type]) -> nn.Module:
    """Return the network from plain data: the arguments of :class:`TinyNet`. `parts` is not used."""
    return TinyNet(**config)


class TinyOptions(ComponentOptions):
    """The choices of the two axes that matter most."""

    width: tuple[int, ...] = Field((4, 8), min_length=1, description="Channels of the stem and the blocks.")
    depth: tuple[int, ...] = Field((1, 2), min_length=1, description="Number of blocks.")


class Layer(NamedTuple):
    """One layer: its place, what it does, its output, its cost and where its input comes from."""

    name: str
    op: str
    shape: tuple[int, ...]
    cost: Cost
    inputs: tuple[str, ...]


class TinySpace(SearchSpace):
    """Networks of a few hundred parameters; students start from the leading channels of another member."""

    options_model = TinyOptions
    options: TinyOptions

    def axes(self) -> tuple[Axis, ...]:
        """Return ``width ratio activation depth``, then ``block0.kernel`` on."""
        width, depth = sorted(self.options.width), sorted(self.options.depth)

        def present(block: int) -> Callable[[Mapping[str, Value]], bool]:
            return lambda params: int(params["depth"]) > block

        return (
            Axis("width", tuple(width), width[-1], ordered=True, help="channels"),
            Axis("ratio", (0.5, 1.0), 1.0, ordered=True, help="channels inside a block / channels"),
            Axis("activation", ("relu", "gelu"), "relu", help="activation function"),
            Axis("depth", tuple(depth), depth[-1], ordered=True, help="number of blocks"),
            *(
                Axis(f"block{i}.kernel", (1, 3), 3, present(i), ordered=True, help="size of the block's kernel")
                for i in range(depth[-1])
            ),
        )

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is no image classification, or None."""
        if io.kind != "image" or len(io.shape) != 3:
            return f"it needs images of shape (C, H, W), not {io.kind} of shape {io.shape}"
        return None

    def config(self, arch: Architecture, io: IOSpec) -> dict[str, Any]:
        """Return the arguments of :class:`TinyNet`.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        self.check(arch)
        if reason := self.accepts(io):
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")
        width = int(arch.params["width"])
        return {
            "channels": io.shape[0],
            "width": width,
            "hidden": max(1, round(width * float(arch.params["ratio"]))),
            "kernels": [int(arch.params[f"block{i}.kernel"]) for i in range(self.depth(arch))],
            "activation": str(arch.params["activation"]),
            "outputs": io.outputs,
        }

    def depth(self, arch: Architecture) -> int:
        """Return the number of blocks."""
        return int(arch.params["depth"])

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a :class:`TinyNet`."""
        return TinyNet(**self.config(arch, io))

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`tiny_net` with its arguments."""
        return ModelingSource(tiny_net, self.config(arch, io))

    def layers(self, arch: Architecture, io: IOSpec) -> list[Layer]:
        """Return the network layer by layer."""
        config, (height, length) = self.config(arch, io), io.shape[1:]
        width, hidden, act = config["width"], config["hidden"], config["activation"]

        def conv(name: str, inputs: int, outputs: int, kernel: int, after: str) -> Layer:
            cost = Cost.conv2d(inputs, outputs, kernel, height=height, width=length, bias=True)
            return Layer(name, f"conv {kernel} x {kernel}", (outputs, height, length), cost, (after,))

        found = [Layer("input", "input", io.shape, Cost(0, 0), ()), conv("stem", io.shape[0], width, 3, "input")]
        found.append(Layer("act", act, found[-1].shape, Cost(0, 0), ("stem",)))
        for i, kernel in enumerate(config["kernels"]):
            stream = found[-1].name
            found.append(conv(f"convs.{i}", width, hidden, kernel, stream))
            found.append(Layer(f"act{i}", act, found[-1].shape, Cost(0, 0), (f"convs.{i}",)))
            found.append(conv(f"projects.{i}", hidden, width, 1, f"act{i}"))
            found.append(Layer(f"add{i}", "add", found[-1].shape, Cost(0, 0), (stream, f"projects.{i}")))
        found.append(Layer("mean", "mean", (width,), Cost(0, 0), (found[-1].name,)))
        found.append(Layer("head", "linear", (io.outputs,), Cost.linear(width, io.outputs), ("mean",)))
        return found

    def cost(self, arch: Architecture, io: IOSpec) -> Cost:
        """Return the sum over the layers."""
        return sum((layer.cost for layer in self.layers(arch, io)), Cost(0, 0))

    def graph(self, arch: Architecture, io: IOSpec) -> nx.DiGraph:
        """Return one node per layer."""
        import networkx as nx

        graph = nx.DiGraph()
        for layer in self.layers(arch, io):
            cost = layer.cost
            graph.add_node(
                layer.name, op=layer.op, label=layer.op, shape=layer.shape, params=cost.params, macs=cost.macs
            )
            graph.add_edges_from(itertools.product(layer.inputs, [layer.name]))
        return graph

    def subspaces(self) -> tuple[SubSpace, ...]:
        """Return ``shallow``: the networks of the smallest depth."""
        return (SubSpace("shallow", {"depth": (min(self.options.depth),)}, "as few blocks as there can be"),)

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Copy the leading channels of another :class:`TinyNet`; None when the teacher is something else."""
        if not isinstance(student, TinyNet) or not isinstance(teacher, TinyNet):
            return None
        theirs, copied = dict(teacher.named_parameters()), 0
        with torch.no_grad():
            for name, ours in student.named_parameters():
                if name in theirs:
                    part = tuple(slice(min(sizes)) for sizes in zip(ours.shape, theirs[name].shape, strict=True))
                    ours[part] = theirs[name][part]
                    copied += ours[part].numel()
        return InheritReport(copied, sum(p.numel() for p in student.parameters()), ("leading channels",))


TINY_SPACE = SearchSpaceSpec(
    "tiny",
    "nasdistill.testing.kit.space:TinySpace",
    "48 networks of a few hundred parameters, for tests",
    options="nasdistill.testing.kit.space:TinyOptions",
    references=("original",),
    tags=SpaceTags(family="vision", inherits=True),
)
"""Registered by no plugin: ``isolated_host(TINY_SPACE)`` has it as ``local:tiny``."""
