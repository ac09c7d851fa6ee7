"""Deep self-attention distillation of one layer (Wang et al.: "MiniLM: Deep Self-Attention Distillation for
Task-Agnostic Compression of Pre-Trained Transformers", arXiv 2002.10957).

    L_AT = 1 / (H n) * sum over heads and rows of KL( softmax(Q_T K_T^T / sqrt(d_T)) || softmax(Q_S K_S^T / sqrt(d_S)) )
    L_VR = the same of softmax(V V^T / sqrt(d))
    L    = L_AT + L_VR, averaged over samples

Only the last layers are compared, so depth and width are free; the number of heads H is not. n is each sample's own
number of real tokens; both softmaxes run over real keys only, and over earlier ones only where a model is causal (the
paper says nothing there: without it the relations would show the future). Maps are recomputed from q and k, so the
target holds no dropout, and fused kernels stay. A bias that a model adds to its scores belongs to its map.

Cost: O(B H n^2 d).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    Batch,
    DistillationLoss,
    Example,
    ModelGeometry,
    Signal,
    Site,
    SiteNeeds,
    StepInfo,
    Terms,
    Trace,
)
from nasdistill.spec.options import ComponentOptions
from nasdistill_losses._pairs import resolve, shapes_text
from nasdistill_losses._relations import allowed_pairs, gram, pick_layer, relation_kl, valid_rows


class MiniLMOptions(ComponentOptions):
    """Options of `minilm`."""

    student_layer: int = Field(-1, description="Layer of the student; layers after it receive no gradient.")
    teacher_layer: int | Literal["auto", "last", "upper_middle"] = Field(
        "last", description="Layer of the teacher; `auto` takes an upper middle one of teachers above 12 layers."
    )
    attention_weight: float = Field(1.0, ge=0, description="Factor of the attention maps.")
    value_weight: float = Field(1.0, ge=0, description="Factor of the value relations.")


class MiniLM(DistillationLoss):
    """See the module's text."""

    options_model = MiniLMOptions
    options: MiniLMOptions
    examples = (Example(), Example({}, {"pairs": ("text_from_decoder",)}, "causal teacher"))

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Choose the layers.

        Raises:
            MismatchError: a model without attention, or different numbers of heads or tokens.
        """
        self._student = resolve(student, pick_layer(self.options.student_layer, student, "q"), "minilm", "student")
        self._teacher = resolve(teacher, pick_layer(self.options.teacher_layer, teacher, "q"), "minilm", "teacher")
        shapes = student[self._student], teacher[self._teacher]
        text = shapes_text(student, self._student, teacher, self._teacher)
        if shapes[0].heads != shapes[1].heads:
            raise MismatchError(
                f"minilm needs equal numbers of heads: {text}", hint="`minilmv2` compares any two head counts."
            )
        if shapes[0].shape[1] != shapes[1].shape[1]:
            raise MismatchError(f"minilm needs the same tokens: {text}", hint="Choose `kd`, `hidden` or `relation`.")

    def sites(self) -> SiteNeeds:
        """Scores and values of one layer of each model."""
        return SiteNeeds(
            frozenset({Site("scores", self._student.layer), Site("v", self._student.layer)}),
            frozenset({Site("scores", self._teacher.layer), Site("v", self._teacher.layer)}),
        )

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return ``{"attention": L_AT, "value": L_VR}``."""
        ours, theirs = (
            (trace.signal(Site("scores", site.layer)), trace.signal(Site("v", site.layer)))
            for trace, site in ((student, self._student), (teacher, self._teacher))
        )
        valid = valid_rows(ours[0], theirs[0])
        pairs = allowed_pairs(ours[0], theirs[0], valid)
        scores_pairs = _both(_both(pairs, ours[0].mask), theirs[0].mask)
        heads = ours[0].tensor.shape[1]
        values = relation_kl(_value_relation(ours[1], heads), _value_relation(theirs[1], heads), pairs, valid)
        attention = relation_kl(ours[0].tensor, theirs[0].tensor, scores_pairs, valid)
        return {"attention": self.options.attention_weight * attention, "value": self.options.value_weight * values}


def _value_relation(value: Signal, heads: int) -> Tensor:
    """``V V^T / sqrt(d)`` per query head; values shared by several heads count for each of them."""
    tensor = value.tensor
    return gram(tensor.repeat_interleave(heads // tensor.shape[1], dim=1))


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
