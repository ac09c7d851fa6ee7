"""Shared weights: the sandwich step against separate ones, what a sub-network is, and trainings that go on."""

from __future__ import annotations

import copy
import math
import random
from typing import ClassVar

import pytest
import torch
from toy_elastic import RowSpace, every
from toys_distill import Factory, Perceptron, counting_teacher, made, same, state, toy_task, toy_teacher

from nasdistill.distill import TeacherCache
from nasdistill.distill.subnetworks import WHOLE, contains, draw_member, find_subspace, ladder, members
from nasdistill.distill.supernet import HeldOut, SubNetworks, _Run, sandwich, train_supernet
from nasdistill.errors import TrialFailure, UsageError
from nasdistill.interfaces import SingleTeacher, StepInfo, SubSpace
from nasdistill.measure.counting import count_params
from nasdistill.seeds import seeded, torch_generator
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.spec.io import IOSpec
from nasdistill.trace import SitePlan, make_tracer
from nasdistill_losses.minilmv2 import MiniLMv2

IO = IOSpec("image", (1, 6, 6), 4)
KD = ObjectiveConfig(task_weight=0.0, losses=(LossConfig(name="kd"),))
# Projectors, maps of a layer that is another one in every depth, noise: all that a loss may bring.
ALL = ObjectiveConfig(
    task_weight=0.1, losses=(LossConfig(name="kd"), LossConfig(name="hidden"), LossConfig(name="maps"))
)
RELATION = ObjectiveConfig(task_weight=0.0, losses=(LossConfig(name="minilmv2"),))


class Losses(Factory):
    losses: ClassVar = {**Factory.losses, "minilmv2": MiniLMv2}


@pytest.fixture(scope="module")
def space():
    return RowSpace(None)


@pytest.fixture(scope="module")
def rungs(space):
    return ladder(space, IO, find_subspace(space, "narrow"))


def supernet(space, subspace="narrow", seed=0):
    with seeded(seed, "net"):
        return space.supernet(IO, subspace=find_subspace(space, subspace))


def train(space, rungs, net=None, *, task=None, teacher=None, objective=KD, epochs=2, config=None, seed=0, **more):
    net = supernet(space) if net is None else net
    training = TrainingConfig(batch_size=32, **(config or {}))
    teacher = toy_teacher() if teacher is None else teacher
    return train_supernet(
        net, space, rungs, task or toy_task(), teacher, objective, training, epochs=epochs, seed=seed, host=Losses(),
        **more,
    )  # fmt: skip


# ---- sub-networks ----------------------------------------------------------------------------------------------------


def test_the_ladder_goes_by_the_parameters_of_the_extracted_network(space, rungs):
    assert set(rungs) == {arch for arch in space.enumerate() if arch.params["width"] in (8, 12)}
    net = supernet(space)
    sizes = [count_params(net.extract(arch)) for arch in rungs]
    assert sizes == sorted(sizes)
    assert sizes == [space.cost(arch, IO).params for arch in rungs]


def test_a_ladder_of_a_large_space_has_its_ends(space):
    whole = ladder(space, IO)
    few = ladder(space, IO, limit=7, seed=3)
    assert len(few) == 7
    assert (few[0], few[-1]) == (whole[0], whole[-1])
    assert few == ladder(space, IO, limit=7, seed=3) != ladder(space, IO, limit=7, seed=4)
    assert [whole.index(arch) for arch in few] == sorted(whole.index(arch) for arch in few)


def test_sub_spaces(space):
    narrow = find_subspace(space, "narrow")
    assert set(members(space, narrow)) == set(every(space, width=8)) | set(every(space, width=12))
    assert list(members(space, WHOLE)) == list(space.enumerate())
    rng = random.Random(0)
    assert all(contains(space, narrow, draw_member(space, narrow, rng)) for _ in range(20))
    assert not contains(space, narrow, space.default())
    with pytest.raises(UsageError, match=r"no sub-space 'narow'\. Did you mean 'narrow'"):
        find_subspace(space, "narow")
    with pytest.raises(UsageError, match="width = "):
        list(members(space, SubSpace("odd", {"width": (7,)})))


