"""Train one architecture: longer, on other data, or with another teacher than the search that found it.

The folder holds the request (``distill.json``), a checkpoint while the training goes on, and at the end a saved student
with ``result.json``. The same request on the same folder goes on from the checkpoint, to the same numbers; another
request is refused. A folder whose first call is refused before anything was trained is taken away again, so that the
mended request finds it free. Under ``accelerate launch`` the processes share every batch, and the first one writes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasdistill.distill import StageRunner, TrainingResult, evaluate, no_better_than_chance, train
from nasdistill.distill.stepping import EpochReport
from nasdistill.errors import MismatchError, NasdistillError, TrialFailure, UsageError
from nasdistill.files import cache_folder, read_json, write_json
from nasdistill.host import Host
from nasdistill.interfaces import Recipe, SearchSpace
from nasdistill.interfaces.recipe import TEACHER, Origin
from nasdistill.interfaces.transform import Applied
from nasdistill.library.students import Student
from nasdistill.measure import count_macs
from nasdistill.search.facts import software, task_facts, write_assets
from nasdistill.search.parts import Parts, choose_device, create_components, open_parts, parameter_count
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import RunConfig
from nasdistill.store import ASSETS, save_student, weights_hash

FORMAT = "nasdistill.distillation"
FORMAT_VERSION = 1
CHECKPOINT = "checkpoint.safetensors"
STAGES = "stages"


@dataclass(slots=True)
class Distillation:
    """What to train.

    Attributes:
        architecture: of the student.
        config: task, teacher, objective and training; its only space is the architecture's, with its options.
        epochs: passes over the training data; of no meaning with a recipe (``config.recipe``), whose options say them.
        seed: root of all randomness.
        init: a student to start from: the same architecture's weights are taken as they are, another one's are cut to
            size by the space. None starts from the teacher's weights where the space can, else fresh.
    """

    architecture: Architecture
    config: RunConfig
    epochs: int
    seed: int = 0
    init: Student | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything that the result depends on."""
        config = self.config.to_json()
        digest = None
        if self.init is not None:
            digest = {"student": self.init.id, "state_sha256": weights_hash(self.init.model())}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture.to_json(),
            **{key: config[key] for key in ("task", "teacher", "space", "objective", "training")},
            "epochs": self.epochs,
            "seed": self.seed,
            "init": digest,
            **({} if self.config.recipe is None else {"recipe": config["recipe"], "objective": None, "epochs": None}),
        }


