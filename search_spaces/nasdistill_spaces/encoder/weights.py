"""Start an encoder from the weights of a larger one: which slices, in which order, of which tensors.

AutoDistil's way ("none"): every matrix keeps its top-left part, tables and norms their first H columns, attention its
first heads (of the teacher's size), MLPs their first neurons, and layer i starts from the teacher's layer
floor(i * depth there / depth here). Norms then see the slice only.

With ranking by ``importance`` what is kept is chosen first, once for all: channels of the residual stream for the whole
network (they are the same in all tables, norms and layers), heads and neurons for each layer. Without data by weights:
a channel by the norms of the rows and columns that write and read it, a head by |W_o^h W_v^h|, a neuron by |w_in|
|w_out|; with calibration data by mean absolute activations: of the norms' outputs for channels, of what heads write
|W_o^h c^h|, of neurons times |w_out|; padding is left out. Cutting heads and neurons is exact (the student's layer
equals the teacher's with the cut columns at zero), cutting channels is not.

Sources: "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models", arXiv
2201.12507 (slices, depth rule; it ranks nothing); ranking once before weights are shared as in "DynaBERT", arXiv
2004.04037, by activations as in "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.interfaces import Batch, InheritReport
from nasdistill_spaces.encoder.model import EncoderNet
from nasdistill_spaces.slicing import SliceCopier, row_norms

_TABLE = "embeddings.word_embeddings.weight"
_LAYER = "encoder.layer.{}."
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
        if not key.endswith(_TABLE):
            continue
        inner = key.removesuffix(_TABLE)
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
            paths[_LAYER.format(index) + part] = f"{stem}{index}.{theirs}"
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
        tensors |= {_LAYER.format(index) + name.removeprefix(f"{stem}{index}."): t for name, t in state.items()
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
            return int(tensors[_LAYER.format(0) + "attention.self.query.weight"].shape[0]) // heads
    return None


# ---- what to keep ---------------------------------------------------------------------------------------------------


@dataclass
class Order:
    """What matters most first, as indices; None = as it stands.

    Attributes:
        stream: channels ``(H,)``.
        pooled: outputs of the first layer of a classes head.
        heads: per teacher layer.
        neurons: per teacher layer.
    """

    stream: Tensor | None = None
    pooled: Tensor | None = None
    heads: dict[int, Tensor] = field(default_factory=dict)
    neurons: dict[int, Tensor] = field(default_factory=dict)


def rank(source: Source, head_dim: int, teacher: nn.Module, calibration: Sequence[Batch] = ()) -> Order:
    """Return the order of importance of a teacher's channels, heads and neurons; see the module.

    Args:
        source: its tensors.
        head_dim: size of its heads, where its source does not say it.
        teacher: the model itself, for activations; left as it was.
        calibration: a few batches; none ranks by weights.
    """
    head_dim = source.head_dim or head_dim
    t = {name: tensor.detach().float() for name, tensor in source.tensors.items() if name != _TABLE}
    seen = _Activations(teacher, source, head_dim)
    if calibration:
        seen.run(calibration)
    order = Order(stream=_descending(_channel_scores(t) if seen.stream is None else seen.stream))
    for index in range(source.depth):
        name = _LAYER.format(index)
        w_v, w_o = t[f"{name}attention.self.value.weight"], t[f"{name}attention.output.dense.weight"]
        heads = w_v.shape[0] // head_dim
        pairs = torch.unflatten(w_o, 1, (heads, head_dim)).movedim(1, 0) @ torch.unflatten(w_v, 0, (heads, head_dim))
        order.heads[index] = _descending(seen.heads.get(index, pairs.flatten(1).norm(dim=1)))
        reads = seen.neurons.get(index, t[f"{name}intermediate.dense.weight"].norm(dim=1))
        order.neurons[index] = _descending(reads * t[f"{name}output.dense.weight"].norm(dim=0))
    if "head.out_proj.weight" in t and "head.dense.weight" in t:
        order.pooled = _descending(t["head.dense.weight"].norm(dim=1) * t["head.out_proj.weight"].norm(dim=0))
    return order


def _descending(scores: Tensor) -> Tensor:
    return torch.argsort(scores, descending=True, stable=True).cpu()


def axes_of(name: str, head: str = "") -> tuple[str, ...]:
    """Return what the axes of one of our tensors are; empty for tensors of attention variants."""
    part = re.sub(r"^encoder\.layer\.\d+\.", "", name)
    table = HEAD_AXES.get(head, {}) if part.startswith("head.") else AXES
    part = part.removeprefix("head.")
    whole = table.get(part, ()) or table.get(part.removesuffix(".weight"), ())
    return whole or table.get(part.removesuffix(".bias"), ())[:1]


def _channel_scores(t: Mapping[str, Tensor]) -> Tensor:
    """Return ``(H,)``: norms of all rows and columns of layers that write to or read from each channel."""
    total = torch.zeros(())
    for name, tensor in t.items():
        axes = axes_of(name)
        if len(axes) == 2 and "stream" in axes:
            total = total + row_norms(tensor, axes.index("stream")).cpu()
    return total


class _Activations:
    """Mean absolute activations over calibration data; empty until `run`.

    Attributes:
        stream: ``(H,)``, outputs of the layers' norms.
        heads: layer -> ``(A,)``, norms of what each head writes.
        neurons: layer -> ``(M,)``.
    """

    def __init__(self, teacher: nn.Module, source: Source, head_dim: int) -> None:
        self.stream: Tensor | None = None
        self.heads: dict[int, Tensor] = {}
        self.neurons: dict[int, Tensor] = {}
        self._teacher, self._source, self._head_dim = teacher, source, head_dim
        self._mask: Tensor | None = None

    def run(self, calibration: Sequence[Batch]) -> None:
        """Run the teacher, in eval mode and without gradients; it is left as it was."""
        modules, paths = dict(self._teacher.named_modules()), self._source.paths
        modes = [(module, module.training) for module in self._teacher.modules()]
        device = next(self._teacher.parameters()).device
        with ExitStack() as stack:
            for index in range(self._source.depth):
                name = _LAYER.format(index)
                for part in ("attention.output.LayerNorm", "output.LayerNorm"):
                    stack.callback(modules[paths[name + part]].register_forward_hook(self._see_norm).remove)
                writes, reads = modules[paths[f"{name}attention.output.dense"]], modules[paths[f"{name}output.dense"]]
                stack.callback(writes.register_forward_pre_hook(self._see_heads(index)).remove)
                stack.callback(reads.register_forward_pre_hook(self._see_neurons(index)).remove)
            try:
                self._teacher.eval()
                with torch.no_grad():
                    for batch in calibration:
                        inputs = {name: value.to(device) for name, value in batch.inputs.items() if name in _INPUTS}
                        self._mask = inputs.get("attention_mask")
                        self._teacher(**inputs)
            finally:
                for module, training in modes:
                    module.training = training

    def _sum(self, x: Tensor) -> Tensor:
        """Return the sum over real tokens of ``(B, N, C)``."""
        weight = 1.0 if self._mask is None else self._mask.to(x.dtype).unsqueeze(-1)
        return (x * weight).float().flatten(0, -2).sum(0).cpu()

    def _see_norm(self, module: nn.Module, args: Any, output: Tensor) -> None:
        seen = self._sum(output.abs())
        self.stream = seen if self.stream is None else self.stream + seen

    def _see_heads(self, index: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            parts = torch.unflatten(args[0], -1, (-1, self._head_dim))
            matrix = torch.unflatten(module.weight, -1, (-1, self._head_dim))
            seen = self._sum(torch.einsum("...hd,chd->...hc", parts, matrix).norm(dim=-1))
            self.heads[index] = self.heads.get(index, torch.zeros_like(seen)) + seen

        return hook

    def _see_neurons(self, index: int) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen = self._sum(args[0].abs())
            self.neurons[index] = self.neurons.get(index, torch.zeros_like(seen)) + seen

        return hook


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


# ---- copying --------------------------------------------------------------------------------------------------------


def inherit_weights(
    student: EncoderNet,
    source: Source,
    layers: Sequence[int],
    order: Order | None = None,
    *,
    nested: bool = False,
) -> InheritReport:
    """Copy slices of `source` into `student`, in place.

    Args:
        student: the network.
        source: see :func:`read_source`.
        layers: for each layer of the student the teacher's layer it starts from.
        order: what matters most; None keeps what stands first.
        nested: put the most important first (every smaller slice then holds the best, too), instead of leaving what is
            kept in the teacher's order.
    """
    order = order or Order()
    copier, notes = SliceCopier(), [f"layers {', '.join(map(str, layers))} of {source.depth}"]
    shape = student.shape
    heads_fit = source.head_dim in (None, shape.head_dim)
    if not heads_fit:
        notes.append(f"attention left fresh: heads of {source.head_dim} there, {shape.head_dim} here")
    if source.projected != shape.projected:
        notes.append("a projection behind the embeddings on one side only: its columns left as they are")

    def picks(axes: tuple[str, ...], target: Tensor, layer: int | None) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for size, axis in zip(target.shape, axes, strict=False):
            if axis == "embedding":
                axis = "" if source.projected else "stream"
            chosen: Tensor | None = None
            if axis in ("stream", "pooled"):
                chosen = getattr(order, axis)
            elif axis in ("heads", "neurons") and layer is not None:
                chosen = getattr(order, axis).get(layer)
            if chosen is not None:
                count = size // shape.head_dim if axis == "heads" else size
                chosen = chosen[:count] if nested else chosen[:count].sort().values
                if axis == "heads":
                    chosen = (chosen[:, None] * shape.head_dim + torch.arange(shape.head_dim)).flatten()
            found.append(chosen)
        return found

    skipped: set[str] = set()
    for name, target in student.named_parameters():
        match = re.match(r"encoder\.layer\.(\d+)\.(.*)", name)
        layer = layers[int(match[1])] if match else None
        there = f"{_LAYER.format(layer)}{match[2]}" if match else name
        tensor = source.tensors.get(there)
        axes = axes_of(name, shape.head)
        if tensor is None:
            skipped.add("the head" if name.startswith("head.") else match[2] if match else name)
            continue
        if ".core." in name:
            if tensor.shape == target.shape:
                copier.tensor(target, tensor)
            continue
        if "heads" in axes and not heads_fit:
            continue
        if axes[0] == "classes" and tensor.shape[0] != target.shape[0]:
            notes.append(f"{name} left fresh: {tensor.shape[0]} outputs there, {target.shape[0]} here")
            continue
        if axes[0] == "vocabulary" and name == _TABLE and tensor.shape[0] != target.shape[0]:
            notes.append(f"{tensor.shape[0]} token ids there, {target.shape[0]} here: the leading ones")
        copier.tensor(target, tensor, *picks(axes, target, layer))
    notes += [f"{part} left fresh: the teacher has none" for part in sorted(skipped)]
    return InheritReport(copier.copied, sum(p.numel() for p in student.parameters()), tuple(notes))
