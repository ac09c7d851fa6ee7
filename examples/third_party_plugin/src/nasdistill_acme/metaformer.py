"""MetaFormers: transformer blocks in which anything may mix the tokens.

    x = patches(image);  per block: x = x + mix(norm(x)), x = x + mlp(norm(x));  logits = head(norm(mean(x)))

The paper's claim is that the block does the work, not attention: average pooling in its place loses little. Here every
block chooses: `pool` (nothing to learn), `conv` (a depthwise 3 x 3 convolution) or one of the attention variants that
the options name. Variants are asked for by name, so any installed plugin's will do.

Norms are group norms with one group, as in the paper, the last one a layer norm. Patches do not overlap; what is left
of an image that they do not divide is not seen.

Cost: per position and block 2 C C_hidden multiply-accumulates, and the mixer's: 0, 9 C, or those of attention.

Source: "MetaFormer Is Actually What You Need for Vision", arXiv 2111.11418 (pooling), and "MetaFormer Baselines for
Vision", arXiv 2210.13452 (convolution and attention mixed). Those networks have four stages; small images need one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from nasdistill.errors import ArchitectureError, UnknownComponentError
from nasdistill.interfaces import AttentionCore, AttentionGeometry, Example, ModelingSource, SearchSpace, TokenLayout
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.component import Kind
from nasdistill.spec.io import Cost, IOSpec
from nasdistill.spec.options import ComponentOptions, parse_options
from pydantic import Field
from torch import nn

from nasdistill_acme.model import CONV, POOL, metaformer

if TYPE_CHECKING:
    import networkx as nx

Size = Annotated[int, Field(ge=1, le=4096)]


class MetaFormerOptions(ComponentOptions):
    """The choices of the axes."""

    patch: tuple[Size, ...] = Field((1, 2, 4), min_length=1, description="Side of a patch, in pixels.")
    width: tuple[Size, ...] = Field((16, 32, 64), min_length=1, description="Channels.")
    depth: tuple[Annotated[int, Field(ge=1, le=99)], ...] = Field((1, 2, 3, 4), min_length=1, description="Blocks.")
    ratio: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        (1, 2, 4), min_length=1, description="Neurons of an MLP per channel."
    )
    mixers: tuple[str, ...] = Field(
        (POOL, CONV, "acme:relu"),
        min_length=1,
        description="What a block may mix tokens with: `pool`, `conv`, or the name of an attention variant.",
    )
    attention_options: dict[str, dict[str, Any]] = Field({}, description="Options of these variants, by name.")
    head_dim: int = Field(16, ge=1, description="Channels per attention head.")


@dataclass(frozen=True, slots=True)
class Step:
    """One layer: cost and graph are both read from the list of these, so they cannot disagree."""

    name: str
    op: str
    shape: tuple[int, ...]
    cost: Cost
    inputs: tuple[str, ...]


class MetaFormer(SearchSpace):
    """See the module's text."""

    options_model = MetaFormerOptions
    options: MetaFormerOptions
    examples: ClassVar[tuple[Example, ...]] = (  # few enough points for the checks to list
        Example({"patch": [2, 4], "width": [16, 32], "depth": [1, 2], "ratio": [1, 2]}),
    )

    def axes(self) -> tuple[Axis, ...]:
        """Return ``patch width depth ratio``, then ``block00.mixer`` on."""
        o = self.options
        depths = tuple(sorted(set(o.depth)))
        mixers = tuple(dict.fromkeys(o.mixers))

        def present(block: int) -> Callable[[Mapping[str, Value]], bool] | None:
            """Return when a block is there; None means always."""
            return None if block < depths[0] else lambda params: int(params["depth"]) > block

        def ordered(name: str, choices: tuple[int, ...], text: str) -> Axis:
            choices = tuple(sorted(set(choices)))
            return Axis(name, choices, choices[len(choices) // 2], ordered=True, help=text)

        return (
            ordered("patch", o.patch, "side of a patch"),
            ordered("width", o.width, "channels"),
            ordered("depth", depths, "blocks"),
            ordered("ratio", o.ratio, "neurons of an MLP per channel"),
            *(
                Axis(f"block{block:02d}.mixer", mixers, mixers[0], present(block), help="what mixes the tokens")
                for block in range(depths[-1])
            ),
        )

    def accepts(self, io: IOSpec) -> str | None:
        """Return why `io` is no image that every patch fits into, or None."""
        if io.kind != "image" or len(io.shape) != 3:
            return f"it needs images of shape (C, H, W), not {io.kind} of shape {io.shape}"
        if min(io.shape[1:]) < max(self.options.patch):
            return f"images of {io.shape[1]} x {io.shape[2]} are smaller than a patch of {max(self.options.patch)}"
        return None

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a :class:`~nasdistill_acme.model.MetaFormerNet` with fresh weights."""
        return metaformer(self._config(arch, io), self._cores(arch))

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource:
        """Return :func:`nasdistill_acme.model.metaformer` with its arguments."""
        return ModelingSource(metaformer, self._config(arch, io), self._cores(arch))

    def cost(self, arch: Architecture, io: IOSpec) -> Cost:
        """Return the sum over the layers of :meth:`graph`."""
        return sum((step.cost for step in self._steps(arch, io)), Cost(0, 0))

    def graph(self, arch: Architecture, io: IOSpec) -> nx.DiGraph:
        """Return one node per layer."""
        import networkx as nx

        graph = nx.DiGraph()
        for step in self._steps(arch, io):
            label = f"{step.op}, {' x '.join(map(str, step.shape))}"
            graph.add_node(step.name, op=step.op, label=label, shape=step.shape, params=step.cost.params)
            graph.add_edges_from((before, step.name) for before in step.inputs)
        return graph

    def _mixers(self, arch: Architecture) -> list[str]:
        """Return the mixers of the blocks that are there."""
        return [str(arch.params[f"block{block:02d}.mixer"]) for block in range(int(arch.params["depth"]))]

    def _cores(self, arch: Architecture) -> dict[str, type[AttentionCore]]:
        """Return name -> class of the attention variants that a point uses.

        Raises:
            ArchitectureError: a variant is not here, or cannot stand in a block.
        """
        found = {}
        for name in dict.fromkeys(self._mixers(arch)):
            if name in (POOL, CONV):
                continue
            try:
                tags = self.host.tags(Kind.ATTENTION, name)
            except UnknownComponentError as error:
                raise ArchitectureError(f"{self.id}: {error.message}", hint=error.hint) from error
            if tags.level != "core" or not tags.bidirectional:
                raise ArchitectureError(f"{self.id}: attention variant {name!r} cannot stand in an encoder's block")
            found[name] = self.host.load(Kind.ATTENTION, name)
        return found

    def _config(self, arch: Architecture, io: IOSpec) -> dict[str, Any]:
        """Return the network as plain data.

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """
        self.check(arch)
        reason = self.accepts(io)
        if reason:
            raise ArchitectureError(f"{self.id} cannot be built for {io}: {reason}")
        patch, width = int(arch.params["patch"]), int(arch.params["width"])
        heads = max(1, width // self.options.head_dim)
        mixers, cores = self._mixers(arch), self._cores(arch)
        options = {
            name: parse_options(core.options_model, self.options.attention_options.get(name), where=name)
            for name, core in cores.items()
        }
        return {
            "channels": io.shape[0],
            "patch": patch,
            "width": width,
            "hidden": width * int(arch.params["ratio"]),
            "outputs": io.outputs,
            "grid": [io.shape[1] // patch, io.shape[2] // patch],
            "heads": heads,
            "head_dim": width // heads,
            "mixers": mixers,
            "attention_options": [options[name].model_dump() if name in options else None for name in mixers],
        }

    def _steps(self, arch: Architecture, io: IOSpec) -> list[Step]:
        """Return the network layer by layer, in the order in which they run."""
        config, cores = self._config(arch, io), self._cores(arch)
        channels, patch, width, hidden = (config[key] for key in ("channels", "patch", "width", "hidden"))
        height, wide = config["grid"]
        inner, tokens = config["heads"] * config["head_dim"], height * wide
        geometry = AttentionGeometry(
            dim=width, heads=config["heads"], head_dim=config["head_dim"], tokens=tokens,
            layout=TokenLayout(grid=(height, wide)),
        )  # fmt: skip
        steps = [Step("input", "input", io.shape, Cost(0, 0), ())]

        def add(name: str, op: str, wide_: int, cost: Cost, *after: str) -> str:
            steps.append(Step(name, op, (wide_, height, wide), cost, after or (steps[-1].name,)))
            return name

        def conv(name: str, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> str:
            cost = Cost.conv2d(inputs, outputs, kernel, height=height, width=wide, groups=groups, bias=True)
            return add(name, "conv", outputs, cost)

        stream = conv("patches", channels, width, patch)
        for index, (mixer, options) in enumerate(zip(config["mixers"], config["attention_options"], strict=True)):
            name = f"blocks.{index}"
            add(f"{name}.norm1", "norm", width, Cost.norm(width))
            if mixer == POOL:
                out = add(f"{name}.mixer", "pool", width, Cost(0, 0))
            elif mixer == CONV:
                out = conv(f"{name}.mixer", width, width, 3, groups=width)
            else:
                conv(f"{name}.mixer.qkv", width, 3 * inner)
                add(f"{name}.mixer.core", mixer, inner, cores[mixer].cost(geometry, tokens, tokens, options))
                out = conv(f"{name}.mixer.proj", inner, width)
            stream = add(f"{name}.add1", "add", width, Cost(0, 0), stream, out)
            add(f"{name}.norm2", "norm", width, Cost.norm(width))
            conv(f"{name}.mlp.0", width, hidden)
            out = conv(f"{name}.mlp.2", hidden, width)
            stream = add(f"{name}.add2", "add", width, Cost(0, 0), stream, out)
        steps.append(Step("pool", "mean", (width,), Cost(0, 0), (stream,)))
        steps.append(Step("norm", "norm", (width,), Cost.norm(width), ("pool",)))
        steps.append(Step("head", "linear", (config["outputs"],), Cost.linear(width, config["outputs"]), ("norm",)))
        return steps
