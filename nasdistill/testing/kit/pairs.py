"""Pairs of a student and its teachers, on which distillation losses are tried.

A loss of another kind of models brings its own :class:`Pair` and names it in an example, as the text
``"package.module:PAIR"`` in the context ``{"pairs": (...)}``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import nn

from nasdistill.errors import UsageError, did_you_mean
from nasdistill.interfaces import Batch, ModelGeometry, Trace
from nasdistill.seeds import seeded
from nasdistill.testing.kit.traces import (
    VOCABULARY,
    Conv,
    Text,
    Vision,
    image_batch,
    longer,
    plan_of,
    text_batch,
    trace_of,
)
from nasdistill.trace import SitePlan

Make = Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Pair:
    """A student with several teachers; the models are called as ``model(**batch.inputs)``.

    Attributes:
        name: how messages name it.
        student: makes the student.
        teachers: ``"teacher"`` makes the usual one, deeper and wider; the others are as deep, and as wide as the
            student: ``"even"``, and ``"heads"`` and ``"classes"`` with other numbers of these.
        batch: makes a few samples; an ``attention_mask`` among the inputs marks padding.
    """

    name: str
    student: Make
    teachers: Mapping[str, Make]
    batch: Callable[[], Batch] = image_batch


@dataclass(frozen=True)
class Side:
    """A model of a pair, with what is in it.

    Attributes:
        model: not to be changed; copy it to train it.
        plan: where its sites are.
        batch: the samples.
        trace: all its signals for these samples, without gradients.
        longer: the same with more padding, and the batch; None where there is no padding.
    """

    model: nn.Module
    plan: SitePlan = field(repr=False)
    batch: Batch = field(repr=False)
    trace: Trace = field(repr=False)
    longer: tuple[Batch, Trace] | None = field(repr=False)

    @property
    def geometry(self) -> ModelGeometry:
        """Its sites and their shapes."""
        return self.plan.geometry


@cache
def side(pair: Pair, role: str) -> Side:
    """Return the student (role ``"student"``) or a teacher of a pair; the same ones every time."""
    with seeded(0, "pair", role):
        model = (pair.student if role == "student" else pair.teachers[role])()
        batch = pair.batch()
        plan = plan_of(model, batch, f"the {pair.name} {'student' if role == 'student' else 'teacher'}")
        sites = [site for site in plan.geometry.sites if site.name not in ("scores", "attention")]
        more = None
        if "attention_mask" in batch.inputs:
            padded = longer(batch)
            more = padded, trace_of(model, padded, sites, plan).detach()
        return Side(model, plan, batch, trace_of(model, batch, sites, plan).detach(), more)


def _text(name: str, causal: bool = False, per_token: bool = False) -> Pair:
    classes = VOCABULARY if per_token else 5

    def make(dim: int, heads: int, depth: int, outputs: int = classes) -> Make:
        return lambda: Text(dim, heads, depth, causal=causal, classes=outputs, per_token=per_token)

    teachers = {
        "teacher": make(24, 2, 3), "even": make(16, 2, 3), "heads": make(16, 4, 3),
        "classes": make(16, 2, 3, classes + 4),
    }  # fmt: skip
    return Pair(name, make(16, 2, 2), teachers, lambda: text_batch(per_token=per_token))


PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        _text("text"),
        _text("decoder", causal=True, per_token=True),
        Pair(
            "embedding", lambda: Text(16, 2, 2, classes=16),
            {"teacher": lambda: Text(24, 2, 3, classes=24), "even": lambda: Text(16, 2, 3, classes=16)}, text_batch,
        ),
        Pair(
            "conv", lambda: Conv((4, 6, 8)),
            {
                "teacher": lambda: Conv((10, 12, 16)), "even": lambda: Conv((4, 6, 8)),
                "classes": lambda: Conv((4, 6, 8), classes=9),
            },
        ),
        Pair(
            "vit", lambda: Vision(16, 2, 2),
            {
                "teacher": lambda: Vision(24, 2, 3), "even": lambda: Vision(16, 2, 3),
                "heads": lambda: Vision(16, 4, 3), "classes": lambda: Vision(16, 2, 3, classes=9),
            },
        ),
        Pair(
            "conv_from_vit", lambda: Conv((4, 6)),
            {
                "teacher": lambda: Vision(24, 2, 3, prefix=True), "even": lambda: Vision(6, 2, 3, prefix=True),
                "classes": lambda: Vision(6, 2, 3, prefix=True, classes=9),
            },
        ),
        Pair("vit_from_finer", lambda: Vision(16, 2, 2), {"teacher": lambda: Vision(24, 2, 3, stride=1, prefix=True)}),
        Pair(
            "text_from_decoder", lambda: Text(16, 2, 2),
            {"teacher": lambda: Text(24, 2, 3, causal=True, classes=VOCABULARY, per_token=True)}, text_batch,
        ),
    )
}  # fmt: skip
"""Pairs by name; an example may ask for some of them."""

STANDARD = ("conv", "text", "decoder", "vit", "conv_from_vit")
"""The pairs that every loss is tried on unless its examples say otherwise."""

STRANGERS = (("text", "vit"), ("conv", "text"), ("text", "conv"), ("vit", "vit_from_finer"))
"""Student of one pair, teacher of another: hardly any loss can compare all of these."""


def find_pairs(names: Iterable[str | Pair]) -> list[Pair]:
    """Return pairs by name: one of `PAIRS`, or ``"package.module:ATTRIBUTE"``.

    Raises:
        UsageError: there is no such pair.
    """
    found = []
    for name in names:
        if isinstance(name, Pair):
            found.append(name)
        elif ":" in name:
            module, _, attribute = name.partition(":")
            found.append(getattr(importlib.import_module(module), attribute))
        elif name in PAIRS:
            found.append(PAIRS[name])
        else:
            raise UsageError(f"an example names the pair {name!r}, which there is not. {did_you_mean(name, PAIRS)}")
    return found
