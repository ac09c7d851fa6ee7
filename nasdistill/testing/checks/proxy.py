"""Checks of proxies, most of them run as a search runs them: through the runner, which hands over copies and watches.

They look at untrained networks of two families, unless an example names one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from nasdistill.errors import ISOLATED, TrialFailure, one_line
from nasdistill.interfaces import Batch, Proxy, ProxyScore
from nasdistill.measure.proxies import ProxyOutcome, normal_init, run_proxy
from nasdistill.seeds import seeded, torch_generator
from nasdistill.spec.component import Kind
from nasdistill.spec.io import Cost
from nasdistill.testing.kit.models import DIGITS, Mlp, SmallResNet, SmallViT, built, call, digits, digits_loss
from nasdistill.testing.kit.scoring import Passes, candidate, count_passes, forwards_kept
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.subject import Subject

CONTEXT = {
    "families": 'the families of networks that it can score: `("resnet",)` or `("vit",)`; both unless given',
}
"""What an example's context may name."""

FAMILIES = ("resnet", "vit")


def families(subject: Subject) -> tuple[str, ...]:
    """Return the families of networks that the proxy is tried on."""
    return tuple(subject.context("families", FAMILIES))


def student_of(family: str) -> nn.Module:
    """Return a new student of a family."""
    return built(SmallResNet, width=8) if family == "resnet" else built(SmallViT, width=16)


def teacher_of(family: str, seed: int = 1) -> nn.Module:
    """Return a new teacher for a family's student: a deeper network, for the transformer one of another family."""
    return built(SmallResNet, width=8, depth=2 if family == "resnet" else 1, seed=seed).eval().requires_grad_(False)


@cache
def kept_pair(family: str) -> tuple[nn.Module, nn.Module]:
    """Return a student and a teacher for the runner, which copies them and puts back what a proxy changes."""
    return student_of(family), teacher_of(family)


def batches_for(proxy: Any, size: int = 32) -> tuple[Batch, ...]:
    """Return as many batches as a proxy reads."""
    return tuple(digits(size, start=100 * number) for number in range(max(1, proxy.batches_needed())))


def score(subject: Subject, family: str = "", proxy: Proxy | None = None, **changes: Any) -> ProxyOutcome:
    """Score a student with a fresh component; `changes` are arguments of the runner."""
    student, teacher = kept_pair(family or families(subject)[0])
    proxy = subject.create() if proxy is None else proxy
    values: dict[str, Any] = {
        "model": student, "teacher": teacher, "batches": batches_for(proxy), "forward": call, "loss": digits_loss,
        "io": DIGITS, "seed": subject.seed,
    }  # fmt: skip
    return run_proxy(proxy, subject.tags, **{**values, **changes})


def plain(subject: Subject, family: str = "") -> ProxyOutcome:
    """Return the score of the standard student, computed once."""
    family = family or families(subject)[0]
    return subject.once(f"score of {family}", lambda: score(subject, family))


def raw(subject: Subject, family: str = "", seed: int | None = None, **changes: Any) -> ProxyScore:
    """Return what a fresh component answers without the runner, which puts right what a proxy disturbs.

    `changes` are fields of the candidate; the caller seeds the global generators.
    """
    tags, proxy = subject.tags, subject.create()
    family = family or families(subject)[0]
    values: dict[str, Any] = {
        "teacher": teacher_of(family) if tags.needs_teacher and "teacher" not in changes else None,
        "batches": batches_for(proxy), "generator": torch_generator(subject.seed if seed is None else seed, "check"),
        **changes,
    }  # fmt: skip
    model = (values.pop("model", None) or student_of(family)).train(tags.mode == "train")
    if tags.init == "normal":
        normal_init(model, torch_generator(subject.seed, "weights"))
    with forwards_kept([model, values["teacher"]]):
        found: object = proxy.score(replace(candidate(model), **values))
    if not isinstance(found, ProxyScore):
        fail(f"it returned {type(found).__name__} instead of a ProxyScore")
    return found


