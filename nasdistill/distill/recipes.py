"""Running recipes: each stage is one training with its own teacher, data, losses, trainable part and budget.

Nothing of a stage leaks into the next but what it carries. Its seed derives from its name, so leaving another stage out
changes nothing here. With a folder, every stage keeps a checkpoint there: a recipe that is run again after a kill goes
through its finished stages in no time and continues the one that was cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from pydantic import ValidationError
from torch import Tensor, nn

from nasdistill.distill.cache import TeacherCache
from nasdistill.distill.engine import train
from nasdistill.distill.evaluation import evaluate
from nasdistill.errors import ConfigError, UsageError, did_you_mean
from nasdistill.files import write_json
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.recipe import TEACHER, Origin, Stage, StageResult
from nasdistill.interfaces.space import SearchSpace
from nasdistill.interfaces.task import Evaluation, Split, Task
from nasdistill.interfaces.teacher import TeacherSession
from nasdistill.interfaces.transform import Applied, Transform, Transformed
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.spec.options import explain

if TYPE_CHECKING:
    from nasdistill.host import Host

CARRIED = ("losses",)


class StageRunner:
    """Implements :class:`nasdistill.interfaces.RecipeRunner`.

    Args:
        task: the prepared task; the data source ``"task"``, and what is evaluated.
        host: makes losses, teachers and transforms.
        training: the training options that stages override.
        seed: root of the stages' seeds.
        cache_dir: where teachers keep what they make.
        data: further data sources by name, as prepared tasks.
        cache: the teacher cache.
        device: where to train.
        folder: for checkpoints and the record ``recipe.json``; None keeps nothing.
        progress: told what is going on.
        origin: what the recipe's student is, where a space made it.
        calibration: batches that spaces rank a teacher's parts on.

    Attributes:
        record: what was done, one JSON-able entry per call.
    """

    def __init__(
        self,
        task: Task,
        *,
        host: Host,
        training: TrainingConfig,
        seed: int,
        cache_dir: Path,
        data: Mapping[str, Task] | None = None,
        cache: TeacherCache | None = None,
        device: str = "cpu",
        folder: Path | None = None,
        progress: Callable[[str], None] | None = None,
        origin: Origin | None = None,
        calibration: Sequence[Batch] = (),
    ) -> None:
        self.task = task
        self.record: list[dict[str, Any]] = []
        self._origin, self._calibration = origin, calibration
        self._points: WeakKeyDictionary[nn.Module, Architecture] = WeakKeyDictionary()
        self._applied: WeakKeyDictionary[nn.Module, tuple[Applied, ...]] = WeakKeyDictionary()
        self._host, self._training, self._seed, self._device = host, training, seed, device
        self._data = {"task": task, **(data or {})}
        self._cache, self._cache_dir, self._folder = cache, cache_dir, folder
        self._say = progress or (lambda line: None)
        self._teachers: dict[str, TeacherSession] = {}
        self._losses: dict[str, Tensor] | None = None

    @property
    def origin(self) -> Origin | None:
        """What the recipe's student is; None where no space made it."""
        return self._origin

    def candidate(
        self, architecture: Architecture, source: nn.Module | None = None, *, space: SearchSpace | None = None
    ) -> nn.Module:
        """Return the network of another point; see :class:`nasdistill.interfaces.RecipeRunner`.

        The same point and source give the same weights, whatever was asked for before.
        """
        if self._origin is None:
            raise UsageError("this student is no point of a search space, so there are no others beside it")
        own, space = space is None, space or self._origin.space
        with seeded(self._seed, "candidate", architecture.fingerprint):
            model = space.build(architecture, self._origin.io)
        if source is None and self._training.inherit and TEACHER in self._teachers:
            source = self._teachers[TEACHER].model
        notes: Sequence[str] = ()
        if source is not None:
            report = space.inherit(model, architecture, source, calibration=self._calibration)
            notes = ("fresh weights",) if report is None else report.notes
        if own:
            self._points[model] = architecture
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self._note("candidate", architecture.id, params=parameters, notes=list(notes))
        return model.to(self._device)

    def note(self, text: str) -> None:
        """Tell the user what the recipe decided; see :class:`nasdistill.interfaces.RecipeRunner`."""
        self._say(text)
        self._note("note", text)

    def register_student(self, model: nn.Module) -> None:
        """Say that a network is the recipe's student, which `origin` describes."""
        if self._origin is not None:
            self._points[model] = self._origin.architecture

    def architecture_of(self, model: nn.Module) -> Architecture | None:
        """Return the point that a network was built for; None where it is not known.

        It is known of the student, of what :meth:`candidate` made within its space, and of what became of these by
        :meth:`transform`.
        """
        return self._points.get(model)

    def transforms_of(self, model: nn.Module) -> tuple[Applied, ...]:
        """Return what a network went through by :meth:`transform`, first to last; not what left it built as it was."""
        return self._applied.get(model, ())

    def train(self, stage: Stage, student: nn.Module) -> StageResult:
        """Run one stage; `student` is trained in place.

        Raises:
            UsageError: the stage names something that is not there, or asks for what a single training cannot do.
            TrialFailure: as :func:`nasdistill.distill.train`.
        """
        task, objective, training, epochs, steps = self._read(stage)
        teacher = None if stage.teacher is None else self.teacher(stage.teacher)
        flags = self._freeze(stage, student)
        checkpoint = None if self._folder is None else self._folder / f"{stage.name}.safetensors"
        self._say(f"stage {stage.name}: {epochs if steps is None else steps} {'epochs' if steps is None else 'steps'}")
        try:
            result = train(
                student, task, teacher, objective, training,
                epochs=epochs, steps=steps, seed=derive_seed(self._seed, "stage", stage.name),
                data_seed=derive_seed(self._seed, "data", stage.data), host=self._host, cache=self._cache,
                device=self._device, checkpoint=checkpoint, objective_state=self._losses,
                student_label=f"stage {stage.name}",
            )  # fmt: skip
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
        assert result.objective is not None
        self._losses = result.objective.state_dict() if "losses" in stage.carry else None
        history = [{"epoch": float(row.epoch), "lr": row.lr, **row.terms} for row in result.history]
        evaluation = result.evaluation if task is self.task else self.evaluate(student)
        judged = {} if evaluation is None else {"loss": evaluation.loss}
        self._note("stage", stage.name, steps=result.steps, score=evaluation.score if evaluation else None, **judged)
        return StageResult(student, evaluation, history)

    def transform(self, name: str, student: nn.Module, options: Any = None) -> Transformed:
        """Apply a transform component, with a few training batches to calibrate on."""
        transform: Transform = self._host.create(Kind.TRANSFORM, name, options)
        calibration = [b for b, _ in zip(self.task.batches("train", batch_size=64), range(4), strict=False)]
        with seeded(self._seed, "transform", name):
            made = transform.apply(student, calibration, self.task.forward)
        if student in self._points:
            self._points[made.model] = self._points[student]
        options = {} if transform.options is None else transform.options.model_dump(mode="json")
        step = Applied(self._host.canonical(Kind.TRANSFORM, name), options, made.config)
        # Where the structure is as it was, there is nothing to rebuild: the weights alone say it all.
        steps = () if structure(made.model) == structure(student) else (step,)
        self._applied[made.model] = (*self.transforms_of(student), *steps)
        self._note("transform", name, **made.report)
        return made

    def teacher(self, reference: str) -> TeacherSession:
        """Return a registered teacher, or open one by ``NAME:LOCATOR`` (once)."""
        if reference not in self._teachers:
            name, locator = self._host.locate(Kind.TEACHER, reference)
            opener = self._host.create(Kind.TEACHER, name)
            self._teachers[reference] = opener.open(
                locator, self.task, cache_dir=self._cache_dir, device=self._device, progress=self._say
            )
        return self._teachers[reference]

    def register_teacher(self, name: str, session: TeacherSession) -> None:
        """Give a teacher made on the way a name for later stages.

        Raises:
            UsageError: the name is taken.
        """
        if name in self._teachers:
            raise UsageError(f"there is a teacher named {name!r} already")
        self._teachers[name] = session

    def evaluate(self, student: nn.Module, split: Split = "validation") -> Evaluation:
        """Evaluate a model on the task."""
        return evaluate(student, self.task, split)

    def _read(self, stage: Stage) -> tuple[Task, ObjectiveConfig, TrainingConfig, int, int | None]:
        """Return task, objective, training options, epochs and steps of a stage."""
        where = f"stage {stage.name!r}"
        if any(entry["kind"] == "stage" and entry["name"] == stage.name for entry in self.record):
            raise UsageError(f"{where} was run already; a recipe's stages have different names")
        if stage.alternate is not None:
            raise UsageError(f"{where} alternates with {stage.alternate!r}, which this runner cannot do")
        for part in stage.carry:
            if part not in CARRIED:
                raise UsageError(f"{where} carries {part!r}; this runner carries {' and '.join(CARRIED)}")
        if stage.data not in self._data:
            raise UsageError(f"{where}: no data source {stage.data!r}. {did_you_mean(stage.data, self._data)}")
        if (stage.epochs is None) == (stage.steps is None):
            raise UsageError(f"{where} needs epochs or steps, one of the two")
        try:
            training = TrainingConfig.model_validate({**self._training.model_dump(), **stage.optimizer})
            losses = dict(stage.losses)
            task_weight = losses.pop("task", 0.0)
            objective = ObjectiveConfig(
                task_weight=task_weight, losses=tuple(_loss(name, value) for name, value in losses.items())
            )
        except ValidationError as error:
            raise ConfigError(f"{where}: {explain(error, TrainingConfig)}") from None
        task = self._data[stage.data]
        per_epoch = math.ceil(math.ceil(task.size("train") / training.batch_size) / training.accumulate)
        if stage.steps is not None:
            return task, objective, training, math.ceil(stage.steps / per_epoch), stage.steps
        assert stage.epochs is not None
        epochs = math.ceil(stage.epochs)
        return task, objective, training, epochs, None if epochs == stage.epochs else round(stage.epochs * per_epoch)

    def _freeze(self, stage: Stage, student: nn.Module) -> list[tuple[nn.Parameter, bool]]:
        """Let only the named parameters train; return all flags as they were."""
        flags = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
        names = [name for name, _ in student.named_parameters()]
        for pattern in stage.trains:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(
                    f"stage {stage.name!r}: no parameter is named like {pattern!r}. {did_you_mean(pattern, names)}"
                )
        for name, parameter in student.named_parameters():
            chosen = any(fnmatchcase(name, pattern) for pattern in stage.trains)
            parameter.requires_grad_(parameter.requires_grad and chosen)
        return flags

    def _note(self, kind: str, name: str, **facts: Any) -> None:
        self.record.append({"kind": kind, "name": name, **facts})
        if self._folder is not None:
            write_json(self._folder / "recipe.json", self.record)


def structure(model: nn.Module) -> tuple[Any, ...]:
    """Return what a network is beside its weights, to compare two networks by.

    That is every module's path, class and settings, and the shapes and types of parameters and buffers. Of a setting
    that is no plain value its class counts, and of a collection, such as hooks, its length too.
    """
    modules = [(path, type(module), _settings(module)) for path, module in model.named_modules(remove_duplicate=False)]
    tensors = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()]
    return modules, tensors


def _settings(module: nn.Module) -> dict[str, Any]:
    plain = (bool, int, float, str, type(None))
    return {
        name: value if isinstance(value, plain) else (type(value), len(value) if isinstance(value, Sized) else None)
        for name, value in vars(module).items()
        if name != "training" and not isinstance(value, Tensor)
    }


def _loss(name: str, value: Any) -> LossConfig:
    """Return a loss of a stage: a weight, or a table of options that may also have ``weight`` and ``optional``."""
    if not isinstance(value, Mapping):
        return LossConfig(name=name, weight=value)
    options = dict(value)
    chosen = {key: options.pop(key) for key in ("weight", "optional") if key in options}
    return LossConfig(name=name, options=options, **chosen)
