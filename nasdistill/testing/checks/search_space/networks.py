"""The networks that points stand for, and what is said of them: cost, graph, accepted inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import ModelGeometry
from nasdistill.measure.counting import count_macs, count_params
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.testing.checks.search_space.cases import (
    IMAGES,
    STRANGE,
    build,
    first_case,
    inputs,
    ios,
    logits,
    networks,
    points,
    told,
)
from nasdistill.testing.registry import check, fail
from nasdistill.testing.state import same
from nasdistill.testing.subject import Subject


@check(Kind.SEARCH_SPACE, gate=True, hint="Return logits with the batch first and io.outputs last.")
def networks_give_one_output_per_item(subject: Subject) -> None:
    """Networks run on batches of any size and give finite logits, ``(B, K)`` for images."""
    for io, arch, model, x in networks(subject):
        for size in (1, 3):
            with torch.no_grad():
                y = logits(model, x[:size])
            ends = (y.shape[0], y.shape[-1]) == (size, io.outputs) and y.dim() >= 2
            if not ends or (io.kind == "image" and y.dim() != 2):
                fail(
                    f"for {io} and a batch of {size} it gives {tuple(y.shape)}, not ({size}, {io.outputs}) {told(arch)}"
                )
            if not y.isfinite().all():
                fail(f"for {io} it gives numbers that are not finite {told(arch)}")


@check(Kind.SEARCH_SPACE, hint="Use every parameter in forward(), and detach nothing on the way.")
def networks_can_be_trained(subject: Subject) -> None:
    """In train mode every trainable parameter gets a finite gradient."""
    for io, arch, model, x in networks(subject):
        twin = copy.deepcopy(model).train()
        with seeded(subject.seed):
            torch.autograd.backward(logits(twin, x).square().sum())
        for name, parameter in twin.named_parameters():
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
                what = "no gradient" if parameter.grad is None else "a gradient that is not finite"
                fail(f"{name} gets {what} on {io} {told(arch)}")


@check(Kind.SEARCH_SPACE, hint="In eval mode use running statistics; never mix items of a batch.")
def batch_items_are_independent(subject: Subject) -> None:
    """In eval mode an item's output does not depend on the others of its batch."""
    for _, arch, model, x in networks(subject):
        with torch.no_grad():
            together, alone = logits(model, x), torch.cat([logits(model, x[i : i + 1]) for i in range(len(x))])
        gap = float((together - alone).abs().max())
        if gap > 1e-4 * max(1.0, float(together.abs().max())):
            fail(f"items give other outputs alone than in a batch, by up to {gap:.3g} {told(arch)}")


@check(Kind.SEARCH_SPACE, hint="Let layers draw their weights as torch does; seed nothing inside build().")
def weights_follow_the_seed(subject: Subject) -> None:
    """Fresh weights come from torch's global generator: another seed gives other weights."""
    space, io, archs = first_case(subject)
    first, second = (dict(build(subject, space, archs[0], io, seed).named_parameters()) for seed in (1, 2))
    if first and not same(first, second):
        fail("two seeds give the same weights")


@check(Kind.SEARCH_SPACE, hint="Count every layer's weights and biases, normalisations included.")
def cost_counts_the_parameters(subject: Subject) -> None:
    """cost() gives the exact number of the network's parameters."""
    space = subject.create()
    for io, arch, model, _ in networks(subject):
        counted = count_params(model)
        if space.cost(arch, io).params != counted:
            fail(
                f"cost() says {space.cost(arch, io).params} parameters, the network has {counted} on {io} {told(arch)}"
            )


@check(Kind.SEARCH_SPACE, hint="One MAC per multiply-accumulate of matrix products and convolutions, for one sample.")
def cost_counts_the_operations(subject: Subject) -> None:
    """cost() gives the multiply-accumulates that the network does for one sample."""
    space = subject.create()
    for io, arch, model, x in networks(subject):
        counted = count_macs(model, (x[:1],))
        if space.cost(arch, io).macs != counted:
            fail(f"cost() says {space.cost(arch, io).macs} MACs, counted are {counted} on {io} {told(arch)}")


@check(Kind.SEARCH_SPACE, hint="One node per layer from the input on, edges in the direction of the data.")
def graph_runs_from_input_to_output(subject: Subject) -> None:
    """The graph is acyclic and connected, from one input to one output, nodes with op, label, shape and params."""
    import networkx as nx

    space = subject.create()
    for io, arch, _, _ in networks(subject):
        graph = space.graph(arch, io)
        if not nx.is_directed_acyclic_graph(graph):
            fail(f"the graph has a cycle {told(arch)}")
        if not nx.is_weakly_connected(graph):
            fail(f"the graph falls into {nx.number_weakly_connected_components(graph)} parts {told(arch)}")
        for node, data in graph.nodes(data=True):
            lacking = sorted({"op", "label", "shape", "params"} - set(data))
            if lacking:
                fail(f"node {node!r} lacks {', '.join(lacking)}")
        sources = [node for node in graph if graph.in_degree(node) == 0]
        sinks = [node for node in graph if graph.out_degree(node) == 0]
        if len(sources) != 1 or len(sinks) != 1:
            fail(f"the graph begins at {sources} and ends at {sinks}; it should have one input and one output")
        begin, end = tuple(graph.nodes[sources[0]]["shape"]), tuple(graph.nodes[sinks[0]]["shape"])
        if begin != tuple(io.shape) or not end or end[-1] != io.outputs:
            fail(f"the graph goes from {begin} to {end} for {io}")


