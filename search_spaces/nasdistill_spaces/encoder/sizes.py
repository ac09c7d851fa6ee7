"""Sizes of a teacher as its ``config.json`` says them, and AutoDistil's table of choices scaled to it.

The table ("AutoDistil", arXiv 2201.12507) is for a teacher of 12 layers, width 768, 12 heads and MLP ratio 4:

    axis        tiny                small               base
    layers      4 5 6 7             9 10 11 12          9 10 11 12
    heads       7 8 9 10            7 8 9 10            9 10 11 12
    hidden      128 160 192 224     256 288 320 352     544 576 608 640
    mlp_ratio   2 2.5 3 3.5         2.5 3 3.5 4         2.5 3 3.5 4

For another teacher the same fractions of it are taken: layers * depth / 12, heads * heads / 12, ratio * ratio / 4,
rounded to the nearest (halves up, at least 1), and hidden * width / 768, rounded to a multiple of 8 (of a smaller power
of two where the table's step of 1/24 of the width is less than 8). What falls together counts once. The size of a head
stays the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from nasdistill.errors import MismatchError
from nasdistill.interfaces import TeacherInfo
from nasdistill.spec.options import ComponentOptions
from nasdistill_spaces.choices import half_up, to_width, unique

ModelType = Literal["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"]
FAMILIES = {"xlm-roberta": "roberta", "camembert": "roberta"}
"""Model types that are built as another."""
Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]
SUBSPACES = ("tiny", "small", "base")

TABLE: dict[str, dict[str, tuple[float, ...]]] = {
    "tiny": {
        "layers": (4, 5, 6, 7), "heads": (7, 8, 9, 10), "hidden": (128, 160, 192, 224), "mlp_ratio": (2, 2.5, 3, 3.5),
    },
    "small": {
        "layers": (9, 10, 11, 12), "heads": (7, 8, 9, 10), "hidden": (256, 288, 320, 352),
        "mlp_ratio": (2.5, 3, 3.5, 4),
    },
    "base": {
        "layers": (9, 10, 11, 12), "heads": (9, 10, 11, 12), "hidden": (544, 576, 608, 640),
        "mlp_ratio": (2.5, 3, 3.5, 4),
    },
}  # fmt: skip


class TeacherSizes(ComponentOptions):
    """Sizes of the network that students are cut from; read from the teacher unless given."""

    model_type: ModelType = Field("bert", description="Family of the network, as transformers names it.")
    layers: int = Field(4, ge=1, le=99, description="Layers.")
    hidden: int = Field(48, ge=1, le=65536, description="Width of the residual stream.")
    heads: int = Field(4, ge=1, le=1024, description="Attention heads; they must divide `hidden`.")
    mlp: int = Field(192, ge=1, le=1 << 20, description="Neurons of an MLP.")
    embedding: int = Field(0, ge=0, le=65536, description="Width of the embeddings; 0 = `hidden`.")
    positions: int = Field(128, ge=1, le=1 << 20, description="Rows of the position table.")
    token_types: int = Field(2, ge=0, le=64, description="Rows of the token type table.")
    padding_id: int = Field(0, ge=0, description="Id of the padding token.")
    activation: Activation = Field("gelu", description="Activation of the MLPs.")
    eps: float = Field(1e-12, gt=0, lt=1, description="Epsilon of the layer norms.")
    tied: bool = Field(True, description="The masked-LM head shares the token table.")

    @model_validator(mode="after")
    def _consistent(self) -> TeacherSizes:
        if self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.hidden}")
        if self.family == "roberta" and self.positions <= self.padding_id + 1:
            raise ValueError(f"{self.positions} positions leave none beyond padding id {self.padding_id}")
        return self

    @property
    def family(self) -> str:
        """How it is built: ``bert``, ``roberta``, ``electra`` or ``distilbert``."""
        return FAMILIES.get(self.model_type, self.model_type)

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.hidden // self.heads

    @property
    def projected(self) -> bool:
        """Whether a linear layer stands between embeddings and layers."""
        return self.embedding not in (0, self.hidden)


_NAMES = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "mlp": "intermediate_size",
    "embedding": "embedding_size", "positions": "max_position_embeddings", "token_types": "type_vocab_size",
    "padding_id": "pad_token_id", "activation": "hidden_act", "eps": "layer_norm_eps", "tied": "tie_word_embeddings",
}  # fmt: skip
"""Our names and those of transformers' configurations."""
_DISTILBERT = {
    "layers": "n_layers", "hidden": "dim", "heads": "n_heads", "mlp": "hidden_dim", "activation": "activation",
}  # fmt: skip
_MAJOR = ("layers", "hidden", "heads", "mlp")
_USUAL: dict[str, Any] = {"positions": 512, "token_types": 2, "padding_id": 0, "eps": 1e-12, "tied": True}
"""What the configuration classes take where a file is silent."""


def config_names(model_type: str) -> dict[str, str]:
    """Return our name of a size -> the key of ``config.json`` for a model type."""
    names = {**_NAMES, **(_DISTILBERT if model_type == "distilbert" else {})}
    unknown = {"distilbert": ("embedding", "token_types", "eps"), "electra": ()}.get(model_type, ("embedding",))
    return {name: key for name, key in names.items() if name not in unknown}


