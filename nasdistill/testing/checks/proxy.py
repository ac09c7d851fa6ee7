"""Checks of proxies, run as a search runs them: through the runner, which hands over copies and watches."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from nasdistill.interfaces import Batch, ProxyInput
from nasdistill.measure.proxies import ProxyOutcome, run_proxy
from nasdistill.seeds import torch_generator
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.models import DIGITS, SmallResNet, SmallViT, built, call, digits, digits_loss
from nasdistill.testing.registry import check, exercise, fail
from nasdistill.testing.subject import Subject

FAMILIES = ("resnet", "vit")


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """Return a student of a family and a teacher: a wider network, for the transformer one of another family."""
    if family == "resnet":
        student, teacher = built(SmallResNet, width=8), built(SmallResNet, width=8, depth=2, seed=1)
    else:
        student, teacher = built(SmallViT, width=16), built(SmallResNet, width=8, seed=1)
    return student, teacher.eval().requires_grad_(False)


def score(subject: Subject, family: str = "resnet", **changes: Any) -> ProxyOutcome:
    """Score a student with a fresh component; `changes` are arguments of the runner."""
    student, teacher = pair(family)
    proxy = subject.create()
    values: dict[str, Any] = {
        "model": student, "teacher": teacher, "batches": batches_for(proxy), "forward": call, "loss": digits_loss,
        "io": DIGITS, "seed": subject.seed,
    }  # fmt: skip
    return run_proxy(proxy, subject.tags, **{**values, **changes})


def batches_for(proxy: Any, size: int = 32) -> tuple[Batch, ...]:
    """Return as many batches as a proxy reads."""
    return tuple(digits(size, start=100 * number) for number in range(max(1, proxy.batches_needed())))


@exercise(Kind.PROXY)
def use(subject: Subject) -> list[Any]:
    """Score a network of each family, without the runner that would put right what the proxy disturbs."""
    scores = []
    for family in FAMILIES:
        student, teacher = pair(family)
        with subject.seeded():
            proxy = subject.create()
            found = proxy.score(
                ProxyInput(
                    model=student.train(subject.tags.mode == "train"),
                    teacher=teacher if subject.tags.needs_teacher else None,
                    batches=batches_for(proxy), forward=call, loss=digits_loss, io=DIGITS, cost=None,
                    generator=torch_generator(subject.seed, "check"),
                )
            )  # fmt: skip
        scores.append((found.value, dict(found.parts)))
    return scores


@check(Kind.PROXY, hint="Work in float32, and guard logarithms and divisions against zero.")
def score_is_finite(subject: Subject) -> None:
    """The score of an ordinary untrained network is a finite number."""
    for family in FAMILIES:
        outcome = score(subject, family)
        if outcome.value is None or not math.isfinite(outcome.value):
            fail(f"on a small {family} it gives no number: {outcome.problem}")


@check(Kind.PROXY, hint="Read the labels, or drop the tag needs_labels.")
def needs_labels_is_true(subject: Subject) -> None:
    """The tag `needs_labels` is true both ways: without it labels are not read, with it they matter."""
    batches = batches_for(subject.create())
    plain = score(subject, batches=batches)
    if subject.tags.needs_labels:
        moved = tuple(replace(batch, labels=batch.labels.roll(1)) for batch in batches if batch.labels is not None)
        if score(subject, batches=moved).value == plain.value:
            fail("needs_labels=True, and other labels give the same score")
    else:
        without = score(subject, batches=tuple(replace(batch, labels=None) for batch in batches))
        if without.value != plain.value:
            fail(f"needs_labels=False, and without labels the score is {without.value} instead of {plain.value}")
