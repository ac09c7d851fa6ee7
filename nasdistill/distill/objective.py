"""The objective: the task's own loss and any number of distillation losses, weighted, scheduled, balanced.

With task loss L_0 and distillation losses L_1 ... L_n, weights w_i(t) at training progress t in [0, 1] (a number or a
schedule) and balancing factors s_i,

    total = sum_i  w_i(t) * s_i * L_i

``balance = "none"``: s_i = 1. ``"magnitude"``: s_i = 1 / |L_i|, detached: every term enters with its weight whatever
its unit. ``"gradient"``: s_i = 1 / ||dL_i / dz_i||_2, detached, with z_i the student's signals that term i reads (the
logits, the hidden states): every term pulls equally hard at what it sees. This costs one more backward pass through
each loss, none through the network, because the signals are cut into leaves of the losses' graph for it.

``balance = "dynamic"`` (Muralidharan et al.: "Compact Language Models via Pruning and Knowledge Distillation", arXiv
2407.14679): s_i = L_ref / |L_i|, detached, brings every term to the size of the first one, which keeps its own size and
with it the course of the training: the loss on labels, or where its weight is 0 the first of the list, such as
`logit_kl`. That paper's L_logits + (L_logits / L_is) L_is is the list `logit_kl`, `hidden_cos` without a task loss;
its code's (task / kd) kd beside a task loss has weights that sum to 1 in the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from nasdistill.errors import MismatchError, TrialFailure, UsageError
from nasdistill.interfaces.base import ComponentFactory
from nasdistill.interfaces.batch import Batch, StepInfo
from nasdistill.interfaces.loss import DistillationLoss, Terms
from nasdistill.interfaces.signals import ModelGeometry, Site, SiteNeeds, Trace
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ObjectiveConfig, Schedule

LOGITS = Site("logits")
_SMALL = 1e-8


class Objective(nn.Module):
    """Weighted sum of losses; a module, because losses may own projectors, critics or routers.

    Args:
        config: weights, losses with their options, balance.
        factory: makes the losses by name.
        student: geometry of the student.
        teacher: geometry of the teacher; None when there is no teacher: no distillation loss fits then.
        layer_map: student layer -> teacher layer.
        seed: the initial weights of owned parts derive from it and the loss's label, so that leaving one loss out does
            not change another.

    Attributes:
        skipped: label -> reason, for optional losses that do not fit this pair of models.

    Raises:
        TrialFailure: reason ``"mismatch"``: a loss that is not optional does not fit, or nothing is left to train on.
        UsageError: a loss wants to train the teacher.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        *,
        factory: ComponentFactory | None,
        student: ModelGeometry,
        teacher: ModelGeometry | None,
        layer_map: Mapping[int, int],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.balance = config.balance
        self.task_weight = config.task_weight
        self.weights: dict[str, float | Schedule] = {}
        self.skipped: dict[str, str] = {}
        self.losses = nn.ModuleDict()
        for item in config.losses:
            label = self._label(item.name)
            try:
                if teacher is None or factory is None:
                    raise MismatchError(
                        f"loss {item.name!r} compares with a teacher, and there is none",
                        hint="Give a teacher, or leave objective.losses empty.",
                    )
                with seeded(seed, "loss", label):
                    loss: DistillationLoss = factory.create(Kind.LOSS, item.name, item.options)
                    loss.build(student, teacher, layer_map)
            except MismatchError as error:
                if not item.optional:
                    raise TrialFailure("mismatch", error.message, hint=error.hint) from error
                self.skipped[label] = error.message
                continue
            if loss.wants_teacher_grad:
                raise UsageError(f"loss {item.name!r} trains the teacher too; a single training keeps it frozen")
            self.losses[label] = loss
            self.weights[label] = item.weight
        if not self.losses and self.task_weight == 0:
            raise TrialFailure(
                "mismatch", "no loss of the objective fits this student, and the loss on labels has weight 0"
            )

    def needs(self) -> SiteNeeds:
        """Return the sites to capture: the student's logits always, of the teacher only what a loss asks for."""
        found = SiteNeeds(frozenset({LOGITS}), frozenset())
        for loss in self._each().values():
            found |= loss.sites()
        return found

    def forward(
        self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo, task_loss: Tensor
    ) -> tuple[Tensor, Terms]:
        """Return the total and all terms.

        Args:
            student: the student's signals, with gradients.
            teacher: the teacher's, detached; empty when there is no teacher.
            batch: the samples.
            step: where the training stands.
            task_loss: the task's loss of ``student.logits``.

        Returns:
            The total to differentiate, and detached terms: ``task``, one per loss under its label, ``label.term`` for
            each term of a loss with several, all as the losses gave them; and ``total``, their weighted sum before
            balancing (a balanced sum of magnitudes would say nothing).
        """
        terms = {"task": task_loss.detach()}
        parts = [(self.task_weight, task_loss, [student.signals[LOGITS].tensor])]
        for label, loss in self._each().items():
            seen, seam = _cut(student, loss.sites()) if self.balance == "gradient" else (student, [])
            values = loss(seen, teacher, batch, step)
            value = sum(values.values()) if len(values) > 1 else next(iter(values.values()))
            terms[label] = value.detach()
            if len(values) > 1:
                terms |= {f"{label}.{name}": part.detach() for name, part in values.items()}
            parts.append((self.weights[label], value, seam))

        total: Tensor | None = None
        plain: Tensor | None = None
        reference: Tensor | None = None
        for weight, value, seam in parts:
            factor = weight.at(step.progress) if isinstance(weight, Schedule) else weight
            if factor == 0:  # left out rather than multiplied: 0 * inf is nan
                continue
            weighted = value * factor
            if self.balance != "none":
                plain = weighted.detach() if plain is None else plain + weighted.detach()
            if self.balance == "dynamic":
                size = value.detach().abs()
                if reference is None or not reference > _SMALL:  # a batch without labels has a task loss of 0
                    reference = size
                else:
                    weighted = weighted * (reference / size.clamp_min(_SMALL))
            elif self.balance != "none":
                scale = value.detach().abs() if self.balance == "magnitude" else _gradient_norm(value, seam)
                weighted = weighted / scale.clamp_min(_SMALL)
            total = weighted if total is None else total + weighted
        if total is None:  # all schedules are at 0
            total = task_loss * 0.0
        terms["total"] = total.detach() if plain is None else plain
        return total, terms

    def after_step(self, step: StepInfo) -> None:
        """Let the losses update what the optimiser does not train."""
        for loss in self._each().values():
            loss.after_step(step)

    def _each(self) -> dict[str, DistillationLoss]:
        return dict(self.losses.items())  # type: ignore[arg-type]

    def _label(self, name: str) -> str:
        """Return the component's bare name, numbered when it comes more than once (``kd``, ``kd_2``)."""
        bare = name.rpartition(":")[2].replace(".", "_")
        taken = {*self.losses, *self.skipped, "task", "total"}
        label, number = bare, 1
        while label in taken:
            number += 1
            label = f"{bare}_{number}"
        return label


