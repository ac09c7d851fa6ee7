"""Copying a part of a larger tensor into a smaller one, and counting what was copied."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def top(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` highest scores in ascending order, int64 ``(min(count, len),)``.

    Ascending order keeps neighbours together and makes a copy at full size the identity.
    """
    best = torch.topk(scores, min(count, scores.numel())).indices
    ordered: Tensor = torch.sort(best).values
    return ordered


def row_norms(weight: Tensor, axis: int) -> Tensor:
    """Return the L2 norm of every slice of `weight` along `axis`, divided by their mean (so layers can be added)."""
    norms = weight.detach().float().transpose(0, axis).flatten(1).norm(dim=1)
    relative: Tensor = norms / norms.mean().clamp_min(1e-12)
    return relative


class SliceCopier:
    """Copies slices and counts the parameters that came from the teacher.

    Attributes:
        copied: elements of student parameters that were set (each parameter is set at most once).
    """

    def __init__(self) -> None:
        self.copied = 0

    @torch.no_grad()
    def tensor(
        self, target: Tensor, source: Tensor, *picks: Tensor | None, scale: float = 1.0, counted: bool = True
    ) -> None:
        """Set the leading entries of `target` to the picked entries of `source`.

        Args:
            target: a parameter or buffer, or a view of one; entries beyond the picked ones keep their value.
            source: as many axes as `target`.
            picks: for each axis the source indices, at most as many as `target` has there; None (or a missing axis)
                takes the leading entries that fit.
            scale: factor on what is copied.
            counted: whether `target` is (part of) a parameter.
        """
        part = source.detach()
        for axis in range(source.dim()):
            pick = picks[axis] if axis < len(picks) else None
            if pick is None:
                part = part.narrow(axis, 0, min(part.shape[axis], target.shape[axis]))
            else:
                part = part.index_select(axis, pick[: target.shape[axis]].to(part.device))
        where = target.detach()[tuple(slice(0, size) for size in part.shape)]
        where.copy_(part if scale == 1.0 else part * scale)
        if counted:
            self.copied += part.numel()

    def conv(self, target: nn.Conv2d, source: nn.Conv2d, outputs: Tensor | None, inputs: Tensor | None) -> None:
        """Copy a convolution's kernel (the kernel sizes must agree) and bias."""
        self.tensor(target.weight, source.weight, outputs, inputs)
        if target.bias is not None and source.bias is not None:
            self.tensor(target.bias, source.bias, outputs)

    def linear(self, target: nn.Linear, source: nn.Linear, outputs: Tensor | None, inputs: Tensor | None) -> None:
        """Copy a linear layer's matrix and bias."""
        self.tensor(target.weight, source.weight, outputs, inputs)
        if target.bias is not None and source.bias is not None:
            self.tensor(target.bias, source.bias, outputs)

    def norm(self, target: nn.Module, source: nn.Module, channels: Tensor | None) -> None:
        """Copy scale, shift and, where there are any, running statistics of a normalisation."""
        for name in ("weight", "bias", "running_mean", "running_var"):
            ours, theirs = getattr(target, name, None), getattr(source, name, None)
            if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
                self.tensor(ours, theirs, channels, counted=isinstance(ours, nn.Parameter))
        counter, seen = getattr(target, "num_batches_tracked", None), getattr(source, "num_batches_tracked", None)
        if isinstance(counter, Tensor) and isinstance(seen, Tensor):
            counter.copy_(seen)
