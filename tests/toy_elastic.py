"""A space with a supernet, small enough for tests, as a plugin of one file: transformers over the rows of an image."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from nasdistill import hookimpl
from nasdistill.interfaces import InheritReport, SearchSpace, SubSpace, Supernet
from nasdistill.spec.architecture import Axis
from nasdistill.spec.component import SearchSpaceSpec, SpaceTags
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions

HEAD = 4  # size of a head


class RowOptions(ComponentOptions):
    """Options of `rows`."""

    width: tuple[int, ...] = (8, 12, 16, 20)
    heads: tuple[int, ...] = (1, 2, 3)
    ratio: tuple[int, ...] = (1, 2)
    depth: tuple[int, ...] = (1, 2)


class Cut(nn.Linear):
    """Uses as many leading columns as its input has, and as many leading rows as it is told."""

    def forward(self, x, outputs):
        return F.linear(x, self.weight[:outputs, : x.shape[-1]], self.bias[:outputs])


class Norm(nn.LayerNorm):
    def forward(self, x):
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.weight[:width], self.bias[:width])


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.query, self.key, self.value = (Cut(width, heads * HEAD) for _ in range(3))
        self.out = Cut(heads * HEAD, width)

    def forward(self, x, heads):
        (b, n, width), inner = x.shape, heads * HEAD
        q, k, v = (
            linear(x, inner).reshape(b, n, heads, HEAD).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, inner), width)


class Block(nn.Module):
    def __init__(self, width, heads, ratio):
        super().__init__()
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = Cut(width, ratio * width), Cut(ratio * width, width)

    def forward(self, x, heads, ratio):
        width = x.shape[-1]
        x = x + self.attention(self.norm1(x), heads)
        return x + self.down(F.gelu(self.up(self.norm2(x), ratio * width)), width)


class Rows(Supernet):
    """Both the networks of the space and their shared weights: every layer uses its leading rows and columns."""

    def __init__(self, space, arch, io):
        super().__init__()
        self.space, self.io = space, io
        width, heads, ratio, depth = (arch.params[name] for name in ("width", "heads", "ratio", "depth"))
        channels, _, columns = io.shape
        self.embed = Cut(channels * columns, width)
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(depth))
        self.head = Cut(width, io.outputs)
        self.set_arch(arch)

    def set_arch(self, arch):
        self.sizes = dict(arch.params)

    def forward(self, image):
        x = self.embed(image.movedim(1, 2).flatten(2), self.sizes["width"])
        for index in range(self.sizes["depth"]):
            x = self.blocks[index](x, self.sizes["heads"], self.sizes["ratio"])
        return self.head(x.mean(1), self.io.outputs)

    def extract(self, arch):
        alone, mine = Rows(self.space, arch, self.io), dict(self.named_parameters())
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                parameter.copy_(mine[name][tuple(slice(size) for size in parameter.shape)])
        return alone


class RowSpace(SearchSpace):
    """48 transformers of a few hundred parameters, in two sub-spaces."""

    options_model = RowOptions

    def axes(self):
        o = self.options
        return tuple(
            Axis(name, choices, choices[-1], ordered=True)
            for name, choices in (("width", o.width), ("heads", o.heads), ("ratio", o.ratio), ("depth", o.depth))
        )

    def depth(self, arch):
        return arch.params["depth"]

    def build(self, arch, io):
        self.check(arch)
        return Rows(self, arch, io)

    def cost(self, arch, io):
        width, heads, ratio, depth = (arch.params[name] for name in ("width", "heads", "ratio", "depth"))
        channels, rows, columns = io.shape
        inner, n = heads * HEAD, rows
        block = (
            Cost.norm(width) * 2 + Cost.linear(width, inner, tokens=n) * 3 + Cost.linear(inner, width, tokens=n)
            + Cost.linear(width, ratio * width, tokens=n) + Cost.linear(ratio * width, width, tokens=n)
            + Cost(0, 2 * n * n * inner)
        )  # fmt: skip
        return Cost.linear(channels * columns, width, tokens=n) + block * depth + Cost.linear(width, io.outputs)

    def graph(self, arch, io):
        import networkx as nx

        names = ["input", "embed", *(f"block{i}" for i in range(self.depth(arch))), "head"]
        graph = nx.path_graph(names, create_using=nx.DiGraph)
        for name in names:
            graph.nodes[name].update(op=name, label=name, shape=(1,), params=0, macs=0)
        return graph

    def subspaces(self):
        widths, half = self.options.width, len(self.options.width) // 2
        return (
            SubSpace("narrow", {"width": widths[:half]}, "the narrower half"),
            SubSpace("wide", {"width": widths[half:]}, "the wider half"),
        )

    def inherit(self, student, arch, teacher, *, calibration=()):
        if not isinstance(teacher, Rows):
            return None
        student.load_state_dict(teacher.extract(arch).state_dict())
        total = sum(parameter.numel() for parameter in student.parameters())
        return InheritReport(total, total)

    def supernet(self, io, teacher=None, *, subspace=None):
        choices = {} if subspace is None else dict(subspace.choices)
        net = Rows(self, self.architecture({name: max(values) for name, values in choices.items()}), io)
        if isinstance(teacher, Rows):
            net.load_state_dict(teacher.extract(self.architecture(net.sizes)).state_dict())
        return net


def every(space, **fixed):
    """Return the architectures that keep some sizes fixed."""
    axes = {axis.name: (fixed[axis.name],) if axis.name in fixed else axis.choices for axis in space.axes()}
    return [space.architecture(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


@hookimpl
def nasdistill_search_spaces():
    return [
        SearchSpaceSpec(
            "rows", f"{__name__}:RowSpace", "transformers over rows", options=f"{__name__}:RowOptions",
            tags=SpaceTags(family="vision", inherits=True, supernet=True),
        )
    ]  # fmt: skip
