"""Start a `resnet_s0` student from a larger member: keep the channels and blocks that matter most.

Within a stage all blocks add to one stream of channels, which is ranked once: the sum over the convolutions that write
to it of |batch norm scale| * |kernel| / running deviation. The channels between the two convolutions of a block are
ranked by themselves. The first block of a stage comes from the first block, the others from an even choice of the
teacher's others. Cutting inner channels is exact (the block equals the teacher's with those channels at zero); cutting
the stream, or blocks, is not.

Batch norm scales as importance: "Learning Efficient Convolutional Networks through Network Slimming", arXiv 1708.06519.
We add the kernel's norm and the running deviation, because the scale alone says nothing of what it multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from nasdistill.interfaces import InheritReport
from nasdistill_spaces.resnet_s0.model import ConvNorm, ResNetS0Net
from nasdistill_spaces.slicing import SliceCopier, top


def is_family(model: nn.Module) -> bool:
    """Return whether `model` has the modules of a :class:`ResNetS0Net` (whatever its class)."""
    try:
        source = cast(Any, model)
        units = [*source.stem]
        for stage in source.stages:
            units += [unit for block in stage for unit in (block.conv1, block.conv2)]
        shapes = [(unit.conv.weight.shape, unit.norm.weight.shape) for unit in units]
        return len(shapes) > len(source.stem) > 0 and source.fc.weight.dim() == 2
    except (AttributeError, TypeError):
        return False


def inherit_weights(student: ResNetS0Net, teacher: nn.Module) -> InheritReport | None:
    """Copy slices of `teacher` into `student`, in place.

    Returns:
        What was copied; None when the teacher is no :class:`ResNetS0Net` in structure.
    """
    if not is_family(teacher):
        return None
    source = cast(Any, teacher)
    copier, notes = SliceCopier(), []
    stages = min(len(student.stages), len(source.stages))
    streams = [rank_stream(source, stage) for stage in range(stages)]
    kept = [
        top(score, cast(Any, student.stages)[stage][-1].conv2.conv.out_channels) for stage, score in enumerate(streams)
    ]
    notes.append("channels " + ", ".join(f"{len(k)} of {len(s)}" for k, s in zip(kept, streams, strict=True)))
    previous = _copy_stem(copier, student, source, kept[0])
    for stage in range(stages):
        ours, theirs = cast(Any, student.stages)[stage], source.stages[stage]
        chosen = source_blocks(len(ours), len(theirs))
        notes.append(f"stage {stage}: blocks {', '.join(map(str, chosen))} of {len(theirs)}")
        for block, index in zip(ours, chosen, strict=False):
            other = theirs[index]
            inner = top(strength(other.conv1), block.conv1.conv.out_channels)
            copy_unit(copier, block.conv1, other.conv1, inner, previous)
            copy_unit(copier, block.conv2, other.conv2, kept[stage], inner)
            if isinstance(block.shortcut, ConvNorm) and hasattr(other.shortcut, "conv"):
                copy_unit(copier, block.shortcut, other.shortcut, kept[stage], previous)
            previous = kept[stage]
    if source.fc.weight.shape[0] != student.fc.out_features:
        notes.append(f"fc left fresh: {source.fc.weight.shape[0]} outputs there, {student.fc.out_features} here")
    elif stages < max(len(student.stages), len(source.stages)):
        notes.append(f"fc left fresh: {len(source.stages)} stages there, {len(student.stages)} here")
    else:
        copier.linear(student.fc, source.fc, None, kept[-1])
    return InheritReport(copier.copied, sum(p.numel() for p in student.parameters()), tuple(notes))


def source_blocks(count: int, teacher_count: int) -> tuple[int, ...]:
    """Return the teacher's block for each block of a stage: the first from the first, the others evenly.

    The first block of a stage has another input than the others, so a teacher of one block serves the first only.
    """
    if teacher_count == 1:
        return (0,)
    return (0, *(1 + index * (teacher_count - 1) // (count - 1) for index in range(count - 1)))


def strength(unit: Any) -> Tensor:
    """Return ``(C_out,)``: |batch norm scale| * |kernel| / running deviation, the size of what a channel carries."""
    kernel = unit.conv.weight.detach().flatten(1).norm(dim=1)
    scale = unit.norm.weight.detach().abs() / (unit.norm.running_var + unit.norm.eps).sqrt()
    return cast(Tensor, kernel * scale)


def rank_stream(source: Any, stage: int) -> Tensor:
    """Return a score ``(C,)`` per channel of a stage's stream, summed over the convolutions that write to it."""
    return torch.stack([strength(unit) for unit in _writers(source, stage)]).sum(0)


def _writers(source: Any, stage: int) -> Iterator[Any]:
    if stage == 0:
        yield source.stem[-1]
    for block in source.stages[stage]:
        yield block.conv2
        if hasattr(block.shortcut, "conv"):
            yield block.shortcut


def _copy_stem(copier: SliceCopier, student: ResNetS0Net, source: Any, kept: Tensor) -> Tensor:
    """Copy the stem, last convolution on last; return the channels that leave it."""
    count = min(len(student.stem), len(source.stem))
    for back in range(1, count + 1):
        ours, theirs = cast(Any, student.stem)[-back], source.stem[-back]
        first_of_both = back == len(student.stem) == len(source.stem)
        copy_unit(copier, ours, theirs, kept, None if first_of_both else kept)
    return kept


def copy_unit(copier: SliceCopier, ours: Any, theirs: Any, outputs: Tensor | None, inputs: Tensor | None) -> None:
    """Copy a convolution and its batch normalisation."""
    copier.conv(ours.conv, theirs.conv, outputs, inputs)
    copier.norm(ours.norm, theirs.norm, outputs)
