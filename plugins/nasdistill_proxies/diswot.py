r"""DisWOT: "Student Architecture Search for Distillation WithOut Training" (arXiv:2303.15678).

How close an untrained student already is to its teacher on one labelled batch, in two ways.

Relation (samples x samples). f [B, D] the last feature map before pooling, flattened; G = f f^T with every row
divided by its L2 norm:

    relation = - || G_T - G_S ||_F^2 / B^2                     any widths; 0 is best

Semantic (channels x channels per class). g [K, c] the cross-entropy's gradient at the classifier weight;
M_k = g_k g_k^T with every row divided by its L2 norm:

    semantic = - sum_k || M_k^S - M_k^T ||_F^2 / (K c)         same K and c; 0 is best, -4 the least

M_k has rank one, its row i is sign(g_ki) g_k / ||g_k||. So, with s = sign(g) in {-1, 0, 1}, the semantic term costs
O(K c) instead of O(K c^2):

    semantic = - mean_k mean_i [ (s_ki^S)^2 + (s_ki^T)^2 - 2 s_ki^S s_ki^T cos(g_k^S, g_k^T) ]

    score = semantic + relation                                higher is better

- Cost: one forward and backward of the student; the teacher's side of a batch is computed once and kept.
- Initialisation: ``init = "network"`` takes both networks as they are (a trained teacher, a fresh or inherited
  student); ``"normal"`` draws the convolution and linear weights of *both* from N(0, 1), as the paper's released study
  does; the teacher's draw has its own seed, so that all students meet the same teacher. Mode: batch statistics in
  both (with the running statistics of a fresh network the features degenerate), dropout off.
- For transformers the features are the tokens (B, N, C), flattened; the classifier weight exists there too.
- Widths that differ: the semantic term compares channel i with channel i, so it has no meaning when the classifiers
  read different numbers of features. Leaving it out would lift such a student by up to 4 over the others. It gets
  the value of unrelated gradients, -2 (cos = 0), with a note: the students of a pool stay on one scale, and among
  students that all differ from the teacher the order is that of the relation. ``terms = "semantic"`` refuses them.
- On the paper's 64 CIFAR-100 ResNets the parameter count alone ranks distilled accuracy with Kendall .87; read the
  score beside it.
- Departures: the paper motivates the semantic term with Grad-CAM maps; this is the classifier-gradient form of its
  core listing. The released scripts disagree with each other on the terms used and keep the teacher's gradients
  between students; here every student sees the same batch and a clean gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import ComponentFactory, Proxy, ProxyInput, ProxyScore
from nasdistill.measure.proxies import normal_init
from nasdistill.seeds import torch_generator
from nasdistill.spec.options import ComponentOptions
from nasdistill_proxies._features import trace_head, use_batch_statistics
from nasdistill_proxies._memory import LastResult

UNRELATED = -2.0
"""The semantic term of two gradients without any agreement."""


class DisWotOptions(ComponentOptions):
    """Options of DisWOT."""

    terms: Literal["both", "semantic", "relation"] = Field("both", description="Which terms are added up.")
    init: Literal["network", "normal"] = Field(
        "network",
        description="Score both networks as they are, or with N(0, 1) weights (the paper's study; seeded).",
    )
    teacher_seed: int = Field(0, ge=0, description='Seed of the teacher\'s draw with init = "normal".')


def relation_score(student: Tensor, teacher: Tensor) -> float:
    """Return the relation term for features (B, ...) of both sides."""
    rows = []
    for features in (student, teacher):
        flat = features.detach().double().flatten(1)
        # A common factor of the features cancels in the normalisation; taken out first, it can't overflow.
        flat = flat / flat.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        rows.append(F.normalize(flat @ flat.T, dim=1))
    return -float((rows[0] - rows[1]).square().sum()) / student.shape[0] ** 2


def semantic_score(student: Tensor, teacher: Tensor) -> float:
    """Return the semantic term for classifier gradients (K, c) of both sides, in closed form.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"classifier gradients of shapes {tuple(student.shape)} and {tuple(teacher.shape)}")
    ours, theirs = student.detach().double(), teacher.detach().double()
    unit_s, unit_t = (g / g.norm(dim=1, keepdim=True).clamp_min(1e-300) for g in (ours, theirs))
    cosine = (unit_s * unit_t).sum(dim=1, keepdim=True)
    signs_s, signs_t = ours.sign(), theirs.sign()
    return -float((signs_s.square() + signs_t.square() - 2.0 * signs_s * signs_t * cosine).mean())


class DisWot(Proxy):
    """Agreement of an untrained student with its teacher."""

    options_model = DisWotOptions
    options: DisWotOptions

    def __init__(self, options: Any = None, *, host: ComponentFactory | None = None) -> None:
        super().__init__(options, host=host)
        self._teacher_side: LastResult[tuple[Tensor, Tensor]] = LastResult()

    def score(self, candidate: ProxyInput) -> ProxyScore:
        """Return the score with its terms as parts.

        Raises:
            TrialFailure: a network has no classifier or no features, or ``terms = "semantic"`` and the widths differ.
        """
        teacher = candidate.teacher
        if teacher is None:
            raise TrialFailure("no_teacher", "DisWOT compares with a teacher; give one")
        features_t, gradient_t = self._teacher_side.get(
            teacher,
            candidate.batch,
            lambda: self._side(candidate, teacher, "teacher", torch_generator(self.options.teacher_seed, "diswot")),
        )
        features_s, gradient_s = self._side(candidate, candidate.model, "student", candidate.generator)
        parts: dict[str, float] = {}
        note = ""
        if self.options.terms != "semantic":
            parts["relation"] = relation_score(features_s, features_t)
        if self.options.terms != "relation":
            if gradient_s.shape == gradient_t.shape:
                parts["semantic"] = semantic_score(gradient_s, gradient_t)
            else:
                note = (
                    f"the student's classifier reads {gradient_s.shape[1]} features, the teacher's "
                    f"{gradient_t.shape[1]}: the semantic term is undefined"
                )
                if self.options.terms == "semantic":
                    raise TrialFailure("width_mismatch", note, hint='Use terms = "relation" for this pair.')
                parts["semantic"] = UNRELATED
                note += f" and counted as {UNRELATED:g} (unrelated)"
        return ProxyScore(sum(parts.values()), parts, note)

    def _side(
        self, candidate: ProxyInput, model: nn.Module, label: str, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return features (B, ...) and classifier gradient (K, c) of one network."""
        if self.options.init == "normal":
            normal_init(model, generator)
        use_batch_statistics(model).requires_grad_(True)
        trace = trace_head(model, candidate.batch, candidate.forward, candidate.io.outputs, label=label)
        loss = candidate.loss(trace.output, candidate.batch)
        (gradient,) = torch.autograd.grad(loss, trace.classifier)
        features, gradient = trace.features.detach(), gradient.detach().flatten(1)
        if not bool(torch.isfinite(features).all() and torch.isfinite(gradient).all()):
            raise TrialFailure("degenerate", f"features or gradients of the {label} are not finite")
        return features, gradient
