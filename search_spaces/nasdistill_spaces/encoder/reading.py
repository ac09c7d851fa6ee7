"""The tensors of a BERT-like teacher under our names: found by the names and shapes of what it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nasdistill_spaces.encoder.model import EncoderNet

TABLE = "embeddings.word_embeddings.weight"
LAYER = "encoder.layer.{}."
DISTILBERT = {
    "attention.self.query": "attention.q_lin", "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin", "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm", "intermediate.dense": "ffn.lin1", "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}  # fmt: skip
"""Parts of a layer that DistilBERT names otherwise."""
HEADS: dict[str, dict[str, tuple[str, ...]]] = {
    "classes": {
        "dense": ("head.dense", "pooler.dense", "classifier.dense", "classifier.dense", "pre_classifier"),
        "out_proj": ("head.out_proj", "classifier", "classifier.out_proj", "classifier.out_proj", "classifier"),
    },
    "masked_lm": {
        "dense": ("head.dense", "cls.predictions.transform.dense", "lm_head.dense", "generator_predictions.dense",
                  "vocab_transform"),
        "LayerNorm": ("head.LayerNorm", "cls.predictions.transform.LayerNorm", "lm_head.layer_norm",
                      "generator_predictions.LayerNorm", "vocab_layer_norm"),
        "bias": ("head.bias", "cls.predictions.bias", "lm_head.bias", "generator_lm_head.bias", "vocab_projector.bias"),
        "decoder": ("head.decoder", "cls.predictions.decoder", "lm_head.decoder", "generator_lm_head",
                    "vocab_projector"),
    },
}  # fmt: skip
"""Parts of our heads -> what ours, BERT, RoBERTa, ELECTRA and DistilBERT call them."""

AXES: dict[str, tuple[str, ...]] = {
    "embeddings.word_embeddings": ("vocabulary", "embedding"),
    "embeddings.position_embeddings": ("positions", "embedding"),
    "embeddings.token_type_embeddings": ("types", "embedding"),
    "embeddings.LayerNorm": ("embedding",),
    "embeddings_project": ("stream", "embedding"),
    "attention.self.query": ("heads", "stream"),
    "attention.self.key": ("heads", "stream"),
    "attention.self.value": ("heads", "stream"),
    "attention.output.dense": ("stream", "heads"),
    "attention.output.LayerNorm": ("stream",),
    "intermediate.dense": ("neurons", "stream"),
    "output.dense": ("stream", "neurons"),
    "output.LayerNorm": ("stream",),
}
"""What the axes of each weight are; a bias has the first."""
HEAD_AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "classes": {"dense": ("pooled", "stream"), "out_proj": ("classes", "pooled")},
    "masked_lm": {
        "dense": ("embedding", "stream"), "LayerNorm": ("embedding",), "bias": ("vocabulary",),
        "decoder": ("vocabulary", "embedding"),
    },
}  # fmt: skip


def axes_of(name: str, head: str = "") -> tuple[str, ...]:
    """Return what the axes of one of our tensors are; empty for tensors of attention variants."""
    part = re.sub(r"^encoder\.layer\.\d+\.", "", name)
    table = HEAD_AXES.get(head, {}) if part.startswith("head.") else AXES
    part = part.removeprefix("head.")
    whole = table.get(part, ()) or table.get(part.removesuffix(".weight"), ())
    return whole or table.get(part.removesuffix(".bias"), ())[:1]


@dataclass(frozen=True)
class Source:
    """The tensors of a teacher under our names.

    Attributes:
        tensors: our name -> tensor, not copied.
        paths: our name of a module -> its path in the teacher.
        depth: layers.
        head_dim: size of a head; None where nothing says it.
    """

    tensors: Mapping[str, Tensor]
    paths: Mapping[str, str]
    depth: int
    head_dim: int | None

    @property
    def projected(self) -> bool:
        """Whether a linear layer stands between embeddings and layers."""
        return "embeddings_project.weight" in self.tensors


def read_source(teacher: nn.Module, head: str) -> Source | None:
    """Find a BERT-like encoder inside `teacher` by the names and shapes of its tensors.

    Args:
        teacher: a model of transformers, something that holds one, or a network of ours.
        head: which head to look for.

    Returns:
        None when there is no such encoder.
    """
    state = teacher.state_dict(keep_vars=False)
    for key in state:
        if not key.endswith(TABLE):
            continue
        inner = key.removesuffix(TABLE)
        found = _read_at(state, inner, head)
        if found is not None:
            tensors, paths, depth = found
            return Source(tensors, paths, depth, _head_dim(teacher, tensors))
    return None


def _read_at(
    state: Mapping[str, Tensor], inner: str, head: str
) -> tuple[dict[str, Tensor], dict[str, str], int] | None:
    """Return tensors, paths and depth of the encoder whose names begin with `inner`, if it is complete."""
    distilled = f"{inner}transformer.layer.0.attention.q_lin.weight" in state
    stem = f"{inner}transformer.layer." if distilled else f"{inner}encoder.layer."
    depth = 0
    while any(name.startswith(f"{stem}{depth}.") for name in state):
        depth += 1
    paths = {name: f"{inner}{name}" for name in AXES if name.startswith("embeddings")}
    for index in range(depth):
        for part in (name for name in AXES if not name.startswith("embeddings")):
            theirs = DISTILBERT[part] if distilled else part
            paths[LAYER.format(index) + part] = f"{stem}{index}.{theirs}"
    optional = ("embeddings.token_type_embeddings", "embeddings_project")
    shapes = {name: state.get(f"{path}.weight") for name, path in paths.items()}
    if depth == 0 or any(t is None for name, t in shapes.items() if name not in optional):
        return None
    outer = re.sub(r"[^.]+\.$", "", inner)
    for part, names in HEADS.get(head, {}).items():
        candidates = (prefix + name for name in names for prefix in (outer, inner))
        paths[f"head.{part}"] = next((c for c in candidates if f"{c}.weight" in state or c in state), "")
    tensors = {}
    for name, path in paths.items():
        for suffix in (".weight", ".bias", ""):
            if path and f"{path}{suffix}" in state:
                tensors[f"{name}{suffix}"] = state[f"{path}{suffix}"]
    for index in range(depth):  # own parameters of attention variants
        mark = f"{stem}{index}.attention.self.core."
        tensors |= {LAYER.format(index) + name.removeprefix(f"{stem}{index}."): t for name, t in state.items()
                    if name.startswith(mark)}  # fmt: skip
    return tensors, {name: path for name, path in paths.items() if path}, depth


def _head_dim(teacher: nn.Module, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the size of a teacher's heads: what its configuration or its network says."""
    for module in teacher.modules():
        if isinstance(module, EncoderNet):
            return module.shape.head_dim
        config = getattr(module, "config", None)
        heads = getattr(config, "num_attention_heads", None)
        if isinstance(heads, int) and heads > 0:
            return int(tensors[LAYER.format(0) + "attention.self.query.weight"].shape[0]) // heads
    return None
