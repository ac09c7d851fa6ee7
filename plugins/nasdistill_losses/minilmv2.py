"""Multi-head self-attention relations of one layer (Wang et al.: "MiniLMv2: Multi-Head Self-Attention Relation
Distillation for Compressing Pretrained Transformers", arXiv 2012.15828).

Q, K and V of one layer, heads joined to the full width d, are split anew into A relation heads of d_r = d / A:

    R_ab = softmax(a b^T / sqrt(d_r))         for each relation ab, by default qq, kk and vv
    L_ab = 1 / (A n) * sum over heads and rows of KL( R_ab of the teacher || R_ab of the student )
    L    = sum over the relations of weight_ab L_ab,  weights 1/3 each, averaged over samples

A is independent of the models' head counts, so widths, heads and depths are all free; A must divide both widths (where
it does not, the greatest common divisor of A and both widths is taken, or the pair is refused, by option). n is each
sample's own number of real tokens; causal models are compared causally.

Differences from the paper: q and k are taken as the attention kernel gets them, which for models with rotary positions
or normalised queries is after those; fewer key and value heads than query heads are allowed, each relation then has its
own A.

Cost: O(B n^2 d) per relation, memory O(B A n^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    Batch,
    DistillationLoss,
    Example,
    ModelGeometry,
    Site,
    SiteNeeds,
    StepInfo,
    Terms,
    Trace,
)
from nasdistill.spec.options import ComponentOptions
from nasdistill_losses._pairs import resolve, shapes_text
from nasdistill_losses._relations import allowed_pairs, gram, pick_layer, relation_kl, valid_rows

Relation = Literal["qq", "kk", "vv", "qk", "kq", "qv", "vq", "kv", "vk"]


class MiniLMv2Options(ComponentOptions):
    """Options of `minilmv2`."""

    relation_heads: int = Field(48, ge=1, description="A: more heads compare finer relations.")
    fit: Literal["gcd", "refuse"] = Field(
        "gcd", description="What to do when A does not divide both widths: a common divisor, or refuse the pair."
    )
    relations: tuple[Relation, ...] = Field(("qq", "kk", "vv"), min_length=1, description="Which relations.")
    weights: tuple[float, ...] = Field((), description="Factor per relation; empty = equal, summing to 1.")
    student_layer: int = Field(-1, description="Layer of the student; layers after it receive no gradient.")
    teacher_layer: int | Literal["auto", "last", "upper_middle"] = Field(
        "auto", description="Layer of the teacher; `auto`: the last of up to 12, an upper middle one of more."
    )

    @model_validator(mode="after")
    def _one_weight_each(self) -> MiniLMv2Options:
        if self.weights and len(self.weights) != len(self.relations):
            raise ValueError(f"{len(self.weights)} weights for {len(self.relations)} relations")
        return self


class MiniLMv2(DistillationLoss):
    """See the module's text."""

    options_model = MiniLMv2Options
    options: MiniLMv2Options
    examples = (Example(), Example({"relations": ["qk", "vv"]}, {"pairs": ("text",)}, "cross relations"))

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Choose the layers and the number of relation heads.

        Raises:
            MismatchError: a model without attention, different tokens, or widths that A does not divide.
        """
        self._student = resolve(student, pick_layer(self.options.student_layer, student, "q"), "minilmv2", "student")
        self._teacher = resolve(teacher, pick_layer(self.options.teacher_layer, teacher, "q"), "minilmv2", "teacher")
        text = shapes_text(student, self._student, teacher, self._teacher)
        if student[self._student].shape[1] != teacher[self._teacher].shape[1]:
            raise MismatchError(f"minilmv2 needs the same tokens: {text}", hint="Choose `kd`, `hidden` or `relation`.")
        self.heads = {pair: self._relation_heads(pair, student, teacher, text) for pair in self.options.relations}

    def _relation_heads(self, pair: str, student: ModelGeometry, teacher: ModelGeometry, text: str) -> int:
        """Return A for one relation."""
        widths = [
            geometry[Site(name, site.layer)].width
            for geometry, site in ((student, self._student), (teacher, self._teacher))
            for name in pair
        ]
        if widths[0] != widths[1] or widths[2] != widths[3]:
            raise MismatchError(
                f"minilmv2 cannot relate {pair[0]} to {pair[1]}, which differ in width: {text}",
                hint="Use the relations qq, kk and vv with grouped key and value heads.",
            )
        heads = math.gcd(self.options.relation_heads, *widths)
        if heads != self.options.relation_heads and self.options.fit == "refuse":
            raise MismatchError(
                f"minilmv2: {self.options.relation_heads} relation heads do not divide the widths {widths[0]} and "
                f"{widths[2]}: {text}",
                hint="Set relation_heads to a common divisor, or fit = 'gcd'.",
            )
        return heads

    def sites(self) -> SiteNeeds:
        """The tensors that the relations name, of one layer of each model."""
        names = sorted(set("".join(self.options.relations)))
        return SiteNeeds(
            frozenset(Site(name, self._student.layer) for name in names),
            frozenset(Site(name, self._teacher.layer) for name in names),
        )

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return one weighted term per relation."""
        weights = self.options.weights or (1 / len(self.options.relations),) * len(self.options.relations)
        terms: Terms = {}
        for pair, weight in zip(self.options.relations, weights, strict=True):
            ours, theirs = (
                [trace.signal(Site(name, site.layer)) for name in pair]
                for trace, site in ((student, self._student), (teacher, self._teacher))
            )
            valid = valid_rows(ours[0], theirs[0])
            heads = self.heads[pair]
            value = relation_kl(
                gram(ours[0].tensor, heads, ours[1].tensor),
                gram(theirs[0].tensor, heads, theirs[1].tensor),
                allowed_pairs(ours[0], theirs[0], valid),
                valid,
            )
            terms[pair] = weight * value
        return terms
