"""Which layers learn from which: the space's map, fixed rules, or optimal transport over all pairs.

Rules from "Distiller: A Systematic Study of Model Distillation Methods in NLP", arXiv 2109.11105, for n_S student and
n_T teacher layers, counted from 0:

    space:  the layer map that the search space gives with the student (an even spread where it gives none)
    skip:   i -> floor((i + 1) n_T / n_S) - 1, a uniform stride that ends on the last layer
    last:   the student's layers in order on the teacher's last ones
    first:  likewise on the teacher's first ones
    emd:    all pairs (s, t); D[s, t] is the loss of the pair, P the plan of least cost sum P D among those with row
            sums 1 / n_S and column sums 1 / n_T, found exactly in each step on the detached D; the value is sum P D

P is a constant of the step, so gradients reach the pairs that it uses. Every pair has projectors or critics of its own
under `emd`: n_S n_T of them. Equal weights make the problem an assignment: with L = lcm(n_S, n_T), student layer s as
L / n_S rows and teacher layer t as L / n_T columns, a permutation of least cost is a vertex of the transport polytope
times L. Cost: O(L^3) on the CPU, under a millisecond for 6 and 12 layers.

The paper's step that re-weights the layers is not done (its own code has it switched off).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from nasdistill.interfaces import ModelGeometry, Site, Terms
from nasdistill.spec.options import searchable
from nasdistill_losses._pairs import Pair, PairOptions, choose_pairs, choose_signals, resolve

MAPPINGS = ("space", "skip", "last", "first", "emd")
Rule = Literal["space", "skip", "last", "first", "emd"]
EMBEDDING: Pair = (Site("embedding"), Site("embedding"))


class LayerOptions(PairOptions):
    """Options of the losses that may map layers by a rule."""

    mapping: Rule = searchable(
        "space", choices=MAPPINGS,
        description="Which layers are paired where `layers` is `map`: the search space's map, uniform stride (`skip`), "
        "the teacher's `last` or `first` layers, or optimal transport over all pairs (`emd`).",
    )  # fmt: skip
    embedding: bool = Field(False, description="Compare the inputs of the first blocks as well, with weight 1.")

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> LayerOptions:
        if self.mapping != "space" and self.layers != "map":
            raise ValueError(f"mapping {self.mapping!r} and layers {self.layers!r} both choose layers; give one")
        return self


def rule_pairs(mapping: str, students: int, teachers: int) -> list[tuple[int, int]]:
    """Return the (student, teacher) layers of a rule; all of them for ``"emd"``.

    >>> rule_pairs("skip", 3, 12)
    [(0, 3), (1, 7), (2, 11)]
    >>> rule_pairs("last", 3, 12)
    [(0, 9), (1, 10), (2, 11)]
    """
    if mapping == "emd":
        return [(s, t) for s in range(students) for t in range(teachers)]
    if mapping == "skip":
        return [(s, max(0, (s + 1) * teachers // students - 1)) for s in range(students)]
    count = min(students, teachers)  # of a student that is deeper than its teacher, as many layers as the teacher has
    if mapping == "last":
        return [(students - count + i, teachers - count + i) for i in range(count)]
    return [(i, i) for i in range(count)]


def map_layers(
    options: LayerOptions, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int], name: str
) -> list[Pair]:
    """Return the pairs of sites that a loss compares, the embeddings last where they are asked for.

    Raises:
        MismatchError: a model lacks one of them.
    """
    if options.mapping == "space":
        pairs = choose_pairs(options, student, teacher, layer_map, name)
    else:
        ours, theirs = choose_signals(options, student, teacher, name)
        rule = rule_pairs(options.mapping, student.count(ours), teacher.count(theirs))
        # Layers without this signal are passed over: the rule speaks of those that have it.
        pairs = [(_numbered(student, ours, s), _numbered(teacher, theirs, t)) for s, t in rule]
    if options.embedding:
        pairs.append((resolve(student, EMBEDDING[0], name, "student"), resolve(teacher, EMBEDDING[1], name, "teacher")))
    return pairs


def _numbered(geometry: ModelGeometry, signal: str, number: int) -> Site:
    return Site(signal, sorted(s.layer for s in geometry.sites if s.name == signal and s.layer is not None)[number])


def combine(options: LayerOptions, pairs: Sequence[Pair], values: Sequence[Tensor]) -> Terms:
    """Return the terms of a loss from the values of its pairs, in the order of `map_layers`.

    Their sum is the mean over the pairs of layers, or the cost of the transport, plus the value of the embeddings.
    """
    count = len(pairs) - int(options.embedding)
    if options.mapping != "emd":
        terms = {pair_name(pair): value / count for pair, value in zip(pairs[:count], values, strict=False)}
    else:
        rows = len({ours for ours, _ in pairs[:count]})
        cost = torch.stack(list(values[:count])).reshape(rows, -1)
        terms = {"emd": (transport_plan(cost) * cost).sum()}
    if options.embedding:
        terms[pair_name(pairs[-1])] = values[-1]
    return terms


def transport_plan(cost: Tensor) -> Tensor:
    """Return the plan ``(S, T)`` of least cost for equal weights: rows sum to 1/S, columns to 1/T; no gradient.

    Args:
        cost: ``(S, T)``, any sign. Where it is not finite the plan is uniform, and the sum shows what is wrong.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = cost.shape
    total = math.lcm(rows, columns)
    known = cost.detach().double().cpu()
    if not bool(torch.isfinite(known).all()):
        return torch.full_like(cost, 1 / (rows * columns), requires_grad=False)
    spread = known.repeat_interleave(total // rows, 0).repeat_interleave(total // columns, 1)
    taken, given = linear_sum_assignment(spread.numpy())
    plan = torch.zeros(rows, columns, dtype=torch.float64)
    index = torch.from_numpy(taken) // (total // rows), torch.from_numpy(given) // (total // columns)
    plan.index_put_(index, torch.full((total,), 1 / total, dtype=torch.float64), accumulate=True)
    return plan.to(cost)


def pair_name(pair: Pair) -> str:
    """Return how a pair's term and module are called: ``hidden_0-hidden_2``."""
    return f"{pair[0]}-{pair[1]}".replace(".", "_")
