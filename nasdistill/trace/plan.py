"""Plans: where the sites of one model are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.bridge.fused import fused_branches
from nasdistill.bridge.record import first_tensor
from nasdistill.bridge.survey import Survey, Tap, survey
from nasdistill.errors import MismatchError, NasdistillError
from nasdistill.interfaces.signals import ModelGeometry, Site, SiteShape
from nasdistill.trace.capture import LOGITS, Capture, output_signal


class SitePlan:
    """Where the sites of one model are, found by a dry run on a tiny real batch.

    The dry run is in eval mode, without gradients, and leaves nothing behind: modes, buffers, random state and hooks
    are as before. A second run captures every site found and so proves the plan; a site that cannot be captured is not
    offered.

    Limits: attention written out by hand (softmax of a product, with no fused branch to switch to) is not seen, so
    such a model offers no attention sites; a call's sites are those of the block's first attention (self-attention
    where cross-attention follows); window attention keeps its windows in the batch axis.

    Args:
        model: any module. Attention is found in :class:`nasdistill.interfaces.AttentionCore` and in everything that
            reaches ``F.scaled_dot_product_attention`` or ``F.multi_head_attention_forward``.
        run: one forward on a tiny real batch, through ``model(...)``; called two or three times.
        label: how messages name the model.

    Attributes:
        geometry: every site that can be captured, with shapes as the tiny batch gave them.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Any], label: str = "model") -> None:
        self._model = weakref.ref(model)
        self.label = label
        self._fuse = True
        self._encoders = tuple(n for n, m in model.named_modules() if isinstance(m, nn.TransformerEncoder))

        def same(model: nn.Module) -> Any:
            torch.manual_seed(0)  # the runs are compared, and `run` may draw its input
            return run(model)

        with _left_as_found(model), torch.no_grad():
            with fused_branches(model) as switched:
                found, output = survey(model, same)
            if switched and not _close(first_tensor(output), first_tensor(same(model))):
                # The fused branch computes something else (a soft cap, say): stay with the model's own.
                self._fuse = False
                found, _ = survey(model, same)
            self._taps: dict[Site, Tap] = {}
            self.geometry = self._prove(model, same, found)

    def capture(self, sites: Iterable[Site | str], model: nn.Module | None = None) -> Capture:
        """Return a context manager that records `sites` of the forward run inside it.

        Args:
            sites: what to record; layers may count from the end. ``scores.i`` and ``attention.i`` record q and k.
            model: a deep copy of the planned model; None = the model itself.

        Raises:
            MismatchError: the model has no such site.
        """
        wanted: dict[Site, Tap] = {}
        wants_logits = False
        for site in sites:
            resolved = self.resolve(site)
            if resolved == LOGITS:
                wants_logits = True
            elif resolved.name in ("scores", "attention"):
                for name in ("q", "k"):
                    wanted[Site(name, resolved.layer)] = self._taps[Site(name, resolved.layer)]
            else:
                wanted[resolved] = self._taps[resolved]
        target = model if model is not None else self._model()
        if target is None:
            raise NasdistillError(f"the {self.label} of this plan is gone", hint="Pass model= to capture().")
        return Capture(target, wanted, wants_logits, self._fuse, self._encoders)

    def resolve(self, site: Site | str) -> Site:
        """Return a site with a non-negative layer. Raises MismatchError for one that the model lacks."""
        site = Site.parse(site) if isinstance(site, str) else site
        try:
            return self.geometry.resolve(site)
        except KeyError as error:
            raise MismatchError(str(error.args[0]), hint="Choose a loss that fits this model.") from None

    def _prove(self, model: nn.Module, run: Callable[[nn.Module], Any], found: Survey) -> ModelGeometry:
        """Capture every site once, keep those that work, and read the shapes off them."""
        with Capture(model, found.taps, False, self._fuse, self._encoders) as recorder:
            output = first_tensor(run(model))
        overwritten = recorder.overwritten()
        shapes: dict[Site, SiteShape] = {}
        for site, tap in found.taps.items():
            try:
                signal = recorder.signal(site)
            except NasdistillError:
                continue
            self._taps[site] = replace(tap, clone=site in overwritten, grid=signal.grid)
            shape = tuple(signal.tensor.shape[1:])
            shapes[site] = SiteShape(shape, signal.layout, causal=signal.causal, grid=signal.grid)
        for site in [s for s in shapes if s.name == "q"]:
            q, k = shapes[site], shapes[Site("k", site.layer)]
            square = replace(q, shape=(q.shape[0], q.shape[1], k.shape[1]), layout="scores")
            shapes[Site("scores", site.layer)] = shapes[Site("attention", site.layer)] = square
        if output is not None:
            shapes[LOGITS] = SiteShape(tuple(output.shape[1:]), output_signal(output, None).layout)
        return ModelGeometry(shapes, found.layers, found.stages, self.label)


def describe(model: nn.Module, run: Callable[[nn.Module], Any], label: str = "model") -> ModelGeometry:
    """Return the geometry of a model; see :class:`SitePlan` for the arguments."""
    return SitePlan(model, run, label).geometry


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and give modes, buffers and random state back as they were."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        for module in modes:
            module.training = False  # not .eval(): a model may do more than set the flag there
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name, buffer, before in buffers:
            if not torch.equal(buffer, before):
                with torch.no_grad():
                    buffer.copy_(before)
            module._buffers[name] = buffer


def _close(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two outputs agree up to the rounding of their type."""
    if first is None or second is None or first.shape != second.shape:
        return False
    tolerance = 1e-3 if first.dtype in (torch.float32, torch.float64) else 5e-2
    span = float(second.abs().max()) + 1e-6
    return float((first.float() - second.float()).abs().max()) <= tolerance * span
