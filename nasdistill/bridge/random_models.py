"""Small models of transformers with random weights, saved as the library saves them: something to try a bridge on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from nasdistill.bridge import prepare_imports
from nasdistill.bridge.transformers import HEADS, head_class, quiet
from nasdistill.seeds import seeded
from nasdistill.spec.io import Head

Family = Literal["bert", "roberta", "electra", "gpt2", "llama", "qwen2", "vit", "deit", "swin"]

_TEXT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60,
    "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_IMAGE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8,
    "patch_size": 4, "num_channels": 1, "num_labels": 10,
}  # fmt: skip
SIZES: Mapping[str, Mapping[str, Any]] = {
    "bert": _TEXT,
    "roberta": _TEXT,
    "electra": {**_TEXT, "embedding_size": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "vocab_size": 60, "pad_token_id": 0,
             "bos_token_id": 1, "eos_token_id": 2},
    "llama": {**_TEXT, "num_key_value_heads": 1},
    "qwen2": {**_TEXT, "num_key_value_heads": 1},
    "vit": _IMAGE,
    "deit": _IMAGE,
    "swin": {"image_size": 8, "patch_size": 2, "num_channels": 1, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2],
             "window_size": 2, "num_labels": 10},
}  # fmt: skip
"""Configuration of each family: two blocks of two heads, width 16, 60 token ids or 8 x 8 grey images."""


def random_model(family: Family, head: Head | None = None, *, seed: int = 0, **sizes: Any) -> nn.Module:
    """Return a small stock model with random weights, in eval mode.

    Biases and norms are drawn too: at their initial 0 and 1, a lost one would change nothing.

    Args:
        family: which.
        head: its head; the classifier of images, the vectors of tokens unless given.
        seed: of the weights.
        **sizes: other values of its configuration than :data:`SIZES` has.
    """
    prepare_imports()
    from transformers import AutoConfig

    images = family in ("vit", "deit", "swin")
    wanted: Head = head or ("classes" if images else "embedding")
    kind = "image" if images else "tokens"
    assert (kind, wanted) in HEADS, (family, wanted)
    with quiet(), seeded(seed, "random model", family):
        config = AutoConfig.for_model(family, **{**SIZES[family], **sizes})
        model = cast("nn.Module", cast("Any", head_class(config, kind, wanted, family))(config))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def save_random_model(folder: Path, family: Family, head: Head | None = None, *, seed: int = 0, **sizes: Any) -> str:
    """Save a :func:`random_model` and return its folder as text."""
    model: Any = random_model(family, head, seed=seed, **sizes)
    with quiet():
        model.save_pretrained(folder)
    return str(folder)


def save_random_denoiser(folder: Path, *, seed: int = 0, **sizes: Any) -> str:
    """Save a small U-Net of diffusers with attention and random weights, for 10 x 10 grey images; return its folder.

    Args:
        folder: where.
        seed: of the weights.
        **sizes: other values of its configuration.
    """
    prepare_imports()
    from diffusers import UNet2DModel

    usual: dict[str, Any] = {
        "sample_size": 10, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8,),
        "norm_num_groups": 4, "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",),
        "attention_head_dim": 4,
    }  # fmt: skip
    with seeded(seed, "random denoiser"):
        cast("Any", UNet2DModel)(**{**usual, **sizes}).save_pretrained(folder)
    return str(folder)
