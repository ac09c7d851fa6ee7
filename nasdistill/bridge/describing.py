"""What a saved model says of itself before it is loaded: sizes, longest input, labels, preprocessing.

Only configuration files and the headers of the weights (their shapes) are read: ``config.json``, the tokenizer's and
the image processor's, and, for sentence-transformers folders, ``modules.json`` and what it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nasdistill.bridge.hub import model_folder
from nasdistill.bridge.sizes import check_sizes
from nasdistill.bridge.tokenizers import UNLIMITED, has_tokenizer
from nasdistill.bridge.transformers import Pooling, config_json, read_config
from nasdistill.errors import DataError, UsageError, one_line
from nasdistill.files import read_json
from nasdistill.interfaces.info import TeacherInfo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OFFSET = frozenset({
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Model types whose positions begin behind the padding id: their table is longer than their longest input."""

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers."""


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """What a sentence-transformers folder puts behind its transformer.

    Attributes:
        pooling: how token vectors become one.
        normalize: whether the result is scaled to length 1.
    """

    pooling: Pooling = "mean"
    normalize: bool = False


def describe(source: str, *, revision: str | None = None, label: str = "") -> TeacherInfo:
    """Return what a transformers model says of itself.

    Args:
        source: a folder, a name in the hub's local cache, or ``hub:NAME``.
        revision: of a hub name.
        label: how messages call it.

    Raises:
        UsageError: there is no such model, or its type is unknown.
        DataError: its configuration cannot be read, or lacks sizes that the weights beside it have.
    """
    label = label or source
    folder = model_folder(source, revision=revision, label=label)
    config = read_config(folder, label=label)
    check_sizes(folder, config, label)
    limits = (
        position_limit(config),
        _limit(folder / "tokenizer_config.json", "model_max_length"),
        _limit(folder / "sentence_bert_config.json", "max_seq_length"),
    )
    known = [limit for limit in limits if limit is not None]
    return TeacherInfo(
        library="transformers",
        model=config_json(config),
        tokenizer=source if has_tokenizer(folder) else None,
        max_length=min(known) if known else None,
        labels=labels_of(config),
        preprocessing=preprocessing_of(folder, config),
    )


def position_limit(config: PreTrainedConfig) -> int | None:
    """Return the longest input that a model has positions for, in tokens; None where it has no limit."""
    size = getattr(config, "max_position_embeddings", None)
    if not isinstance(size, int) or size <= 0:
        return None
    if config.model_type in OFFSET:
        return size - (getattr(config, "pad_token_id", None) or 0) - 1
    return size


def labels_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names of a model's classes in order; empty where they are only numbered (``LABEL_0``)."""
    table = getattr(config, "id2label", None) or {}
    names = tuple(str(table[index]) for index in sorted(table))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def sentence_modules(folder: Path, *, label: str = "") -> SentenceModules | None:
    """Return how a sentence-transformers folder makes its vectors; None for any other folder.

    Raises:
        DataError: its files cannot be read.
        UsageError: it has a module or a pooling that is not known here; names it.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return None
    label = label or str(folder)
    modules: list[dict[str, Any]] = _table(path, label, list)
    pooling, normalize = "mean", False
    for module in modules:
        kind, where = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Pooling":
            pooling = _pooling(_table(folder / where / "config.json", label, dict), label)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UsageError(
                f"{label}: modules.json has a module {kind or module!r}, which is not known here (Transformer, Pooling "
                "and Normalize are)",
                hint='Set pooling = "mean" to take the transformer alone, with the mean over its tokens.',
            )
    return SentenceModules(cast("Pooling", pooling), normalize)


def preprocessing_of(folder: Path, config: PreTrainedConfig | None = None) -> dict[str, Any]:
    """Return how pixels become the input of an image model, as in :class:`TeacherInfo`; what is unknown is left out."""
    path = folder / "preprocessor_config.json"
    try:
        raw = read_json(path) if path.is_file() else {}
    except (OSError, ValueError):
        raw = {}
    found: dict[str, Any] = {}
    if raw.get("do_normalize", True) and raw.get("image_mean") and raw.get("image_std"):
        found["mean"], found["std"] = list(raw["image_mean"]), list(raw["image_std"])
    size, crop = _height_width(raw.get("size")), _height_width(raw.get("crop_size"))
    side = getattr(config, "image_size", None)
    if raw.get("do_center_crop") and crop:
        found["size"] = crop
        if size:
            found["crop"] = round(min(crop) / min(size), 4)
    elif size:
        found["size"] = size
        if raw.get("crop_pct"):
            found["crop"] = raw["crop_pct"]
    elif side:
        found["size"] = _height_width(side)
    if raw.get("resample") in RESAMPLING:
        found["interpolation"] = RESAMPLING[raw["resample"]]
    return found


def _pooling(config: dict[str, Any], label: str) -> str:
    """Return the one pooling mode of a pooling module's configuration."""
    named = config.get("pooling_mode")
    modes = (
        [named]
        if isinstance(named, str)
        else [
            name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
        ]
    )
    short = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if len(modes) != 1 or modes[0] not in short:
        raise UsageError(
            f"{label} pools its tokens by {' and '.join(modes) or 'nothing'}; mean and cls are known here",
            hint='Set pooling = "mean" to take the mean over its tokens instead.',
        )
    return short[modes[0]]


def _limit(path: Path, name: str) -> int | None:
    """Return a length that a configuration file states; None where there is none."""
    try:
        limit = read_json(path).get(name) if path.is_file() else None
    except (OSError, ValueError, AttributeError):
        return None
    return int(limit) if isinstance(limit, int | float) and 0 < limit < UNLIMITED else None


def _height_width(size: Any) -> list[int] | None:
    """Return the ``[H, W]`` of any of the forms that image processors write."""
    if isinstance(size, int):
        return [size, size]
    if isinstance(size, list | tuple) and len(size) == 2:
        return [int(size[0]), int(size[1])]
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return [int(size["height"]), int(size["width"])]
        if "shortest_edge" in size:
            return [int(size["shortest_edge"])] * 2
    return None


def _table(path: Path, label: str, kind: type) -> Any:
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{label}: {path.name} cannot be read: {one_line(error)}") from error
    if not isinstance(value, kind):
        raise DataError(f"{label}: {path.name} is no {'list' if kind is list else 'table'}")
    return value