def passes(subject: Subject) -> Passes:
    """Return which passes a scoring runs, the analytic cost being given; counted once."""

    def count() -> Passes:
        with subject.seeded(), count_passes() as found:
            raw(subject, cost=Cost(10_000, 1_000_000))
        return found

    return subject.once("passes", count)


@exercise(Kind.PROXY)
def use(subject: Subject) -> list[Any]:
    """Score a network of each family, without the runner."""
    scores = []
    for family in families(subject):
        with subject.seeded():
            found = raw(subject, family)
        scores.append((found.value, dict(found.parts)))
    return scores


@check(Kind.PROXY, gate=True, hint="Work on the copies in the candidate; wrap modules instead of patching classes.")
def callers_objects_are_left_alone(subject: Subject) -> None:
    """Nothing of the caller's changes: weights, buffers, gradients, modes, hooks, the models' classes, the batches."""
    for family in families(subject):
        student, teacher = student_of(family), teacher_of(family)
        batches = batches_for(subject.create())
        images = [batch.image.clone() for batch in batches]
        problem = score(subject, family, model=student, teacher=teacher, batches=batches).problem or ""
        if problem.startswith("it changed what is not its own"):
            fail(f"while it scores a small {family} {problem}")
        if not all(torch.equal(batch.image, image) for batch, image in zip(batches, images, strict=True)):
            fail("the images of the caller's batches change")


@check(Kind.PROXY, gate=True, hint="Declare needs_labels=True, or do not read them; where it is declared, read them.")
def needs_labels_is_true(subject: Subject) -> None:
    """The tag `needs_labels` is true both ways: without it labels are not read, with it they matter."""
    # A gate: the runner gives no labels to a proxy that does not declare them, and then it has no score anywhere.
    batches = batches_for(subject.create())
    if subject.tags.needs_labels:
        value = plain(subject).value
        moved = tuple(replace(batch, labels=batch.labels.roll(1)) for batch in batches if batch.labels is not None)
        if value is not None and score(subject, batches=moved).value == value:
            fail(f"needs_labels=True, and other labels give the same score {value}")
        return
    try:
        with subject.seeded():
            value = float(raw(subject, batches=batches).value)
    except ISOLATED:  # it fails with labels too: other checks say so
        return
    try:
        with subject.seeded():
            without = float(raw(subject, batches=tuple(replace(b, labels=None, labelled=None) for b in batches)).value)
    except ISOLATED as error:
        fail(f"needs_labels=False, the score is {value} with labels, and without them there is none: {one_line(error)}")
    if math.isfinite(value) and without != value:
        fail(f"needs_labels=False, the score is {value} with labels, and {without} without them")


@check(Kind.PROXY, gate=True, hint="Work in float32, and guard logarithms and divisions against zero.")
def score_is_finite(subject: Subject) -> None:
    """The score of an ordinary untrained network is a finite number."""
    for family in families(subject):
        outcome = plain(subject, family)
        if outcome.value is None or not math.isfinite(outcome.value):
            fail(f"on a small {family} it gives no number: {outcome.problem}")


@check(Kind.PROXY, hint="Leave out a part that is undefined, and say so in the score's note.")
def parts_are_finite(subject: Subject) -> None:
    """The parts of a score are finite numbers under names."""
    for family in families(subject):
        with subject.seeded():
            parts = raw(subject, family).parts
        for name, value in parts.items():
            if not isinstance(name, str) or not math.isfinite(float(value)):
                fail(f"on a small {family} the part {name!r} is {value}")


@check(
    Kind.PROXY,
    applies=lambda subject: not subject.tags.stochastic,
    hint="Treat all samples alike, or declare stochastic=True for one that samples the batch.",
)
def order_of_the_batch_does_not_matter(subject: Subject) -> None:
    """The same samples in another order give the same score, unless the proxy is stochastic."""
    batches, value = batches_for(subject.create()), _value(plain(subject))
    order = torch.randperm(batches[0].size, generator=torch.Generator().manual_seed(0))
    shuffled = score(subject, batches=tuple(batch.select(order) for batch in batches))
    if not math.isclose(_value(shuffled), value, rel_tol=1e-3, abs_tol=1e-6):  # float32 sums depend on their order
        fail(f"the score is {value}, and {_said(shuffled)} with the samples in another order")


