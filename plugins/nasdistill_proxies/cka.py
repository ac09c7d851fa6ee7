r"""Representation similarity to the teacher: linear CKA between stages.

"Similarity of Neural Network Representations Revisited" (arXiv:1905.00414). For the features X [B, d1] and Y [B, d2]
of the same B samples, K = X X^T, L = Y Y^T, H the centring matrix:

    CKA = < H K H, H L H > / ( || H K H ||_F || H L H ||_F )        in [0, 1]

Only B x B matrices meet, so widths, resolutions and even families (maps against tokens) may differ. CKA(X, X) = 1, and
it does not change when X is rotated, scaled or shifted.

    score = mean over stages of CKA(student stage, teacher stage)

"Neural Architecture Search with Representation Mutual Information" (Zheng et al., CVPR 2022) ranks architectures by
this similarity to one that is known to be good.

- Cost: one forward of the student; the teacher's side of a batch is computed once and kept. No labels.
- Initialisation: both networks as they are. Mode: batch statistics in both (with the running statistics of a fresh
  network the features degenerate), dropout off.
- Stages: the feature maps of a convolutional network (the last one of each resolution) followed by the outputs of the
  transformer blocks, thinned out to `stages` evenly spread ones, the last always among them; a network with fewer
  repeats some. So every student of a pool is compared at the same number of places.
- Orientation: higher is better.
- Departure: RMI-NAS trains the student on the batch for a moment before it compares; here nothing is trained. With
  features much wider than the batch CKA of unrelated features lies well above 0: compare values at one batch size
  only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import ComponentFactory, Proxy, ProxyInput, ProxyScore, Site
from nasdistill.spec.options import ComponentOptions
from nasdistill.trace import SitePlan
from nasdistill_proxies._features import use_batch_statistics
from nasdistill_proxies._memory import LastResult


class CkaOptions(ComponentOptions):
    """Options of the representation similarity."""

    stages: int = Field(3, ge=1, le=32, description="At how many places the two networks are compared.")


def centred_gram(features: Tensor) -> Tensor:
    """Return ``H X X^T H`` (B, B) in float64 for features (B, ...); scaled to norm 1 (all zeros stay zeros)."""
    flat = features.detach().double().flatten(1)
    flat = flat - flat.mean(dim=0, keepdim=True)
    flat = flat / flat.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    gram = flat @ flat.T
    size: Tensor = torch.linalg.matrix_norm(gram)
    return gram / size.clamp_min(torch.finfo(torch.float64).tiny)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return linear CKA of two sets of features (B, ...) of the same samples; 0 when one is constant.

    Raises:
        ValueError: different numbers of samples.
    """
    if first.shape[0] != second.shape[0]:
        raise ValueError(f"features of {first.shape[0]} and {second.shape[0]} samples")
    return float((centred_gram(first) * centred_gram(second)).sum())


def spread(length: int, places: int) -> list[int]:
    """Return `places` indices evenly over ``range(length)``, the last one always last; repeats where length is less."""
    return [math.ceil((i + 1) * length / places) - 1 for i in range(places)]


class Cka(Proxy):
    """Mean linear CKA with the teacher over matching stages."""

    options_model = CkaOptions
    options: CkaOptions

    def __init__(self, options: Any = None, *, host: ComponentFactory | None = None) -> None:
        super().__init__(options, host=host)
        self._teacher_side: LastResult[list[Tensor]] = LastResult()

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the mean, and the similarity of each stage as parts.

        Raises:
            TrialFailure: a network has no stage to compare, or its features are not finite.
        """
        teacher = candidate.teacher
        if teacher is None:
            raise TrialFailure("no_teacher", "CKA compares with a teacher; give one")
        theirs = self._teacher_side.get(
            teacher,
            candidate.batch,
            lambda: self._grams(candidate, teacher, "teacher"),
        )
        ours = self._grams(candidate, candidate.model, "student")
        values = {
            f"stage{i}": float((mine * other).sum()) for i, (mine, other) in enumerate(zip(ours, theirs, strict=True))
        }
        return ProxyScore(sum(values.values()) / len(values), values)

    def _grams(self, candidate: ProxyInput, model: nn.Module, label: str) -> list[Tensor]:
        """Return the normalised centred Gram matrices of one network's stages."""
        few = candidate.batch.select(torch.arange(min(2, candidate.batch.size), device=candidate.batch.ids.device))
        use_batch_statistics(model)
        plan = SitePlan(model, lambda net: candidate.forward(net, few), label=label)
        sites = _stage_sites(plan.geometry.sites)
        if not sites:
            raise TrialFailure("no_features", f"the {label} shows no feature map and no transformer block")
        chosen = [sites[i] for i in spread(len(sites), self.options.stages)]
        with torch.no_grad(), plan.capture(dict.fromkeys(chosen)) as recorder:
            output = candidate.forward(model, candidate.batch)
        trace = recorder.trace(output)
        features = [trace[site] for site in chosen]
        if not all(bool(torch.isfinite(value).all()) for value in features):
            raise TrialFailure("degenerate", f"features of the {label} are not finite")
        return [centred_gram(value) for value in features]


def _stage_sites(sites: Iterable[Site]) -> list[Site]:
    """Return the feature maps by stage, then the block outputs by layer."""
    order = {"features": 0, "hidden": 1}
    return sorted((site for site in sites if site.name in order), key=lambda site: (order[site.name], site.layer or 0))
