"""Teachers that come with the package: trained on first use, on real data, then kept in the cache.

``builtin:digits`` is a convolution-stem transformer for scikit-learn's digits: the point of the space `conv_vit` with
stem width 32, width 128, 6 blocks of 4 softmax heads and MLP ratio 4 (1.2 million parameters). It learns from the
training split, whatever the task's share of labels: students with few labels have a teacher that saw them all.

The cache is addressed by content: recipe, data, architecture and torch version name the file, and the weights' hash
stands beside it, so an edited or broken file is noticed and trained anew. Training is bit-reproducible on a machine.

Source of the architecture: "Early Convolutions Help Transformers See Better", arXiv 2106.14881.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nasdistill.errors import MismatchError, UsageError, did_you_mean, one_line
from nasdistill.files import atomic_path, content_hash, file_hash, read_json, write_json
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.space import SearchSpace
from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import Teacher, TeacherSession
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import ComponentOptions
from nasdistill_teachers._common import single
from nasdistill_teachers.training import SupervisedPlan, accuracy, train

VERSION = 1
"""Raised when the same recipe would train another network; old cache files are then not found any more."""


@dataclass(frozen=True, slots=True)
class Builtin:
    """One bundled teacher.

    Attributes:
        data: the embedded data set it learns.
        io: input and output of its task.
        space: search space whose largest point it is.
        choices: the space's options: one choice per axis.
        plan: how it is trained.
    """

    data: str
    io: IOSpec
    space: str
    choices: Mapping[str, Any]
    plan: SupervisedPlan


BUILTINS = {
    "digits": Builtin(
        data="digits",
        io=IOSpec("image", (1, 8, 8), 10),
        space="conv_vit",
        choices={
            "stem_width": [32], "width": [128], "depth": [6], "reduction": [0], "heads": [4], "mlp_ratio": [4],
            "attention": ["softmax"],
        },
        plan=SupervisedPlan(epochs=28, batch_size=32, lr=2e-3, weight_decay=0.1, ema=0.995, drop_path=0.5),
    )
}  # fmt: skip


class BuiltinOptions(ComponentOptions):
    """Options of `builtin`."""

    epochs: int | None = Field(None, ge=1, description="Passes over the training images, instead of the recipe's.")
    seed: int = Field(0, ge=0, description="Seed of initial weights, order and augmentation.")


class BuiltinTeacher(Teacher):
    """See the module's text."""

    examples: ClassVar[tuple[Example, ...]] = (
        # One pass over a few images: what is checked does not depend on how much it knows.
        Example(
            {"epochs": 1},
            {
                "task": "tasks:image_classification",
                "task_options": {"validation_share": 0.05, "test_share": 0.9},
                "other_options": {"seed": 1},
            },
        ),
    )
    options_model = BuiltinOptions
    options: BuiltinOptions

    @classmethod
    def locators(cls) -> Sequence[str]:
        """Return the names of the bundled teachers."""
        return tuple(BUILTINS)

    def open(
        self,
        locator: str,
        task: Task,
        *,
        cache_dir: Path,
        device: str = "cpu",
        progress: Callable[[str], None] | None = None,
    ) -> TeacherSession:
        """Load the teacher from the cache, or train it; see :class:`Teacher`."""
        label = f"builtin:{locator}"
        say = progress or (lambda line: None)
        if locator not in BUILTINS:
            raise UsageError(f"there is no teacher {label!r}. {did_you_mean(locator, BUILTINS)}")
        builtin = BUILTINS[locator]
        if task.io != builtin.io:
            raise MismatchError(
                f"teacher {label} is made for {builtin.io} ({builtin.data}), but the task is {task.io}",
                hint="Choose a teacher for this data: hf:FOLDER, a model and its tokenizer that transformers saved."
                if task.io.kind == "tokens"
                else "Choose a teacher for this data: timm:NAME with weights, or torch:package.module:callable.",
            )
        own = self._own_task(builtin, task, label, say)
        plan = replace(builtin.plan, epochs=self.options.epochs or builtin.plan.epochs, seed=self.options.seed)
        space: SearchSpace = self.host.create(Kind.SEARCH_SPACE, builtin.space, dict(builtin.choices))
        architecture = space.default()
        recipe = {
            "version": VERSION,
            "plan": asdict(plan),
            "data": own.fingerprint,
            "architecture": architecture.fingerprint,
            "torch": torch.__version__,
        }
        key = content_hash(recipe)
        stem = cache_dir / "teachers" / f"{locator}-{key[:16]}"
        with seeded(plan.seed, "teacher", label):
            model = space.build(architecture, own.io)
        record = _load(model, stem, key, label, say)
        if record is None:
            say(f"training {label} on {own.size('train')} images, {plan.epochs} epochs (once; then it is in the cache)")
            begin = time.perf_counter()
            model = train(model, own, plan, lambda line: say(f"{label}: {line}"))
            record = {
                "key": key,
                "recipe": recipe,
                "validation": accuracy(model, own, "validation"),
                "seconds": round(time.perf_counter() - begin, 1),
            }
            _keep(model, stem, record, label, say)
            say(f"{label}: trained in {record['seconds']:.0f} s, validation {record['validation']:.1%}")
        return single(model, task, label=label, device=device)

    def _own_task(self, builtin: Builtin, task: Task, label: str, say: Callable[[str], None]) -> Task:
        """Return the task it learns: the caller's images, split and normalisation, with all labels and small shifts.

        A task on other data of the same form gets the teacher of the embedded data, and is told so.
        """
        settings: Any = {"data": builtin.data}
        if isinstance(task, self.host.load(Kind.TASK, "image_classification")) and task.options.data == builtin.data:
            settings = task.options.model_copy(update={"labels": 1.0, "augment": "shift", "shift": 1})
        else:
            say(f"warning: {label} was trained on {builtin.data}, not on this task's data")
        own: Task = self.host.create(Kind.TASK, "image_classification", settings)
        own.prepare()
        return own


def _load(model: nn.Module, stem: Path, key: str, label: str, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Load cached weights into `model` and return their record, or None when there are none that can be trusted."""
    weights, notes = stem.with_suffix(".safetensors"), stem.with_suffix(".json")
    if not notes.is_file() or not weights.is_file():
        return None
    try:
        record: dict[str, Any] = read_json(notes)
        if record["key"] != key or record["weights"] != file_hash(weights):
            raise ValueError("the content is not what was written")
        model.load_state_dict(load_file(weights))
        say(f"{label}: from the cache, validation {record['validation']:.1%}")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        say(f"{label}: the cached {weights} cannot be used ({one_line(error)}); training it again")
        return None
    return record


def _keep(model: nn.Module, stem: Path, record: dict[str, Any], label: str, say: Callable[[str], None]) -> None:
    """Write weights and record; a cache that cannot be written costs the next run a training, not this one."""
    weights = stem.with_suffix(".safetensors")
    try:
        with atomic_path(weights) as temporary:
            save_file(model.state_dict(), temporary)
        record["weights"] = file_hash(weights)
        write_json(stem.with_suffix(".json"), record)
    except (OSError, SafetensorError) as error:  # the latter on a full disk
        say(f"warning: {label} cannot be kept in {stem.parent} ({one_line(error)}); the next run trains it again")
