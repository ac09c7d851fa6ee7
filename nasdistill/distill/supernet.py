"""Training the shared weights of many students at once: the sandwich step.

Every optimiser step draws the largest, the smallest and a few random other sub-networks of one sub-space; the teacher
hears the batch once; each sub-network is switched on in turn, compared with the teacher, and differentiated:

    g = sum over the drawn a of  dL(a, batch) / dw        (gradients add up; clipped once; one optimiser step)

The draw derives from the run's seed and the step's number, so that all processes of a training agree. The teacher is
the same for every sub-network; nobody learns from the largest student. Method: "AutoDistil: Few-shot Task-agnostic
Neural Architecture Search for Distilling Large Language Models" (arXiv:2201.12507), whose step is the sandwich rule of
"Universally Slimmable Networks and Improved Training Techniques" (arXiv:1903.05134) without in-place distillation.

Cost of a step: one teacher forward (none with the cache) and one forward and backward for each sub-network drawn.

Where signals are inside a supernet depends on which sub-network is on (layers in use, heads, widths), so a plan and an
objective are made for each sub-network when it is first drawn, by a dry run, and kept. Sub-networks with the same
geometry share an objective, and with it whatever parts of their own its losses train.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nasdistill.distill.cache import TeacherCache
from nasdistill.distill.evaluation import kept_modes
from nasdistill.distill.loop import Course, Loop, Watch, total_steps, training_room
from nasdistill.distill.objective import Objective
from nasdistill.distill.optim import build_optimizer, parameter_groups
from nasdistill.distill.stepping import EpochReport, Means, Supervised
from nasdistill.distill.teaching import Teaching, tracer_of
from nasdistill.errors import NasdistillError, UsageError
from nasdistill.files import content_hash
from nasdistill.interfaces.base import ComponentFactory
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.loss import Terms
from nasdistill.interfaces.signals import ModelGeometry, Site, Trace
from nasdistill.interfaces.space import SearchSpace, Supernet
from nasdistill.interfaces.task import Split, Task
from nasdistill.interfaces.teacher import TeacherSession
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.config import ObjectiveConfig, TrainingConfig
from nasdistill.trace import SitePlan, even_layer_map

LARGEST, SMALLEST = "largest", "smallest"
"""Terms of an epoch's report: the totals of the two ends of the ladder."""


@dataclass(slots=True)
class SupernetResult:
    """What the training of shared weights left.

    Attributes:
        net: the supernet, trained in place.
        history: one report per epoch: the terms' means over all drawn sub-networks, and the totals of the ends as
            ``largest`` and ``smallest``.
        steps: optimiser steps.
        seconds: wall time of this call.
        skipped: loss -> why some sub-network was trained without it (losses marked ``optional``).
        resumed: epochs that came from the checkpoint.
        stopped: `should_stop` ended the training before its last step.
        notes: anything that was done differently than asked.
    """

    net: Supernet
    history: list[EpochReport]
    steps: int = 0
    seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)
    resumed: int = 0
    stopped: bool = False
    notes: list[str] = field(default_factory=list)


def sandwich(ladder: Sequence[Architecture], step: int, *, seed: int = 0, others: int = 2) -> tuple[Architecture, ...]:
    """Return the sub-networks of a step: the largest, the smallest, and up to `others` different ones in between.

    The same arguments give the same draw, in any process.

    Args:
        ladder: sub-networks, the smallest first.
        step: number of the optimiser step.
        seed: of the training.
        others: how many random ones.
    """
    if len(ladder) < 2:
        return tuple(ladder)
    between = ladder[1:-1]
    rng = random.Random(derive_seed(seed, "sandwich", step))
    return (ladder[-1], ladder[0], *rng.sample(between, min(others, len(between))))