def distill_architecture(
    request: Distillation,
    out: Path,
    *,
    host: Host,
    message: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> dict[str, Any]:
    """Train a student and save it in `out`.

    Args:
        request: what to train.
        out: a missing or empty folder, or one with the same request, which is then continued (or found finished).
        host: where components come from.
        message: told what goes on, by the first process only.
        on_epoch: told of every epoch, by the first process only.

    Returns:
        The result object: ``student`` (the folder), ``architecture``, ``teacher``, ``metric``, ``epochs``,
        ``validation``, ``test``, ``params``, ``steps``, ``seconds``, ``resumed`` (epochs of earlier calls),
        ``history``, ``skipped_losses``, ``notes``. With a recipe ``architecture`` is what the recipe chose, ``epochs``
        is None, and ``recipe`` holds its ``name``, ``options`` and ``record`` (candidates and stages).

    Raises:
        UsageError: the folder belongs to something else, or the parts do not fit.
        TrialFailure: the training went wrong (``nan_loss``, ``diverged``, ``mismatch``).
    """
    described = request.to_json()
    components = create_components(request.config, host)
    chosen = request.config.recipe
    recipe: Recipe | None = None if chosen is None else host.create(Kind.RECIPE, chosen.name, chosen.options)
    finished = _look(out, described)
    if finished is not None:
        message(f"{out} is finished already; nothing was trained")
        return finished
    with _processes(choose_device(request.config.training.device)) as processes, _tidied(out, processes):
        tell = message if processes.first else lambda text: None
        if recipe is not None and processes.count > 1:
            raise UsageError("a recipe runs in one process", hint="Leave `accelerate launch` away.")
        with processes.one_by_one():  # what the first one trains or converts, the others find in the cache
            parts = open_parts(components, request.config, message=tell)
        (space,) = parts.spaces.values()
        model = _start(request, space, parts, tell).to(parts.device)
        if processes.first and not (out / "distill.json").exists():
            _judge_teacher(parts, tell)
            try:
                write_json(out / "distill.json", described)
            except OSError as error:
                raise UsageError(f"cannot write to {out}: {error.strerror or error}") from None
        processes.wait()
        record: list[dict[str, Any]] = []
        arch, transforms = request.architecture, tuple[Applied, ...]()
        # A space may search how its students are taught; a recipe's stages say it themselves.
        objective, training = space.teaching(arch, request.config.objective, request.config.training)
        if recipe is None:
            outcome = train(
                model,
                parts.task,
                parts.teacher,
                objective,
                training,
                epochs=request.epochs,
                seed=derive_seed(request.seed, "train", arch.fingerprint, "distill"),
                data_seed=derive_seed(request.seed, "data"),
                host=host,
                layer_map=space.layer_map(arch, parts.geometry) or None,
                cache=parts.cache,
                device=parts.device,
                on_epoch=on_epoch if processes.first else None,
                checkpoint=out / CHECKPOINT,
                checkpoint_seconds=request.config.training.checkpoint_seconds,
                evaluate_every=max(1, request.epochs // 10),
                student_label=f"student {arch.id}",
            )
        else:
            outcome, arch, transforms, record = _follow(recipe, request, space, parts, model, out / STAGES, host, tell)
            model = outcome.model
        if outcome.resumed:
            tell(f"{outcome.resumed} of {request.epochs} epochs came from the checkpoint")
        if not processes.first:
            processes.wait()
            return {}
        assert outcome.evaluation is not None
        task = parts.task
        test = evaluate(model, task, "test") if task.size("test") and task.has_labels("test") else None
        model = model.cpu()
        params, macs = parameter_count(model), None
        if transforms:  # what the space knows of is another network
            macs = count_macs(model, task.example(1))
        else:
            cost = space.cost(arch, task.io)
            params, macs = cost.params, cost.macs
        facts = {
            "architecture": arch.fingerprint,
            "teacher": {"name": request.config.teacher.name, "fingerprint": parts.teacher.fingerprint},
            "task": task_facts(request.config, task),
            "software": software(host),
            "objective": objective.model_dump(mode="json") if recipe is None else None,
            "training": training.model_dump(mode="json") if recipe is None else described["training"],
            "seed": request.seed,
            "epochs": described["epochs"],
            "init": described["init"],
            **({} if recipe is None else {"recipe": described["recipe"]}),
            "processes": processes.count,
            "validation": {"score": outcome.evaluation.score, "loss": outcome.evaluation.loss},
            "test": {"score": None if test is None else test.score},
            "cost": {"params": params, "macs": macs},
            "targets": {},
            "state_sha256": weights_hash(model),
        }
        options = space.options.model_dump(mode="json")
        write_assets(task, out / ASSETS)
        save_student(out, model, arch, task.io, facts, space_options=options, transforms=transforms)
        result = {
            "student": ".",
            "architecture": arch.to_json(),
            "teacher": facts["teacher"],
            "metric": facts["task"]["metric"],
            "epochs": described["epochs"],
            "validation": asdict(outcome.evaluation),
            "test": None if test is None else asdict(test),
            "params": parameter_count(model),
            "steps": outcome.steps,
            "seconds": sum(report.seconds for report in outcome.history) if recipe is None else outcome.seconds,
            "resumed": outcome.resumed,
            "history": [{"epoch": report.epoch, **report.terms} for report in outcome.history],
            "skipped_losses": dict(outcome.skipped),
            "notes": list(outcome.notes),
            **({} if recipe is None else {"recipe": {**described["recipe"], "record": record}}),
        }
        write_json(out / "result.json", result)
        (out / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(out / STAGES, ignore_errors=True)
        processes.wait()
    return {**result, "student": str(out)}


@contextlib.contextmanager
def _tidied(out: Path, processes: _Processes) -> Iterator[None]:
    """Take away what was begun in `out` where it is refused, as parts do not fit, before any weights are kept.

    What stood there before stays, and so does a training that went wrong by its numbers: the same request may go on.
    """
    mine = processes.first and not (out / "distill.json").exists()
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except NasdistillError as error:
        wrong_numbers = isinstance(error, TrialFailure) and error.reason != "mismatch"
        if mine and not wrong_numbers and not any(out.rglob("*.safetensors")):
            with contextlib.suppress(OSError):
                shutil.rmtree(out / STAGES, ignore_errors=True)
                (out / "distill.json").unlink(missing_ok=True)
                for folder in missing:
                    folder.rmdir()
        raise


def _judge_teacher(parts: Parts, tell: Callable[[str], None]) -> None:
    """Warn of a teacher that scores no better than chance, where the task knows what that is."""
    task = parts.task
    if task.has_labels("validation") and task.size("validation") and task.chance("validation") is not None:
        warning = no_better_than_chance(parts.teacher.label, task, evaluate(parts.teacher.model, task))
        if warning is not None:
            tell(f"warning: {warning}")


def _follow(
    recipe: Recipe,
    request: Distillation,
    space: SearchSpace,
    parts: Parts,
    student: nn.Module,
    folder: Path,
    host: Host,
    tell: Callable[[str], None],
) -> tuple[TrainingResult, Architecture, tuple[Applied, ...], list[dict[str, Any]]]:
    """Run a recipe; return its last network, as a training would, how that is built, and what was done.

    Raises:
        UsageError: it returns a network that cannot be built again: neither the student nor a candidate of its own, and
            nothing that the runner's transforms made of these.
        TrialFailure: as for a training.
    """  # fmt: skip
    begin = time.perf_counter()
    runner = StageRunner(
        parts.task, host=host, training=request.config.training,
        seed=derive_seed(request.seed, "recipe", request.architecture.fingerprint),
        cache_dir=cache_folder(), cache=parts.cache, device=parts.device, folder=folder, progress=tell,
        origin=Origin(space, request.architecture, parts.task.io), calibration=parts.calibration,
    )  # fmt: skip
    runner.register_teacher(TEACHER, parts.teacher)
    runner.register_student(student)
    model = recipe.run(student, runner)
    arch = runner.architecture_of(model)
    if arch is None:
        raise UsageError(
            f"recipe {recipe.id} returns a network that is neither the student nor a candidate of its space, nor made "
            "of these by a transform; it cannot be saved as a student",
            hint="Run the recipe from Python (nasdistill.distill.StageRunner) and keep its network there.",
        )
    steps = sum(int(entry.get("steps", 0)) for entry in runner.record)
    result = TrainingResult(model, [], evaluate(model, parts.task), steps, time.perf_counter() - begin, {})
    return result, arch, runner.transforms_of(model), runner.record


def _look(out: Path, described: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a finished folder; None where there is something to do.

    Raises:
        UsageError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"output {out} is a file", hint="Choose another folder with --out.")
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        before = read_json(out / "distill.json")
    except (OSError, ValueError):
        raise UsageError(
            f"output folder {out} is not empty, and holds no distillation to go on with",
            hint="Choose another folder with --out.",
        ) from None
    if not isinstance(before, dict):
        raise UsageError(f"{out / 'distill.json'} is damaged")
    changed = [f"{key} was {_short(old)}, is {_short(new)}" for key, old, new in _differences(before, described)]
    if changed:
        raise UsageError(
            f"{out} holds another distillation: {'; '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}",
            hint="Choose another folder with --out, or give the same arguments to go on with this one.",
        )
    try:
        result = read_json(out / "result.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{out / 'result.json'} is damaged: {error}") from None
    return {**result, "student": str(out)}


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted key, old value, new value) wherever two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:56] + " ..."


def _start(request: Distillation, space: SearchSpace, parts: Parts, tell: Callable[[str], None]) -> nn.Module:
    """Return the network to train, with the weights it starts from."""
    arch = request.architecture
    with seeded(request.seed, "init", arch.fingerprint):
        model = space.build(arch, parts.task.io)
    origin = request.init
    if origin is not None and origin.transforms:
        names = ", ".join(step.name for step in origin.transforms)
        raise MismatchError(
            f"student {origin.id} went through {names}, so its weights fit no network of space {space.id}",
            hint="Leave --init out to start from the teacher or from fresh weights.",
        )
    if origin is not None and origin.architecture == arch:
        if origin.io != parts.task.io:
            raise MismatchError(f"student {origin.id} was made for {origin.io}, the task gives {parts.task.io}")
        model.load_state_dict(origin.weights())
        tell(f"started from student {origin.id}")
        return model
    source, name = (parts.teacher.model, "the teacher") if origin is None else (origin.model(), f"student {origin.id}")
    if origin is None and not request.config.training.inherit:
        tell("started with fresh weights")
        return model
    report = space.inherit(model, arch, source, calibration=parts.calibration)
    if report is None and origin is not None:
        raise MismatchError(
            f"space {space.id} cannot start architecture {arch.id} from student {origin.id} of another architecture",
            hint="Leave --init out to start from the teacher or from fresh weights.",
        )
    if report is None:
        tell("started with fresh weights")
    else:
        tell(f"started with {report.copied:,} of {report.total:,} parameters from {name}")
    return model


class _Processes:
    """The processes of one ``accelerate launch``, or this one alone."""

    def __init__(self, state: Any) -> None:
        self._state = state

    @property
    def first(self) -> bool:
        """Whether this process writes and talks."""
        return self._state is None or bool(self._state.is_main_process)

    @property
    def count(self) -> int:
        """How many there are."""
        return 1 if self._state is None else int(self._state.num_processes)

    def wait(self) -> None:
        """Go on when all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def one_by_one(self) -> contextlib.AbstractContextManager[Any]:
        """Let the first process go ahead of the others."""
        return contextlib.nullcontext() if self._state is None else self._state.main_process_first()


@contextlib.contextmanager
def _processes(device: str) -> Iterator[_Processes]:
    """Join the process group that a launcher asked for, and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield _Processes(None)
        return
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    try:
        yield _Processes(state)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
