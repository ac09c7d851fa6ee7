"""EchoAtt: layers with similar attention share one map, converted from a trained model.

    leader:     A = softmax(Q K^T * scale + mask),  out = A V W_o
    follower:   out = A V' W_o'                     with values and output projection of its own

The first p and the last q layers stay as they are. The layers between are cut into groups, each led by its first layer:
into blocks of k, or where the maps of the calibration batches are most alike (similarity: mean cosine of rows, see
:mod:`nasdistill.trace.similarity`). Queries and keys of followers are taken out of the model; everything else keeps its
weights. Gradients of followers reach the leader's queries and keys. Masks, biases and dropout are those of the leader's
map, and nothing is masked or normalised again. Groups of one layer are left untouched: k = 1 changes nothing.

A follower saves C D (H + G) parameters, as many multiply-accumulates per token, and H N M D for its scores. A leader
has to form its map, which takes H N M numbers of memory and forgoes the fused kernel; so does a follower, which reads
it. Compare latencies with that in mind.

Source: "EchoAtt: Attend, Copy, then Adjust for More Efficient Large Language Models", arXiv 2409.14595. Departures:
- Partitions by threshold and by dynamic programming, and the corrected similarity, are ours.
- `mix` is ours: followers keep queries and keys at first and attend with lambda A_own + (1 - lambda) A_leader; training
  lowers lambda (:func:`set_mix`) and takes them out at 0 (:func:`settle`).
- Models of the libraries cache a key per token of every layer: followers' keys are zeros there, and still take memory.
- A shared map is no attention call any more that others could see: replace attention in other layers first.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from nasdistill.errors import ConfigError, DataError, MismatchError
from nasdistill.interfaces import AttentionView, Batch, Example, ModelAttention, Transformed
from nasdistill.spec.options import ComponentOptions, searchable
from nasdistill.trace.similarity import MapSimilarity
from nasdistill_attention._sharing import SharedAttention, Sharing, Slot, drop, drop_plan, give_role

Matrix = list[list[float | None]]


class EchoOptions(ComponentOptions):
    """Options of EchoAtt."""

    block: int = searchable(
        2, choices=(1, 2, 3, 4), ge=1, description="Layers k that share a map; 1 leaves the model as it is."
    )
    first: int = searchable(1, choices=(0, 1, 2), ge=0, description="Layers at the start that keep their own maps.")
    last: int = searchable(1, choices=(0, 1, 2), ge=0, description="Layers at the end that keep their own maps.")
    by: Literal["blocks", "threshold", "dynamic"] = Field(
        "blocks",
        description="How groups form: blocks of k layers; neighbours above `threshold`; or as many followers as blocks "
        "of k would have, where maps are most alike.",
    )
    threshold: float = Field(0.8, ge=-1, le=1, description="Least similarity of a follower to its leader.")
    longest: int = Field(4, ge=2, description="Most layers in a group, where groups form by similarity.")
    corrected: bool = Field(False, description="Compare what maps differ in from flat ones.")
    groups: tuple[tuple[int, ...], ...] | None = Field(
        None, description="The groups themselves, as layer numbers, leaders first; nothing else is looked at then."
    )
    mix: float = Field(0.0, ge=0, le=1, description="Share of a follower's own map at the start; 0 takes it out.")

    @model_validator(mode="after")
    def _sorted_groups(self) -> EchoOptions:
        members = [layer for group in self.groups or () for layer in group]
        if len(members) != len(set(members)):
            raise ValueError("a layer is in two groups")
        if any(list(group) != sorted(group) or not group for group in self.groups or ()):
            raise ValueError("a group names its layers in the order of the model, the leader first")
        return self


def blocks(layers: Sequence[int], size: int) -> list[list[int]]:
    """Cut layers into blocks; the last one may be shorter."""
    return [list(layers[start : start + size]) for start in range(0, len(layers), size)]


def by_threshold(
    layers: Sequence[int], similarity: Mapping[tuple[int, int], float | None], least: float, longest: int
) -> list[list[int]]:
    """Let each layer follow the leader before it while it is similar enough to it."""
    groups: list[list[int]] = []
    for layer in layers:
        value = similarity[groups[-1][0], layer] if groups else None
        if value is not None and value >= least and len(groups[-1]) < longest:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def by_dynamic(
    layers: Sequence[int], similarity: Mapping[tuple[int, int], float | None], followers: int, longest: int
) -> list[list[int]]:
    """Return the groups of neighbours with so many followers whose similarities to their leaders add up to most.

    Exact, by dynamic programming over prefixes: time L F longest for L layers and F followers. Fewer followers come out
    where no such partition exists.
    """
    best: list[dict[int, tuple[float, list[list[int]]]]] = [{0: (0.0, [])}]
    for end in range(1, len(layers) + 1):
        found: dict[int, tuple[float, list[list[int]]]] = {}
        for start in range(max(0, end - longest), end):
            group = list(layers[start:end])
            gains = [similarity[group[0], layer] for layer in group[1:]]
            known = [gain for gain in gains if gain is not None]
            if len(known) < len(gains):
                continue
            for count, (value, groups) in best[start].items():
                now, total = count + len(known), value + sum(known)
                if now <= followers and (now not in found or total > found[now][0]):
                    found[now] = (total, [*groups, group])
        best.append(found)
    return best[-1][max(best[-1])][1]


class EchoAttention(ModelAttention):
    """Attention maps shared across layers; see :class:`nasdistill.interfaces.ModelAttention`."""

    options_model = EchoOptions
    options: EchoOptions
    examples = (
        Example({"last": 0}, name="pairs"),
        Example({"first": 0, "last": 0, "block": 3, "by": "dynamic", "corrected": True}, name="by similarity"),
    )

    def convert(
        self,
        model: nn.Module,
        views: Mapping[int, AttentionView],
        layers: Sequence[int],
        calibration: Sequence[Batch],
    ) -> Transformed:
        """Return the converted copy.

        Its `report` tells the groups (the `reason` where there are none), the parameters before and after, and both
        similarities and entropies of all layers where there was calibration data. Its `config` is what :meth:`rebuild`
        needs.

        Args:
            model: left unchanged. It must run ``F.scaled_dot_product_attention``.
            views: layer -> view.
            layers: the layers that may lead or follow.
            calibration: batches with ``image`` or ``input_ids``, for the similarities; also tried on the result.

        Raises:
            MismatchError: cross attention, layers of a group with other numbers of heads, or another kind of attention.
            DataError: groups are to follow from similarity, and there is no calibration data.
        """
        for layer in layers:
            if views[layer].cross:
                raise MismatchError(f"{self.id} does not convert cross attention ({views[layer].path})")
        seen = map_similarity(model, views, layers, calibration) if calibration else None
        groups = [group for group in self._partition(views, layers, seen) if len(group) > 1]
        _check(views, groups)
        config: dict[str, Any] = {
            "groups": [[views[layer].path for layer in group] for group in groups],
            "drop": [entry for group in groups for layer in group[1:] for entry in drop_plan(model, views[layer])],
            "mix": self.options.mix,
        }
        made = self.rebuild(model, config)
        if calibration and groups:
            _run(copy.deepcopy(made).eval(), calibration[0])
        before, after = (sum(p.numel() for p in one.parameters()) for one in (model, made))
        report: dict[str, Any] = {
            "groups": groups, "followers": sum(len(group) - 1 for group in groups), "parameters_before": before,
            "parameters_after": after,
        }  # fmt: skip
        if not groups:
            report["reason"] = self._why_none(views, layers, seen)
        if seen is not None:
            report |= {
                "layers": seen.layers, "similarity": seen.plain(), "corrected_similarity": seen.corrected(),
                "entropy": seen.entropy(),
            }  # fmt: skip
        return Transformed(made, report, config)

    def rebuild(self, model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
        """Return a copy of an unconverted model with the structure that `config` describes, to load weights into."""
        made = copy.deepcopy(model)
        for group in config["groups"]:
            slot = Slot(len(group) - 1)
            for place, path in enumerate(group):
                role = Sharing("follower" if place else "leader", slot, mix=config["mix"] if place else 0.0)
                give_role(made.get_submodule(path), role)
        if not config["mix"]:
            drop(made, config["drop"])
        return made

    def _partition(
        self, views: Mapping[int, AttentionView], layers: Sequence[int], seen: MapSimilarity | None
    ) -> list[list[int]]:
        """Return the groups, each with its leader first; a group of one shares nothing."""
        chosen = self.options
        if chosen.groups is not None:
            strangers = sorted({layer for group in chosen.groups for layer in group} - set(layers))
            if strangers:
                raise ConfigError(f"{self.id}: groups name the layers {strangers}; those to convert are {list(layers)}")
            return [list(group) for group in chosen.groups]
        free = self._free(views, layers)
        if chosen.by == "blocks" or not free:
            return blocks(free, chosen.block)
        if seen is None:
            raise DataError(
                f"{self.id} forms groups by similarity, and there is no calibration data", hint='Use by = "blocks".'
            )
        similarity = self._similarity(seen)
        if chosen.by == "threshold":
            return by_threshold(free, similarity, chosen.threshold, chosen.longest)
        followers = sum(len(block) - 1 for block in blocks(free, chosen.block))
        return by_dynamic(free, similarity, followers, chosen.longest)

    def _free(self, views: Mapping[int, AttentionView], layers: Sequence[int]) -> list[int]:
        """Return the layers that may share, neither among the first nor among the last."""
        order = sorted(views)
        inner = order[self.options.first : len(order) - self.options.last]
        return [layer for layer in sorted(layers) if layer in inner]

    def _similarity(self, seen: MapSimilarity) -> dict[tuple[int, int], float | None]:
        matrix = seen.corrected() if self.options.corrected else seen.plain()
        return {(a, b): matrix[i][j] for i, a in enumerate(seen.layers) for j, b in enumerate(seen.layers)}

    def _why_none(self, views: Mapping[int, AttentionView], layers: Sequence[int], seen: MapSimilarity | None) -> str:
        """Return why no layer follows another, in words."""
        chosen, free = self.options, self._free(views, layers)
        if chosen.groups is not None:
            return "no group that is named has two layers"
        if len(free) < 2:
            return (
                f"of {len(views)} layer{'s' * (len(views) != 1)} the first {chosen.first} and the last {chosen.last} "
                f"keep their own maps (options first, last), which leaves {len(free)}"
            )
        if chosen.by != "threshold" and chosen.block < 2:
            return "blocks are of one layer (option block)"
        similarity = self._similarity(seen) if seen is not None else {}
        known = [value for pair in itertools.pairwise(free) if (value := similarity.get(pair)) is not None]
        if chosen.by == "threshold" and known:
            return (
                f"no two layers are alike enough (similarity at most {max(known):.3f} < {chosen.threshold:g}, "
                "option threshold)"
            )
        return "no two layers can be compared"


def map_similarity(
    model: nn.Module, views: Mapping[int, AttentionView], layers: Sequence[int], batches: Sequence[Batch]
) -> MapSimilarity:
    """Return how alike the maps of layers are on some batches; padded queries do not count.

    Args:
        model: runs in eval mode, on a copy.
        views: layer -> view.
        layers: which layers to look at.
        batches: with ``image`` or ``input_ids``.

    Raises:
        MismatchError: a layer does not run the kernel that could be watched.
    """
    watched, found = copy.deepcopy(model).eval(), MapSimilarity()
    maps: dict[int, Tensor] = {}
    pairs: dict[int, Tensor] = {}

    def keep(layer: int, weights: Tensor, allowed: Tensor) -> None:
        maps[layer], pairs[layer] = weights, allowed

    for layer in layers:
        sink = lambda weights, allowed, layer=layer: keep(layer, weights, allowed)  # noqa: E731
        give_role(watched.get_submodule(views[layer].path), Sharing("observer", None, sink=sink))
    for batch in batches:
        maps.clear()
        _run(watched, batch)
        valid = batch.inputs.get("attention_mask")
        for shape in {weights.shape for weights in maps.values()}:
            alike = {layer: weights for layer, weights in maps.items() if weights.shape == shape}
            rows = valid.bool() if valid is not None and tuple(valid.shape) == (shape[0], shape[2]) else None
            allowed = torch.stack([pairs[layer] for layer in alike]).any(0)
            found.add(alike, allowed, rows)
    return found


@torch.no_grad()
def _run(model: nn.Module, batch: Batch) -> None:
    """Run a model on a batch as its library calls it."""
    inputs = dict(batch.inputs)
    if "input_ids" in inputs:
        names = ("input_ids", "attention_mask", "token_type_ids")
        model(**{name: inputs[name] for name in names if name in inputs})
    else:
        model(*inputs.values())


def _check(views: Mapping[int, AttentionView], groups: Sequence[Sequence[int]]) -> None:
    for group in groups:
        heads = {views[layer].geometry.heads for layer in group}
        if len(heads) > 1:
            raise MismatchError(f"layers {list(group)} have {sorted(heads)} heads and cannot share a map")


def set_mix(model: nn.Module, value: float) -> None:
    """Set lambda, the share of followers' own maps, in place; 1 is the model before conversion."""
    for module in model.modules():
        if isinstance(module, SharedAttention) and module.sharing.role == "follower":
            module.sharing.mix = value


def settle(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """Take the queries and keys of followers out, in place, once lambda is 0; return the new configuration."""
    if config["mix"]:
        set_mix(model, 0.0)
        drop(model, config["drop"])
    return {**config, "mix": 0.0}
