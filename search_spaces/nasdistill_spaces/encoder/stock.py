"""Which class of transformers computes the same as an encoder, and what its tensors are called there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nasdistill.interfaces import StockModel
from nasdistill_spaces.encoder.model import EncoderShape
from nasdistill_spaces.encoder.reading import DISTILBERT, HEADS
from nasdistill_spaces.encoder.sizes import TeacherSizes, config_names

_CLASSES = {
    "bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert", "electra": "Electra",
    "distilbert": "DistilBert",
}  # fmt: skip
_ENDINGS = {"classes": "ForSequenceClassification", "embedding": "Model", "masked_lm": "ForMaskedLM"}
_PLACE = {"bert": 1, "roberta": 2, "electra": 3, "distilbert": 4}
"""Which of the names in `HEADS` is the family's."""


def stock_model(shape: EncoderShape, sizes: TeacherSizes) -> StockModel | None:
    """Return the configuration and the renaming, or None where no stock class has this shape.

    The configuration classes know one number of heads and neurons for all layers, softmax attention, and heads that
    share the width among them: heads * head_dim = hidden.
    """
    first = shape.layers[0]
    uniform = all(layer == first for layer in shape.layers) and first.softmax
    hides_projection = shape.projected and shape.embedding == shape.hidden
    if not uniform or first.heads * shape.head_dim != shape.hidden or hides_projection:
        return None
    values: dict[str, Any] = {
        "layers": len(shape.layers), "hidden": shape.hidden, "heads": first.heads, "mlp": first.mlp,
        "embedding": shape.embedding, "positions": shape.positions, "token_types": shape.token_types,
        "padding_id": shape.padding_id, "activation": shape.activation, "eps": shape.eps, "tied": shape.tied,
    }  # fmt: skip
    names = config_names(sizes.model_type)
    config = {key: values[name] for name, key in names.items()}
    config |= {
        "model_type": sizes.model_type,
        "architectures": [_CLASSES[sizes.model_type] + _ENDINGS[shape.head]],
        "vocab_size": shape.vocabulary,
        **dict.fromkeys(("dropout", "seq_classif_dropout") if shape.family == "distilbert" else
                        ("hidden_dropout_prob",), shape.dropout),
        "attention_dropout" if shape.family == "distilbert" else "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if shape.head == "classes":
        config["id2label"] = {str(index): f"LABEL_{index}" for index in range(shape.outputs)}
        config["label2id"] = {f"LABEL_{index}": index for index in range(shape.outputs)}
    return StockModel(config, _renamed(shape, sizes))


def _renamed(shape: EncoderShape, sizes: TeacherSizes) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    inner = "" if shape.head == "embedding" else f"{shape.family}."

    def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {_name(name, shape, inner): tensor for name, tensor in state.items()}
        if shape.head == "embedding" and shape.family in ("bert", "roberta"):
            # These classes have a pooler, which mean pooling does not use: zeros, rather than what a reader draws.
            like = state["embeddings.LayerNorm.weight"]
            found["pooler.dense.weight"] = torch.zeros(shape.hidden, shape.hidden, dtype=like.dtype, device=like.device)
            found["pooler.dense.bias"] = torch.zeros(shape.hidden, dtype=like.dtype, device=like.device)
        return found

    return weights


def _name(name: str, shape: EncoderShape, inner: str) -> str:
    """Return the name of one of our tensors in the stock class."""
    if name.startswith("head."):
        part, _, suffix = name.removeprefix("head.").partition(".")
        theirs = HEADS[shape.head][part][_PLACE[shape.family]]
        outside = not theirs.startswith("pooler")
        return ("" if outside else inner) + theirs + (f".{suffix}" if suffix else "")
    if shape.family == "distilbert" and name.startswith("encoder.layer."):
        index, _, rest = name.removeprefix("encoder.layer.").partition(".")
        part, _, suffix = rest.rpartition(".")
        return f"{inner}transformer.layer.{index}.{DISTILBERT[part]}.{suffix}"
    return inner + name
