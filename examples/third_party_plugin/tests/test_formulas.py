"""What the formulas promise, exactly: against naive references, and on cases whose answer is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from nasdistill.host import Host
from nasdistill.interfaces import Batch, PrepareRequest
from nasdistill.spec.io import Cost, IOSpec
from torch import nn

from nasdistill_acme.dkd import decoupled_terms
from nasdistill_acme.gradsign import gradient_signs
from nasdistill_acme.relu import relu_attention

HOST = Host.load(strict=True)
IMAGES = IOSpec("image", (1, 8, 8), 10)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- relu -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2])
def test_relu_attention_is_a_loop_over_queries_and_keys(power):
    q, k, v = normal(1, 1, 3, 4), normal(1, 1, 5, 4, seed=1), normal(1, 1, 5, 2, seed=2)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    out, weights = relu_attention(q, k, v, mask=mask, power=power)
    for i in range(3):
        seen = [j for j in range(5) if mask[i, j]]
        expected = torch.zeros(2, dtype=torch.float64)
        for j in seen:
            score = max(0.0, float(q[0, 0, i] @ k[0, 0, j]) / 4**0.5)
            expected += score**power / len(seen) * v[0, 0, j]
        torch.testing.assert_close(out[0, 0, i], expected)
    assert (weights[0, 0, 1] == 0).all()


def test_relu_attention_keeps_its_size_when_the_sequence_is_repeated():
    q, k, v = normal(2, 2, 3, 4), normal(2, 2, 5, 4, seed=1), normal(2, 2, 5, 4, seed=2)
    once, _ = relu_attention(q, k, v)
    twice, _ = relu_attention(q, torch.cat([k, k], dim=2), torch.cat([v, v], dim=2))
    torch.testing.assert_close(once, twice)


# ---- dkd ------------------------------------------------------------------------------------------------------------


def test_ordinary_distillation_is_the_sum_with_the_teachers_uncertainty():
    student, teacher, labels = normal(6, 5).float(), normal(6, 5, seed=1).float(), torch.arange(6) % 5
    binary, others = decoupled_terms(student, teacher, labels, 2.0)
    theirs = (teacher / 2).softmax(-1)
    whole = F.kl_div((student / 2).log_softmax(-1), theirs, reduction="none").sum(-1)
    uncertainty = 1 - theirs[torch.arange(6), labels]
    torch.testing.assert_close(binary + uncertainty * others, whole)


def test_the_terms_are_independent():
    """The target's logit moves the first term only; a change among the others that keeps their sum, the second only."""
    teacher, labels = normal(4, 5).float(), torch.tensor([0, 1, 2, 3])
    raised = teacher + 3 * F.one_hot(labels, 5)
    binary, others = decoupled_terms(raised, teacher, labels)
    assert (binary > 1e-3).all()
    torch.testing.assert_close(others, torch.zeros(4), atol=1e-6, rtol=0)
    mixed = teacher[:, [0, 1, 2, 3, 4]].clone()
    mixed[0, [1, 2]] = mixed[0, [2, 1]]
    binary, others = decoupled_terms(mixed, teacher, labels)
    torch.testing.assert_close(binary, torch.zeros(4), atol=1e-6, rtol=0)
    assert others[0] > 1e-3


def test_extreme_logits_give_finite_terms_and_gradients():
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    terms = decoupled_terms(student, torch.tensor([[-1e4, 1e4, 0.0], [1e4, 0.0, 1.0]]), torch.tensor([0, 0]), 1.0)
    sum(term.sum() for term in terms).backward()
    assert all(term.isfinite().all() for term in terms)
    assert student.grad is not None
    assert student.grad.isfinite().all()


# ---- gradsign -------------------------------------------------------------------------------------------------------


def cross_entropy(model: nn.Module, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch.image), batch.labels)


def batch_of(images: torch.Tensor, labels: torch.Tensor) -> Batch:
    return Batch({"image": images}, labels, torch.arange(len(labels)))


def test_gradient_signs_are_those_of_a_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    batch = batch_of(torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 1, 0, 1]))
    found = gradient_signs(model, batch, cross_entropy)
    for name, weight in model.named_parameters():
        total = torch.zeros_like(weight)
        for image, label in zip(batch.image, batch.labels, strict=True):
            model.zero_grad()
            F.cross_entropy(model(image[None]), label[None]).backward()
            total += weight.grad.sign()
        assert torch.equal(found[name], total), name


def test_equal_samples_agree_and_opposite_ones_cancel():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    image = torch.randn(1, 1, 2, 2)
    same = gradient_signs(model, batch_of(image.repeat(6, 1, 1, 1), torch.zeros(6, dtype=torch.long)), cross_entropy)
    assert all((count.abs() == 6).all() for count in same.values())
    halves = torch.tensor([0, 0, 0, 1, 1, 1])
    opposite = gradient_signs(model, batch_of(image.repeat(6, 1, 1, 1), halves), cross_entropy)
    assert all((count == 0).all() for count in opposite.values())


# ---- metaformer -----------------------------------------------------------------------------------------------------


def test_pooling_has_no_parameters_and_a_convolution_ten_per_channel():
    space = HOST.create("search_space", "acme:metaformer")
    sizes = {
        mixer: space.cost(space.architecture({"depth": 1, "width": 16, "block00.mixer": mixer}), IMAGES)
        for mixer in ("pool", "conv", "acme:relu")
    }
    assert sizes["conv"].params - sizes["pool"].params == 10 * 16
    assert sizes["acme:relu"].params - sizes["pool"].params == 4 * 16 * 16 + 4 * 16
    assert isinstance(sizes["pool"], Cost)


def test_pooling_a_constant_map_adds_nothing():
    space = HOST.create("search_space", "acme:metaformer")
    network = space.build(space.architecture({"depth": 1, "block00.mixer": "pool"}), IMAGES)
    assert (network.blocks[0].mixer(torch.full((2, 3, 4, 4), 7.0)) == 0).all()


# ---- bf16_cpu -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cast", "autocast"])
def test_what_runs_is_bfloat16_and_the_model_stays_as_it_is(tmp_path, mode):
    model = nn.Linear(64, 10).eval()
    target = HOST.create("target", "acme:bf16_cpu", {"mode": mode})
    example = (torch.randn(4, 64),)
    prepared = target.prepare(PrepareRequest(model, example, tmp_path))
    (found,) = prepared.outputs()
    assert torch.equal(found, found.bfloat16().float())  # the numbers are bfloat16 numbers
    with torch.no_grad():
        gap = (found - model(*example)).abs().max() / found.abs().max()
    assert 0 < float(gap) < target.tolerance
    assert model.weight.dtype == torch.float32
    assert math.isfinite(float(found.sum()))
    prepared.close()
