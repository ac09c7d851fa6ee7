"""What the ``config.json`` of a model of transformers says of its sizes, and whether the weights beside it agree.

Configuration classes fill in what a file leaves out: a BERT without ``hidden_size`` becomes one of width 768, and what
goes wrong then names everything but the key. So the file's own keys are compared with the shapes in the headers of the
safetensors; no weights are read.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nasdistill.errors import DataError, one_line
from nasdistill.files import read_json
from nasdistill.seeds import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SIZES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "dim", "embed_dim"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "intermediate_size": ("n_inner", "d_ff", "hidden_dim", "ffn_dim"),
}
"""The sizes that students are cut from: their usual key in ``config.json``, and what some families call them."""

SITES = ("q", "k", "v", "context", "attn_out", "ffn_out")
"""Where a layer is looked into."""

Shapes = dict[str, tuple[int, ...]]


def absent_sizes(config: Mapping[str, Any]) -> list[str]:
    """Return which of :data:`SIZES` a configuration has under none of their keys."""
    return [name for name, others in SIZES.items() if not any(key in config for key in (name, *others))]


def told_sizes(config: Mapping[str, Any]) -> str:
    """Return in words which keys of sizes a configuration has, and which were looked for in vain."""
    known = [key for name, others in SIZES.items() for key in (name, *others) if key in config]
    lost = [f"{name} ({', '.join(SIZES[name])})" for name in absent_sizes(config)]
    has = f"its config.json has {', '.join(known)}" if known else "its config.json has no size that is known here"
    return has + (f"; not found: {', '.join(lost)}" if lost else "")


def decodes_only(config: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is of a family of decoders, which predicts next tokens and no masked ones."""
    from transformers.models.auto import modeling_auto as auto

    kind = config.get("model_type")
    return (
        kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not config.get("is_encoder_decoder")
    )


def check_sizes(folder: Path, config: PreTrainedConfig, label: str) -> None:
    """Compare the sizes in a folder's ``config.json`` with the shapes of its weights, where it has any.

    Only what can be put down to a key is told here; whatever else does not fit is told when the weights are loaded.

    Args:
        folder: of the saved model.
        config: as transformers reads it, defaults filled in.
        label: how messages call the model.

    Raises:
        DataError: keys are missing or wrong; names them, with the sizes that the weights have.
    """
    raw, found = read_json(folder / "config.json"), tensor_shapes(folder)
    if not found:
        return
    # What is derived from other keys (the number of layers from a list of blocks) is no key that a file could lack.
    full, own = config.to_dict(), dict(config.attribute_map)
    absent = [name for name in absent_sizes(raw) if own.get(name, name) in full.keys() - raw.keys()]
    if "num_attention_heads" in absent:
        raise DataError(
            f"{label}: config.json lacks {', '.join(absent)}; how many heads there are does not show in the weights",
            hint=_COMPLETE,
        )
    wrong: dict[str, int] = {}
    layers = _layers(found)
    if "num_hidden_layers" in absent and layers is not None and layers != config.num_hidden_layers:
        wrong["num_hidden_layers"] = layers
    try:
        wrong |= _explained(_with(config, wrong), found)
    except Exception as error:  # whatever a class raises on sizes that do not go together
        if absent:
            raise DataError(
                f"{label}: config.json lacks {', '.join(absent)}, and what transformers takes instead does not go "
                f"together: {one_line(error)}",
                hint=_COMPLETE,
            ) from error
        return
    if wrong:
        told = []
        for key, size in wrong.items():
            said = next((name for name in (key, *_usual(config, key)) if name in raw), None)
            told.append(
                f"lacks {key}: the weights have {size}, and transformers would take {getattr(config, key)}"
                if said is None
                else f"says {said} = {raw[said]}, and the weights have {size}"
            )
        raise DataError(f"{label}: config.json {'; it '.join(told)}", hint=_COMPLETE)


_COMPLETE = "Its folder needs the complete config.json that the model was saved with."


def tensor_shapes(folder: Path) -> Shapes:
    """Return name -> shape of the tensors in a folder's safetensors; empty where there are none that can be read."""
    from safetensors import safe_open

    found: Shapes = {}
    try:
        index = folder / "model.safetensors.index.json"
        names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        for name in names:
            with safe_open(str(folder / str(name)), framework="pt") as file:
                found |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except Exception:  # no file, or one that loading refuses in words of its own
        return {}
    return found


def _layers(found: Shapes) -> int | None:
    """Return the length of the list that holds most tensors; None without lists."""
    numbers = [match for name in found if (match := re.match(r"(.*?)\.(\d+)\.", name))]
    if not numbers:
        return None
    longest = Counter(match[1] for match in numbers).most_common(1)[0][0]
    return 1 + max(int(match[2]) for match in numbers if match[1] == longest)


def _usual(config: PreTrainedConfig, key: str) -> list[str]:
    """Return the other names of a family's own key."""
    return [name for name, own in config.attribute_map.items() if own == key]


def _with(config: PreTrainedConfig, sizes: Mapping[str, int]) -> PreTrainedConfig:
    changed = copy.deepcopy(config)
    for key, size in sizes.items():
        setattr(changed, key, size)
    return changed


def _explained(config: PreTrainedConfig, found: Shapes) -> dict[str, int]:
    """Return key -> size such that the body of the model has the shapes that were found; only keys that help."""
    wrong: dict[str, int] = {}
    left = _differences(_expected(config), found)
    while left:
        best: tuple[int, str, int] | None = None
        for key, size in _candidates(config, left):
            try:
                rest = len(_differences(_expected(_with(config, {key: size})), found))
            except Exception:  # sizes that do not go together explain nothing
                continue
            if rest < (len(left) if best is None else best[0]):
                best = rest, key, size
        if best is None:
            break
        wrong[best[1]] = best[2]
        config = _with(config, {best[1]: best[2]})
        left = _differences(_expected(config), found)
    return wrong


def _candidates(config: PreTrainedConfig, left: Mapping[str, tuple[Any, Any]]) -> Iterator[tuple[str, int]]:
    """Yield keys whose value is a size that differs, with the size that was found."""
    pairs = {
        (wanted, there) for shapes in left.values() for wanted, there in zip(*shapes, strict=True) if wanted != there
    }
    for key, value in config.to_dict().items():
        if type(value) is int:
            yield from ((key, there) for wanted, there in sorted(pairs) if wanted == value)


def _expected(config: PreTrainedConfig) -> Shapes:
    """Return name -> shape of the parameters of a configuration's body; empty where transformers has none."""
    from transformers.models.auto import modeling_auto

    from nasdistill.bridge.transformers import quiet

    table: Any = modeling_auto.MODEL_MAPPING
    if type(config) not in table:
        return {}
    kind = table[type(config)]
    with quiet(), seeded(0, "sizes"), torch.device("meta"):
        model = (kind[0] if isinstance(kind, tuple) else kind)(copy.deepcopy(config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _differences(expected: Shapes, found: Shapes) -> dict[str, tuple[Any, Any]]:
    """Return the parameters whose shapes differ in some sizes, with both shapes; found names may have a prefix."""
    ends = {name.partition(".")[2]: shape for name, shape in found.items()} | found
    return {
        name: (shape, ends[name])
        for name, shape in expected.items()
        if name in ends and ends[name] != shape and len(ends[name]) == len(shape)
    }
