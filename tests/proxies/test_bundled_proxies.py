"""What holds for single bundled proxies beyond the contract that all of them keep."""

from __future__ import annotations

import pytest
from torch import nn

from nasdistill.measure.proxies import run_proxy
from nasdistill.spec.component import Kind
from nasdistill.spec.io import Cost
from nasdistill.testing.kit.models import DIGITS, Mlp, SmallResNet, SmallViT, built, call, digits, digits_loss
from nasdistill_proxies import nasdistill_proxies

SPECS = {spec.name: spec for spec in nasdistill_proxies()}


def run(host, name, model, teacher=None, **changes):
    values = {"batches": (digits(), digits(start=100)), "forward": call, "loss": digits_loss, "io": DIGITS, "seed": 3}
    proxy = host.create(Kind.PROXY, name)
    return run_proxy(proxy, SPECS[name].tags, model=model, teacher=teacher, **{**values, **changes})


def test_proxies_are_the_ones_promised():
    assert set(SPECS) == {
        "params", "macs", "grad_norm", "snip", "synflow", "nwot", "jacov", "zico", "diswot", "cka",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.tags.needs_teacher])
def test_no_score_without_the_teacher(host, name):
    outcome = run(host, name, built(SmallResNet))
    assert outcome.value is None
    assert "teacher" in outcome.problem


@pytest.mark.parametrize("name", SPECS)
def test_too_few_batches_are_a_problem(host, name):
    outcome = run(host, name, built(SmallResNet), built(SmallResNet, seed=1), batches=(digits(),))
    assert (outcome.value is None) is (name == "zico")


@pytest.mark.parametrize(
    ("name", "model", "reason"),
    [
        ("cka", built(Mlp, 12), "feature map"),
        ("nwot", built(SmallViT, width=2, depth=1, heads=1), "same activation code"),  # two channels become -1 and 1
    ],
)
def test_networks_too_small_for_a_score(host, name, model, reason):
    outcome = run(host, name, model, built(SmallResNet, seed=1), batches=(digits(8),))
    assert outcome.value is None
    assert reason in outcome.problem


def test_a_size_needs_no_weights_and_no_forward(host):
    class Broken(SmallResNet):
        def forward(self, x):
            raise RuntimeError("no way\nat all")

    assert run(host, "params", Broken()).value == float(sum(p.numel() for p in SmallResNet().parameters()))
    assert run(host, "macs", Broken()).problem == "RuntimeError: no way"


def test_sizes_take_the_analytic_cost_and_agree_with_the_count(host):
    model = built(SmallResNet, width=4)
    params = sum(p.numel() for p in model.parameters())
    # stem, two blocks (the second halves the resolution, with a 1 x 1 shortcut), head
    macs = 64 * 9 * 4 + 2 * 64 * 9 * 16 + 16 * 9 * 32 + 16 * 9 * 64 + 16 * 32 + 80
    for name, counted in (("params", params), ("macs", macs)):
        assert run(host, name, model).value == float(counted)
        assert run(host, name, model, cost=Cost(7, 5)).value == (7.0 if name == "params" else 5.0)


def test_size_and_depth_raise_the_size_like_scores(host):
    """A sanity check of the orientation: the wider of two networks has the larger count, flow and code kernel."""
    small, large = built(SmallResNet, width=4), built(SmallResNet, width=8)
    for name in ("params", "macs", "synflow", "nwot"):
        assert run(host, name, large).value > run(host, name, small).value


def test_models_with_dropout_are_seeded(host):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    values = {seed: run(host, "snip", model, seed=seed).value for seed in (0, 1)}
    assert values[0] == run(host, "snip", model, seed=0).value
    assert values[0] != values[1]
