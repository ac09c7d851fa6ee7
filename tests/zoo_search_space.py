"""Search spaces that break one rule each; all are the tiny space of the kit but for that."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from zoo_base import Broken

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import Example, InheritReport, ModelingSource, SearchSpace, SubSpace, Supernet
from nasdistill.seeds import seeded
from nasdistill.spec.architecture import Architecture, Axis
from nasdistill.spec.component import SearchSpaceSpec
from nasdistill.spec.io import Cost, IOSpec
from nasdistill.testing.kit.space import TINY_SPACE, TinyNet, TinySpace, tiny_net


def spec(cls: type, **tags) -> SearchSpaceSpec:
    """Return the spec of a class of this module; tags that are not given are the tiny space's."""
    name = cls.__name__.lower()
    changed = dataclasses.replace(TINY_SPACE.tags, **tags)
    return dataclasses.replace(TINY_SPACE, name=name, target=f"{__name__}:{cls.__name__}", tags=changed)


# -- sound ------------------------------------------------------------------------------------------------------------


class Plain(TinySpace):
    """Inherits nothing, and has no source."""

    def inherit(self, student, arch, teacher, *, calibration=()):
        return None

    def modeling_source(self, arch, io):
        return None


class ElasticNet(Supernet):
    """The largest network, of which every point uses the leading channels."""

    def __init__(self, space, io):
        super().__init__()
        self.space, self.io, self.net = space, io, space.build(space.default(), io)
        self.set_arch(space.default())

    def set_arch(self, arch):
        self.shape = self.space.build(arch, self.io)

    def part(self, name, shape):
        return dict(self.net.named_parameters())[name][tuple(slice(size) for size in shape)]

    def forward(self, x):
        parts = {name: self.part(name, p.shape) for name, p in self.shape.named_parameters()}
        return torch.func.functional_call(self.shape, parts, x)

    def extract(self, arch):
        alone = self.space.build(arch, self.io)
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                parameter.copy_(self.part(name, parameter.shape))
        return alone


class Elastic(Plain):
    """Trains all its points at once."""

    def supernet(self, io, teacher=None):
        return ElasticNet(self, io)


class Reader(torch.nn.Module):
    """Mean of the embeddings, of all tokens or of those so far, and a classifier."""

    def __init__(self, vocabulary, width, outputs, causal):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(vocabulary, width), torch.nn.Linear(width, outputs)
        self.causal = causal

    def forward(self, ids):
        x = self.embed(ids)
        if not self.causal:
            return self.head(x.mean(1))
        return self.head(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])


class Words(SearchSpace):
    """Bags of words."""

    causal = False
    examples = (Example(context={"io": IOSpec("tokens", (12,), 5, 30)}),)

    def axes(self):
        return (Axis("width", (2, 4, 8), 4, ordered=True),)

    def accepts(self, io):
        return None if io.kind == "tokens" else f"it reads tokens, not {io}"

    def width(self, arch, io):
        self.check(arch)
        if reason := self.accepts(io):
            raise ArchitectureError(reason)
        return int(arch.params["width"])

    def build(self, arch, io):
        return Reader(io.vocabulary, self.width(arch, io), io.outputs, self.causal)

    def cost(self, arch, io):
        width, tokens = self.width(arch, io), io.shape[0] if self.causal else 1
        return Cost(io.vocabulary * width, 0) + Cost.linear(width, io.outputs, tokens=tokens)

    def graph(self, arch, io):
        import networkx as nx

        width, graph = self.width(arch, io), nx.DiGraph()
        nodes = {"ids": (io.shape, 0), "embed": ((*io.shape, width), io.vocabulary * width)}
        nodes["head"] = (io.outputs,), (width + 1) * io.outputs
        for name, (shape, params) in nodes.items():
            graph.add_node(name, op=name, label=name, shape=shape, params=params)
        nx.add_path(graph, nodes)
        return graph


class Tokens(Words):
    """Running bags of words."""

    causal = True