def read_sizes(teacher: TeacherInfo, space: str) -> dict[str, Any]:
    """Return the fields of :class:`TeacherSizes` from what a teacher says of itself.

    Raises:
        MismatchError: another kind of network, or sizes that are missing; both are named.
    """
    known = ", ".join(ModelType.__args__)  # type: ignore[attr-defined]
    config: Mapping[str, Any] = teacher.model
    kind = str(config.get("model_type", ""))
    if teacher.library != "transformers" or kind not in ModelType.__args__:  # type: ignore[attr-defined]
        from nasdistill.bridge.sizes import absent_sizes, decodes_only

        if teacher.library == "transformers" and decodes_only(config):
            raise MismatchError(
                f"space {space} cuts students from encoders ({known}); a teacher of model type {kind!r} is a decoder",
                hint="Use --space decoder, which cuts classifiers (--task text_classification) and language models "
                "(--task causal_lm) from GPT-2, Llama, Qwen2 and Mistral; for other tasks an encoder as teacher.",
            )
        sizes = absent_sizes(config)
        raise MismatchError(
            f"space {space} cannot cut students from a teacher of "
            + (f"model type {kind!r}" if kind else f"library {teacher.library!r} that says no model type")
            + ": where its sites q, k, v, context, attn_out and ffn_out are is known for "
            + known
            + (f"; its configuration lacks the sizes {', '.join(sizes)}, too" if sizes else ""),
            hint="Choose a teacher of one of these types, or another space: `decoder` for GPT-2, Llama, Qwen2 and "
            "Mistral, `vit` for images (all: nasdistill spaces list).",
        )
    names = config_names(kind)
    missing = [names[name] for name in _MAJOR if not isinstance(config.get(names[name]), int)]
    if missing:
        raise MismatchError(
            f"space {space}: the configuration of the {kind} teacher lacks the sizes {', '.join(missing)}",
            hint="Its folder needs the complete config.json that the model was saved with.",
        )
    _refuse_unlike(config, space)
    usual = {**_USUAL, "padding_id": 1 if FAMILIES.get(kind, kind) == "roberta" else 0}
    found = {name: config[key] for name, key in names.items() if config.get(key) is not None}
    found = {**{name: value for name, value in usual.items() if name in names}, **found, "model_type": kind}
    if kind == "distilbert":
        found["token_types"] = 0
    if found.get("embedding") == found["hidden"]:
        found["embedding"] = 0
    return {name: found[name] for name in TeacherSizes.model_fields if name in found}


def _refuse_unlike(config: Mapping[str, Any], space: str) -> None:
    """Raise MismatchError where a known model type is configured to what our network is not."""
    positions = config.get("position_embedding_type", "absolute")
    activation = config.get("hidden_act", config.get("activation", "gelu"))
    unlike = {
        f"positions of type {positions!r}": positions != "absolute",
        "causal layers (is_decoder)": bool(config.get("is_decoder")),
        "cross attention": bool(config.get("add_cross_attention")),
        f"the activation {activation!r}": activation not in Activation.__args__,  # type: ignore[attr-defined]
    }
    reasons = [reason for reason, true in unlike.items() if true]
    if reasons:
        raise MismatchError(f"space {space} has no students with {', '.join(reasons)}, as this teacher is configured")


def scaled(name: str, sizes: TeacherSizes) -> dict[str, tuple[Any, ...]]:
    """Return the choices of sub-space `name` for a teacher, ascending: axis -> choices; see the module."""
    table = TABLE[name]
    ratio = sizes.mlp / sizes.hidden / 4
    return {
        "layers": unique(half_up(value * sizes.layers / 12) for value in table["layers"]),
        "heads": unique(half_up(value * sizes.heads / 12) for value in table["heads"]),
        "hidden": unique(to_width(value * sizes.hidden / 768, sizes.hidden) for value in table["hidden"]),
        "mlp_ratio": unique(round(float(value * ratio), 4) for value in table["mlp_ratio"]),
    }


def reported_cost(layers: int, heads: int, hidden: int, ratio: float, tokens: int = 128) -> tuple[float, float]:
    """Return parameters and MACs as AutoDistil reports them, for comparison with the paper only.

    The formulas count attention as if its inner width were hidden * heads / 12, where the networks have 64 * heads:
    they are 7 to 33 % below what the built networks have (see `Encoder.cost`, which is exact).
    """
    a = heads / 12
    params = hidden * (30522 + 516) + layers * (hidden**2 * (1 + 3 * a) + 6 * hidden)
    params += layers * (2 * ratio * hidden**2 + ratio * hidden + 3 * hidden) + hidden**2 + 2 * hidden
    per_layer = 3 * tokens * hidden**2 * a + 2 * tokens**2 * hidden * a + tokens * hidden**2
    macs = layers * (per_layer + 2 * tokens * ratio * hidden**2) + tokens * hidden**2 + 2 * hidden
    return params, macs