@pytest.mark.paper("2201.12507", "strategies:supernet")
def test_the_ends_are_in_every_draw_and_all_processes_draw_alike(rungs):
    others = set()
    for step in range(200):
        drawn = sandwich(rungs, step, seed=5)
        assert drawn == sandwich(rungs, step, seed=5)
        assert drawn[:2] == (rungs[-1], rungs[0])
        assert len(set(drawn)) == 4
        others |= set(drawn[2:])
    assert others == set(rungs[1:-1])
    assert [sandwich(rungs, step) for step in range(9)] != [sandwich(rungs, step, seed=1) for step in range(9)]
    assert sandwich(rungs[:1], 0) == rungs[:1]
    assert sandwich(rungs[:3], 0) == (rungs[2], rungs[0], rungs[1])


# ---- the step --------------------------------------------------------------------------------------------------------


@pytest.mark.paper("2201.12507", "strategies:supernet")
@pytest.mark.parametrize("objective", [RELATION, ALL], ids=["relation", "all"])
def test_the_gradient_of_a_step_is_the_sum_of_separate_ones(space, rungs, objective, monkeypatch):
    task, teacher = toy_task(), toy_teacher()
    drawn, found = sandwich(rungs, 0), {}

    def look(self):
        found.update({name: p.grad.clone() for name, p in self.net.named_parameters() if p.grad is not None})
        self.zero_grad()

    monkeypatch.setattr(_Run, "descend", look)
    # Noise in a loss is drawn anew at every call: one generator for all sub-networks, in the order of the draw.
    train(space, rungs, task=task, teacher=teacher, objective=objective, epochs=1, steps=1)

    batch = next(task.batches("train", batch_size=32, epoch=0, seed=0, train=True))
    generator = torch_generator(0, "losses", 0)
    sample = next(task.batches("train", batch_size=2))
    geometry = SitePlan(teacher.model, lambda model: task.forward(model, sample)).geometry
    total = {}
    for arch in drawn:
        net = supernet(space)  # a net of its own for every sub-network
        part = SubNetworks(net, space, task, objective, geometry, sample, host=Losses()).switch(arch)
        net.train()
        heard = make_tracer(task.forward)(teacher.model, batch, part.objective.needs().teacher)
        part(batch, heard, StepInfo(0, 1, 0, 1, generator))[0].backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad
    assert found.keys() == total.keys()
    for name, gradient in total.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_one_teacher_forward_serves_a_step_and_the_cache_serves_all(space, rungs, tmp_path):
    first, second = counting_teacher(), counting_teacher()
    plain = train(space, rungs, teacher=first, objective=RELATION)
    batches = 2 * math.ceil(100 / 32)
    assert first.asked == batches == plain.steps
    cache = TeacherCache(tmp_path)
    cached = [train(space, rungs, teacher=second, objective=RELATION, cache=cache) for _ in range(2)]
    assert second.asked == batches
    for result in cached:
        assert same(state(result.net), state(plain.net))


def test_training_brings_every_end_nearer_to_the_teacher(space, rungs):
    result = train(space, rungs, epochs=6, config={"lr": 0.01})
    first, last = result.history[0].terms, result.history[-1].terms
    assert {"total", "kd", "task", "largest", "smallest"} <= last.keys()
    assert last["largest"] < first["largest"]
    assert last["smallest"] < first["smallest"]
    # The mean over four sub-networks holds each end once.
    assert min(last["largest"], last["smallest"]) <= last["total"]