@check(Kind.PROXY, hint="Read the batch's inputs, or declare needs_data=False.")
def needs_data_is_true(subject: Subject) -> None:
    """The tag `needs_data` is true both ways: without it any inputs give the same score, with it they matter."""
    batches, value = batches_for(subject.create()), _value(plain(subject))
    others = tuple(
        replace(batch, inputs=digits(batch.size, start=900 + 100 * i).inputs) for i, batch in enumerate(batches)
    )
    found = _value(score(subject, batches=others))
    if subject.tags.needs_data and found == value:
        fail(f"needs_data=True, and other images give the same score {value}")
    if not subject.tags.needs_data and found != value:
        fail(f"needs_data=False, and other images change the score from {value} to {found}")


@check(Kind.PROXY, hint="Compare with candidate.teacher, or drop the tag needs_teacher.")
def needs_teacher_is_true(subject: Subject) -> None:
    """The tag `needs_teacher` is true both ways: without it no teacher is read, with it the teacher matters."""
    family = families(subject)[0]
    if subject.tags.needs_teacher:
        value = _value(plain(subject))
        if _value(score(subject, teacher=teacher_of(family, seed=7))) == value:
            fail(f"needs_teacher=True, and another teacher gives the same score {value}")
    else:
        with subject.seeded():
            alone = raw(subject, teacher=None)
        with subject.seeded():
            beside = raw(subject, teacher=teacher_of(family))
        if alone.value != beside.value:
            fail(f"needs_teacher=False, the score is {alone.value} alone and {beside.value} where there is a teacher")


@check(Kind.PROXY, hint="Set needs_backward to what the proxy does; the search plans memory by it.")
def needs_backward_is_true(subject: Subject) -> None:
    """The tag `needs_backward` is true both ways: a backward pass runs exactly where it is declared."""
    happened = passes(subject).backwards > 0
    if happened != subject.tags.needs_backward:
        did = "a backward pass runs" if happened else "no backward pass runs"
        fail(f"needs_backward={subject.tags.needs_backward}, and {did}")


@check(Kind.PROXY, hint="Set cost to what the proxy does; an analytic one takes candidate.cost where it is given.")
def cost_is_true(subject: Subject) -> None:
    """The tag `cost` is true both ways: analytic runs no module, forward no backward pass, heavy more than backward.

    Backward is at most one backward pass for each batch that it needs, and as many through the teacher where it needs
    one; heavy is more than that. How many forwards run besides is not asked.
    """
    found, cost, tags = passes(subject), subject.tags.cost, subject.tags
    allowed = max(1, subject.create().batches_needed()) * (1 + tags.needs_teacher)
    if cost == "analytic" and found.forwards:
        fail(f"cost='analytic', and modules are called {found.forwards} times although the analytic cost is given")
    if cost != "analytic" and not found.forwards:
        fail(f"cost={cost!r}, and no module is called: it is analytic")
    if cost == "forward" and found.backwards:
        fail("cost='forward', and a backward pass runs")
    if cost in ("backward", "heavy") and not found.backwards:
        fail(f"cost={cost!r}, and no backward pass runs")
    if cost == "backward" and found.backwards > allowed:
        fail(
            f"cost='backward', and {found.backwards} backward passes run where {allowed} would be one each: it is heavy"
        )
    if cost == "heavy" and found.watched and found.backwards <= allowed:
        fail(f"cost='heavy', and only {found.backwards} backward passes run, one each for batches and models")


@check(Kind.PROXY, hint="Leave the mode as it comes, or declare the one that you set; dropout may always be off.")
def mode_is_true(subject: Subject) -> None:
    """Batch normalisation runs in the declared mode."""
    modes = passes(subject).norm_modes
    if not modes:
        skip("it runs no batch normalisation")
    if (subject.tags.mode == "train") not in modes:
        other = "eval" if subject.tags.mode == "train" else "train"
        fail(f"mode={subject.tags.mode!r}, and batch normalisation runs in {other} mode")


