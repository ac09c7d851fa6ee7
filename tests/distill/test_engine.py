"""The training loop: the same as a loop written by hand, deterministic, leaves nothing behind, fails with reasons."""

from __future__ import annotations

import copy
import os
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from toys_distill import (
    Attentive,
    Convolutional,
    Factory,
    Perceptron,
    ToyKD,
    finite,
    kd,
    made,
    same,
    state,
    toy_task,
    toy_teacher,
)

from nasdistill.distill import evaluate, train
from nasdistill.distill.optim import learning_rate, parameter_groups
from nasdistill.distill.stepping import batch_groups
from nasdistill.errors import DataError, TrialFailure, UsageError
from nasdistill.interfaces import TeacherSession
from nasdistill.seeds import seeded
from nasdistill.spec.config import LossConfig, ObjectiveConfig, Schedule, TrainingConfig

KD = ObjectiveConfig(task_weight=0.5, losses=(LossConfig(name="kd", weight=0.5),))
ALL = ObjectiveConfig(
    losses=(LossConfig(name="kd"), LossConfig(name="hidden", weight=0.3), LossConfig(name="maps", weight=2.0))
)


def run(student, *, task=None, teacher=None, objective=KD, seed=0, epochs=2, batch_size=32, **arguments):
    training = arguments.pop("training", None) or TrainingConfig(batch_size=batch_size, **arguments.pop("config", {}))
    return train(
        student,
        task or toy_task(),
        toy_teacher() if teacher is None else teacher,
        objective,
        training,
        epochs=epochs,
        seed=seed,
        host=Factory(),
        **arguments,
    )


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_equals_a_loop_written_by_hand(dropout):
    task, teacher = toy_task(), toy_teacher()
    student = made(Perceptron, dropout=dropout)
    twin = copy.deepcopy(student)
    run(student, task=task, teacher=teacher, config={"weight_decay": 0.1, "grad_clip": 0.5}, epochs=2, steps=5)

    decay = [p for p in twin.parameters() if p.ndim > 1]
    free = [p for p in twin.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    rates = [0.002 * (1 + np.cos(np.pi * s / 5)) / 2 for s in range(5)]  # round(0.1 * 5) == 0 steps of warm-up
    step = 0
    for epoch in range(2):
        with seeded(0, "train", epoch):
            for batch in task.batches("train", batch_size=32, epoch=epoch, seed=0, train=True):
                for group in optimizer.param_groups:
                    group["lr"] = float(rates[step])
                with torch.no_grad():
                    target = teacher.model(batch.image)
                output = twin(batch.image)
                total = 0.5 * F.cross_entropy(output, batch.labels) + 0.5 * kd(output, target, 2.0)
                optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(decay + free, 0.5)
                optimizer.step()
                step += 1
                if step == 5:
                    break
    assert same(state(student), state(twin))


def test_same_seed_same_weights_other_seed_other_weights():
    results = []
    for seed, data_seed in ((0, 1), (0, 1), (0, 2), (1, 1)):
        student = made(Attentive)
        run(student, objective=ALL, seed=seed, data_seed=data_seed)
        results.append(state(student))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])
    assert not same(results[0], results[3])


def test_learns_and_reports():
    student = made(Attentive)
    seen = []
    result = run(student, objective=ALL, epochs=30, on_epoch=seen.append, config={"lr": 1e-2}, evaluate_every=10)
    assert result.model is student
    assert result.history == seen
    assert result.steps == 30 * 4
    assert [row.epoch for row in seen] == list(range(30))
    assert [row.epoch for row in seen if row.evaluation] == [9, 19, 29]
    assert set(seen[0].terms) == {"task", "kd", "hidden", "hidden.mean", "hidden.spread", "maps", "total"}
    assert seen[-1].terms["total"] < 0.7 * seen[0].terms["total"]
    assert result.evaluation == seen[-1].evaluation == evaluate(student, toy_task())
    assert result.evaluation.score > 0.5  # chance is 0.25


