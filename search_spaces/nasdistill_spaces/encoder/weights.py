"""Start an encoder from the weights of a larger one: which slices, in which order, of which tensors.

AutoDistil's way ("none"): every matrix keeps its top-left part, tables and norms their first H columns, attention its
first heads (of the teacher's size), MLPs their first neurons, and layer i starts from the teacher's layer
floor(i * depth there / depth here). Norms then see the slice only.

With ranking by ``importance`` the channels, heads and neurons that are kept are those that matter most
(:mod:`nasdistill_spaces.encoder.ranking`), in the teacher's order. Cutting heads and neurons is exact (the student's
layer equals the teacher's with the cut columns at zero), cutting channels is not.

Source: "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language Models", arXiv
2201.12507, which ranks nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from nasdistill.interfaces import InheritReport
from nasdistill_spaces.encoder.model import EncoderNet
from nasdistill_spaces.encoder.reading import LAYER, TABLE, Source, axes_of
from nasdistill_spaces.importance import Order
from nasdistill_spaces.slicing import SliceCopier


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
    shape, missing = student.shape, set()
    heads_fit = source.head_dim in (None, shape.head_dim)
    if not heads_fit:
        notes.append(f"attention left fresh: heads of {source.head_dim} there, {shape.head_dim} here")

    def pick(axis: str, size: int, layer: int | None) -> Tensor | None:
        """Return what to keep of an axis with `size` places, None for what stands first."""
        axis = "stream" if axis == "embedding" and not source.projected else axis
        ranked = getattr(order, axis, None)
        chosen: Tensor | None = ranked.get(layer) if isinstance(ranked, dict) else ranked
        if chosen is None:
            return None
        chosen = chosen[: size // shape.head_dim if axis == "heads" else size]
        chosen = chosen if nested else chosen.sort().values
        if axis == "heads":
            return (chosen[:, None] * shape.head_dim + torch.arange(shape.head_dim)).flatten()
        return chosen

    for name, target in student.named_parameters():
        match = re.match(r"encoder\.layer\.(\d+)\.(.*)", name)
        layer = layers[int(match[1])] if match else None
        there = f"{LAYER.format(layer)}{match[2]}" if match else name
        tensor, axes = source.tensors.get(there), axes_of(name, shape.head)
        if tensor is None:
            missing.add("the head" if name.startswith("head.") else match[2] if match else name)
        elif ".core." in name:
            if tensor.shape == target.shape:
                copier.tensor(target, tensor)
        elif "heads" in axes and not heads_fit:
            continue
        elif axes[0] == "classes" and tensor.shape[0] != target.shape[0]:
            notes.append(f"{name} left fresh: {tensor.shape[0]} outputs there, {target.shape[0]} here")
        else:
            if name == TABLE and tensor.shape[0] != target.shape[0]:
                notes.append(f"{tensor.shape[0]} token ids there, {target.shape[0]} here: the leading ones")
            picks = [pick(axis, size, layer) for axis, size in zip(axes, target.shape, strict=True)]
            copier.tensor(target, tensor, *picks)
    notes += [f"{part} left fresh: the teacher has none" for part in sorted(missing)]
    return InheritReport(copier.copied, sum(p.numel() for p in student.parameters()), tuple(notes))
