"""Which class of transformers computes the same as a vision transformer, and what its tensors are called there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from nasdistill.interfaces import StockModel
from nasdistill_spaces.vit.model import VitShape

_CLASSES = {1: ("vit", "ViTForImageClassification"), 2: ("deit", "DeiTForImageClassification")}
"""By the number of tokens before the patches: the second of DeiT is its distillation token."""


def stock_model(shape: VitShape, image: tuple[int, ...]) -> StockModel | None:
    """Return the configuration and the renaming, or None where no stock class has this shape.

    The configuration classes know one number of heads and neurons for all blocks, softmax attention, a head on the
    class token and positions for all tokens. Heads need not fill the width: the classes read ``head_dim``.

    Args:
        shape: of the network.
        image: ``(C, H, W)``.
    """
    first = shape.layers[0]
    uniform = all(layer == first for layer in shape.layers) and first.softmax
    whole = all(grid * patch == side for grid, patch, side in zip(shape.grid, shape.patch, image[1:], strict=True))
    if not (uniform and whole and shape.prefix in _CLASSES and shape.prefix_positions and shape.pool == "token"):
        return None
    kind, name = _CLASSES[shape.prefix]
    config: dict[str, Any] = {
        "model_type": kind, "architectures": [name], "hidden_size": shape.embed, "num_hidden_layers": len(shape.layers),
        "num_attention_heads": first.heads, "intermediate_size": first.mlp, "hidden_act": shape.activation,
        "hidden_dropout_prob": shape.dropout, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": shape.eps,
        "image_size": _side(image[1:]), "patch_size": _side(shape.patch), "num_channels": shape.channels,
        "qkv_bias": shape.qkv_bias,
        "id2label": {str(index): f"LABEL_{index}" for index in range(shape.outputs)},
        "label2id": {f"LABEL_{index}": index for index in range(shape.outputs)},
    }  # fmt: skip
    if first.heads * shape.head_dim != shape.embed:
        config["head_dim"] = shape.head_dim
    return StockModel(config, _renamed(kind))


def _side(size: tuple[int, ...]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _renamed(kind: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {name if name.startswith("classifier.") else f"{kind}.{name}": t for name, t in state.items()}
        if kind == "deit":
            tokens = found[f"{kind}.embeddings.cls_token"]
            found[f"{kind}.embeddings.cls_token"] = tokens[:, :1].contiguous()
            found[f"{kind}.embeddings.distillation_token"] = tokens[:, 1:].contiguous()
        return found

    return weights