# -- axes and points --------------------------------------------------------------------------------------------------


class Repeated(TinySpace):
    """Offers a choice twice."""

    def axes(self):
        return (*super().axes()[:-1], Axis("block1.kernel", (1, 3, 3), 3, lambda params: params["depth"] > 1))


class Mixed(TinySpace):
    """Offers 4 and 8.0."""

    def axes(self):
        return (Axis("width", (4, 8.0), 4), *super().axes()[1:])


class Drifting(TinySpace):
    """Has its choices in another order at every call."""

    calls = 0

    def axes(self):
        self.calls += 1
        choices = (4, 8) if self.calls % 2 else (8, 4)
        return (Axis("width", choices, 8), *super().axes()[1:])


class Stuck(TinySpace):
    """Draws one point only."""

    def sample(self, rng):
        return self.default()


class Silent(TinySpace):
    """Forgets an axis when it shows a point."""

    def features(self, arch):
        return {name: value for name, value in super().features(arch).items() if name != "ratio"}


@dataclasses.dataclass(frozen=True)
class NamedArchitecture(Architecture):
    name: str = "?"


class Naming(TinySpace):
    """Hangs a name on its points, which no file keeps."""

    def sample(self, rng):
        arch = super().sample(rng)
        return NamedArchitecture(arch.space, arch.params, arch.version, "mine")


class Unordered(TinySpace):
    """Takes its choices from a set of texts."""

    def axes(self):
        return (Axis("width", tuple({str(width) for width in range(4, 12)}), "8"), *super().axes()[1:])


class FirstOnly(TinySpace):
    """Gives one reason of several."""

    def validate(self, arch):
        return super().validate(arch)[:1]


class Lax(TinySpace):
    """Takes 8.0 for 8."""

    def validate(self, arch):
        choices = {axis.name: {choice: choice for choice in axis.choices} for axis in self.axes()}
        meant = {name: choices.get(name, {}).get(value, value) for name, value in arch.params.items()}
        return super().validate(Architecture.of(arch.space, meant, arch.version))


class Trusting(TinySpace):
    """Builds whatever it is given."""

    def build(self, arch, io):
        params = {**self.default().params, **arch.params}
        known = {axis.name: params[axis.name] for axis in self.axes()}
        valid = {a.name: known[a.name] if known[a.name] in a.choices else a.default for a in self.axes()}
        return super().build(self.architecture(valid), io)


class Tolerant(TinySpace):
    """Accepts points with values for what is not there."""

    def validate(self, arch):
        return [reason for reason in super().validate(arch) if "inactive" not in reason]


class Misjudging(TinySpace):
    """Says a block is not there when it is the last one."""

    def axes(self):
        return (
            *super().axes()[:-2],
            *(Axis(f"block{i}.kernel", (1, 3), 3, lambda params, i=i: params["depth"] > i + 1) for i in range(2)),
        )


class Idle(TinySpace):
    """Has an axis that nothing reads."""

    def axes(self):
        return (*super().axes(), Axis("colour", ("red", "blue"), "red"))


# -- moves ------------------------------------------------------------------------------------------------------------


class Lazy(TinySpace):
    """Mutates nothing."""

    def mutate(self, arch, rng, changes=1):
        return arch


class Wild(TinySpace):
    """Mutates to what is no choice."""

    def mutate(self, arch, rng, changes=1):
        return Architecture.of(self.id, {**arch.params, "width": 5}, self.version)


class Unfaithful(TinySpace):
    """Takes a child from anywhere."""

    def crossover(self, first, second, rng):
        return self.sample(rng)


class Conditional(TinySpace):
    """Suggests the active axes only."""

    def suggest(self, trial, prefix=""):
        params = {}
        for axis in self.axes():
            if axis.is_active({**self.default().params, **params}):
                params[axis.name] = trial.suggest_categorical(prefix + axis.name, list(axis.choices))
        return self.architecture(params)