def test_epoch_terms_are_means_over_samples():
    task, teacher = toy_task(), toy_teacher()
    student = made(Perceptron)
    result = run(student, task=task, teacher=teacher, epochs=1, config={"lr": 1e-30, "weight_decay": 0.0})
    sums = {"task": 0.0, "kd": 0.0}
    for batch in task.batches("train", batch_size=32, train=True):
        output = student(batch.image).detach()
        sums["task"] += float(task.loss(output, batch)) * batch.size
        sums["kd"] += float(kd(output, teacher.model(batch.image), 2.0)) * batch.size
    for name, value in sums.items():
        assert result.history[0].terms[name] == pytest.approx(value / 100, rel=1e-5)
    assert result.history[0].terms["total"] == pytest.approx((sums["task"] + sums["kd"]) / 200, rel=1e-5)


def test_supervised_without_a_teacher():
    student = made(Perceptron)
    result = train(
        student, toy_task(), None, ObjectiveConfig(task_weight=1.0, losses=()), TrainingConfig(), epochs=2, seed=0
    )
    assert set(result.history[0].terms) == {"task", "total"}
    with pytest.raises(TrialFailure, match="there is none"):
        train(student, toy_task(), None, KD, TrainingConfig(), epochs=1, seed=0, host=Factory())


def test_accumulation_equals_a_bigger_batch():
    one, two = made(Perceptron), made(Perceptron)
    run(one, batch_size=32, epochs=3)
    run(two, batch_size=8, epochs=3, config={"accumulate": 4})
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_groups_flush_the_rest():
    assert [len(group) for group in batch_groups(range(10), 4)] == [4, 4, 2]


def test_gradient_clipping_bounds_the_step():
    def moved(clip):
        student = made(Perceptron)
        before = state(student)
        config = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "schedule": "constant", "warmup": 0.0}
        run(student, epochs=1, steps=1, config={**config, "weight_decay": 0.0, "grad_clip": clip})
        after = state(student)
        return float(torch.cat([(after[k] - before[k]).flatten() for k in before]).norm())

    free = moved(None)
    assert free > 0.02
    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
    assert moved(free * 10) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_optimiser_trains(optimizer):
    student = made(Perceptron)
    lr = 0.05 if optimizer == "sgd" else 1e-2
    result = run(student, epochs=10, config={"optimizer": optimizer, "lr": lr})
    assert result.history[-1].terms["task"] < 0.8 * result.history[0].terms["task"]


def test_weight_decay_spares_vectors_and_named_parameters():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.ones(3, 4))
            self.linear = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)

        def no_weight_decay(self):
            return {"position"}

    model = Model()
    projector = nn.Linear(4, 2)
    decay, free = parameter_groups([model, projector, nn.Sequential(model.linear)], 0.3)
    assert decay["weight_decay"] == 0.3
    assert free["weight_decay"] == 0.0
    assert [id(p) for p in decay["params"]] == [id(model.linear.weight), id(projector.weight)]
    expected = [model.position, model.linear.bias, model.norm.weight, model.norm.bias, projector.bias]
    assert [id(p) for p in free["params"]] == [id(p) for p in expected]


def test_learning_rate_schedules():
    def rates(schedule, warmup=0.2, total=10):
        config = TrainingConfig(lr=1.0, schedule=schedule, warmup=warmup)
        return [learning_rate(config, step, total) for step in range(total)]

    assert rates("constant") == [0.5] + [1.0] * 9
    assert rates("linear") == pytest.approx([0.5, 1.0] + [1 - k / 8 for k in range(8)])
    assert rates("cosine") == pytest.approx([0.5, 1.0] + [(1 + np.cos(np.pi * k / 8)) / 2 for k in range(8)])
    assert rates("cosine", warmup=0.0)[0] == 1.0
    assert min(rates("cosine", total=1)) > 0


