"""Shared weights of real encoders: a BERT of transformers as teacher, padded text, the relations of its last layer."""

from __future__ import annotations

import pytest
import torch

from nasdistill.distill.subnetworks import find_subspace, ladder
from nasdistill.distill.supernet import HeldOut, SubNetworks, _Run, layer_map_of, sandwich, train_supernet
from nasdistill.interfaces import SingleTeacher, StepInfo, TeacherInfo
from nasdistill.seeds import torch_generator
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.testing.kit.models import small_bert
from nasdistill.trace import SitePlan, make_tracer


@pytest.fixture(scope="module")
def parts(host):
    """Task, teacher, space, and the ladder of its sub-space `base`."""
    task = host.create(Kind.TASK, "text_classification", {"max_length": 16})
    task.prepare()
    model = small_bert()
    info = TeacherInfo("transformers", model.config.to_dict())
    options = host.load(Kind.SEARCH_SPACE, "encoder").adapted({}, info)
    space = host.create(Kind.SEARCH_SPACE, "encoder", options)
    teacher = SingleTeacher(model, label="bert", fingerprint="bert")
    return task, teacher, space, ladder(space, task.io, find_subspace(space, "base"))


def objective(mode):
    return ObjectiveConfig(task_weight=0.0, losses=(LossConfig(name="qkv_relation", options={"mode": mode}),))


def supernet(parts):
    task, teacher, space, _ = parts
    return space.supernet(task.io, teacher.model, subspace=find_subspace(space, "base"))


def train(parts, host, mode="kl", net=None, **more):
    task, teacher, space, rungs = parts
    net = supernet(parts) if net is None else net
    training, budget = TrainingConfig(batch_size=8, lr=1e-3), {"epochs": 1, "steps": 3, **more}
    return train_supernet(net, space, rungs, task, teacher, objective(mode), training, seed=0, host=host, **budget)


@pytest.mark.paper("2201.12507", "strategies:supernet")
@pytest.mark.parametrize("mode", ["kl", "mse_logits"])
def test_the_gradient_of_a_step_is_the_sum_of_separate_ones(parts, host, monkeypatch, mode):
    task, teacher, space, rungs = parts
    found = {}

    def look(self):
        found.update({name: p.grad.clone() for name, p in self.net.named_parameters() if p.grad is not None})
        self.zero_grad()

    monkeypatch.setattr(_Run, "descend", look)
    train(parts, host, mode, steps=1)
    batch = next(task.batches("train", batch_size=8, epoch=0, seed=0, train=True))
    sample = next(task.batches("train", batch_size=2))
    geometry = SitePlan(teacher.model, lambda model: task.forward(model, sample)).geometry
    info = StepInfo(0, 1, 0, 1, torch_generator(0, "losses", 0))
    total = {}
    for arch in sandwich(rungs, 0):
        net = supernet(parts)
        part = SubNetworks(net, space, task, objective(mode), geometry, sample, host=host).switch(arch)
        part(batch, make_tracer(task.forward)(teacher.model, batch, part.objective.needs().teacher), info)[0].backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad
    assert found.keys() == total.keys()
    assert any("attention" in name for name in found)
    for name, gradient in total.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_students_of_trained_weights_are_slices_and_score_alike_in_any_order(parts, host, tmp_path):
    task, teacher, space, rungs = parts
    path = tmp_path / "checkpoint.safetensors"
    net = train(parts, host).net.eval()
    again = train(parts, host, checkpoint=path)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in again.net.state_dict().items())
    restored = train(parts, host, checkpoint=path)
    assert restored.resumed == 1
    assert all(torch.equal(net.state_dict()[name], value) for name, value in restored.net.state_dict().items())

    scorer = HeldOut(task, teacher, objective("kl"), host=host, samples=12, batch_size=8)
    batch = next(task.batches("validation", batch_size=4))
    scores = {}
    for arch in (rungs[0], rungs[len(rungs) // 2], rungs[-1]):
        net.set_arch(arch)
        alone = net.extract(arch).eval()
        assert sum(p.numel() for p in alone.parameters()) == space.cost(arch, task.io).params
        with torch.no_grad():
            torch.testing.assert_close(task.forward(alone, batch), task.forward(net, batch), rtol=0, atol=1e-6)
        built = space.build(arch, task.io)
        built.load_state_dict(alone.state_dict())

        def mapping(student, theirs, arch=arch):
            return layer_map_of(space, arch, student, theirs)

        scores[arch] = scorer.terms(alone, mapping, label="student")["total"]
        assert scores[arch] == scorer.terms(built.eval(), mapping, label="student")["total"] > 0
    assert len(set(scores.values())) == 3
