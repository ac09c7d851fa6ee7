"""Any classification model of timm: ``timm:NAME``, or ``timm:PATH`` for a folder that timm saved.

Where the weights come from, in this order: a local file (option `weights`) or folder, timm's own hub entry (option
`pretrained`, which downloads), or random numbers (a fixed draw; useful to study what a teacher's structure alone
teaches, and announced by a line, since nobody should distil from one by accident).

The model is built for the task: its number of channels and classes, and its image size where the model has one (vision
transformers; the others take any size until a feature map runs out). Loaded weights that do not fit that are refused,
never adapted: a classifier with other classes would be a random one.

Source: "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from nasdistill.bridge import prepare_imports
from nasdistill.bridge.pairing import compare_classes, compare_pixels
from nasdistill.bridge.timm_info import TimmFolder, describe_timm, timm_folder
from nasdistill.errors import DataError, MismatchError, NasdistillError, UsageError, did_you_mean, one_line
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import Teacher, TeacherSession
from nasdistill.seeds import seeded
from nasdistill.spec.options import ComponentOptions
from nasdistill_teachers._common import single


class TimmOptions(ComponentOptions):
    """Options of `timm`."""

    weights: str | None = Field(None, description="Local .safetensors or torch checkpoint of this model.")
    pretrained: bool = Field(False, description="Download timm's weights for the name (needs the network once).")
    model_options: dict[str, str | int | float | bool | list[int]] = Field(
        default_factory=dict, description="Further arguments of the model, such as patch_size = 2 or depth = 4."
    )
    seed: int = Field(0, ge=0, description="Seed of random weights.")


class TimmTeacher(Teacher):
    """See the module's text."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example({}, {"locator": "test_resnet", "other_options": {"seed": 1}}, name="resnet"),
        Example({"model_options": {"patch_size": 4}}, {"locator": "test_vit"}, name="vit"),
    )
    options_model = TimmOptions
    options: TimmOptions

    @classmethod
    def locators(cls) -> Sequence[str]:
        """Return all of timm's names."""
        prepare_imports()
        import timm

        names: list[str] = timm.list_models()
        return names

    def describe(self, locator: str) -> TeacherInfo:
        """Return its sizes, labels and preprocessing; see :class:`Teacher`.

        What pixels must look like is known of weights that come with timm's own record of it: a folder's or the hub's.
        """
        label = f"timm:{locator}"
        folder = timm_folder(locator, label)
        if folder is not None:
            arguments = {**folder.arguments, **self.options.model_options}
            return describe_timm(folder.architecture, arguments, record=folder.record, labels=folder.labels)
        timm = _timm(locator)
        record = timm.get_pretrained_cfg(locator) if self.options.pretrained else None
        return describe_timm(locator, self.options.model_options, record=record.to_dict() if record else None)

    def open(
        self,
        locator: str,
        task: Task,
        *,
        cache_dir: Path,
        device: str = "cpu",
        progress: Callable[[str], None] | None = None,
    ) -> TeacherSession:
        """Build the model for `task`, load its weights and check it; see :class:`Teacher`."""
        say = progress or (lambda line: None)
        label, options, io = f"timm:{locator}", self.options, task.io
        if io.kind != "image":
            raise MismatchError(f"{label} takes images, but the task is {io}")
        if options.weights is not None and options.pretrained:
            raise UsageError(f"{label}: give weights or pretrained, not both")
        folder = timm_folder(locator, label)
        if folder is not None:
            return self._open_folder(folder, task, label, device, say)
        timm = _timm(locator)
        if options.pretrained:
            self._check_pretrained(timm, locator, task, say)
        model = self._build(timm, locator, task, label, self.options.model_options)
        if options.weights is not None:
            load_weights(model, Path(options.weights).expanduser(), task, label)
            say(f"{label}: weights from {options.weights}")
        elif not options.pretrained:
            say(f"warning: {label} has random weights and knows nothing; set weights or pretrained to change that")
        return single(model, task, label=label, device=device, checked=True)

    def _open_folder(
        self, folder: TimmFolder, task: Task, label: str, device: str, say: Callable[[str], None]
    ) -> TeacherSession:
        """Build what a folder describes and load its weights."""
        if self.options.weights is not None or self.options.pretrained:
            raise UsageError(f"{label} is a folder with weights of its own", hint="Leave weights and pretrained out.")
        compare_classes(folder.labels, int(folder.arguments.get("num_classes", task.io.outputs)), task, label, say)
        compare_pixels(folder.record, task, label, say)
        import timm

        own = {name: value for name, value in folder.arguments.items() if name not in ("in_chans", "num_classes")}
        model = self._build(timm, folder.architecture, task, label, {**own, **self.options.model_options})
        load_weights(model, folder.weights, task, label)
        say(f"{label}: {folder.architecture}, weights from {folder.weights.name}")
        return single(model, task, label=label, device=device, checked=True)

    def _build(self, timm: Any, name: str, task: Task, label: str, given: Mapping[str, Any]) -> nn.Module:
        """Return the model for the task's channels, classes and size, after a trial forward.

        Only models with position tables or windows have an `img_size`, and not all of those need one: both ways are
        tried, and the first failure that is about the image is the one that is told.
        """
        channels, high, wide = task.io.shape
        first: Exception | None = None
        for size in ({"img_size": high if high == wide else (high, wide)}, {}):
            arguments: dict[str, Any] = {**size, **given}
            try:
                with seeded(self.options.seed, "timm", name):
                    model: nn.Module = timm.create_model(
                        name,
                        pretrained=self.options.pretrained,
                        in_chans=channels,
                        num_classes=task.io.outputs,
                        **arguments,
                    )
                task.check(model, label)
                return model
            except (MismatchError, AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
                if self.options.pretrained and not isinstance(error, MismatchError) and "retrained" in str(error):
                    raise NasdistillError(f"{label} cannot be loaded: {one_line(error)}") from error
                first = first or error
            except TypeError as error:
                strange = [key for key in given if f"'{key}'" in str(error)]
                if strange:
                    raise UsageError(f"{label} does not take the model option {strange[0]!r}") from error
                if "img_size" not in str(error):
                    first = first or error
            except OSError as error:  # of the download
                raise NasdistillError(
                    f"cannot get the pretrained weights of {label}: {one_line(error)}",
                    hint='Download them elsewhere and give the file: options = { weights = "model.safetensors" }.',
                ) from error
        if isinstance(first, MismatchError):
            raise first
        assert first is not None  # the second way has no img_size to complain of
        record = timm.get_pretrained_cfg(name)
        usual = " x ".join(map(str, record.input_size)) if record is not None else "larger"
        raise MismatchError(
            f"{label} cannot be built for {' x '.join(map(str, task.io.shape))} images and {task.io.outputs} classes "
            f"(it is made for {usual}): {one_line(first)}",
            hint="Set image_size in the task's options, model_options (patch_size ...), or choose another model.",
        ) from first

    def _check_pretrained(self, timm: Any, name: str, task: Task, say: Callable[[str], None]) -> None:
        """Refuse hub weights for other channels or classes before anything is downloaded."""
        label = f"timm:{name}"
        if not timm.models.is_model_pretrained(name):
            raise UsageError(f"{label} has no pretrained weights", hint="Give a file (weights) or train it first.")
        record = timm.get_pretrained_cfg(name)
        size = tuple(record.input_size)
        if record.num_classes != task.io.outputs or size[0] != task.io.shape[0]:
            raise MismatchError(
                f"the pretrained weights of {label} take {' x '.join(map(str, size))} images and give "
                f"{record.num_classes} classes, but the task gives {' x '.join(map(str, task.io.shape))} images of "
                f"{task.io.outputs} classes",
                hint="Fine-tune the model on the task first and give its weights.",
            )
        compare_pixels({"mean": record.mean, "std": record.std}, task, label, say)


def _timm(name: str) -> Any:
    """Return timm, which has a model of this name."""
    if not name:
        raise UsageError("timm needs the name of a model", hint="Write timm:NAME, such as timm:resnet18.")
    prepare_imports()
    import timm

    if not timm.is_model(name):
        raise UsageError(
            f"timm has no model {name!r}. {did_you_mean(name.split('.')[0], timm.list_models())}",
            hint="Write timm:NAME with a name of timm.list_models(), such as timm:resnet18, or timm:PATH for a folder.",
        )
    return timm


def load_weights(model: nn.Module, path: Path, task: Task, label: str) -> None:
    """Load a checkpoint into `model`; training checkpoints (``state_dict``, ``model``, EMA) are unwrapped.

    Raises:
        DataError: unreadable, or no weights in it.
        MismatchError: weights of another model, or for other channels or classes; names both shapes.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise DataError(f"{label}: there is no weights file {path}")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # unpicklers raise nearly anything on foreign bytes
        raise DataError(
            f"{label}: cannot read the weights file {path}: {one_line(error)}",
            hint="It must be safetensors, or a torch file that loads with weights_only=True.",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{label}: {path} holds no table of tensors", hint="Save model.state_dict().")
    own = model.state_dict()
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if wrong:
        raise MismatchError(
            f"{label}: the weights in {path} do not fit the task ({task.io}): {wrong[0]} is "
            f"{tuple(state[wrong[0]].shape)} in the file and {tuple(own[wrong[0]].shape)} in the model for this task"
            + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""),
            hint=f"The file is for {_made_for(model, state)}. Use weights that were trained on this task.",
        )
    missing, strange = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or strange:
        parts = [f"{len(names)} {what} ({', '.join(names[:3])} ...)" for names, what in
                 ((missing, "tensors are missing"), (strange, "tensors are unknown")) if names]  # fmt: skip
        raise MismatchError(f"{label}: {path} holds the weights of another model: {'; '.join(parts)}")
    model.load_state_dict(state)


def _made_for(model: nn.Module, state: dict[str, torch.Tensor]) -> str:
    """Return what a checkpoint's first convolution and classifier say about its task."""
    record = getattr(model, "pretrained_cfg", None) or {}
    stem, head = state.get(f"{record.get('first_conv')}.weight"), state.get(f"{record.get('classifier')}.weight")
    channels = f"{stem.shape[1]} channels" if stem is not None and stem.ndim == 4 else "other channels"
    return f"{channels} and {head.shape[0]} classes" if head is not None else f"{channels} or classes"
