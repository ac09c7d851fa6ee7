"""One convolution, attention or not, global average, linear."""

from __future__ import annotations

import networkx as nx
from pydantic import Field
from torch import nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import AttentionContext, AttentionGeometry, SearchSpace
from nasdistill.spec.architecture import Axis
from nasdistill.spec.component import Kind
from nasdistill.spec.io import Cost, conv_output
from nasdistill.spec.options import ComponentOptions


class PooledOptions(ComponentOptions):
    """Options of `pooled`."""

    width: tuple[int, ...] = Field((4, 8, 16), min_length=1, description="Choices of the number of channels.")


class Net(nn.Module):
    def __init__(self, channels, width, stride, core, outputs):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, 1)
        self.act = nn.ReLU()
        self.core = core
        self.head = nn.Linear(width, outputs)

    def forward(self, image):
        x = self.act(self.conv(image)).flatten(2).transpose(1, 2)
        if self.core is not None:
            x = x + self.core(x[:, None], x[:, None], x[:, None], AttentionContext()).out[:, 0]
        return self.head(x.mean(1))


class Pooled(SearchSpace):
    """One convolution, attention or not, global average, linear."""

    options_model = PooledOptions

    def axes(self):
        return (
            Axis("width", self.options.width, self.options.width[0], ordered=True, help="channels"),
            Axis("stride", (1, 2), 2, ordered=True, help="of the convolution"),
            Axis("mixer", ("none", "frozen1:mean"), "none", help="attention between positions"),
        )

    def accepts(self, io):
        return None if io.kind == "image" and len(io.shape) == 3 else "it needs images"

    def build(self, arch, io):
        width, stride, mixer, _, _ = self._read(arch, io)
        core = None if mixer == "none" else self.host.create(Kind.ATTENTION, mixer, geometry=self._geometry(arch, io))
        return Net(io.shape[0], width, stride, core, io.outputs)

    def cost(self, arch, io):
        return sum((node["cost"] for _, node in self._layers(arch, io)), Cost(0, 0))

    def graph(self, arch, io):
        graph, before = nx.DiGraph(), None
        for name, node in self._layers(arch, io):
            graph.add_node(name, op=node["op"], label=node["op"], shape=node["shape"], params=node["cost"].params)
            if before is not None:
                graph.add_edge(before, name)
            before = name
        return graph

    def _read(self, arch, io):
        self.check(arch)
        if self.accepts(io):
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {self.accepts(io)}")
        width, stride, mixer = arch.params["width"], arch.params["stride"], arch.params["mixer"]
        height, wide = (conv_output(size, 3, stride, 1) for size in io.shape[1:])
        return width, stride, mixer, height, wide

    def _geometry(self, arch, io):
        width, _, _, height, wide = self._read(arch, io)
        return AttentionGeometry(dim=width, heads=1, head_dim=width, tokens=height * wide)

    def _layers(self, arch, io):
        width, _, mixer, height, wide = self._read(arch, io)
        tokens, free = height * wide, Cost(0, 0)
        yield "input", {"op": "input", "shape": io.shape, "cost": free}
        conv = Cost.conv2d(io.shape[0], width, 3, height=height, width=wide, bias=True)
        yield "conv", {"op": "conv", "shape": (width, height, wide), "cost": conv}
        if mixer != "none":
            core = self.host.load(Kind.ATTENTION, mixer).cost(self._geometry(arch, io), tokens, tokens)
            yield "core", {"op": "attention", "shape": (tokens, width), "cost": core}
        yield "mean", {"op": "mean", "shape": (width,), "cost": free}
        yield "head", {"op": "linear", "shape": (io.outputs,), "cost": Cost.linear(width, io.outputs)}