def test_learning_rate_is_used_and_spans_the_call():
    student = made(Perceptron)
    rates = []
    result = run(student, epochs=3, start_epoch=5, config={"warmup": 0.0}, on_epoch=lambda row: rates.append(row.lr))
    config = TrainingConfig(warmup=0.0)
    assert rates == [learning_rate(config, step, 12) for step in (3, 7, 11)]
    assert [row.epoch for row in result.history] == [5, 6, 7]


def test_start_epoch_continues_the_sequence_of_orders():
    task = toy_task()
    orders = []
    for start, epochs in ((0, 2), (1, 1)):
        ids = []
        run(made(Perceptron), task=_Recording(task, ids), start_epoch=start, epochs=epochs, seed=3)
        orders.append(ids)
    assert orders[0][4:] == orders[1]
    assert orders[0][:4] != orders[0][4:]


class _Recording:
    """A task that notes which training samples were asked for."""

    def __init__(self, task, ids):
        self._task, self._ids = task, ids

    def __getattr__(self, name):
        return getattr(self._task, name)

    def batches(self, split, **arguments):
        for batch in self._task.batches(split, **arguments):
            if arguments.get("train"):
                self._ids.append(batch.ids.tolist())
            yield batch


def test_averaged_weights_are_evaluated_and_returned():
    plain, student = made(Convolutional), made(Convolutional)
    snapshots = []
    decay = 0.8
    run(plain, epochs=2, on_step=lambda info, terms: snapshots.append(state(plain)))
    result = run(student, epochs=2, config={"ema": decay})
    average = snapshots[0]
    for t, current in enumerate(snapshots[1:], 1):
        weight = 1 - min(decay, (1 + t) / (10 + t))
        trained = {name for name, _ in plain.named_parameters()}
        average = {k: average[k].lerp(v, weight) if k in trained else v for k, v in current.items()}
    for name, value in state(student).items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7)
    assert not same(state(student), snapshots[-1])
    assert result.evaluation == evaluate(student, toy_task())


def test_few_labels_reach_only_the_labelled():
    # With no usable label the task term is 0 and gives no gradient; the teacher still teaches.
    task = toy_task(labelled=0.0)
    supervised = made(Perceptron)
    before = state(supervised)
    labels_only = ObjectiveConfig(task_weight=1.0, losses=())
    config = {"weight_decay": 0.0}
    result = run(supervised, task=task, objective=labels_only, config=config)
    assert same(before, state(supervised))
    assert result.history[0].terms["task"] == 0.0
    taught = made(Perceptron)
    run(taught, task=task, config=config)
    assert not same(before, state(taught))
    # Other labels at the unlabelled samples change nothing.
    students = []
    for shift in (0, 1):
        task = toy_task(labelled=0.2)
        images, labels = task._data["train"]
        labels = torch.where(torch.arange(100) < 20, labels, (labels + shift) % 4)
        task._data["train"] = (images, labels)
        students.append(made(Perceptron))
        run(students[-1], task=task)
    assert same(state(students[0]), state(students[1]))


def test_nothing_of_the_caller_changes():
    task, teacher = toy_task(), toy_teacher()
    student = made(Convolutional, 0)
    student.eval()
    student.norm.train()
    taught = state(teacher.model)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    shared = [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)]
    environment, threads = dict(os.environ), torch.get_num_threads()
    with torch.no_grad():
        run(student, task=task, teacher=teacher, epochs=1, config={"threads": 2})
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]
    assert dict(os.environ) == environment
    assert torch.get_num_threads() == threads
    assert [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)] == shared
    assert not student.training
    assert student.norm.training
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())
    assert same(taught, state(teacher.model))


def test_accelerate_state_of_the_caller_survives():
    from accelerate import Accelerator

    mine = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        run(made(Perceptron), epochs=1)
        assert mine.mixed_precision == "bf16"
    finally:
        for kind in (PartialState, AcceleratorState, GradientState):
            kind._shared_state.clear()