@check(Kind.PROXY, hint="Draw from candidate.generator and say stochastic=True, or draw nothing.")
def stochastic_is_true(subject: Subject) -> None:
    """The tag `stochastic` is true both ways: another seed gives another score exactly where it is declared."""
    values = []
    for seed in (subject.seed + 1, subject.seed + 2):
        with seeded(seed):
            values.append(raw(subject, seed=seed).value)
    if subject.tags.stochastic and values[0] == values[1]:
        fail(f"stochastic=True, and two seeds give the same score {values[0]}")
    if not subject.tags.stochastic and values[0] != values[1]:
        fail(f"stochastic=False, and two seeds give the scores {values[0]} and {values[1]}")


@check(Kind.PROXY, hint="Override aggregate for a score within a pool, and only then say pool=True.")
def pool_is_true(subject: Subject) -> None:
    """The tag `pool` is true both ways: without it a value is the score's own, with it the other candidates matter."""
    scores = _pool(subject)
    proxy = subject.create()
    few, all_of_them = list(proxy.aggregate(scores[:2])), list(proxy.aggregate(scores))
    if subject.tags.pool and few == all_of_them[:2]:
        fail(f"pool=True, and two candidates keep their values {few} when others join them")
    if not subject.tags.pool and all_of_them != [item.value for item in scores]:
        fail(f"pool=False, and the scores {[item.value for item in scores]} are aggregated to {all_of_them}")


@check(Kind.PROXY, hint="Return one value per member of the pool, in its order.")
def aggregate_keeps_the_pool(subject: Subject) -> None:
    """A pool's aggregation gives each member one finite value, whatever the order in which they come."""
    scores = _pool(subject)
    order = (2, 0, 3, 1)
    values = list(subject.create().aggregate(scores))
    if len(values) != len(scores) or not all(map(math.isfinite, values)):
        fail(f"{len(scores)} candidates are aggregated to {values}")
    moved = list(subject.create().aggregate([scores[i] for i in order]))
    if not all(math.isclose(moved[k], values[i], rel_tol=1e-9, abs_tol=1e-12) for k, i in enumerate(order)):
        fail(f"four candidates have the values {values}; in the order {order} they are {moved}")


@check(Kind.PROXY, hint="Raise TrialFailure with the reason where a network has no score; let nothing else escape.")
def smallest_networks_work(subject: Subject) -> None:
    """Networks of depth 1 and width 1 have a score, or the proxy says with a TrialFailure why one has none."""
    small = {
        "resnet": (built(SmallResNet, width=1, depth=1), built(Mlp, 12)),
        "vit": (built(SmallViT, width=2, depth=1, heads=1),),
    }
    teacher = built(SmallResNet, seed=1).eval().requires_grad_(False)
    batches = batches_for(subject.create(), size=8)
    shown = teacher if subject.tags.needs_teacher else None
    refused = []
    networks = [network for family in families(subject) for network in small[family]]
    for network in networks:
        try:
            with subject.seeded():
                raw(subject, model=network, teacher=shown, batches=batches)
        except TrialFailure as reason:
            refused.append(f"{type(network).__name__}: {reason.message}")
        except Exception as error:
            fail(f"on the smallest {type(network).__name__} it raises {type(error).__name__}: {error}")
    if len(refused) == len(networks):
        fail(f"none of the smallest networks has a score ({'; '.join(refused)})")


@check(Kind.PROXY, hint="Let NaN through to the score, or raise TrialFailure; never replace it by a number.")
def nan_weights_have_no_score(subject: Subject) -> None:
    """A network whose weights are NaN has no score but a recorded failure, unless weights play no part."""
    analytic = subject.tags.cost == "analytic" or not passes(subject).forwards
    if analytic or subject.tags.init == "normal":
        skip("its score does not come from the network's own weights")
    student = student_of(families(subject)[0])
    for parameter in student.parameters():
        parameter.data.fill_(math.nan)
    value = score(subject, model=student).value
    if value is not None:
        fail(f"a network of NaN weights has the score {value}")


