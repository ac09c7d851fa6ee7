"""What every bundled proxy promises, run through the host and the runner as a search does."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from proxy_models import IO, Mlp, SmallResNet, SmallViT, built, digits, forward, loss
from torch import nn

from nasdistill.measure.proxies import run_proxy
from nasdistill.spec.component import Kind
from nasdistill.spec.io import Cost
from nasdistill_proxies import nasdistill_proxies

SPECS = {spec.name: spec for spec in nasdistill_proxies()}
# (network, teacher): a convolutional and a transformer pair, a teacher of another family
PAIRS = {
    "resnet": (SmallResNet, {"width": 8}, SmallResNet, {"width": 8, "depth": 2}),
    "vit": (SmallViT, {"width": 16}, SmallResNet, {"width": 8}),
}


@pytest.fixture(params=sorted(SPECS))
def spec(request):
    return SPECS[request.param]


@pytest.fixture
def proxy(spec, host):
    return host.create(Kind.PROXY, f"proxies:{spec.name}")


def pair(name):
    student, options, teacher, teacher_options = PAIRS[name]
    return built(student, **options), built(teacher, seed=1, **teacher_options).eval().requires_grad_(False)


def run(proxy, spec, model, teacher, **changes):
    values = {"batches": (digits(), digits(start=100)), "forward": forward, "loss": loss, "io": IO, "seed": 3}
    return run_proxy(proxy, spec.tags, model=model, teacher=teacher, **{**values, **changes})


def test_specs_are_well_formed(spec):
    assert spec.problems() == []
    assert spec.name in ("params", "macs", "grad_norm") or spec.references


def test_proxies_are_the_ones_promised():
    assert set(SPECS) == {
        "params", "macs", "grad_norm", "snip", "synflow", "nwot", "jacov", "zico", "diswot", "cka",
    }  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_scores_are_finite_and_repeat(proxy, spec, host, name):
    model, teacher = pair(name)
    first, second = run(proxy, spec, model, teacher), run(proxy, spec, model, teacher)
    assert first.value is not None, first.problem
    assert math.isfinite(first.value)
    assert first.value == second.value
    assert first.parts == second.parts
    other = run(proxy, spec, model, teacher, seed=4)
    assert (other.value == first.value) is (not spec.tags.stochastic)
    assert first.seconds > 0
    again = run(host.create(Kind.PROXY, spec.name), spec, model, teacher)
    assert again.value == first.value  # nothing is remembered that matters


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_nothing_of_the_callers_changes(proxy, spec, name):
    model, teacher = pair(name)
    model.train()
    model.register_forward_hook(lambda *_: None)
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = copy.deepcopy((model.state_dict(), teacher.state_dict()))
    batches = (digits(), digits(start=100))
    images = [batch.image.clone() for batch in batches]
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    outcome = run(proxy, spec, model, teacher, batches=batches)
    assert outcome.value is not None, outcome.problem
    assert torch.equal(torch.rand(1), expected)
    for now, then in zip((model.state_dict(), teacher.state_dict()), before, strict=True):
        assert all(torch.equal(now[key], then[key]) for key in then)
    assert model.training
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(next(model.parameters()).grad, torch.ones_like(next(model.parameters())))
    assert all(p.grad is None for p in [*model.parameters()][1:])
    assert len(model._forward_hooks) == 1
    assert all(torch.equal(batch.image, image) for batch, image in zip(batches, images, strict=True))
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32


def test_the_callers_context_does_not_matter(proxy, spec):
    model, teacher = pair("resnet")
    plain = run(proxy, spec, model, teacher).value
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(5)
        inside = run(proxy, spec, model.eval(), teacher.train()).value
        assert not torch.is_grad_enabled()
    assert inside == plain
    with torch.inference_mode():
        assert run(proxy, spec, model, teacher).value == plain


def test_order_of_the_batch_does_not_matter(proxy, spec):
    model, teacher = pair("resnet")
    batches = (digits(), digits(start=100))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    plain = run(proxy, spec, model, teacher, batches=batches).value
    shuffled = run(proxy, spec, model, teacher, batches=tuple(batch.select(order) for batch in batches)).value
    assert shuffled == pytest.approx(plain, rel=1e-3, abs=1e-6)


def test_what_is_not_needed_is_not_read(proxy, spec):
    model, teacher = pair("resnet")
    plain = run(proxy, spec, model, teacher).value
    batches = (digits(), digits(start=100))
    if not spec.tags.needs_labels:
        without = tuple(replace(batch, labels=None) for batch in batches)
        assert run(proxy, spec, model, teacher, batches=without).value == plain
    else:
        moved = tuple(replace(batch, labels=batch.labels.roll(1)) for batch in batches)
        assert run(proxy, spec, model, teacher, batches=moved).value != plain
    others = run(proxy, spec, model, teacher, batches=(digits(start=900), digits(start=1300))).value
    assert (others == plain) is (not spec.tags.needs_data)
    if not spec.tags.needs_teacher:
        assert run(proxy, spec, model, None).value == plain
    else:
        outcome = run(proxy, spec, model, None)
        assert outcome.value is None
        assert "teacher" in outcome.problem


def test_more_batches_than_needed_are_ignored(proxy, spec):
    model, teacher = pair("resnet")
    plain = run(proxy, spec, model, teacher).value
    more = run(proxy, spec, model, teacher, batches=(digits(), digits(start=100), digits(start=500)))
    assert more.value == plain


def test_too_few_batches_are_a_problem(proxy, spec):
    model, teacher = pair("resnet")
    outcome = run(proxy, spec, model, teacher, batches=(digits(),))
    assert (outcome.value is None) is (proxy.batches_needed() > 1)


def test_the_smallest_networks_work(proxy, spec):
    for model in (built(SmallResNet, width=1, depth=1), built(SmallViT, width=2, depth=1, heads=1), built(Mlp, 12)):
        teacher = built(SmallResNet, seed=1)
        batches = (digits(8), digits(8, start=100))
        outcome = run(proxy, spec, model, teacher, batches=batches)
        if isinstance(model, Mlp) and spec.name == "cka":
            assert outcome.value is None
            assert "feature map" in outcome.problem
        elif isinstance(model, SmallViT) and spec.name == "nwot":
            assert outcome.value is None  # normalisation leaves two channels the values -1 and 1 only
            assert "same activation code" in outcome.problem
        else:
            assert outcome.value is not None, outcome.problem


def test_nan_weights_are_a_recorded_failure(proxy, spec):
    model, teacher = pair("resnet")
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    outcome = run(proxy, spec, model, teacher)
    if spec.tags.cost == "analytic":
        assert outcome.value is not None  # a size needs no weights
    else:
        assert outcome.value is None
        assert outcome.problem
        assert "\n" not in outcome.problem


def test_a_network_that_raises_is_a_recorded_failure(proxy, spec):
    class Broken(SmallResNet):
        def forward(self, x):
            raise RuntimeError("no way\nat all")

    outcome = run(proxy, spec, Broken(), built(SmallResNet))
    if spec.name == "params":
        assert outcome.value == float(sum(p.numel() for p in SmallResNet().parameters()))
    else:
        assert outcome.value is None
        assert outcome.problem == "RuntimeError: no way"


def test_sizes_take_the_analytic_cost_and_agree_with_the_count(host):
    model = built(SmallResNet, width=4)
    params = sum(p.numel() for p in model.parameters())
    # stem, two blocks (the second halves the resolution, with a 1 x 1 shortcut), head
    macs = 64 * 9 * 4 + 2 * 64 * 9 * 16 + 16 * 9 * 32 + 16 * 9 * 64 + 16 * 32 + 80
    for name, counted in (("params", params), ("macs", macs)):
        proxy = host.create(Kind.PROXY, name)
        assert run(proxy, SPECS[name], model, None).value == float(counted)
        assert run(proxy, SPECS[name], model, None, cost=Cost(7, 5)).value == (7.0 if name == "params" else 5.0)


def test_size_and_depth_raise_the_size_like_scores(host):
    """A sanity check of the orientation: the wider of two networks has the larger count, flow and code kernel."""
    small, large = built(SmallResNet, width=4), built(SmallResNet, width=8)
    for name in ("params", "macs", "synflow", "nwot"):
        proxy = host.create(Kind.PROXY, name)
        assert run(proxy, SPECS[name], large, None).value > run(proxy, SPECS[name], small, None).value


def test_models_with_dropout_are_seeded(host):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    proxy, spec = host.create(Kind.PROXY, "snip"), SPECS["snip"]
    values = {seed: run(proxy, spec, model, None, seed=seed).value for seed in (0, 1)}
    assert values[0] == run(proxy, spec, model, None, seed=0).value
    assert values[0] != values[1]
