"""Where a model's files are: a folder, the local cache of the Hugging Face hub, or, when asked for, the hub itself.

``./my-bert`` is a folder. ``org/name`` is a folder of that name where there is one, else what an earlier download left
in the hub's cache on this machine. Only ``hub:org/name`` may use the network: a folder's name with a typo must not
fetch a stranger's model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nasdistill.errors import DataError, UsageError, did_you_mean, one_line

PREFIX = "hub:"
"""What a name begins with that may be downloaded."""

DESCRIPTIONS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files that say what a model is: configurations, vocabularies, lists of modules."""

WEIGHTS = ("model.safetensors", "model-*.safetensors", "diffusion_pytorch_model*.safetensors")
"""Files of weights; only safetensors are ever read."""

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def model_folder(source: str, *, revision: str | None = None, weights: bool = False, label: str = "") -> Path:
    """Return the local folder of a model.

    Args:
        source: a folder, a name in the hub's local cache, or ``hub:NAME``, which is downloaded when it is not there.
        revision: branch, tag or commit of a hub name.
        weights: whether the weights are needed too; a download fetches only what is needed.
        label: how messages call it (``"hf:./my-bert"``); `source` when not given.

    Raises:
        UsageError: there is no such folder or name, with what is close; or a revision was given for a folder.
        DataError: it cannot be downloaded.
    """
    name, label = source.removeprefix(PREFIX), label or source
    asked = source.startswith(PREFIX)
    folder = Path(name).expanduser()
    if name and not asked and folder.is_dir():
        if revision is not None:
            raise UsageError(f"{label} is a folder on this machine, which has no revision {revision!r}")
        return folder
    if not asked and folder.is_file():
        raise UsageError(f"{label} is a file; what is needed is the folder that save_pretrained wrote")
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"{label}: there is no folder {name!r}{_near(folder)}", hint="Name a folder of a saved model.")
    from huggingface_hub import snapshot_download

    patterns = [*DESCRIPTIONS, *(WEIGHTS if weights else ())]
    try:
        found = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=patterns))
        if not asked or _complete(found, weights):
            return found
    except (OSError, ValueError):  # not there
        found = None
    if not asked:
        raise UsageError(
            f"{label}: there is no folder {name!r}{_near(folder)}, and no such model in this machine's hub cache",
            hint=f"Name a folder of a saved model, or write {PREFIX}{name} to download it from the Hugging Face hub.",
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # whatever a network can raise
        raise DataError(
            f"{label} cannot be downloaded: {one_line(error)}",
            hint="Check the name and the network (HF_HUB_OFFLINE must not be set), or name a local folder.",
        ) from error


def _complete(folder: Path, weights: bool) -> bool:
    """Return whether a cached snapshot has what is needed; an earlier download may have left the weights out."""
    has = [any(folder.glob(pattern)) for pattern in WEIGHTS] if weights else [(folder / "config.json").is_file()]
    return any(has)


def _near(folder: Path) -> str:
    """Return a remark on folders beside a missing one whose names are close."""
    try:
        beside: Sequence[str] = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return ""
    known = did_you_mean(folder.name, beside) if beside else ""
    return f" ({known.rstrip('?.')}?)" if known.startswith("Did you mean") else ""