class Bare(TinySpace):
    """Drops the prefix."""

    def suggest(self, trial, prefix=""):
        names = {axis.name: (prefix + axis.name, axis) for axis in self.axes()}
        if isinstance(getattr(trial, "params", None), dict) and any(name in trial.params for name, _ in names.values()):
            return super().suggest(trial, prefix)
        return super().suggest(trial)


class Miscounting(TinySpace):
    """Counts its raw points."""

    def size(self):
        return self.raw_size()


class Repeating(TinySpace):
    """Lists points as often as they can be written."""

    def enumerate(self):
        axes = self.axes()
        for values in itertools.product(*(axis.choices for axis in axes)):
            yield self.architecture({axis.name: value for axis, value in zip(axes, values, strict=True)})

    def size(self):
        return 48


class Outdated(TinySpace):
    """Has a sub-space of choices it no longer has."""

    def subspaces(self):
        return (SubSpace("wide", {"width": (64,)}),)


class Misnamed(TinySpace):
    """Has a sub-space of an axis it no longer has."""

    def subspaces(self):
        return (SubSpace("wide", {"channels": (8,)}),)


# -- networks ---------------------------------------------------------------------------------------------------------


class Altered(Plain):
    """Builds networks of another class."""

    net: type[TinyNet]

    def build(self, arch, io):
        return self.net(**self.config(arch, io))


class Tall(Altered):
    """Leaves an axis at the output."""

    class net(TinyNet):  # noqa: N801
        def forward(self, image):
            return super().forward(image)[:, :, None]


class Cut(Altered):
    """Detaches the features."""

    class net(TinyNet):  # noqa: N801
        def forward(self, image):
            return super().forward(image).detach() + 0 * self.head.bias


class Centred(Altered):
    """Subtracts the mean over the batch."""

    class net(TinyNet):  # noqa: N801
        def forward(self, image):
            return super().forward(image - image.mean(0, keepdim=True))


class Fixing(Altered):
    """Reads numbers out of its input, which a traced graph then keeps."""

    class net(TinyNet):  # noqa: N801
        def forward(self, image):
            sizes = [float(item.abs().mean()) for item in image.detach()]
            return super().forward(image) * torch.tensor(sizes)[:, None]


class Frozen(Plain):
    """Gives all networks the same weights."""

    def build(self, arch, io):
        with seeded(0):
            return super().build(arch, io)


class Relayered(TinySpace):
    """Counts its layers otherwise."""

    def costs(self, cost):
        raise NotImplementedError

    def layers(self, arch, io):
        return [layer._replace(cost=self.costs(layer.cost)) for layer in super().layers(arch, io)]


class Forgetful(Relayered):
    """Counts no parameters of small layers."""

    def costs(self, cost):
        return Cost(cost.params if cost.params > 100 else 0, cost.macs, cost.activations)


class Flops(Relayered):
    """Counts multiplications and additions."""

    def costs(self, cost):
        return Cost(cost.params, 2 * cost.macs, cost.activations)


class Redrawn(TinySpace):
    """Draws its graphs otherwise."""

    def redraw(self, graph):
        raise NotImplementedError

    def graph(self, arch, io):
        graph = super().graph(arch, io)
        self.redraw(graph)
        return graph


class Circular(Redrawn):
    """Draws an edge back."""

    def redraw(self, graph):
        graph.add_edge("mean", "act")


class Scattered(Redrawn):
    """Draws a node that nothing reaches."""

    def redraw(self, graph):
        graph.add_node("dropout", op="dropout", label="dropout", shape=(1,), params=0, macs=0)


class Unlabelled(Redrawn):
    """Gives a node no label."""

    def redraw(self, graph):
        del graph.nodes["stem"]["label"]


class Headless(Redrawn):
    """Draws the head without its parameters."""

    def redraw(self, graph):
        graph.nodes["head"]["params"] = 0


