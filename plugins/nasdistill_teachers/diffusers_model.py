"""A denoiser of diffusers: ``diffusers:PATH``, the folder of a U-Net or transformer, or of a pipeline that has one.

What there is: loading (U-Nets with and without conditions, DiT, SD3 and Flux transformers: whatever diffusers saves),
the one way of calling it, ``model(sample, timestep=None, **conditions)``, and its sites. What a diffusion task does
with it (noise, schedule, conditions) is the task's: its `forward` calls the network.

Source: "Diffusers: State-of-the-art diffusion models", https://github.com/huggingface/diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from nasdistill.bridge.diffusers import denoiser_config, denoiser_folder, load_denoiser, plain_config
from nasdistill.bridge.random_models import save_random_denoiser
from nasdistill.errors import MismatchError, UsageError
from nasdistill.files import canonical_json, content_hash
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import SingleTeacher, Teacher, TeacherSession
from nasdistill.spec.options import ComponentOptions
from nasdistill.weights import model_hash


class DiffusersOptions(ComponentOptions):
    """Options of `diffusers`."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Precision of the weights.")


class DiffusersTeacher(Teacher):
    """See the module's text."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {},
            {
                "locator": lambda folder: save_random_denoiser(folder / "unet", seed=0),
                "other_locator": lambda folder: save_random_denoiser(folder / "other", seed=1),
                # Its rows of 10 numbers pass as outputs of a task with 10.
                "task_options": {"side": 10},
            },
        ),
    )
    options_model = DiffusersOptions
    options: DiffusersOptions

    def describe(self, locator: str) -> TeacherInfo:
        """Return its configuration; see :class:`Teacher`."""
        label = f"diffusers:{_given(locator)}"
        return TeacherInfo("diffusers", denoiser_config(denoiser_folder(locator, label=label), label=label))

    def open(
        self,
        locator: str,
        task: Task,
        *,
        cache_dir: Path,
        device: str = "cpu",
        progress: Callable[[str], None] | None = None,
    ) -> TeacherSession:
        """Load it and check that it takes the task's data; see :class:`Teacher`."""
        label = f"diffusers:{_given(locator)}"
        config = denoiser_config(denoiser_folder(locator, label=label), label=label)
        side, channels = config.get("sample_size"), config.get("in_channels")
        takes = f"{config['_class_name']} of {channels} channels" + (f" and side {side}" if side else "")
        if task.io.kind not in ("image", "other"):
            raise MismatchError(f"{label} ({takes}) takes images or latents, but the task is {task.io}")
        if task.io.kind == "image" and config["_class_name"].startswith("UNet") and channels != task.io.shape[0]:
            raise MismatchError(f"{label} ({takes}) does not fit the task, which is {task.io}")
        model = load_denoiser(locator, dtype=self.options.dtype, label=label)
        task.check(model, label)
        kept: dict[str, Any] = {k: v for k, v in plain_config(model.config).items() if k != "_name_or_path"}
        fingerprint = content_hash({"model": model_hash(model), "config": canonical_json(kept)})
        return SingleTeacher(model.to(device), label=label, fingerprint=fingerprint)


def _given(locator: str) -> str:
    """Return a locator that says something."""
    if not locator:
        raise UsageError("diffusers needs a folder", hint="Write diffusers:PATH, such as diffusers:./my-unet.")
    return locator