def test_batches_that_accumulate_make_one_step(space, rungs):
    task = toy_task(train=64)
    whole = train(space, rungs, task=task, epochs=1, config={"optimizer": "sgd"})
    half = train_supernet(
        supernet(space), space, rungs, task, toy_teacher(), KD,
        TrainingConfig(batch_size=16, accumulate=2, optimizer="sgd"), epochs=1, seed=0, host=Losses(),
    )  # fmt: skip
    assert half.steps == whole.steps == 2
    for name, value in half.net.state_dict().items():
        torch.testing.assert_close(value, whole.net.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert half.history[0].terms["total"] == pytest.approx(whole.history[0].terms["total"], rel=1e-4)


# ---- what is left ----------------------------------------------------------------------------------------------------


@pytest.mark.paper("2201.12507", "strategies:supernet")
def test_an_extracted_student_equals_the_sliced_net_after_training(space, rungs):
    net = train(space, rungs, objective=RELATION).net.eval()
    x = torch.randn(5, 1, 6, 6)
    with torch.no_grad():
        for arch in rungs:
            net.set_arch(arch)
            torch.testing.assert_close(net.extract(arch).eval()(x), net(x), rtol=0, atol=1e-6)


def test_a_net_is_left_in_its_mode_on_its_largest_sub_network_and_random_states_are_untouched(space, rungs):
    net = supernet(space).eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(space, rungs, net, epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training
    assert net.sizes == rungs[-1].params
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("stop", [1, 2])
def test_a_training_goes_on_to_the_same_numbers(space, rungs, tmp_path, stop):
    whole = train(space, rungs, objective=ALL, epochs=3)
    epochs = []

    def broken(report):
        epochs.append(report.epoch)
        if len(epochs) == stop:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(space, rungs, objective=ALL, epochs=3, checkpoint=path, on_epoch=broken)
    again = train(space, rungs, objective=ALL, epochs=3, checkpoint=path)
    assert again.resumed == stop
    assert same(state(again.net), state(whole.net))
    assert [row.terms for row in again.history] == [row.terms for row in whole.history]
    done = train(space, rungs, objective=ALL, epochs=3, checkpoint=path)
    assert done.resumed == 3
    assert same(state(done.net), state(whole.net))


def test_a_checkpoint_of_another_training_is_not_taken(space, rungs, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    train(space, rungs, epochs=1, checkpoint=path)
    other = train(space, rungs[:-1], epochs=1, checkpoint=path)
    assert other.resumed == 0
    assert other.notes == ["checkpoint checkpoint.safetensors belongs to another training; started anew"]
    path.write_bytes(b"nothing")
    assert "cannot be read" in train(space, rungs, epochs=1, checkpoint=path).notes[0]


def test_a_training_stops_when_asked(space, rungs):
    asked = []
    result = train(space, rungs, should_stop=lambda: len(asked) == 2 or asked.append(1) or False)
    assert result.stopped
    assert result.steps == 2


# ---- failures --------------------------------------------------------------------------------------------------------


def test_what_is_not_finite_ends_a_training_with_a_reason(space, rungs):
    with pytest.raises(TrialFailure, match="the loss of shared rows is not a finite number at step 4") as caught:
        train(space, rungs, task=toy_task(poison=1), label="shared rows")
    assert caught.value.reason == "nan_loss"


def test_a_loss_that_fits_no_sub_network_is_refused(space, rungs):
    teacher = SingleTeacher(made(Perceptron), label="perceptron", fingerprint="p")
    with pytest.raises(TrialFailure, match="has no site") as caught:
        train(space, rungs, teacher=teacher, objective=RELATION)
    assert caught.value.reason == "mismatch"


def test_nothing_to_train_is_refused(space, rungs):
    with pytest.raises(UsageError, match="no sub-network"):
        train(space, ())
    with pytest.raises(UsageError, match="no parameter that requires a gradient"):
        train(space, rungs, supernet(space).requires_grad_(False))


# ---- scoring ---------------------------------------------------------------------------------------------------------


def held_out(teacher, objective=RELATION, **more):
    return HeldOut(toy_task(), teacher, objective, host=Losses(), **more)


def even(student, teacher):
    return {}


def test_a_network_equal_to_its_teacher_has_no_relation_loss(space):
    net = supernet(space, "wide")
    teacher = SingleTeacher(copy.deepcopy(net), label="itself", fingerprint="itself")
    largest = space.default()
    score = held_out(teacher).terms(net.extract(largest), even, label="copy")
    assert score["total"] == pytest.approx(0, abs=1e-6)
    other = held_out(teacher).terms(space.build(largest, IO), even, label="another")
    assert other["total"] > 1e-3


def test_held_out_samples_are_heard_once_and_weighted_by_size(space, rungs):
    teacher = counting_teacher()
    score = held_out(teacher, samples=40, batch_size=16)
    net = supernet(space)
    values = [score.terms(net.extract(arch), even, label="s")["total"] for arch in rungs[:3]]
    assert teacher.asked == 3  # 16 + 16 + 16: whole batches
    once = held_out(counting_teacher(), samples=48, batch_size=48)
    assert values[0] == pytest.approx(once.terms(net.extract(rungs[0]), even, label="s")["total"], rel=1e-5)


def test_a_loss_with_parts_of_its_own_cannot_score(space, rungs):
    config = ObjectiveConfig(losses=(LossConfig(name="hidden"),))
    with pytest.raises(UsageError, match="trained parts of its own"):
        held_out(toy_teacher(), config).terms(supernet(space).extract(rungs[0]), even, label="s")