def _cut(trace: Trace, needs: SiteNeeds) -> tuple[Trace, list[Tensor]]:
    """Return the trace with a seam in front of the signals that a loss reads, and the tensors at the seam.

    Each signal is replaced by a view of itself. The views hang side by side below the network, so differentiating a
    loss by them stops there and never walks from one layer's signal to an earlier one.
    """
    signals = {
        site: replace(signal, tensor=signal.tensor.view_as(signal.tensor)) for site, signal in trace.signals.items()
    }
    # A loss that asks for a map reads q and k instead where the map is recomputed.
    wanted = {site.layer for site in needs.student if site.name in ("scores", "attention")}
    read = [s for s in signals if s in needs.student or (s.name in ("q", "k") and s.layer in wanted)]
    return Trace(signals, trace.members, trace.weights), [signals[site].tensor for site in read]


def _gradient_norm(value: Tensor, at: list[Tensor]) -> Tensor:
    """Return the detached 2-norm of the gradient of `value` with respect to all tensors of `at` together."""
    points = [tensor for tensor in at if tensor.requires_grad]
    if not value.requires_grad or not points:
        return value.new_zeros(())
    gradients = torch.autograd.grad(value, points, retain_graph=True, allow_unused=True)
    norms = [gradient.detach().float().norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm() if norms else value.new_zeros(())
