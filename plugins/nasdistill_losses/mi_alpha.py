"""Lower bounds of the mutual information of two layers, as losses: `mi_alpha` and its ends `infonce`, `tuba`, `nwj`
(He et al.: "Distiller: A Systematic Study of Model Distillation Methods in NLP", arXiv 2109.11105; the bounds: Poole et
al.: "On Variational Bounds of Mutual Information", arXiv 1905.06922; InfoNCE: van den Oord et al., arXiv 1807.03748).

t_i and s_j are the vectors of samples i and j, of K, at a matched pair of layers. Critic F[i, j] = g_t(t_i) . g_s(s_j),
baseline b_i = g_b(t_i); all three are ReLU networks (C -> 128 -> 128 -> 64, or 1), one set per pair of layers.

    N[i, j] = log 1/(K-1) sum_{l != j} exp F[i, l]                   leave one out
    L[i, j] = log( alpha exp N[i, j] + (1 - alpha) exp b_i )
    I = 1 + mean_{i != j} (F[i, i] - L[i, j]) - mean_{i != j} exp(F[i, j] - L[i, i])
    loss = -I, averaged over the pairs

alpha weighs the baseline from the batch. alpha = 1 is InfoNCE: little variance, but I <= log(K - 1), and the last mean
is 1. alpha = 0 is TUBA: no ceiling, much variance; with b = 1 it is NWJ. In between the ceiling is about log(K/alpha).
**The bound is about K**: a last incomplete batch has a lower ceiling, and with 2 samples and alpha = 1 nothing is
learned. One sample says nothing: the value is 0.

Critics and baseline are trained with the student, by the same optimiser, and thrown away. They can fail to learn: use a
moderate learning rate, and a small weight (beside the labels, a small student lost up to 21 points of accuracy at
weight 1, and at most 1.2 at 0.1; docs/benchmarks.md). The value is not 0 when the models agree; it falls as the
student's layer tells more of the teacher's.

Differences: rows are the teacher's, so that the baseline belongs to the row it is in (the authors' code takes rows of
students with baselines of teachers). Sums are taken in log space; above exp(50) the last mean goes on as a straight
line, which keeps gradients finite where a critic has run away.

Cost: O(B^2) and the critics' 128 (Cs + 2 Ct) multiplications per sample and pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nasdistill.interfaces import Batch, DistillationLoss, Example, ModelGeometry, SiteNeeds, StepInfo, Terms, Trace
from nasdistill.spec.options import searchable
from nasdistill_losses._mapping import LayerOptions, combine, map_layers, pair_name
from nasdistill_losses._vectors import POSITION_HELP, Position, choose_position, sample_vectors

_STEEPEST = 50.0


class CriticOptions(LayerOptions):
    """Options of `infonce`, `tuba` and `nwj`."""

    position: Position = Field("auto", description=POSITION_HELP)
    hidden: int = Field(128, ge=1, description="Width of the critics' two hidden layers.")
    features: int = Field(64, ge=1, description="Width in which the critic compares.")


class MutualInformationOptions(CriticOptions):
    """Options of `mi_alpha`."""

    alpha: float = searchable(
        0.9, choices=(0.0, 0.1, 0.5, 0.9, 1.0), ge=0, le=1,
        description="Weight of the baseline from the batch: 1 = InfoNCE, bounded and steady; 0 = TUBA, unbounded.",
    )  # fmt: skip
    baseline: Literal["learned", "one"] = Field(
        "learned", description="Baseline from the teacher's vector: a small network, or the constant b = 1."
    )


def leave_one_out(scores: Tensor) -> Tensor:
    """Return N ``(K, K)`` of scores ``(K, K)``: the log mean of exp over each row, without the entry itself; K >= 2.

    A row's largest entry takes the place of a sum over the others; all others are at most half of the whole and can be
    taken from it without loss of digits. O(K^2) where the plain formula needs O(K^3).
    """
    count = scores.shape[1]
    top = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argmax(1, keepdim=True), True)
    whole = scores.logsumexp(1, keepdim=True)
    share = torch.where(top, torch.zeros_like(scores), (scores - whole).masked_fill(top, 0.0).exp())
    rest = scores.masked_fill(top, -math.inf).logsumexp(1, keepdim=True)
    return torch.where(top, rest, whole + torch.log1p(-share)) - math.log(count - 1)


def mi_alpha_bound(scores: Tensor, baseline: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the means ``(joint, marginal)`` of the bound I = 1 + joint - marginal.

    Args:
        scores: F ``(K, K)``, rows = teacher, columns = student, K >= 2.
        baseline: b ``(K,)``, one per row; not read at alpha = 1.
        alpha: in [0, 1].
    """
    count = scores.shape[0]
    if alpha == 0:
        level = baseline[:, None].expand(count, count)
    elif alpha == 1:
        level = leave_one_out(scores)
    else:
        level = torch.logaddexp(
            leave_one_out(scores) + math.log(alpha), baseline[:, None] + math.log1p(-alpha)
        )  # fmt: skip
    others = ~torch.eye(count, dtype=torch.bool, device=scores.device)
    joint = (scores.diagonal()[:, None] - level)[others].mean()
    exponent = (scores - level.diagonal()[:, None])[others]
    steep = exponent.clamp_max(_STEEPEST).exp() * (1 + (exponent - _STEEPEST).clamp_min(0))
    return joint, steep.mean()


