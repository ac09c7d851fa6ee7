"""Conveniences: a trace in one call, cached plans, layer maps."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from nasdistill.errors import NasdistillError
from nasdistill.interfaces.batch import Batch
from nasdistill.interfaces.signals import ModelGeometry, Site, Trace
from nasdistill.trace.capture import LOGITS, Recorder
from nasdistill.trace.plan import SitePlan

Forward = Callable[[nn.Module, Batch], Tensor]
"""A task's way of calling a model."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Of a batch's inputs, without the batch axis."""

_DRY_BATCH = 2


def even_layer_map(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Return student layer -> teacher layer, evenly spread, last on last; empty when one side has no layers.

    >>> even_layer_map(2, 6)
    {0: 2, 1: 5}
    """
    if student_layers < 1 or teacher_layers < 1:
        return {}
    return {i: math.ceil((i + 1) * teacher_layers / student_layers) - 1 for i in range(student_layers)}


def valid_tokens(batch: Batch) -> Tensor | None:
    """Return ``(B, N)`` bool from a batch's ``attention_mask``, or None without one."""
    mask = batch.inputs.get("attention_mask")
    return mask.bool() if mask is not None and mask.ndim == 2 else None


def trace_model(
    model: nn.Module, batch: Batch, sites: Iterable[Site | str], forward: Forward, plan: SitePlan | None = None
) -> tuple[Trace, Tensor]:
    """Run a model on a batch and capture sites; gradients and mode are the caller's.

    Args:
        model: the planned model or a deep copy of it.
        batch: its samples; an ``attention_mask (B, N)`` among its inputs travels with the signals.
        sites: what to capture.
        forward: the task's way of calling a model.
        plan: the model's plan; may be left out when only ``logits`` are asked for.

    Returns:
        The trace, and what `forward` returned.
    """
    wanted = {Site.parse(site) if isinstance(site, str) else site for site in sites}
    valid = valid_tokens(batch)
    if wanted <= {LOGITS}:
        output = forward(model, batch)
        return Recorder({}, bool(wanted)).trace(output, valid), output
    if plan is None:
        raise NasdistillError(
            f"no plan was given to capture {', '.join(sorted(map(str, wanted)))}",
            hint="Pass plan=SitePlan(model, run).",
        )
    with plan.capture(wanted, model=model) as recorder:
        output = forward(model, batch)
    return recorder.trace(output, valid), output


class ModelTracer:
    """The :class:`nasdistill.interfaces.Tracer`: captures without gradients, in the model's current mode.

    Plans are made on first need from the first samples of a batch and kept as long as the model lives.

    Args:
        forward: the task's way of calling a model.
        label: how messages name the models.
    """

    def __init__(self, forward: Forward, label: str = "model") -> None:
        self._forward = forward
        self._label = label
        self._plans: weakref.WeakKeyDictionary[nn.Module, SitePlan] = weakref.WeakKeyDictionary()
        self._geometries: weakref.WeakKeyDictionary[nn.Module, dict[Shapes, ModelGeometry]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(self, model: nn.Module, batch: Batch, sites: frozenset[Site]) -> Trace:
        """Return the trace of one forward."""
        with torch.no_grad():
            plan = None if sites <= {LOGITS} else self.plan(model, batch)
            return trace_model(model, batch, sites, self._forward, plan)[0]

    def plan(self, model: nn.Module, batch: Batch) -> SitePlan:
        """Return the plan of a model, made from the first samples of `batch` when it is not known yet."""
        plan = self._plans.get(model)
        if plan is None:
            few = batch.select(torch.arange(min(_DRY_BATCH, batch.size), device=batch.ids.device))
            plan = self._plans[model] = SitePlan(model, lambda m: self._forward(m, few), self._label)
        return plan

    def geometry(self, model: nn.Module, batch: Batch) -> ModelGeometry:
        """Return the sites of a model with their shapes for inputs like those of `batch`.

        The places do not depend on the batch, but texts are as long as the longest beside them, and a model's plan may
        have been made with others.
        """
        known = self._geometries.setdefault(model, {})
        shapes = tuple(sorted((name, tuple(value.shape[1:])) for name, value in batch.inputs.items()))
        if shapes not in known:
            few = batch.select(torch.arange(min(_DRY_BATCH, batch.size), device=batch.ids.device))
            plan = SitePlan(model, lambda m: self._forward(m, few), self._label)
            self._plans.setdefault(model, plan)
            known[shapes] = plan.geometry
        return known[shapes]

    def forget(self, model: nn.Module) -> None:
        """Drop the plan of a model whose structure was changed."""
        self._plans.pop(model, None)
        self._geometries.pop(model, None)


def make_tracer(forward: Forward, label: str = "model") -> ModelTracer:
    """Return a tracer for a task's way of calling a model."""
    return ModelTracer(forward, label)