class Counting(TinySpace):
    """Counts layers from 1."""

    def layer_map(self, arch, teacher):
        return {layer: place + 1 for layer, place in super().layer_map(arch, teacher).items()}


class Eager(TinySpace):
    """Accepts every image."""

    def accepts(self, io):
        return None if io.kind == "image" else super().accepts(io)


class Fussy(TinySpace):
    """Says that it cannot serve small images, and does."""

    def accepts(self, io):
        return super().accepts(io) or ("images of one pixel are too small" if io.shape[1:] == (1, 1) else None)

    def config(self, arch, io):
        return super().config(arch, IOSpec("image", (io.shape[0], 8, 8), io.outputs) if io.shape[1:] == (1, 1) else io)


# -- offers -----------------------------------------------------------------------------------------------------------


class Boasting(TinySpace):
    """Reports more than it copies."""

    def inherit(self, student, arch, teacher, *, calibration=()):
        report = super().inherit(student, arch, teacher, calibration=calibration)
        return report and InheritReport(1, report.total)


class Spoiling(TinySpace):
    """Scales the teacher."""

    def inherit(self, student, arch, teacher, *, calibration=()):
        report = super().inherit(student, arch, teacher, calibration=calibration)
        with torch.no_grad():
            next(iter(teacher.parameters())).mul_(0.5)
        return report


class Trailing(Elastic):
    """Extracts the last channels instead of the first."""

    def supernet(self, io, teacher=None):
        net = ElasticNet(self, io)
        whole = net.extract
        net.extract = lambda arch: self.flipped(whole(arch))
        return net

    def flipped(self, net):
        with torch.no_grad():
            net.stem.weight.copy_(net.stem.weight.flip(0))
        return net


class Sharing(Elastic):
    """Extracts a network that keeps on training with the rest."""

    def supernet(self, io, teacher=None):
        net = ElasticNet(self, io)
        whole = net.extract
        net.extract = lambda arch: self.shared(net, whole(arch))
        return net

    def shared(self, net, alone):
        alone.head.bias = net.net.head.bias
        return alone


class Wrapping(Elastic):
    """Extracts the right network under other names."""

    def supernet(self, io, teacher=None):
        net = ElasticNet(self, io)
        whole = net.extract
        net.extract = lambda arch: torch.nn.Sequential(whole(arch))
        return net


def linear_net(config, parts):
    """Return the network with another activation."""
    return tiny_net({**config, "activation": "gelu" if config["activation"] == "relu" else "relu"}, parts)


class Rewriting(TinySpace):
    """Describes its networks with another activation."""

    def modeling_source(self, arch, io):
        return ModelingSource(linear_net, self.config(arch, io))


class Nested(TinySpace):
    """Describes its networks by a function that no file has."""

    def modeling_source(self, arch, io):
        return ModelingSource(lambda config, parts: tiny_net(config, parts), self.config(arch, io))


def words(cls: type, family: str) -> SearchSpaceSpec:
    """Return the spec of a space of text networks."""
    return dataclasses.replace(spec(cls, family=family, inherits=False), options=None)


