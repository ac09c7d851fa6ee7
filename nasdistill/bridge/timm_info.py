"""What a timm model says of itself before it is loaded, and the folders that timm saves models in.

A folder (what ``timm.models.push_to_hf_hub`` uploads: ``config.json`` and ``model.safetensors``) names its architecture
and the arguments that it was built with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nasdistill.bridge import prepare_imports
from nasdistill.errors import DataError, UsageError, did_you_mean, one_line
from nasdistill.files import read_json
from nasdistill.interfaces.info import TeacherInfo


@dataclass(frozen=True, slots=True)
class TimmFolder:
    """A saved timm model.

    Attributes:
        architecture: timm's name.
        arguments: what it was built with, besides the name.
        weights: its file of weights.
        record: how its pixels are prepared, as timm's ``pretrained_cfg``.
        labels: names of its classes, in order; empty where it names none.
    """

    architecture: str
    arguments: Mapping[str, Any]
    weights: Path
    record: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


def timm_folder(locator: str, label: str) -> TimmFolder | None:
    """Read the folder of a saved timm model; None when `locator` is no folder.

    Raises:
        DataError: its files are missing or cannot be read.
        UsageError: it is another library's, or its architecture is unknown to this timm.
    """
    folder = Path(locator).expanduser()
    if not locator or not folder.is_dir():
        return None
    path = folder / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{label}: {path} cannot be read: {one_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        other = "hf" if isinstance(config, dict) and "model_type" in config else ""
        raise UsageError(
            f"{label}: its config.json names no architecture of timm",
            hint=f"It is a transformers model: write {other}:{locator}." if other else "Name a folder that timm saved.",
        )
    prepare_imports()
    import timm

    name = config["architecture"]
    if not timm.is_model(name):
        raise UsageError(
            f"{label}: its architecture {name!r} is not known to timm {timm.__version__}. "
            f"{did_you_mean(name, timm.list_models())}"
        )
    if not (folder / "model.safetensors").is_file():
        raise DataError(f"{label} has no model.safetensors", hint="Save its weights there; pickles are not opened.")
    record = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or record.get("label_names") or ()
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    arguments = {"num_classes": config.get("num_classes"), **(config.get("model_args") or {})}
    return TimmFolder(
        name, {key: value for key, value in arguments.items() if value is not None}, folder / "model.safetensors",
        record, tuple(map(str, names)),
    )  # fmt: skip


def describe_timm(
    name: str, arguments: Mapping[str, Any], *, record: Mapping[str, Any] | None = None, labels: tuple[str, ...] = ()
) -> TeacherInfo:
    """Return a timm model's sizes; it is built without memory for its weights.

    Args:
        name: timm's name of the architecture.
        arguments: further arguments of the model.
        record: how pixels become its input (timm's ``pretrained_cfg``), where its weights are known to expect that.
        labels: names of its classes.
    """
    prepare_imports()
    import timm

    try:
        with torch.device("meta"):
            model: nn.Module | None = timm.create_model(name, pretrained=False, **arguments)
    except Exception:  # some models compute with their weights when they are built
        model = None
    sizes: dict[str, Any] = {"architecture": name, **{key: _plain(value) for key, value in arguments.items()}}
    if model is not None:
        sizes |= model_sizes(model)
    preprocessing = _preprocessing(record or {})
    if "size" in preprocessing and sizes.get("img_size"):  # what it was built for, not what the record's weights were
        preprocessing["size"] = sizes["img_size"]
    return TeacherInfo("timm", model=sizes, labels=labels, preprocessing=preprocessing)


def model_sizes(model: nn.Module) -> dict[str, Any]:
    """Return what a timm model is made of, under the names of its constructor's arguments.

    Every model says ``class``, ``num_classes``, ``in_chans`` and ``num_features`` where it knows them; a vision
    transformer (a list ``blocks`` with attention) also ``img_size``, ``patch_size`` (height, width), ``embed_dim``,
    ``depth``, ``num_heads``, ``mlp_ratio``, ``qkv_bias``, ``qk_norm``, ``class_token``, ``reg_tokens``,
    ``no_embed_class``, ``pre_norm``, ``layer_scale``, ``global_pool``, ``fc_norm``, ``final_norm``, ``distilled``,
    ``norm_eps``, and the classes of its blocks (``block``) and, in small letters, of its MLPs' ``activation``. A PiT
    says ``base_dims``, ``depth`` and ``heads`` per stage, ``mlp_ratio``, ``img_size``, ``patch_size``, ``stride`` and
    ``distilled``.
    """
    own: Any = model
    found: dict[str, Any] = {"class": type(model).__name__}
    for key in ("num_classes", "in_chans", "num_features"):
        if isinstance(getattr(own, key, None), int):
            found[key] = getattr(own, key)
    if found["class"] == "PoolingVisionTransformer":
        return found | _pooling_sizes(own)
    blocks = getattr(own, "blocks", None)
    patches = getattr(own, "patch_embed", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not len(blocks) or patches is None:
        return found
    first: Any = blocks[0]
    attention: Any = getattr(first, "attn", None)
    mlp: Any = getattr(first, "mlp", None)
    if not hasattr(attention, "num_heads") or not hasattr(mlp, "fc1") or not hasattr(own, "embed_dim"):
        return found
    qkv = getattr(attention, "qkv", None)
    if patches.img_size is not None:
        found["img_size"] = list(patches.img_size)
    found |= {
        "in_chans": patches.proj.in_channels,
        "patch_size": list(patches.patch_size),
        "embed_dim": own.embed_dim,
        "depth": len(blocks),
        "num_heads": attention.num_heads,
        "mlp_ratio": mlp.fc1.out_features / own.embed_dim,
        "qkv_bias": qkv is not None and qkv.bias is not None,
        "qk_norm": not isinstance(getattr(attention, "q_norm", nn.Identity()), nn.Identity),
        "class_token": getattr(own, "cls_token", None) is not None,
        "reg_tokens": int(getattr(own, "num_reg_tokens", 0)),
        "no_embed_class": bool(getattr(own, "no_embed_class", False)),
        "pre_norm": not isinstance(getattr(own, "norm_pre", nn.Identity()), nn.Identity),
        "layer_scale": not isinstance(getattr(first, "ls1", nn.Identity()), nn.Identity),
        "global_pool": getattr(own, "global_pool", ""),
        "fc_norm": not isinstance(getattr(own, "fc_norm", nn.Identity()), nn.Identity),
        "final_norm": not isinstance(getattr(own, "norm", nn.Identity()), nn.Identity),
        "distilled": hasattr(own, "dist_token"),
        "norm_eps": float(getattr(getattr(first, "norm1", None), "eps", 1e-6)),
        "activation": type(getattr(mlp, "act", nn.GELU())).__name__.lower(),
        "block": type(first).__name__,
    }
    return found


def _pooling_sizes(model: Any) -> dict[str, Any]:
    """Return the sizes of a PiT."""
    stages, patches = model.transformers, model.patch_embed
    first: Any = stages[0].blocks[0]
    return {
        "img_size": list(patches.img_size),
        "patch_size": list(patches.patch_size),
        "stride": patches.conv.stride[0],
        "base_dims": list(model.base_dims),
        "depth": [len(stage.blocks) for stage in stages],
        "heads": list(model.heads),
        "mlp_ratio": first.mlp.fc1.out_features / first.mlp.fc1.in_features,
        "distilled": model.head_dist is not None,
    }


def _preprocessing(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's record of pixels under our names; what is unknown is left out."""
    found: dict[str, Any] = {key: list(record[key]) for key in ("mean", "std") if record.get(key)}
    if record.get("input_size"):
        found["size"] = list(record["input_size"])[1:]
    if record.get("interpolation"):
        found["interpolation"] = record["interpolation"]
    if record.get("crop_pct"):
        found["crop"] = record["crop_pct"]
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else cast("Any", value)
