"""The weighted sum against a naive computation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys_distill import Attentive, Factory, made, toy_task, toy_teacher

from nasdistill.distill import Objective
from nasdistill.errors import TrialFailure, UsageError
from nasdistill.interfaces import SiteNeeds, StepInfo, Trace
from nasdistill.interfaces.signals import Site
from nasdistill.spec.config import LossConfig, ObjectiveConfig, Schedule
from nasdistill.trace import SitePlan, make_tracer, trace_model

THREE = (LossConfig(name="kd", weight=0.7), LossConfig(name="hidden", weight=3.0), LossConfig(name="maps", weight=5.0))


@pytest.fixture(scope="module")
def scene():
    task, student, teacher = toy_task(), made(Attentive), toy_teacher().model
    batch = next(task.batches("train", batch_size=16))
    plan = SitePlan(student, lambda model: task.forward(model, batch), "student")
    tracer = make_tracer(task.forward)
    return task, student, teacher, batch, plan, tracer


def build(scene, **config):
    _task, _student, teacher, batch, plan, tracer = scene
    objective = Objective(
        ObjectiveConfig(**config),
        factory=Factory(),
        student=plan.geometry,
        teacher=tracer.plan(teacher, batch).geometry,
        layer_map={0: 1, 1: 2},
    )
    return objective, objective.needs()


def evaluate(scene, objective, needs, progress=0.0, seed=0):
    task, student, teacher, batch, plan, tracer = scene
    trace, output = trace_model(student, batch, needs.student, task.forward, plan)
    heard = tracer(teacher, batch, needs.teacher) if needs.teacher else Trace()
    step = StepInfo(round(progress * 100), 100, generator=torch.Generator().manual_seed(seed))
    total, terms = objective(trace, heard, batch, step, task.loss(output, batch))
    return total, terms, trace, heard, step, output


def test_needs_are_the_union_with_the_logits_of_the_student(scene):
    _objective, needs = build(scene, losses=THREE)
    assert needs == SiteNeeds.of(["logits", "hidden.1", "attention.1"], ["logits", "hidden.2", "attention.2"])
    _, needs = build(scene, task_weight=1.0, losses=())
    assert needs == SiteNeeds.of(["logits"], [])


def test_weights_against_a_naive_sum(scene):
    objective, needs = build(scene, task_weight=0.3, losses=THREE)
    total, terms, _trace, _heard, _step, _output = evaluate(scene, objective, needs)
    assert set(terms) == {"task", "kd", "hidden", "hidden.mean", "hidden.spread", "maps", "total"}
    assert float(terms["hidden"]) == pytest.approx(float(terms["hidden.mean"] + terms["hidden.spread"]))
    naive = 0.3 * terms["task"] + 0.7 * terms["kd"] + 3.0 * terms["hidden"] + 5.0 * terms["maps"]
    assert total.item() == pytest.approx(float(naive), rel=1e-6)
    assert torch.equal(terms["total"], total.detach())
    assert not any(value.requires_grad for value in terms.values())
    assert total.requires_grad


def test_magnitude_balance(scene):
    objective, needs = build(scene, task_weight=0.3, losses=THREE, balance="magnitude")
    total, terms, *_ = evaluate(scene, objective, needs)
    assert total.item() == pytest.approx(0.3 + 0.7 + 3.0 + 5.0, rel=1e-5)
    plain = 0.3 * terms["task"] + 0.7 * terms["kd"] + 3.0 * terms["hidden"] + 5.0 * terms["maps"]
    assert float(terms["total"]) == pytest.approx(float(plain), rel=1e-6)
    # Its gradient is that of the sum of logarithms.
    student = scene[1]
    found = torch.autograd.grad(total, list(student.parameters()), allow_unused=True)
    other, needs = build(scene, task_weight=1.0, losses=tuple(LossConfig(name=x.name) for x in THREE))
    _, _, trace, heard, step, output = evaluate(scene, other, needs)
    step.generator.manual_seed(0)
    values = [scene[0].loss(output, scene[3])]
    values += [sum(loss(trace, heard, scene[3], step).values()) for loss in other.losses.values()]
    logs = sum(w * value.log() for w, value in zip((0.3, 0.7, 3.0, 5.0), values, strict=True))
    expected = torch.autograd.grad(logs, list(student.parameters()), allow_unused=True)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def gradients(total, student):
    found = torch.autograd.grad(total, list(student.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def by_hand(scene, factors, **config):
    """Return the gradient of the sum of factor * term, with factors that are numbers."""
    objective, needs = build(scene, **config)
    _, _, trace, heard, step, output = evaluate(scene, objective, needs)
    step.generator.manual_seed(0)
    values = [scene[0].loss(output, scene[3])]
    values += [sum(loss(trace, heard, scene[3], step).values()) for loss in objective.losses.values()]
    return gradients(sum(f * v for f, v in zip(factors, values, strict=True) if f), scene[1])


def test_dynamic_balance_brings_all_losses_to_the_first_of_the_list(scene):
    config = {"task_weight": 0.0, "losses": tuple(LossConfig(name=x.name) for x in THREE)}
    objective, needs = build(scene, **config, balance="dynamic")
    total, terms, *_ = evaluate(scene, objective, needs)
    assert total.item() == pytest.approx(3 * float(terms["kd"]), rel=1e-5)  # three terms of equal size
    factors = [0.0, 1.0, *(float(terms["kd"] / terms[name]) for name in ("hidden", "maps"))]
    # The factors carry no gradient: numbers in their place give the same.
    torch.testing.assert_close(gradients(total, scene[1]), by_hand(scene, factors, **config), rtol=1e-4, atol=1e-7)


def test_dynamic_balance_with_labels_brings_the_distillation_to_the_task_loss(scene):
    halves = (LossConfig(name="kd", weight=0.5), LossConfig(name="hidden", weight=0.5))
    objective, needs = build(scene, task_weight=1.0, losses=halves, balance="dynamic")
    total, terms, *_ = evaluate(scene, objective, needs)
    # As published: kd + (kd / hidden) hidden, and that sum times (task / sum).
    task, kd, hidden = (float(terms[name]) for name in ("task", "kd", "hidden"))
    inner = kd / hidden
    outer = task / (kd + inner * hidden)
    assert total.item() == pytest.approx(2 * task, rel=1e-5)
    expected = by_hand(scene, [1.0, outer, outer * inner], task_weight=1.0, losses=halves)
    torch.testing.assert_close(gradients(total, scene[1]), expected, rtol=1e-4, atol=1e-7)


def test_dynamic_balance_passes_over_a_first_term_of_0(scene):
    objective, needs = build(scene, task_weight=1.0, losses=THREE[:2], balance="dynamic")
    _, terms, trace, heard, step, output = evaluate(scene, objective, needs)
    total, _ = objective(trace, heard, scene[3], step, output.sum() * 0.0)
    assert total.item() == pytest.approx((0.7 + 3.0) * float(terms["kd"]), rel=1e-5)


def test_gradient_balance_gives_every_term_the_same_pull(scene):
    objective, needs = build(
        scene, task_weight=1.0, losses=tuple(LossConfig(name=x.name) for x in THREE), balance="gradient"
    )
    total, _terms, trace, heard, step, _output = evaluate(scene, objective, needs)
    # By hand: each term alone, differentiated by copies of the signals that it reads.
    task, _, _, batch, _, _ = scene
    scaled = []
    logits = trace.logits.detach().requires_grad_()
    value = task.loss(logits, batch)
    scaled.append((value / torch.autograd.grad(value, logits)[0].norm()).item())
    step.generator.manual_seed(0)
    for label, loss in objective.losses.items():
        signals = {site: s.detach() for site, s in trace.signals.items()}
        for s in signals.values():
            s.tensor.requires_grad_()
        value = sum(loss(Trace(signals), heard, batch, step).values())
        leaves = [s.tensor for s in signals.values()]
        norm = torch.cat(
            [g.flatten() for g in torch.autograd.grad(value, leaves, allow_unused=True) if g is not None]
        ).norm()
        assert norm > 0, label
        scaled.append((value / norm).item())
    assert total.item() == pytest.approx(sum(scaled), rel=1e-4)


def test_gradient_balance_still_trains_the_whole_network(scene):
    objective, needs = build(scene, losses=THREE, balance="gradient")
    total, *_ = evaluate(scene, objective, needs)
    total.backward()
    for name, parameter in scene[1].named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    assert float(objective.losses["hidden"].projector.weight.grad.abs().sum()) > 0
    scene[1].zero_grad()


@settings(max_examples=20, deadline=None)
@given(
    start=st.floats(0, 10),
    end=st.floats(0, 10),
    progress=st.integers(0, 100),
    shape=st.sampled_from(["linear", "cosine", "step"]),
)
def test_schedules(scene, start, end, progress, shape):
    schedule = Schedule(start=start, end=end, begin=0.2, finish=0.6, shape=shape)
    objective, needs = build(scene, task_weight=1.0, losses=(LossConfig(name="kd", weight=schedule),))
    total, terms, *_ = evaluate(scene, objective, needs, progress / 100)
    weight = schedule.at(progress / 100)
    assert min(start, end) - 1e-9 <= weight <= max(start, end) + 1e-9
    assert total.item() == pytest.approx(float(terms["task"] + weight * terms["kd"]), rel=1e-5)


def test_a_weight_of_zero_takes_a_term_out_even_when_it_is_infinite(scene):
    task, student, teacher, batch, plan, tracer = scene
    objective, needs = build(scene, task_weight=0.0, losses=(LossConfig(name="kd"),))
    trace, _ = trace_model(student, batch, needs.student, task.forward, plan)
    heard = tracer(teacher, batch, needs.teacher)
    total, terms = objective(trace, heard, batch, StepInfo(), torch.tensor(float("inf")))
    assert torch.isfinite(total)
    assert torch.isinf(terms["task"])


def test_the_same_loss_twice(scene):
    losses = (LossConfig(name="kd", options={"temperature": 1.0}), LossConfig(name="toys:kd", weight=0.5))
    objective, needs = build(scene, losses=losses)
    _, terms, *_ = evaluate(scene, objective, needs)
    assert {"kd", "kd_2"} <= set(terms)
    assert float(terms["kd"]) != float(terms["kd_2"])


def test_owned_parts_of_two_losses_start_apart(scene):
    objective, _ = build(scene, losses=(LossConfig(name="hidden"), LossConfig(name="hidden")))
    one, two = (objective.losses[label].projector.weight for label in ("hidden", "hidden_2"))
    assert not torch.equal(one, two)


def test_refusals(scene):
    with pytest.raises(UsageError, match="trains the teacher too"):
        build(scene, losses=(LossConfig(name="cotrained"),))
    geometry = scene[4].geometry
    with pytest.raises(TrialFailure, match="no loss"):
        Objective(
            ObjectiveConfig(task_weight=0.0, losses=(LossConfig(name="kd", optional=True),)),
            factory=Factory(), student=geometry, teacher=None, layer_map={},
        )  # fmt: skip


def test_sites_are_resolved(scene):
    _, needs = build(scene, losses=THREE)
    assert all(site.layer is None or site.layer >= 0 for site in needs.student | needs.teacher)
    assert Site("logits") in needs.student
