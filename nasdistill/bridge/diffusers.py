"""Denoisers of diffusers (U-Nets and transformers), loaded from a folder of safetensors and called one way.

``model(sample, timestep=None, **conditions)`` gives the denoiser's tensor: `sample` goes to its first argument whatever
that is called, conditions go by diffusers' own names (``encoder_hidden_states``, ``pooled_projections``,
``class_labels``, ``img_ids`` ...). The stock model is the child `model`. Attention keeps its processors, so sites are
found in it as in any other network.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasdistill.bridge import prepare_imports
from nasdistill.bridge.hub import model_folder
from nasdistill.errors import DataError, MismatchError, UsageError, did_you_mean, one_line
from nasdistill.files import read_json
from nasdistill.seeds import seeded

PARTS = ("transformer", "unet")
"""Folders of a pipeline that hold its denoiser."""

WEIGHTS = "diffusion_pytorch_model"


class Denoiser(nn.Module):
    """A diffusers model, called as the module's text says.

    Args:
        model: the stock model, which stays the child `model`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        names = list(inspect.signature(model.forward).parameters)
        self._first = names[0]
        self._accepts = frozenset(names)

    @property
    def config(self) -> Mapping[str, Any]:
        """The stock model's configuration."""
        return cast("Mapping[str, Any]", self.model.config)

    def forward(self, sample: Tensor, timestep: Tensor | float | None = None, **conditions: Any) -> Tensor:
        """Return what the denoiser predicts, in single precision.

        Args:
            sample: ``(B, C, H, W)``, or tokens ``(B, N, C)`` for models that take these.
            timestep: ``(B,)`` or one number for all; 0, which is no noise, where it is left out.
            **conditions: what else the model takes, by its own names.

        Raises:
            MismatchError: the model takes no condition of this name.
        """
        strange = sorted(set(conditions) - self._accepts)
        if strange:
            raise MismatchError(
                f"{type(self.model).__name__} takes no {strange[0]}. "
                f"{did_you_mean(strange[0], self._accepts - {self._first, 'timestep', 'return_dict'})}"
            )
        steps = torch.as_tensor(0 if timestep is None else timestep, device=sample.device)
        steps = steps.expand(sample.shape[0]) if steps.ndim == 0 else steps
        dtype = next(self.model.parameters()).dtype
        given = {self._first: sample.to(dtype), "timestep": steps, **conditions}
        predicted: Tensor = self.model(**given, return_dict=False)[0]
        return predicted.float()


def denoiser_folder(source: str, *, label: str = "") -> Path:
    """Return the folder of a denoiser: the one that is named, or the one inside a pipeline's.

    Raises:
        UsageError: there is no such folder.
    """
    folder = model_folder(source, label=label)
    if (folder / "model_index.json").is_file() and not (folder / "config.json").is_file():
        inside = [folder / part for part in PARTS if (folder / part / "config.json").is_file()]
        if inside:
            return inside[0]
    return folder


def denoiser_config(folder: Path, *, label: str = "") -> dict[str, Any]:
    """Return the configuration of a saved denoiser; neither weights nor diffusers are loaded.

    Raises:
        DataError: there is none.
        UsageError: it is another library's.
    """
    label = label or str(folder)
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{label}: config.json cannot be read: {one_line(error)}",
            hint=f"Name the folder of a denoiser, or of a pipeline with {' or '.join(PARTS)}.",
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        other = "hf" if isinstance(config, dict) and "model_type" in config else ""
        raise UsageError(
            f"{label}: its config.json names no class of diffusers",
            hint=f"It is a transformers model: write {other}:PATH." if other else "Save it with save_pretrained.",
        )
    return config


def load_denoiser(source: str, *, dtype: str = "float32", label: str = "") -> Denoiser:
    """Load a saved denoiser, in eval mode.

    Args:
        source: a folder, or a pipeline's, or a name in the hub's local cache.
        dtype: ``float32``, ``bfloat16`` or ``float16``, whatever the file has.
        label: how messages call it.

    Raises:
        UsageError: there is no such folder, or diffusers does not know its class.
        DataError: its files cannot be read, are no safetensors, or lack tensors or have too many.
    """
    label = label or source
    folder = denoiser_folder(source, label=label)
    config = denoiser_config(folder, label=label)
    prepare_imports()
    import diffusers
    from diffusers import ModelMixin
    from diffusers.utils import logging as diffusers_logging

    name = config["_class_name"]
    known = getattr(diffusers, name, None)
    if not (isinstance(known, type) and issubclass(known, ModelMixin)):
        names = [one for one in dir(diffusers) if one.endswith("Model")]
        raise UsageError(f"{label} is a {name}, which diffusers {diffusers.__version__} does not know. "
                         f"{did_you_mean(name, names)}")  # fmt: skip
    if not any(folder.glob(f"{WEIGHTS}*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise DataError(
            f"{label} has no {WEIGHTS}.safetensors"
            + (f"; {pickled[0]} is a pickle, which is not opened" if pickled else "")
        )
    logging: Any = diffusers_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with seeded(0, "diffusers"):
            loaded: Any = cast("Any", known).from_pretrained(
                str(folder), torch_dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True,
                low_cpu_mem_usage=False, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:  # whatever the library raises on files that are not what they say
        raise DataError(f"{label} cannot be loaded: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    model, info = loaded
    for key, what in (
        ("mismatched_keys", "of another shape"),
        ("missing_keys", "missing"),
        ("unexpected_keys", "extra"),
    ):
        names = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info[key])
        if names:
            raise DataError(
                f"{label}: {len(names)} tensors are {what} by its config.json: {', '.join(names[:3])}",
                hint="config.json and the weights are of different models.",
            )
    return Denoiser(model).eval()


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as plain JSON data."""
    value: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return value