class SubNetworks:
    """The sub-networks of one supernet, each with its plan of sites and its objective, made when first asked for.

    Args:
        net: shared weights, on the device where they are used.
        space: their space.
        task: a prepared task.
        config: the objective.
        teacher: geometry of the teacher; None without one.
        sample: a tiny batch on the same device, for dry runs.
        host: makes the losses.
        seed: first weights of the losses' own parts derive from it.
        label: how messages name the supernet.

    Attributes:
        objectives: every objective made so far, in the order of making.
        drawn: the architecture for which each of them was made.
        skipped: loss -> reason, over all sub-networks.
    """

    def __init__(
        self,
        net: Supernet,
        space: SearchSpace,
        task: Task,
        config: ObjectiveConfig,
        teacher: ModelGeometry | None,
        sample: Batch,
        *,
        host: ComponentFactory | None,
        seed: int = 0,
        label: str = "supernet",
    ) -> None:
        self.net, self.space, self.task, self.config, self.teacher = net, space, task, config, teacher
        self.label = label
        self.objectives = nn.ModuleList()
        self.drawn: list[Architecture] = []
        self.skipped: dict[str, str] = {}
        self._sample, self._host, self._seed = sample, host, seed
        self._made: dict[Architecture, Supervised] = {}
        self._by_geometry: dict[Any, Objective] = {}

    def switch(self, arch: Architecture) -> Supervised:
        """Make the net compute `arch` and return it with its objective, as one module.

        Raises:
            TrialFailure: ``"mismatch"``: a loss does not fit this sub-network and the teacher.
        """
        self.net.set_arch(arch)
        found = self._made.get(arch)
        if found is None:
            task, sample = self.task, self._sample
            plan = SitePlan(self.net, run=lambda model: task.forward(model, sample), label=self.label)
            found = self._made[arch] = Supervised(self.net, self._objective(arch, plan.geometry), task, plan)
        return found

    def _objective(self, arch: Architecture, geometry: ModelGeometry) -> Objective:
        layers = layer_map_of(self.space, arch, geometry, self.teacher)
        shapes = sorted((str(site), shape.layout, shape.shape) for site, shape in geometry.sites.items())
        key = (tuple(shapes), tuple(sorted(layers.items())))
        if key not in self._by_geometry:
            objective = Objective(
                self.config, factory=self._host, student=geometry, teacher=self.teacher, layer_map=layers,
                seed=self._seed,
            ).to(self._sample.ids.device)  # fmt: skip
            self.skipped |= objective.skipped
            self._by_geometry[key] = objective
            self.objectives.append(objective)
            self.drawn.append(arch)
        return self._by_geometry[key]

    def listened(self, ladder: Sequence[Architecture]) -> frozenset[Site]:
        """Return what the objectives ask of the teacher, read off one sub-network per layer map."""
        found: frozenset[Site] = frozenset()
        maps = set()
        for arch in (ladder[-1], *ladder):
            layers = () if self.teacher is None else tuple(sorted(self.space.layer_map(arch, self.teacher).items()))
            if (self.space.depth(arch), layers) not in maps:
                maps.add((self.space.depth(arch), layers))
                found |= self.switch(arch).objective.needs().teacher
        return found


def layer_map_of(
    space: SearchSpace, arch: Architecture, student: ModelGeometry, teacher: ModelGeometry | None
) -> dict[int, int]:
    """Return student layer -> teacher layer: as the space says, else evenly spread."""
    if teacher is None:
        return {}
    return space.layer_map(arch, teacher) or even_layer_map(student.layers, teacher.layers)