SOUND_IF_QUICK = [words(Words, "encoder"), words(Tokens, "decoder")]
SOUND = [TINY_SPACE, spec(Elastic, inherits=False, supernet=True)]
PLAIN = {"inherits": False}
BROKEN = [
    Broken("axes_are_well_formed", spec(Repeated), "twice"),
    Broken("axes_are_well_formed", spec(Mixed), "float, int"),
    Broken("axes_are_the_same_in_every_call", spec(Drifting), "'width'"),
    Broken("samples_are_points", spec(Stuck), "20 random points of 48"),
    Broken("samples_are_points", spec(Silent), "features()"),
    Broken("points_survive_json", spec(Naming), "read back as"),
    Broken("points_agree_across_processes", spec(Unordered), "PYTHONHASHSEED"),
    Broken("invalid_points_are_explained", spec(FirstOnly), "does not name"),
    Broken("invalid_points_are_explained", spec(Lax), "a wrong type"),
    Broken("invalid_points_are_not_built", spec(Trusting), "build() accepts a point with another space"),
    Broken("inactive_axes_are_held_at_their_default", spec(Tolerant), "block1.kernel"),
    Broken("inactive_axes_change_nothing", spec(Misjudging), "is inactive"),
    Broken("active_axes_change_the_network", spec(Idle), "colour"),
    Broken("mutation_stays_inside", spec(Lazy), "changes nothing"),
    Broken("mutation_stays_inside", spec(Wild), "width = 5"),
    Broken("crossover_stays_inside", spec(Unfaithful), "its parents have"),
    Broken("suggestions_are_points", spec(Conditional), "block1.kernel"),
    Broken("suggestions_are_points", spec(Bare), "not the axes"),
    Broken("enumeration_is_complete", spec(Miscounting), "size() says 64, enumerate() yields 48"),
    Broken("enumeration_is_complete", spec(Repeating), "listed twice"),
    Broken("subspaces_name_known_choices", spec(Outdated), "(64,)"),
    Broken("subspaces_name_known_choices", spec(Misnamed), "no axis"),
    Broken("networks_give_one_output_per_item", spec(Tall, **PLAIN), "(1, 10, 1)"),
    Broken("networks_can_be_trained", spec(Cut, **PLAIN), "stem.weight gets no gradient"),
    Broken("batch_items_are_independent", spec(Centred, **PLAIN), "alone than in a batch"),
    Broken("weights_follow_the_seed", spec(Frozen, **PLAIN), "the same weights"),
    Broken("cost_counts_the_parameters", spec(Forgetful), "parameters, the network has"),
    Broken("cost_counts_the_operations", spec(Flops), "MACs, counted are"),
    Broken("graph_runs_from_input_to_output", spec(Circular), "cycle"),
    Broken("graph_runs_from_input_to_output", spec(Scattered), "2 parts"),
    Broken("graph_runs_from_input_to_output", spec(Unlabelled), "'stem' lacks label"),
    Broken("graph_adds_up_to_the_cost", spec(Headless), "add up to"),
    Broken("layer_map_is_in_range", spec(Counting), "0 -> 1"),
    Broken("accepts_tells_the_truth", spec(Eager), "nothing against image 8 x 8"),
    Broken("accepts_tells_the_truth", spec(Fussy), "build() does not raise"),
    Broken("family_is_true", spec(TinySpace, family="encoder"), "it accepts image, not only tokens"),
    Broken("family_is_true", spec(TinySpace, family="graph"), "it accepts image, not only other"),
    Broken("family_is_true", spec(TinySpace, family="other"), "it accepts image only, as vision"),
    Broken("family_is_true", words(Words, "decoder"), "is one for all tokens"),
    Broken("family_is_true", words(Tokens, "encoder"), "is given for every token"),
    Broken("family_is_true", words(Words, "vision"), "it accepts tokens, not only image"),
    Broken("inherits_is_true", spec(Plain), "returns None"),
    Broken("inherits_is_true", spec(TinySpace, inherits=False), "inherits=False"),
    Broken("inherits_is_true", spec(Boasting), "the report says"),
    Broken("inherits_is_true", spec(Spoiling), "changes the teacher"),
    Broken("supernet_is_true", spec(Elastic, **PLAIN), "supernet=False"),
    Broken("supernet_is_true", spec(Trailing, inherits=False, supernet=True), "differs from the sliced one"),
    Broken("supernet_is_true", spec(Sharing, inherits=False, supernet=True), "shares weights"),
    Broken("supernet_is_true", spec(Wrapping, inherits=False, supernet=True), "do not fit build()"),
    Broken("modeling_source_builds_the_same_network", spec(Rewriting), "the output differs"),
    Broken("modeling_source_builds_the_same_network", spec(Nested), "lambda"),
    Broken("networks_export_to_onnx", spec(Fixing, **PLAIN), "the exported network differs"),
]