@check(Kind.SEARCH_SPACE, hint="Derive cost and graph from one list of layers.")
def graph_adds_up_to_the_cost(subject: Subject) -> None:
    """The nodes' parameters add up to those of cost(), and their `macs` too where all nodes have them."""
    space = subject.create()
    for io, arch, _, _ in networks(subject):
        nodes, cost = [data for _, data in space.graph(arch, io).nodes(data=True)], space.cost(arch, io)
        for key, expected in (("params", cost.params), ("macs", cost.macs)):
            if all(key in data for data in nodes) and sum(data[key] for data in nodes) != expected:
                fail(f"the nodes' {key} add up to {sum(d[key] for d in nodes)}, cost() says {expected} {told(arch)}")


@check(Kind.SEARCH_SPACE, hint="Map each of depth(arch) blocks to one of teacher.layers, counted from 0.")
def layer_map_is_in_range(subject: Subject) -> None:
    """layer_map() maps existing student layers to existing teacher layers, for teachers of any depth."""
    space = subject.create()
    for arch in points(subject, space):
        depth = space.depth(arch)
        for layers in (0, 1, 3, 12):
            found = space.layer_map(arch, ModelGeometry({}, layers=layers))
            for student, teacher in found.items():
                if not 0 <= student < depth or not 0 <= teacher < layers:
                    fail(f"{student} -> {teacher}, for {depth} layers here and {layers} there {told(arch)}")


@check(Kind.SEARCH_SPACE, per_example=False, hint="Say in accepts() what build() needs, and call it there.")
def accepts_tells_the_truth(subject: Subject) -> None:
    """accepts() gives a reason for inputs that the space cannot serve, which build() then refuses, and for no other."""
    space = subject.create()
    arch = space.default()
    for io in STRANGE:
        reason, error = space.accepts(io), ""
        try:
            model = build(subject, space, arch, io)
            with torch.no_grad():
                y = logits(model, inputs(io, 2))
            if y.shape[0] != 2 or y.shape[-1] != io.outputs:
                error = f"its output is {tuple(y.shape)}"
        except ArchitectureError as refusal:
            if reason is None:
                fail(f"accepts() has nothing against {io}, build() says: {refusal.message}")
            continue
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        if reason is None and error:
            fail(f"accepts() has nothing against {io}, and the network does not run: {error.splitlines()[0]}")
        if reason is not None:
            fail(f"accepts() says of {io}: {reason}; build() does not raise an ArchitectureError for it")
    for io in ios(subject, space):
        if reason := space.accepts(io):
            fail(f"accepts() says of {io}, which the example gives: {reason}")


FAMILIES = {
    "vision": ("image",), "encoder": ("tokens",), "decoder": ("tokens",), "diffusion": ("other",), "graph": ("other",)
}  # fmt: skip
"""Family -> the kinds of inputs that its networks take."""


@check(
    Kind.SEARCH_SPACE, per_example=False, hint="Choose `family` by what accepts() lets through, or correct accepts()."
)
def family_is_true(subject: Subject) -> None:
    """The tag `family` agrees with the inputs that the space accepts, and a decoder's networks are causal.

    That is images for vision, tokens for encoder and decoder, what is called other for diffusion and graph; the family
    other is for spaces that accept something else than images alone or tokens alone. A decoder gives logits for every
    token, which later tokens do not change; an encoder does not. Diffusion and graph cannot be told apart.
    """
    space, family = subject.create(), subject.tags.family
    accepted = [io for io in (*ios(subject, space), *IMAGES, *STRANGE) if space.accepts(io) is None]
    kinds = list(dict.fromkeys(io.kind for io in accepted))
    fitting = [name for name, allowed in FAMILIES.items() if set(kinds) <= set(allowed)]
    if family != "other" and family not in fitting:
        fail(f"family={family!r}, and it accepts {' and '.join(kinds)}, not only {' or '.join(FAMILIES[family])}")
    if family == "other" and kinds in (["image"], ["tokens"]):
        fail(f"family='other', and it accepts {kinds[0]} only, as {' and '.join(fitting)} do")
    if family in ("encoder", "decoder"):
        io = accepted[0]
        causal = _is_causal(build(subject, space, space.default(), io), inputs(io, 2), io.vocabulary or 2)
        if causal != (family == "decoder"):
            seen = "is given for every token and not changed" if causal else "is one for all tokens, or changed"
            fail(f"family={family!r}, and the output {seen} by later ones")


def _is_causal(model: nn.Module, x: Tensor, vocabulary: int) -> bool:
    """Return whether a network gives logits for every token, which later tokens do not change."""
    changed = x.clone()
    changed[:, -1] = (x[:, -1] + 1) % vocabulary
    with torch.no_grad():
        before, after = logits(model, x), logits(model, changed)
    if before.dim() != 3 or before.shape[1] != x.shape[1]:
        return False
    return torch.allclose(before[:, :-1], after[:, :-1], atol=1e-6)