def test_the_launchers_accumulation_is_not_added_to_ours(monkeypatch):
    plain, student = made(Perceptron), made(Perceptron)
    config = {"optimizer": "sgd", "lr": 0.1, "grad_clip": None}
    run(plain, epochs=1, config=config)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run(student, epochs=1, config=config)
    assert same(state(plain), state(student))


def test_mixed_precision():
    student = made(Attentive)
    dtypes = set()

    class Watch(ToyKD):
        def forward(self, student, teacher, batch, step):
            dtypes.update({student.logits.dtype, teacher.logits.dtype, torch.is_autocast_enabled("cpu")})
            return super().forward(student, teacher, batch, step)

    factory = Factory()
    factory.losses = {**Factory.losses, "kd": Watch}
    training = TrainingConfig(batch_size=32, precision="bf16")
    inside = []
    student.head.register_forward_hook(lambda module, inputs, output: inside.append(output.dtype))
    result = train(student, toy_task(), toy_teacher(), KD, training, epochs=2, seed=0, host=factory)
    assert torch.bfloat16 in inside
    assert dtypes == {torch.float32, False}  # the losses compute in float32, with autocast off
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters())
    assert "forward" not in vars(student)
    assert finite(result.evaluation)
    result = run(made(Perceptron), config={"precision": "fp16"}, epochs=1)
    assert result.notes == ["fp16 needs a GPU; trained in float32"]


def test_devices():
    with pytest.raises(UsageError, match="'nonesuch' is not available"):
        run(made(Perceptron), device="nonesuch")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda' is not available"):
            run(made(Perceptron), device="cuda")
    run(made(Perceptron), epochs=1, device="auto")


def test_nan_ends_the_trial_with_a_reason():
    with pytest.raises(TrialFailure, match="student 7 is not a finite number at step 4") as caught:
        run(made(Perceptron), task=toy_task(poison=1), epochs=3, student_label="student 7")
    assert caught.value.reason == "nan_loss"
    broken = made(Perceptron)
    broken.head.weight.data[0, 0] = float("inf")
    with pytest.raises(TrialFailure) as caught:
        run(broken, epochs=1)
    assert caught.value.reason == "nan_loss"


def test_divergence_ends_the_trial_with_a_reason():
    objective = ObjectiveConfig(losses=(LossConfig(name="exploding"),))
    with pytest.raises(TrialFailure, match="grew from") as caught:
        run(made(Perceptron), objective=objective, epochs=3)
    assert caught.value.reason == "diverged"


def test_a_loss_that_does_not_fit_fails_or_is_left_out():
    required = ObjectiveConfig(losses=(LossConfig(name="kd"), LossConfig(name="hidden")))
    with pytest.raises(TrialFailure, match="no hidden states") as caught:
        run(made(Perceptron), objective=required)
    assert caught.value.reason == "mismatch"
    optional = ObjectiveConfig(losses=(LossConfig(name="kd"), LossConfig(name="hidden", optional=True)))
    student, plain = made(Perceptron), made(Perceptron)
    result = run(student, objective=optional)
    assert list(result.skipped) == ["hidden"]
    assert "no hidden states" in result.skipped["hidden"]
    run(plain, objective=ObjectiveConfig(losses=(LossConfig(name="kd"),)))
    assert same(state(student), state(plain))


def test_owned_parts_are_trained_and_stay_out_of_the_student():
    student = made(Attentive)
    names = set(student.state_dict())
    seen = {}

    def first(info, terms):
        seen.setdefault("step", info)

    result = run(student, objective=ALL, epochs=2, on_step=first)
    assert set(student.state_dict()) == names
    fresh = run(made(Attentive), objective=ALL, epochs=0)
    trained, start = result.objective.losses["hidden"], fresh.objective.losses["hidden"]
    assert not torch.equal(trained.projector.weight, start.projector.weight)
    assert int(trained.seen) == 8
    assert trained.map == {0: 1, 1: 2}  # spread evenly over the teacher's three layers, last on last
    assert seen["step"].total_steps == 8
    assert seen["step"].generator is not None