def train_supernet(
    net: Supernet,
    space: SearchSpace,
    ladder: Sequence[Architecture],
    task: Task,
    teacher: TeacherSession | None,
    objective_config: ObjectiveConfig,
    training: TrainingConfig,
    *,
    epochs: int,
    steps: int | None = None,
    others: int = 2,
    seed: int,
    data_seed: int | None = None,
    host: ComponentFactory | None = None,
    cache: TeacherCache | None = None,
    device: str = "cpu",
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_step: Callable[[StepInfo, Terms], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 0.0,
    label: str = "supernet",
) -> SupernetResult:
    """Train shared weights in place by the sandwich step; see the module's text.

    The same arguments give the same weights, bit for bit, with or without the cache, in one go or restarted from a
    checkpoint. Random states, threads, grad mode and train/eval modes are left as they were; the net is left computing
    the largest sub-network.

    Args:
        net: the shared weights; those with ``requires_grad`` are trained. Of several processes all start from the same.
        space: the space that they belong to.
        ladder: sub-networks to draw from, the smallest first (:func:`nasdistill.distill.subnetworks.ladder`).
        task: a prepared task.
        teacher: an opened teacher, or None to train on labels alone.
        objective_config: the losses, the same for every sub-network.
        training: optimiser, schedule, batch size ...; ``ema`` does not apply.
        epochs: passes over the training data; schedules span them.
        steps: stop after so many optimiser steps, and let the schedules span these.
        others: random sub-networks of a step beside the two ends.
        seed: of draws, dropout and the losses' own parts.
        data_seed: order and augmentation of the data; defaults to `seed`.
        host: makes the losses.
        cache: the teacher's answers; None asks it at every step.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        on_epoch: called after every epoch.
        on_step: called after every optimiser step with detached tensors.
        should_stop: asked before every step.
        checkpoint: a file that is rewritten after every epoch, as for :func:`nasdistill.distill.train`.
        checkpoint_seconds: leave out the checkpoint of an epoch that ends earlier than this after the one before.
        label: how messages name the supernet.

    Raises:
        TrialFailure: ``"nan_loss"``, ``"diverged"``, or ``"mismatch"`` when a loss does not fit some sub-network.
        UsageError: no such device, an empty ladder, or nothing to train.
    """
    begin = time.perf_counter()
    if not ladder:
        raise UsageError(f"{label} has no sub-network to train")
    data_seed = seed if data_seed is None else data_seed
    with training_room(net, training, device) as (accelerator, note), contextlib.ExitStack() as stack:
        stack.callback(net.set_arch, ladder[-1])
        run = _Run(
            net, space, ladder, task, teacher, objective_config, training, accelerator,
            cache=cache, data_seed=data_seed, seed=seed, others=others, host=host, label=label,
        )  # fmt: skip
        stack.callback(run.zero_grad)
        total = total_steps(task, training, epochs, steps)
        plan = content_hash(
            {
                "objective": objective_config.model_dump(mode="json"), "training": training.model_dump(mode="json"),
                "epochs": epochs, "total": total, "others": others, "seed": seed, "data_seed": data_seed,
                "task": task.fingerprint, "teacher": None if teacher is None else teacher.fingerprint,
                "ladder": [arch.fingerprint for arch in ladder],
                "net": [(name, list(value.shape)) for name, value in net.state_dict().items()],
            }
        )  # fmt: skip
        progress = run.resumed(checkpoint, plan)
        result = SupernetResult(
            net, progress.history, skipped=run.parts.skipped, resumed=len(progress.history),
            notes=[*filter(None, [note, progress.note])],
        )  # fmt: skip
        watch = Watch(on_epoch, on_step, should_stop, checkpoint, checkpoint_seconds)
        result.stopped = run.run(progress, Course(epochs, total, seed, data_seed, plan), watch)
        result.steps = progress.step
    result.seconds = time.perf_counter() - begin
    return result


class _Run(Loop):
    """The parts of one training and its step."""

    def __init__(
        self,
        net: Supernet,
        space: SearchSpace,
        ladder: Sequence[Architecture],
        task: Task,
        teacher: TeacherSession | None,
        config: ObjectiveConfig,
        training: TrainingConfig,
        accelerator: Accelerator,
        *,
        cache: TeacherCache | None,
        data_seed: int,
        seed: int,
        others: int,
        host: ComponentFactory | None,
        label: str,
    ) -> None:
        self.net, self.ladder, self.seed, self.others = net, ladder, seed, others
        self.task, self.teacher, self.accelerator, self.label = task, teacher, accelerator, label
        self.training = training
        net.to(accelerator.device)
        net.set_arch(ladder[-1])
        sample = next(task.batches("train", batch_size=2)).to(accelerator.device)
        self.teaching = None
        geometry = None
        if teacher is not None:
            teacher.start(net)
            self.teaching = Teaching(teacher, task, training, accelerator, cache, data_seed)
            geometry = self.teaching.geometry(sample)
        self.parts = SubNetworks(net, space, task, config, geometry, sample, host=host, seed=seed, label=label)
        groups = parameter_groups([net], training.weight_decay)
        if not groups:
            raise UsageError(f"{label} has no parameter that requires a gradient, so there is nothing to train")
        self.optimizer = build_optimizer(groups, training)
        if accelerator.scaler is not None:
            self.optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self._joined = 0
        sites = self.parts.listened(ladder)
        if self.teaching is not None:
            self.teaching.sites = sites
        self._join()

    def step(self, batches: Sequence[Batch], info: StepInfo) -> Terms:
        """Make one optimiser step from the gradients of all drawn sub-networks on all batches; return mean terms."""
        drawn = sandwich(self.ladder, info.step, seed=self.seed, others=self.others)
        if self.teacher is not None:
            self.teacher.before_step(self.net, info)
        samples = sum(batch.size for batch in batches)
        means: Terms = {}

        def add(name: str, value: Tensor) -> None:
            means[name] = means[name] + value if name in means else value

        for batch in batches:
            share = batch.size / samples
            heard = Trace() if self.teaching is None else self.teaching.ask(batch, info)
            for arch in drawn:
                part = self.switch(arch)
                with self.accelerator.autocast():
                    total, terms = part(batch, heard, info)
                self.accelerator.backward(total if len(batches) == 1 else total * share)
                for name, value in terms.items():
                    add(name, value * (share / len(drawn)))
                if arch in (self.ladder[-1], self.ladder[0]):
                    add(LARGEST if arch == self.ladder[-1] else SMALLEST, terms["total"] * share)
        self.descend()
        for objective in {id(o): o for o in (self.switch(arch).objective for arch in drawn)}.values():
            objective.after_step(info)
        if self.teacher is not None:
            self.teacher.after_step(self.net, info)
        return means

    def switch(self, arch: Architecture) -> Supervised:
        """Switch a sub-network on; a loss's own parts that come with it join the optimiser."""
        part = self.parts.switch(arch)
        if self._joined < len(self.parts.objectives):
            self._join()
            part.objective.train()
        if self.teaching is not None and not part.objective.needs().teacher <= self.teaching.sites:
            sites = ", ".join(sorted(map(str, part.objective.needs().teacher - self.teaching.sites)))
            raise NasdistillError(f"{self.label}: a sub-network asks its teacher for {sites}, which no other one needs")
        return part

    def descend(self) -> None:
        """Join the processes' gradients first."""
        if self.accelerator.num_processes > 1:
            # Not by a wrapper of the model: which parameters have a gradient differs from one backward to the next.
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.copy_(self.accelerator.reduce(parameter.grad, reduction="mean"))
        super().descend()

    def train_mode(self) -> None:
        """Train the shared weights and all losses."""
        self.net.train()
        self.parts.objectives.train()

    def facts(self) -> dict[str, Any]:
        """Return the sub-networks drawn so far."""
        return {"drawn": [arch.to_json() for arch in self.parts.drawn]}

    def prepare(self, facts: dict[str, Any]) -> None:
        """Draw them in the order of then: the optimiser's state goes by the order of its parameters."""
        for arch in facts["drawn"]:
            self.switch(Architecture.from_json(arch))

    def kept(self) -> dict[str, nn.Module]:
        """Return the shared weights, as the largest sub-network has them, and the losses."""
        self.net.set_arch(self.ladder[-1])
        return {"net": self.net, "objectives": self.parts.objectives}

    def _join(self) -> None:
        """Let the optimiser train what new objectives own."""
        new = list(self.parts.objectives)[self._joined :]
        for group in parameter_groups(new, self.training.weight_decay):
            self.optimizer.add_param_group({**group, "lr": self.training.lr})
            self.parameters += group["params"]
        self._joined = len(self.parts.objectives)


class HeldOut:
    """Scores networks by an objective on held-out samples, which the teacher hears once.

    Args:
        task: a prepared task; its labels are not needed unless the objective uses them.
        teacher: an opened teacher.
        config: the objective.
        host: makes the losses.
        device: where the networks run.
        split: which samples.
        samples: how many of them, from the first on.
        batch_size: samples per forward.
    """

    def __init__(
        self,
        task: Task,
        teacher: TeacherSession,
        config: ObjectiveConfig,
        *,
        host: ComponentFactory | None,
        device: str = "cpu",
        split: Split = "validation",
        samples: int = 256,
        batch_size: int = 64,
    ) -> None:
        if task.size(split) == 0:
            raise UsageError(f"{task.id} has no samples in split {split!r} to score on")
        self.task, self.teacher, self.config, self._host, self._device = task, teacher, config, host, device
        wanted = math.ceil(min(samples, task.size(split)) / batch_size)
        self._batches = list(islice(task.batches(split, batch_size=min(batch_size, samples)), wanted))
        self._heard: dict[frozenset[Site], list[Trace]] = {}

    def terms(
        self, model: nn.Module, layer_map: Callable[[ModelGeometry, ModelGeometry], Mapping[int, int]], *, label: str
    ) -> dict[str, float]:
        """Return the mean terms of a network, ``total`` among them; the network is left as it was.

        Args:
            model: a stand-alone network, on the device.
            layer_map: (geometry of the student, of the teacher) -> student layer -> teacher layer.
            label: how messages name it.

        Raises:
            TrialFailure: ``"mismatch"``: a loss does not fit.
            UsageError: a loss has trained parts of its own, without which its value means nothing.
        """
        probe = self._batches[0].select(torch.arange(min(2, self._batches[0].size))).to(self._device)
        plan = SitePlan(model, run=lambda network: self.task.forward(network, probe), label=label)
        geometry = tracer_of(self.teacher, self.task).geometry(self.teacher.model, probe)
        objective = Objective(
            self.config, factory=self._host, student=plan.geometry, teacher=geometry,
            layer_map=layer_map(plan.geometry, geometry),
        ).to(self._device)  # fmt: skip
        if any(True for _ in objective.parameters()):
            raise UsageError(
                f"{label} cannot be scored by {', '.join(objective.losses)}: a loss with trained parts of its own",
                hint="Score by the task's metric, or choose losses without parameters.",
            )
        part, sums = Supervised(model, objective, self.task, plan), Means()
        with kept_modes(model), torch.no_grad():
            part.eval()
            for batch, heard in zip(self._batches, self._listen(objective.needs().teacher), strict=True):
                found = part(batch.to(self._device), heard, StepInfo())[1]
                sums.add(found, batch.size)
        return sums.values()

    def _listen(self, sites: frozenset[Site]) -> Iterator[Trace]:
        if sites not in self._heard:
            tracer = tracer_of(self.teacher, self.task)
            with torch.no_grad():
                self._heard[sites] = [
                    self.teacher.trace(batch.to(self._device), sites, StepInfo(), tracer).detach()
                    for batch in self._batches
                ]
        return iter(self._heard[sites])
