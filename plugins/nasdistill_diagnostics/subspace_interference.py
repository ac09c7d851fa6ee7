"""Do students that share weights pull them the same way? Cosines of their gradients, within and across sub-spaces.

For architectures a, b of a space with a supernet, with g_a the gradient of the distillation loss of a (all batches)
with respect to the shared weights, and S the entries that both use,

    cos(a, b) = <g_a, g_b> / (||g_a||_S ||g_b||_S)          norms over S alone

Of each sub-space the smallest, the largest and `students` - 2 random architectures are taken. Reported are the means of
cos within each sub-space and between every two, the share of conflicts (cos < 0), and the whole matrix. Entries that
only one of the two uses are no matter of interference and are left out.

The weights are the supernet's as it starts from the teacher, all sub-spaces in one, or those of a trained supernet of
the whole space, given as a model beside the teacher.

Cost: one forward and backward per architecture and batch, and as many copies of the shared weights in memory as there
are architectures.

The question is that of "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language
Models", arXiv 2201.12507, which gives interference as the reason to train one supernet per sub-space; the measure is
ours.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.distill.subnetworks import WHOLE, ladder
from nasdistill.distill.supernet import SubNetworks
from nasdistill.errors import MismatchError, UsageError, did_you_mean
from nasdistill.interfaces import (
    Batch,
    Diagnostic,
    Example,
    Finding,
    SearchSpace,
    StepInfo,
    Supernet,
    Task,
    TeacherInfo,
    Trace,
    Tracer,
)
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig
from nasdistill.spec.options import ComponentOptions
from nasdistill.trace import describe

Gradient = dict[str, Tensor]


class SubspaceInterferenceOptions(ComponentOptions):
    """Options of the interference between sub-networks."""

    space: str = Field("encoder", description="Search space with a supernet.")
    space_options: dict[str, Any] = Field(
        default_factory=dict, description="Its options; the teacher's sizes are read off a model of transformers."
    )
    subspaces: tuple[str, ...] = Field((), description="Sub-spaces to compare; all if not given.")
    students: int = Field(3, ge=2, le=64, description="Architectures of each sub-space, its two ends among them.")
    loss: str = Field("qkv_relation", description="Distillation loss whose gradients are compared.")
    loss_options: dict[str, Any] = Field(default_factory=dict, description="Its options.")
    seed: int = Field(0, ge=0, description="Chooses the random architectures.")


class SubspaceInterference(Diagnostic):
    """Cosines between the gradients of sub-networks."""

    options_model = SubspaceInterferenceOptions
    options: SubspaceInterferenceOptions
    examples = (
        Example(
            {"subspaces": ("tiny", "base"), "students": 2},
            {
                "models": {"teacher": "nasdistill.testing.kit.models:small_bert"},
                "task": "text_classification",
                "task_options": {"max_length": 16},
            },
        ),
    )

    def examine(self, models: Mapping[str, nn.Module], task: Task, batches: Sequence[Batch], tracer: Tracer) -> Finding:
        """Return means, conflicts and the matrix of cosines.

        Raises:
            UsageError: no model is called ``teacher``, or no sub-space has the name given.
            MismatchError: the teacher does not fit the space, or has nothing that the loss compares.
        """
        teacher = models.get("teacher")
        if teacher is None:
            raise UsageError(f"{self.id} needs a model called 'teacher', not only {', '.join(models) or 'none'}")
        space = self._space(teacher)
        chosen = self._chosen(space, task)
        given = next((model for model in models.values() if isinstance(model, Supernet)), None)
        with torch.enable_grad(), seeded(self.options.seed, "supernet"):
            net = space.supernet(task.io, teacher) if given is None else given
            used = {parameter: parameter.grad for parameter in net.parameters()}
            modes = {module: module.training for module in (*net.modules(), *teacher.modules())}
            try:
                found = self._gradients(net.eval(), space, [arch for _, arch in chosen], teacher.eval(), task, batches,
                                        tracer)  # fmt: skip
            finally:
                for parameter, gradient in used.items():
                    parameter.grad = gradient
                for module, mode in modes.items():
                    module.training = mode
        return _finding([name for name, _ in chosen], [arch for _, arch in chosen], space, task, cosines(found))

    def _space(self, teacher: nn.Module) -> SearchSpace:
        """Return the space, with the sizes of the teacher where it says them."""
        o = self.options
        if not self.host.tags(Kind.SEARCH_SPACE, o.space).supernet:
            raise UsageError(f"space {o.space!r} has no supernet, so its students share no weights")
        config: Any = getattr(getattr(teacher, "model", teacher), "config", None)
        options = dict(o.space_options)
        if hasattr(config, "to_dict"):
            info = TeacherInfo("transformers", config.to_dict())
            options = {**self.host.load(Kind.SEARCH_SPACE, o.space).adapted(options, info), **options}
        space: SearchSpace = self.host.create(Kind.SEARCH_SPACE, o.space, options)
        return space

    def _chosen(self, space: SearchSpace, task: Task) -> list[tuple[str, Architecture]]:
        """Return (name of the sub-space, architecture), each sub-space from its smallest to its largest."""
        if reason := space.accepts(task.io):
            raise MismatchError(f"space {space.id} does not fit the task ({task.io}): {reason}")
        known = {subspace.name: subspace for subspace in space.subspaces() or (WHOLE,)}
        found = []
        for name in self.options.subspaces or known:
            if name not in known:
                raise UsageError(f"space {space.id} has no sub-space {name!r}. {did_you_mean(name, known)}")
            rungs = ladder(space, task.io, known[name], seed=self.options.seed)
            rng = random.Random(derive_seed(self.options.seed, "interference", name))
            between = rng.sample(rungs[1:-1], min(self.options.students - 2, max(0, len(rungs) - 2)))
            ends = {rungs[0], rungs[-1]}
            found += [(name or "whole", arch) for arch in rungs if arch in ends or arch in between]
        return found

    def _gradients(
        self,
        net: Supernet,
        space: SearchSpace,
        archs: Sequence[Architecture],
        teacher: nn.Module,
        task: Task,
        batches: Sequence[Batch],
        tracer: Tracer,
    ) -> list[Gradient]:
        """Return the gradient of each architecture's mean loss, by parameter; parameters out of use are left out."""
        few = batches[0].select(batches[0].ids.new_tensor(range(min(2, batches[0].size))))
        geometry = describe(teacher, lambda model: task.forward(model, few), "the teacher")
        loss = LossConfig(name=self.options.loss, options=self.options.loss_options)
        config = ObjectiveConfig(task_weight=0.0, losses=(loss,))
        parts = SubNetworks(
            net.to(few.ids.device), space, task, config, geometry, few, host=self.host, seed=self.options.seed
        )
        samples = sum(batch.size for batch in batches)
        heard: dict[Any, list[Trace]] = {}
        found = []
        for arch in archs:
            part = parts.switch(arch)
            sites = part.objective.needs().teacher
            if sites not in heard:
                heard[sites] = [tracer(teacher, batch, sites).detach() for batch in batches]
            for parameter in net.parameters():
                parameter.grad = None
            for batch, trace in zip(batches, heard[sites], strict=True):
                total, _ = part(batch, trace, StepInfo())
                (total * (batch.size / samples)).backward()
            found.append({n: p.grad.detach().clone() for n, p in net.named_parameters() if p.grad is not None})
        return found


