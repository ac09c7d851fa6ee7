"""The bounds of mutual information: exact properties, a naive computation, and what reaches which parameters."""

from __future__ import annotations

import math

import pytest
import torch

from nasdistill.errors import ConfigError
from nasdistill.interfaces import StepInfo
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.pairs import PAIRS, side
from nasdistill_losses.mi_alpha import leave_one_out, mi_alpha_bound, mi_alpha_loss

ALPHAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def scene(count=7, scale=3.0):
    g = torch.Generator().manual_seed(count)
    scores = scale * torch.randn(count, count, generator=g, dtype=torch.float64)
    return scores, torch.randn(count, generator=g, dtype=torch.float64)


def naive(scores, baseline, alpha):
    """Both means of the bound, entry by entry."""
    count = len(scores)
    level = [
        [
            alpha * sum(math.exp(scores[i][k]) for k in range(count) if k != j) / (count - 1)
            + (1 - alpha) * math.exp(baseline[i])
            for j in range(count)
        ]
        for i in range(count)
    ]
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    joint = sum(scores[i][i] - math.log(level[i][j]) for i, j in pairs) / len(pairs)
    marginal = sum(math.exp(scores[i][j]) / level[i][i] for i, j in pairs) / len(pairs)
    return joint, marginal


@pytest.mark.paper("2109.11105", "losses:mi_alpha")
@pytest.mark.parametrize("alpha", ALPHAS)
def test_bound_by_loop(alpha):
    scores, baseline = scene()
    found = mi_alpha_bound(scores, baseline, alpha)
    assert [x.item() for x in found] == pytest.approx(naive(scores.tolist(), baseline.tolist(), alpha), rel=1e-10)
    assert mi_alpha_loss(scores, baseline, alpha).item() == pytest.approx(found[1].item() - found[0].item() - 1)


@pytest.mark.paper("2109.11105", "losses:infonce")
@pytest.mark.parametrize("count", [2, 3, 16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_infonce_has_a_marginal_of_1_and_a_ceiling(count, scale):
    scores, baseline = scene(count, scale)
    joint, marginal = mi_alpha_bound(scores, baseline, 1.0)
    assert marginal.item() == pytest.approx(1.0, abs=1e-12)
    assert -mi_alpha_loss(scores, baseline, 1.0).item() <= math.log(count - 1) + 1e-12
    assert torch.equal(joint, mi_alpha_bound(scores, baseline + 5, 1.0)[0])  # no baseline
    sharp = 40 * torch.eye(count, dtype=torch.float64)
    assert -mi_alpha_loss(sharp, baseline, 1.0).item() == pytest.approx(math.log(count - 1), abs=1e-9)


@pytest.mark.paper("2109.11105", "losses:tuba")
def test_alpha_0_is_tuba():
    scores, baseline = scene()
    off = ~torch.eye(7, dtype=torch.bool)
    # 1 + E_joint[F - b] - E_marginal[exp(F - b)], with a baseline for each row.
    tuba = 1 + (scores.diagonal() - baseline).mean() - (scores - baseline[:, None])[off].exp().mean()
    assert mi_alpha_loss(scores, baseline, 0.0).item() == pytest.approx(-tuba.item(), rel=1e-12)


@pytest.mark.paper("2109.11105", "losses:nwj")
def test_alpha_0_with_baseline_1_is_nwj():
    scores, _ = scene()
    off = ~torch.eye(7, dtype=torch.bool)
    nwj = scores.diagonal().mean() - scores[off].exp().mean() / math.e
    assert mi_alpha_loss(scores, torch.ones(7, dtype=torch.float64), 0.0).item() == pytest.approx(-nwj.item())


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_order_of_the_batch_does_not_matter(alpha):
    scores, baseline = scene()
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    moved = mi_alpha_loss(scores[order][:, order], baseline[order], alpha)
    torch.testing.assert_close(moved, mi_alpha_loss(scores, baseline, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("level", [80.0, -80.0, 1e7])
def test_large_scores_are_finite_with_finite_gradients(alpha, level):
    scores = (level * torch.sign(torch.randn(6, 6))).requires_grad_()
    baseline = torch.zeros(6, requires_grad=True)
    value = mi_alpha_loss(scores, baseline, alpha)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(scores.grad).all()
    # Nothing is lost to a single dominant entry either.
    lone = torch.zeros(4, 4)
    lone[0, 1] = 80.0
    assert leave_one_out(lone)[0].tolist() == pytest.approx([80 - math.log(3), 0, *[80 - math.log(3)] * 2], abs=1e-5)


def test_gradients_of_the_leave_one_out_mean_equal_numeric_ones():
    scores, baseline = (x.requires_grad_() for x in scene(5))
    assert torch.autograd.gradcheck(lambda s: leave_one_out(s), (scores,))
    assert torch.autograd.gradcheck(lambda s, b: mi_alpha_loss(s, b, 0.5), (scores, baseline))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_one_sample_says_nothing(alpha):
    scores = torch.randn(1, 1, requires_grad=True)
    value = mi_alpha_loss(scores, torch.zeros(1), alpha)
    value.backward()
    assert value.item() == 0.0
    assert scores.grad.item() == 0.0


@pytest.mark.parametrize(
    ("name", "options", "baseline"),
    [("mi_alpha", {}, True), ("mi_alpha", {"baseline": "one"}, False), ("mi_alpha", {"alpha": 1.0}, False),
     ("infonce", {}, False), ("tuba", {}, True), ("nwj", {}, False)],
)  # fmt: skip
def test_gradients_reach_student_critic_and_baseline_and_not_the_teacher(host, name, options, baseline):
    ours, theirs = side(PAIRS["text"], "student"), side(PAIRS["text"], "teacher")
    loss = host.create(Kind.LOSS, name, options)
    loss.build(ours.geometry, theirs.geometry, {0: 1, 1: 2})
    assert list(loss.critics) == ["hidden_0-hidden_1", "hidden_1-hidden_2"]  # one of its own for each pair
    traces = []
    for trace, sites in ((ours.trace, loss.sites().student), (theirs.trace, loss.sites().teacher)):
        detached = trace.detach()
        for site in sites:
            detached.signals[site].tensor.requires_grad_()
        traces.append((detached, sites))
    try:
        sum(loss(traces[0][0], traces[1][0], ours.batch, StepInfo()).values()).backward()
        assert all(bool(traces[0][0][site].grad[:, 0].any()) for site in traces[0][1])
        assert not any(traces[0][0][site].grad[:, 1:].any() for site in traces[0][1])  # the class token alone
        assert all(traces[1][0][site].grad is None for site in traces[1][1])
    finally:  # the models' traces are shared by all tests
        for trace, sites in traces:
            for site in sites:
                trace[site].requires_grad_(False).grad = None
    for critic in loss.critics.values():
        assert (critic.baseline is not None) == baseline
        assert all(bool(p.grad.any()) for p in critic.parameters())


def test_alpha_must_be_a_weight(host):
    for wrong in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="alpha"):
            host.create(Kind.LOSS, "mi_alpha", {"alpha": wrong})
    with pytest.raises(ConfigError, match="unknown key 'alpha'"):
        host.create(Kind.LOSS, "infonce", {"alpha": 0.5})