def mi_alpha_loss(scores: Tensor, baseline: Tensor, alpha: float) -> Tensor:
    """Return -I of `mi_alpha_bound`; 0 for a single sample."""
    if scores.shape[0] < 2:
        return (scores * 0.0).sum()
    joint, marginal = mi_alpha_bound(scores, baseline, alpha)
    return marginal - joint - 1


class Critic(nn.Module):
    """The networks of one pair of layers.

    Args:
        student, teacher: widths of the two layers.
        options: sizes.
        learns_baseline: whether there is a network for b.
    """

    def __init__(self, student: int, teacher: int, options: CriticOptions, learns_baseline: bool) -> None:
        super().__init__()
        self.student = _network(student, options.hidden, options.features)
        self.teacher = _network(teacher, options.hidden, options.features)
        self.baseline = _network(teacher, options.hidden, 1) if learns_baseline else None

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return F ``(K, K)`` and b ``(K,)`` of ``(K, Cs)`` and ``(K, Ct)``, in the networks' own precision."""
        dtype = next(self.parameters()).dtype
        with torch.autocast(device_type=student.device.type, enabled=False):
            ours, theirs = student.to(dtype), teacher.detach().to(dtype)
            scores = self.teacher(theirs) @ self.student(ours).T
            baseline = scores.new_ones(len(scores)) if self.baseline is None else self.baseline(theirs)[:, 0]
        return scores, baseline


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )  # fmt: skip


class MutualInformation(DistillationLoss):
    """`mi_alpha`; see the module's text.

    Attributes:
        critics: one :class:`Critic` per pair of layers, named as its term.
    """

    options_model: ClassVar[type[CriticOptions]] = MutualInformationOptions
    options: CriticOptions
    name: ClassVar[str] = "mi_alpha"
    expected_failures: ClassVar[Mapping[str, str]] = {
        "repeating_the_batch_changes_nothing": "the bound compares each sample with the K - 1 others of its batch"
    }
    examples: ClassVar[tuple[Example, ...]] = (
        Example(),
        Example(
            {"alpha": 0.5, "baseline": "one", "position": "mean", "mapping": "emd"}, {"pairs": ("text",)}, "transport"
        ),
    )

    def alpha_and_baseline(self) -> tuple[float, bool]:
        """Return alpha, and whether b is learned."""
        options = self.options
        assert isinstance(options, MutualInformationOptions)
        return options.alpha, options.baseline == "learned"

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        """Pair the layers and create the critics. Raises MismatchError where a model has no layers to compare."""
        self.alpha, learned = self.alpha_and_baseline()
        self.pairs = map_layers(self.options, student, teacher, layer_map, self.name)
        self.critics = nn.ModuleDict()
        self._at: list[tuple[Position, Position]] = []
        for ours, theirs in self.pairs:
            at = self.options.position
            self._at.append((choose_position(at, student, ours), choose_position(at, teacher, theirs)))
            # At alpha = 1 the baseline has no influence: there is nothing to learn it from.
            self.critics[pair_name((ours, theirs))] = Critic(
                student[ours].width, teacher[theirs].width, self.options, learned and self.alpha < 1
            )

    def sites(self) -> SiteNeeds:
        """The paired layers."""
        return SiteNeeds.of([ours for ours, _ in self.pairs], [theirs for _, theirs in self.pairs])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        """Return -I of each pair, divided by the number of pairs; ``emd`` for transport."""
        values = []
        for pair, (ours, theirs) in zip(self.pairs, self._at, strict=True):
            scores, baseline = self.critics[pair_name(pair)](
                sample_vectors(student.signal(pair[0]), ours), sample_vectors(teacher.signal(pair[1]), theirs)
            )
            values.append(mi_alpha_loss(scores, baseline, self.alpha))
        return combine(self.options, self.pairs, values)


class InfoNCE(MutualInformation):
    """`infonce`: alpha = 1."""

    options_model = CriticOptions
    name = "infonce"
    examples = (Example({}, {"pairs": ("text", "conv")}),)

    def alpha_and_baseline(self) -> tuple[float, bool]:
        """Return alpha = 1, no baseline."""
        return 1.0, False


class TUBA(MutualInformation):
    """`tuba`: alpha = 0 with a learned baseline."""

    options_model = CriticOptions
    name = "tuba"
    examples = (Example({"mapping": "skip"}, {"pairs": ("text", "decoder")}),)

    def alpha_and_baseline(self) -> tuple[float, bool]:
        """Return alpha = 0 and a learned baseline."""
        return 0.0, True


class NWJ(MutualInformation):
    """`nwj`: alpha = 0 with b = 1."""

    options_model = CriticOptions
    name = "nwj"
    examples = (Example({}, {"pairs": ("text", "conv_from_vit")}),)

    def alpha_and_baseline(self) -> tuple[float, bool]:
        """Return alpha = 0 and b = 1."""
        return 0.0, False