def cosines(gradients: Sequence[Gradient]) -> list[list[float | None]]:
    """Return the symmetric matrix of cosines over the entries that both gradients use; None where they share none.

    An entry counts as used where its gradient is not exactly 0.
    """
    matrix: list[list[float | None]] = [[None] * len(gradients) for _ in gradients]
    for i, j in itertools.combinations_with_replacement(range(len(gradients)), 2):
        inner = first = second = 0.0
        for name in gradients[i].keys() & gradients[j].keys():
            a, b = gradients[i][name].double(), gradients[j][name].double()
            inner += float((a * b).sum())
            first += float(a.square()[b != 0].sum())
            second += float(b.square()[a != 0].sum())
        if first > 0 and second > 0:
            matrix[i][j] = matrix[j][i] = max(-1.0, min(1.0, inner / math.sqrt(first * second)))
    return matrix


def _finding(
    groups: Sequence[str],
    archs: Sequence[Architecture],
    space: SearchSpace,
    task: Task,
    matrix: Sequence[Sequence[float | None]],
) -> Finding:
    pairs: dict[tuple[str, str], list[float]] = {}
    for i, j in itertools.combinations(range(len(archs)), 2):
        value = matrix[i][j]
        if value is not None and archs[i] != archs[j]:
            pairs.setdefault((groups[i], groups[j]), []).append(value)
    rows = [
        {
            "first": a, "second": b, "pairs": len(values), "mean cosine": statistics.fmean(values),
            "lowest": min(values), "conflicts": sum(value < 0 for value in values) / len(values),
        }
        for (a, b), values in pairs.items()
    ]  # fmt: skip
    values = {}
    for label, wanted in (("within", True), ("across", False)):
        joined = [value for (a, b), found in pairs.items() if (a == b) is wanted for value in found]
        if joined:
            values[f"mean cosine {label} sub-spaces"] = statistics.fmean(joined)
            values[f"conflicts {label} sub-spaces"] = sum(value < 0 for value in joined) / len(joined)
    students = [
        {"number": number, "sub-space": group, "params": space.cost(arch, task.io).params, "architecture": arch.id,
         **{f"axis {name}": value for name, value in arch.params.items()}}
        for number, (group, arch) in enumerate(zip(groups, archs, strict=True))
    ]  # fmt: skip
    names = [f"{number}: {group}" for number, group in enumerate(groups)]
    axis = {"type": "category", "title": {"text": "architecture, the smallest of each sub-space first"}}
    figure = {
        "data": [
            {"type": "heatmap", "x": names, "y": names, "z": [list(row) for row in matrix], "zmin": -1, "zmax": 1,
             "colorscale": "RdBu", "colorbar": {"title": {"text": "cosine"}}}
        ],
        "layout": {
            "title": {"text": "Gradients of sub-networks on shared weights"}, "xaxis": axis,
            "yaxis": {**axis, "autorange": "reversed", "scaleanchor": "x"},
        },
    }  # fmt: skip
    text = (
        "A cosine near 1: two students move the weights that they share the same way; near 0 they do not care, below 0 "
        "one undoes what the other learns. Where cosines across sub-spaces are below those within, a supernet for each "
        "sub-space spares them that."
    )
    return Finding(values, {"sub-spaces": rows, "students": students}, {"cosines": figure}, text)