@check(Kind.PROXY, hint="Let the exception through: the runner records it, and the search goes on.")
def failing_networks_have_no_score(subject: Subject) -> None:
    """A network that raises has no score but a recorded failure that says what it raised."""
    if not passes(subject).forwards:
        skip("it runs no forward")

    def broken(model: nn.Module, batch: Batch) -> torch.Tensor:
        raise RuntimeError("no way\nat all")

    outcome = score(subject, forward=broken)
    if outcome.value is not None:
        fail(f"a network that raises has the score {outcome.value}")
    if "no way" not in (outcome.problem or ""):
        fail(f"a network raises 'no way', and the recorded failure is {outcome.problem!r}")


@check(Kind.PROXY, hint="Read candidate.batches[: self.batches_needed()].")
def more_batches_are_ignored(subject: Subject) -> None:
    """Batches beyond those that the proxy says it needs do not change the score."""
    batches, value = batches_for(subject.create()), plain(subject).value
    found = score(subject, batches=(*batches, digits(start=700))).value
    if found != value:
        fail(f"it needs {len(batches)} and scores {value}; with one batch more it scores {found}")


@check(Kind.PROXY, hint="Do no work in the constructor; make tensors in score, in the runner's context.")
def callers_context_does_not_matter(subject: Subject) -> None:
    """Created and run within no_grad, inference_mode and autocast, and with models in other modes, it scores alike."""
    value = plain(subject).value
    student, teacher = student_of(families(subject)[0]), teacher_of(families(subject)[0])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = score(subject, proxy=subject.create(), model=student.eval(), teacher=teacher.train())
    if found.value != value:
        fail(f"the score is {value}, and {_said(found)} within torch.no_grad and autocast")
    with torch.inference_mode():
        found = score(subject, proxy=subject.create(), model=student, teacher=teacher)
    if found.value != value:
        fail(f"the score is {value}, and {_said(found)} within torch.inference_mode")


@check(Kind.PROXY, hint="Keep results only under the content that they were computed from.")
def remembers_nothing_that_matters(subject: Subject) -> None:
    """A component that has scored others gives the same score as a fresh one."""
    used = subject.create()
    student, teacher = built(SmallResNet, width=4, seed=5), built(SmallResNet, width=8, depth=2, seed=6)
    if "resnet" not in families(subject):
        student = built(SmallViT, width=8, seed=5)
    score(subject, proxy=used, model=student, teacher=teacher, batches=_later(batches_for(used)))
    found, value = score(subject, proxy=used), plain(subject).value
    if found.value != value:
        fail(f"a fresh component gives {value}, one that has scored another candidate {_said(found)}")


# -- details ----------------------------------------------------------------------------------------------------------


def _value(outcome: ProxyOutcome) -> float:
    """Return a score, NaN where there is none."""
    return math.nan if outcome.value is None else outcome.value


def _said(outcome: ProxyOutcome) -> str:
    return f"there is none ({outcome.problem})" if outcome.value is None else str(outcome.value)


def _later(batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """Return as many other batches."""
    return tuple(digits(batch.size, start=1000 + 100 * number) for number, batch in enumerate(batches))


def _pool(subject: Subject) -> list[ProxyScore]:
    """Return the scores of four networks, as a search hands them over."""

    def make() -> list[ProxyScore]:
        family = families(subject)[0]
        kind: type[nn.Module] = SmallResNet if family == "resnet" else SmallViT
        outcomes = [
            score(subject, family, model=built(kind, width=width, seed=seed))
            for width, seed in ((8, 0), (4, 0), (12, 1), (8, 2))
        ]
        return [ProxyScore(_value(outcome), outcome.parts) for outcome in outcomes]

    return subject.once("pool", make)
