"""Sizes of a teacher as timm or transformers say them, and AutoFormer's tables of choices scaled to it.

The tables ("AutoFormer", arXiv 2107.00651), for heads of 64:

    axis        tiny           small          base
    embed       192 216 240    320 384 448    528 576 624
    heads       3 4            5 6 7          9 10
    mlp_ratio   3.5 4          3 3.5 4        3 3.5 4
    depth       12 13 14       12 13 14       14 15 16

They hold as they are for a teacher of at least 16 blocks, width 640, 10 heads and MLP ratio 4, which is the largest
network that AutoFormer cuts them from. Where a teacher has less of one of these, that axis is scaled: depth * blocks /
16, heads * heads / 10, ratio * ratio / 4, rounded to the nearest (halves up, at least 1; ratios to 4 digits), and embed
* width / 640, rounded to a multiple of 8 (of a smaller power of two where 1/24 of the width is less than 8). What falls
together counts once. The size of a head stays the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nasdistill.errors import MismatchError
from nasdistill.interfaces import TeacherInfo
from nasdistill.spec.options import ComponentOptions
from nasdistill_spaces.choices import half_up, to_width, unique
from nasdistill_spaces.plan import halvings_to

TABLES = ("tiny", "small", "base")
LARGEST = {"embed": 640, "depth": 16, "heads": 10, "mlp_ratio": 4.0}
"""The largest network of the tables."""

TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "tiny": {"embed": (192, 216, 240), "depth": (12, 13, 14), "heads": (3, 4), "mlp_ratio": (3.5, 4.0)},
    "small": {"embed": (320, 384, 448), "depth": (12, 13, 14), "heads": (5, 6, 7), "mlp_ratio": (3.0, 3.5, 4.0)},
    "base": {"embed": (528, 576, 624), "depth": (14, 15, 16), "heads": (9, 10), "mlp_ratio": (3.0, 3.5, 4.0)},
}

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]
Side = Annotated[int, Field(ge=1, le=4096)]


class VitSizes(ComponentOptions):
    """Sizes of the network that students are cut from; read from the teacher unless given."""

    embed: int = Field(32, ge=1, le=65536, description="Width of the residual stream.")
    depth: int = Field(3, ge=1, le=99, description="Blocks.")
    heads: int = Field(4, ge=1, le=1024, description="Attention heads.")
    head_dim: int = Field(0, ge=0, le=4096, description="Size of a head; 0 = `embed` / `heads`.")
    mlp: int = Field(128, ge=1, le=1 << 20, description="Neurons of an MLP.")
    patch: tuple[Side, Side] | None = Field(
        None, description="Height and width of a patch; chosen for the images if not given."
    )
    prefix: int = Field(1, ge=0, le=64, description="Class token, distillation token and registers.")
    prefix_positions: bool = Field(True, description="Whether these have positions, too.")
    pool: Literal["token", "mean", "normed_mean"] = Field(
        "token", description="What the head reads: the class token, the mean of the patches before or after the norm."
    )
    qkv_bias: bool = Field(True, description="Biases in the projections to q, k and v.")
    activation: Activation = Field("gelu", description="Activation of the MLPs.")
    eps: float = Field(1e-6, gt=0, lt=1, description="Epsilon of the layer norms.")

    @model_validator(mode="after")
    def _consistent(self) -> VitSizes:
        if not self.head_dim and self.embed % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.embed}; say head_dim")
        if self.pool == "token" and not self.prefix:
            raise ValueError("a head on the class token needs one: prefix is 0")
        return self

    @property
    def size_of_head(self) -> int:
        """Size D of a head."""
        return self.head_dim or self.embed // self.heads

    def patch_for(self, height: int, width: int) -> tuple[int, int]:
        """Return the patch for images of some size.

        Unless it is given: the smallest square power of two, at least 2, that leaves at most 8 patches a side, for
        images above 64 pixels at most 14: 2 for 8 pixels, 4 for 32, 16 for 224.
        """
        side = max(height, width)
        return self.patch or (2 ** max(1, halvings_to(side, 8 if side <= 64 else 14)),) * 2


def scaled(name: str, sizes: VitSizes) -> dict[str, tuple[Any, ...]]:
    """Return the choices of table `name` for a teacher, ascending: axis -> choices; see the module."""
    table = TABLE[name]
    own = {"embed": sizes.embed, "depth": sizes.depth, "heads": sizes.heads, "mlp_ratio": sizes.mlp / sizes.embed}
    share = {axis: min(1.0, value / LARGEST[axis]) for axis, value in own.items()}
    return {
        "embed": unique(to_width(value * share["embed"], sizes.embed) for value in table["embed"])
        if share["embed"] < 1 else tuple(int(value) for value in table["embed"]),
        "depth": unique(half_up(value * share["depth"]) for value in table["depth"]),
        "heads": unique(half_up(value * share["heads"]) for value in table["heads"]),
        "mlp_ratio": unique(round(float(value * share["mlp_ratio"]), 4) for value in table["mlp_ratio"]),
    }  # fmt: skip


_TIMM = {"embed": "embed_dim", "depth": "depth", "heads": "num_heads"}
_TRANSFORMERS = {
    "embed": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "mlp": "intermediate_size",
}  # fmt: skip
_TIMM_ACTIVATIONS = {"gelu": "gelu", "gelutanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}


def read_sizes(teacher: TeacherInfo, space: str) -> dict[str, Any]:
    """Return the fields of :class:`VitSizes` from what a teacher says of itself.

    Raises:
        MismatchError: another kind of network, or sizes that are missing; both are named.
    """
    config: Mapping[str, Any] = teacher.model
    if teacher.library == "timm" and str(config.get("class", "")).startswith("VisionTransformer"):
        return _from_timm(config, space)
    if teacher.library == "transformers" and config.get("model_type") in ("vit", "deit"):
        return _from_transformers(config, space)
    kind = config.get("model_type") or config.get("architecture") or config.get("class")
    raise MismatchError(
        f"space {space} cannot cut students from a teacher of "
        + (f"type {str(kind)!r}" if kind else f"library {teacher.library!r} that says no type")
        + ": where its sites q, k, v, context, attn_out and ffn_out are is known for timm's VisionTransformer (ViT, "
        "DeiT) and for vit and deit of transformers",
        hint="Choose a teacher of one of these types, or another space (nasdistill spaces list).",
    )


def _require(config: Mapping[str, Any], names: Mapping[str, str], space: str) -> None:
    missing = [key for key in names.values() if not isinstance(config.get(key), int)]
    if missing:
        raise MismatchError(
            f"space {space}: what is known of the teacher lacks the sizes {', '.join(missing)}",
            hint="A saved model's folder needs the complete config.json that it was saved with.",
        )


def _refuse(unlike: Mapping[str, bool], space: str) -> None:
    reasons = [reason for reason, true in unlike.items() if true]
    if reasons:
        raise MismatchError(f"space {space} has no students with {', '.join(reasons)}, as this teacher is built")


def _from_timm(config: Mapping[str, Any], space: str) -> dict[str, Any]:
    _require(config, _TIMM, space)
    activation, pool = str(config.get("activation", "gelu")), str(config.get("global_pool", "token"))
    _refuse(
        {
            f"blocks of type {config.get('block')}": config.get("block", "Block") != "Block",
            "norms of q and k": bool(config.get("qk_norm")),
            "a norm before the blocks": bool(config.get("pre_norm")),
            "no norm after the blocks": not config.get("final_norm", True) and not config.get("fc_norm"),
            f"pooling {pool!r}": pool not in ("token", "avg"),
            f"the activation {activation!r}": activation not in _TIMM_ACTIVATIONS,
        },
        space,
    )
    found = {name: config[key] for name, key in _TIMM.items()}
    return {
        **found,
        "mlp": round(found["embed"] * float(config.get("mlp_ratio", 4.0))),
        "patch": [int(side) for side in config["patch_size"]],
        "prefix": int(config.get("class_token", True)) + int(config.get("reg_tokens", 0))
        + int(bool(config.get("distilled"))),
        "prefix_positions": not config.get("no_embed_class", False),
        "pool": "token" if pool == "token" else "mean" if config.get("fc_norm") else "normed_mean",
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "activation": _TIMM_ACTIVATIONS[activation],
        "eps": float(config.get("norm_eps", 1e-6)),
    }  # fmt: skip


def _from_transformers(config: Mapping[str, Any], space: str) -> dict[str, Any]:
    _require(config, _TRANSFORMERS, space)
    activation = str(config.get("hidden_act", "gelu"))
    _refuse({f"the activation {activation!r}": activation not in Activation.__args__}, space)  # type: ignore[attr-defined]
    patch = config.get("patch_size", 16)
    head_dim = config.get("head_dim")
    return {
        **{name: config[key] for name, key in _TRANSFORMERS.items()},
        **({"head_dim": head_dim} if isinstance(head_dim, int) else {}),
        "patch": [patch, patch] if isinstance(patch, int) else [int(side) for side in patch],
        "prefix": 2 if config["model_type"] == "deit" else 1,
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "activation": activation,
        "eps": float(config.get("layer_norm_eps", 1e-12)),
    }