def test_leaving_a_loss_out_does_not_change_another_ones_start():
    alone = ObjectiveConfig(losses=(LossConfig(name="hidden"),))
    both = run(made(Attentive), objective=ALL, epochs=0).objective.losses["hidden"]
    one = run(made(Attentive), objective=alone, epochs=0).objective.losses["hidden"]
    assert torch.equal(both.projector.weight, one.projector.weight)


def test_should_stop_keeps_what_there_is():
    calls = iter([False] * 6 + [True])
    student = made(Perceptron)
    result = run(student, epochs=5, should_stop=lambda: next(calls))
    assert result.stopped
    assert result.steps == 6
    assert len(result.history) == 1
    assert result.evaluation == evaluate(student, toy_task())


def test_no_epochs_means_evaluation_only():
    student = made(Perceptron)
    before = state(student)
    result = run(student, epochs=0)
    assert same(before, state(student))
    assert result.evaluation == evaluate(student, toy_task())


def test_frozen_student_is_refused():
    with pytest.raises(UsageError, match="nothing to train"):
        run(made(Perceptron).requires_grad_(False))


def test_teacher_hooks_are_called_in_order():
    calls = []

    class Session(TeacherSession):
        label, cacheable, fingerprint = "following", False, "following"

        def __init__(self):
            self._model = made(Perceptron, 3).eval().requires_grad_(False)

        @property
        def model(self):
            return self._model

        def start(self, student):
            calls.append("start")

        def before_step(self, student, step):
            calls.append(("before", step.step))

        def after_step(self, student, step):
            calls.append(("after", step.step))

    session = Session()
    run(made(Perceptron), teacher=session, epochs=1)
    assert calls == ["start", *[(when, step) for step in range(4) for when in ("before", "after")]]
    assert session.queries == 100


def test_evaluation_equals_one_pass_and_does_not_depend_on_the_batch_size():
    task, model = toy_task(), made(Convolutional).train()
    images, labels = task._data["validation"]
    found = evaluate(model, task, batch_size=7)
    assert model.training
    assert model.norm.num_batches_tracked == 0
    with torch.no_grad():
        output = model.eval()(images)
    assert found.n == 60
    assert found.score == pytest.approx(float((output.argmax(-1) == labels).float().mean()))
    assert found.loss == pytest.approx(float(F.cross_entropy(output, labels)), rel=1e-5)
    assert evaluate(model, task, "test").n == 40


def test_evaluation_needs_labels():
    task = toy_task()
    task.has_labels = lambda split: split == "train"
    with pytest.raises(DataError, match="no labelled samples"):
        evaluate(made(Perceptron), task)
    result = run(made(Perceptron), task=task, epochs=1)
    assert result.evaluation is None


def test_nested_training(tmp_path):
    # A recipe trains an assistant while another training waits: both end as they would alone.
    outer, inner, alone = made(Perceptron), made(Convolutional), made(Perceptron)
    once = iter([True])

    def on_epoch(report):
        if next(once, False):
            run(inner, epochs=1, config={"precision": "bf16"})

    run(outer, on_epoch=on_epoch)
    run(alone)
    assert same(state(outer), state(alone))


def test_schedules_follow_the_steps():
    objective = ObjectiveConfig(
        task_weight=Schedule(start=1.0, end=0.0), losses=(LossConfig(name="kd", weight=Schedule(start=0.0, end=2.0)),)
    )
    seen = []
    run(made(Perceptron), objective=objective, on_step=lambda info, terms: seen.append((info.progress, terms)))
    for progress, terms in seen:
        expected = (1 - progress) * float(terms["task"]) + 2 * progress * float(terms["kd"])
        assert float(terms["total"]) == pytest.approx(expected, rel=1e-5)
    assert [progress for progress, _ in seen] == [step / 8 for step in range(8)]


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(made(Attentive), objective=ALL, epochs=1)
