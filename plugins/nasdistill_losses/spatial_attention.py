"""Where a map is active, whatever its channels (Zagoruyko, Komodakis: "Paying More Attention to Attention", arXiv
1612.03928; used to restore pruned detectors in Chu et al., arXiv 2306.01526).

    at:  A(F) = sum over channels of |F|^p, flattened, divided by its L2 norm;
         L = mean over samples of the sum over pairs of ||A(F_S) - A(F_T)||^2        (= 2 - 2 cos for each pair)
    kl:  a(F) = sum over channels of |F|, softmax over positions at temperature T;
         L = T^2 * mean over samples of the sum over pairs of KL( teacher || student )

Channel counts are free. Tokens of known image grids are maps too (class tokens dropped). Grids of different sizes: the
finer activity map is reduced bilinearly to the coarser one.

Differences: the first paper averages over positions and takes the weight 1000 / 2 for it, the second one's code divides
the KL by the number of positions; here both are sums over positions, so that weights do not depend on the resolution.

Cost: O(B C H W) per pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    Batch,
    DistillationLoss,
    Example,
    ModelGeometry,
    Signal,
    SiteNeeds,
    StepInfo,
    Terms,
    Trace,
)
from nasdistill_losses._pairs import PairOptions, choose_pairs, shapes_text
from nasdistill_losses._tokens import as_tokens, coarser, grid_of, resize, to_map


class SpatialAttentionOptions(PairOptions):
    """Options of `spatial_attention`."""

    mode: Literal["at", "kl"] = Field("at", description="Attention transfer, or KL over positions.")
    power: float = Field(2.0, ge=1, description="p of `at`: the higher, the more the strongest position counts.")
    temperature: float = Field(3.0, gt=0, description="T of `kl`.")


def activity(maps: Tensor, power: float = 2.0) -> Tensor:
    """Return ``(B, 1, H, W)``: the sum over the channels of ``(B, C, H, W)`` of |F|^power, in float32."""
    return maps.float().abs().pow(power).sum(1, keepdim=True)


def spatial_attention_loss(
    student: Tensor, teacher: Tensor, *, mode: str = "at", power: float = 2.0, temperature: float = 3.0
) -> Tensor:
    """Return the loss of one pair of maps ``(B, C, H, W)``; channels and sizes may differ.

    Args:
        student: map of the student.
        teacher: map of the teacher; no gradient flows into it.
        mode: ``"at"`` or ``"kl"``.
        power: p of ``"at"``.
        temperature: T of ``"kl"``.
    """
    exponent = power if mode == "at" else 1.0
    ours, theirs = activity(student, exponent), activity(teacher.detach(), exponent)
    size = coarser((ours.shape[-2], ours.shape[-1]), (theirs.shape[-2], theirs.shape[-1]))
    ours, theirs = resize(ours, size).flatten(1), resize(theirs, size).flatten(1)
    if mode == "at":
        return (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(1).mean()
    ours, theirs = torch.log_softmax(ours / temperature, 1), torch.log_softmax(theirs / temperature, 1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1).mean()


class SpatialAttention(DistillationLoss):
    """See the module's text."""

    options_model = SpatialAttentionOptions
    options: SpatialAttentionOptions
    examples = (
        Example(),
        Example({"mode": "kl"}, {"pairs": ("conv",)}, "kl"),
        Example({"power": 4}, {"pairs": ("vit_from_finer",)}, "fourth power"),
    )

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Pair the maps.

        Raises:
            MismatchError: no such layers, or tokens that lie on no image grid.
        """
        self.pairs = choose_pairs(self.options, student, teacher, layer_map, "spatial_attention")
        for ours, theirs in self.pairs:
            if grid_of(student[ours]) is None or grid_of(teacher[theirs]) is None:
                raise MismatchError(
                    f"spatial_attention needs maps or tokens on an image grid: "
                    f"{shapes_text(student, ours, teacher, theirs)}",
                    hint="Choose `minilmv2` or `hidden` for sequences.",
                )

    def sites(self) -> SiteNeeds:
        """The paired layers."""
        return SiteNeeds.of([ours for ours, _ in self.pairs], [theirs for _, theirs in self.pairs])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return one term per pair."""
        options = self.options
        return {
            f"{ours}-{theirs}".replace(".", "_"): spatial_attention_loss(
                _as_map(student.signal(ours)),
                _as_map(teacher.signal(theirs)),
                mode=options.mode,
                power=options.power,
                temperature=options.temperature,
            )
            for ours, theirs in self.pairs
        }


def _as_map(signal: Signal) -> Tensor:
    grid = grid_of(signal)
    if grid is None:
        raise MismatchError(f"spatial_attention: {tuple(signal.tensor.shape)} tokens lie on no image grid")
    return signal.tensor if signal.layout == "map" else to_map(as_tokens(signal), grid)
