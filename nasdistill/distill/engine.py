"""Training one student: the loop, the one step, and what comes out.

Everything random derives by name from two seeds. `seed` belongs to the student: dropout, the first weights of
projectors, a loss's own draws. `data_seed` belongs to the run: the order and augmentation of the data, which all
students share, and with them the teacher's cached answers. Every epoch starts its generators anew, so an epoch after a
restart draws what it would have drawn.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor, nn

from nasdistill.distill.cache import TeacherCache
from nasdistill.distill.evaluation import evaluate
from nasdistill.distill.loop import Course, Loop, Watch, total_steps, training_room
from nasdistill.distill.objective import Objective
from nasdistill.distill.optim import averaged, build_optimizer, parameter_groups
from nasdistill.distill.stepping import EpochReport, Supervised, not_finite
from nasdistill.distill.teaching import Teaching
from nasdistill.errors import UsageError
from nasdistill.files import content_hash
from nasdistill.interfaces.base import ComponentFactory
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.loss import Terms
from nasdistill.interfaces.signals import Trace
from nasdistill.interfaces.task import Evaluation, Task
from nasdistill.interfaces.teacher import TeacherSession
from nasdistill.spec.config import ObjectiveConfig, TrainingConfig
from nasdistill.trace import SitePlan, even_layer_map


@dataclass(slots=True)
class TrainingResult:
    """What a training left.

    Attributes:
        model: the student, trained in place; it holds the averaged weights where ``ema`` is set.
        history: one report per epoch, those before a restart included.
        evaluation: of `model` on the validation split; None when that has no labels.
        steps: optimiser steps.
        seconds: wall time of this call.
        skipped: loss -> why this student was trained without it (losses marked ``optional``).
        resumed: epochs that came from the checkpoint.
        stopped: `should_stop` ended the training before its last step.
        notes: anything that was done differently than asked.
        objective: the losses with their trained parts, for a following stage.
    """

    model: nn.Module
    history: list[EpochReport]
    evaluation: Evaluation | None
    steps: int
    seconds: float
    skipped: dict[str, str]
    resumed: int = 0
    stopped: bool = False
    notes: list[str] = field(default_factory=list)
    objective: Objective | None = None


def train(
    student: nn.Module,
    task: Task,
    teacher: TeacherSession | None,
    objective_config: ObjectiveConfig,
    training: TrainingConfig,
    *,
    epochs: int,
    start_epoch: int = 0,
    steps: int | None = None,
    seed: int,
    data_seed: int | None = None,
    host: ComponentFactory | None = None,
    layer_map: Mapping[int, int] | None = None,
    cache: TeacherCache | None = None,
    device: str = "cpu",
    on_epoch: Callable[[EpochReport], None] | None = None,
    on_step: Callable[[StepInfo, Terms], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 0.0,
    evaluate_every: int | None = None,
    objective_state: Mapping[str, Tensor] | None = None,
    student_label: str = "student",
) -> TrainingResult:
    """Train a student in place and evaluate it.

    The same arguments give the same weights, bit for bit, with or without the cache, in one go or restarted from a
    checkpoint. Random states, threads, grad mode, train/eval modes and Accelerate's state are left as they were.

    Args:
        student: the model; its parameters with ``requires_grad`` are trained.
        task: a prepared task.
        teacher: an opened teacher, or None to train on labels alone.
        objective_config: the losses.
        training: optimiser, schedule, batch size ... (its `device` is the caller's business: see `device`).
        epochs: passes over the training data in this call; learning rate and weight schedules span them.
        start_epoch: passes the student has had before; these continue in the sequence of orders and augmentations.
        steps: stop after so many optimiser steps, and let the schedules span these.
        seed: the student's seed.
        data_seed: the data's; defaults to `seed`. A search gives all its trials the same one.
        host: makes the losses; may be None when `objective_config` names none.
        layer_map: student layer -> teacher layer; None spreads evenly.
        cache: the teacher's answers; None asks it every time.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        on_epoch: called after every epoch.
        on_step: called after every optimiser step with detached tensors (reading them waits for a GPU).
        should_stop: asked before every step; of several processes, all must answer alike.
        checkpoint: a file that is rewritten after every epoch; when it holds an unfinished training with the same
            arguments, that one is continued, with a finished one nothing is trained again.
        checkpoint_seconds: leave out the checkpoint of an epoch that ends earlier than this after the one before.
        evaluate_every: also evaluate after every so many epochs; the last one is evaluated in any case.
        objective_state: trained parts of an earlier training's losses (``result.objective.state_dict()``) to start
            from, where name and shape agree.
        student_label: how messages name the student.

    Raises:
        TrialFailure: ``"nan_loss"``, ``"diverged"``, or ``"mismatch"`` when a loss does not fit this pair of models.
        UsageError: no such device, or nothing to train.
    """
    begin = time.perf_counter()
    data_seed = seed if data_seed is None else data_seed
    with training_room(student, training, device) as (accelerator, note), contextlib.ExitStack() as stack:
        run = _Run(
            student, task, teacher, objective_config, training, accelerator,
            cache=cache, data_seed=data_seed, seed=seed, host=host, layer_map=layer_map, label=student_label,
        )  # fmt: skip
        stack.callback(run.zero_grad)
        if objective_state is not None:
            here = run.objective.state_dict()
            fitting = {k: v for k, v in objective_state.items() if k in here and here[k].shape == v.shape}
            run.objective.load_state_dict({**here, **fitting})
        total = total_steps(task, training, epochs, steps)
        plan = content_hash(
            {
                "objective": objective_config.model_dump(mode="json"), "training": training.model_dump(mode="json"),
                "epochs": epochs, "start_epoch": start_epoch, "total": total, "seed": seed, "data_seed": data_seed,
                "task": task.fingerprint, "teacher": None if teacher is None else teacher.fingerprint,
                "student": [(name, list(value.shape)) for name, value in student.state_dict().items()],
            }
        )  # fmt: skip
        progress = run.resumed(checkpoint, plan)
        result = TrainingResult(
            student, progress.history, None, 0, 0.0, run.objective.skipped, resumed=len(progress.history),
            notes=[*filter(None, [note, progress.note])], objective=run.objective,
        )  # fmt: skip
        course = Course(epochs, total, seed, data_seed, plan, start_epoch)
        watch = Watch(on_epoch, on_step, should_stop, checkpoint, checkpoint_seconds, evaluate_every)
        result.stopped = run.run(progress, course, watch)
        run.finish()
        newest = progress.history[-1].evaluation if progress.history and not result.stopped else None
        result.evaluation = newest or run.evaluate(progress.step)
        result.steps = progress.step
    result.seconds = time.perf_counter() - begin
    return result


class _Run(Loop):
    """The parts of one training and its step."""

    def __init__(
        self,
        student: nn.Module,
        task: Task,
        teacher: TeacherSession | None,
        config: ObjectiveConfig,
        training: TrainingConfig,
        accelerator: Accelerator,
        *,
        cache: TeacherCache | None,
        data_seed: int,
        seed: int,
        host: ComponentFactory | None,
        layer_map: Mapping[int, int] | None,
        label: str,
    ) -> None:
        self.student, self.task, self.teacher, self.accelerator = student, task, teacher, accelerator
        self.label, self.training = label, training
        student.to(accelerator.device)
        sample = next(task.batches("train", batch_size=2)).to(accelerator.device)
        plan = SitePlan(student, run=lambda model: task.forward(model, sample), label=label)
        self.teaching = None
        geometry = None
        if teacher is not None:
            teacher.start(student)
            self.teaching = Teaching(teacher, task, training, accelerator, cache, data_seed)
            geometry = self.teaching.geometry(sample)
            if layer_map is None:
                layer_map = even_layer_map(plan.geometry.layers, geometry.layers)
        self.objective = Objective(
            config, factory=host, student=plan.geometry, teacher=geometry, layer_map=layer_map or {}, seed=seed
        ).to(accelerator.device)
        if self.teaching is not None:
            self.teaching.sites = self.objective.needs().teacher
        groups = parameter_groups([student, self.objective], training.weight_decay)
        if not groups:
            raise UsageError(f"{label} has no parameter that requires a gradient, so there is nothing to train")
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = build_optimizer(groups, training)
        self.module = accelerator.prepare_model(Supervised(student, self.objective, task, plan))
        if accelerator.scaler is not None:
            # Only the gradient scaler of fp16 needs Accelerate's wrappers, which cost 0.2 ms a step on a CPU.
            self.optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.average = None if training.ema is None else averaged(student, training.ema)

    def step(self, batches: Sequence[Batch], info: StepInfo) -> Terms:
        """See :meth:`Loop.step`."""
        if self.teacher is not None:
            self.teacher.before_step(self.student, info)
        samples = sum(batch.size for batch in batches)
        means: Terms = {}
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                heard = Trace() if self.teaching is None else self.teaching.ask(batch, info)
                total, terms = self.module(batch, heard, info)
                if len(batches) == 1:
                    means = terms
                else:
                    share = batch.size / samples
                    total = total * share
                    means = {name: means.get(name, 0.0) + value * share for name, value in terms.items()}
                self.accelerator.backward(total)
        self.descend()
        if self.average is not None:
            self.average.update_parameters(self.student)
        self.objective.after_step(info)
        if self.teacher is not None:
            self.teacher.after_step(self.student, info)
        return means

    def train_mode(self) -> None:
        """Train student and losses."""
        self.student.train()
        self.objective.train()

    def evaluate(self, step: int) -> Evaluation | None:
        """Return the validation result of the averaged weights where there are any, else of the student's."""
        if self.task.size("validation") == 0 or not self.task.has_labels("validation"):
            return None
        model = self.student if self.average is None else self.average.module
        found = evaluate(model, self.task, "validation")
        if not math.isfinite(found.loss):
            raise not_finite(self.label, step)
        return found

    def finish(self) -> None:
        """Give the student the averaged weights."""
        if self.average is not None and int(self.average.n_averaged) > 0:
            self.student.load_state_dict(self.average.module.state_dict())

    def kept(self) -> dict[str, nn.Module]:
        """Return student, losses and averaged weights."""
        kept: dict[str, nn.Module] = {"student": self.student, "objective": self.objective}
        return kept if self.average is None else {**kept, "average": self.average}
