"""`qkv_relation`: heads of the teacher's number, dropped tails, masks on both axes, both modes."""

from __future__ import annotations

import math

import pytest
import torch

from nasdistill.errors import MismatchError
from nasdistill.interfaces import ModelGeometry, Signal, Site, SiteShape, StepInfo, Trace
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.pairs import PAIRS, side
from nasdistill_losses.qkv_relation import relation_scores

LENGTHS = [6, 4, 1]
VALID = torch.arange(6)[None] < torch.tensor(LENGTHS)[:, None]
STEP = StepInfo()


def geometry(heads, size, label, kv=None):
    sites = {Site(n, 2): SiteShape((heads if n == "q" else kv or heads, 6, size), "heads") for n in "qkv"}
    return ModelGeometry(sites, layers=3, label=label)


def trace(heads, size, kv=None, valid=VALID, causal=False):
    return Trace(
        {
            Site(n, 2): Signal(
                torch.randn(3, heads if n == "q" else kv or heads, 6, size), "heads", valid=valid, causal=causal
            )
            for n in "qkv"
        }
    )


def built(host, ours, theirs, **options):
    loss = host.create(Kind.LOSS, "qkv_relation", options)
    loss.build(geometry(*ours, "student"), geometry(*theirs, "teacher"), {})
    return loss


def scores_of(tensor, heads):
    """(N, N) score lists of one sample (H, N, D), head by head."""
    joined = tensor.transpose(0, 1).flatten(1)
    width = joined.shape[1] // heads
    parts = [joined[:, a * width : (a + 1) * width] for a in range(heads)]
    return [part @ part.T / math.sqrt(width) for part in parts]


def loop(student, teacher, heads, mode, causal=False):
    """Sample by sample at its own length."""
    total = 0.0
    for name in "qkv":
        for b, n in enumerate(LENGTHS):
            ours, theirs = (scores_of(t[f"{name}.2"][b, :, :n], heads) for t in (student, teacher))
            value, count = 0.0, 0
            for s, t in zip(ours, theirs, strict=True):
                for i in range(n):
                    m = i + 1 if causal else n
                    if mode == "kl":
                        p, q = t[i, :m].softmax(0), s[i, :m].softmax(0)
                        value, count = value + float((p * (p / q).log()).sum()), count + 1
                    else:
                        value, count = value + float((s[i, :m] - t[i, :m]).square().sum()), count + m
            total += value / count / 3
    return total


@pytest.mark.paper("2201.12507", "losses:qkv_relation")
@pytest.mark.parametrize("mode", ["kl", "mse_logits"])
@pytest.mark.parametrize("causal", [False, True])
def test_against_each_sample_at_its_own_length(host, mode, causal):
    student, teacher = trace(2, 8, causal=causal), trace(3, 8, causal=causal)  # 16 = 3 * 5 + 1: a column is dropped
    loss = built(host, (2, 8), (3, 8), mode=mode)
    assert loss.heads == 3
    terms = loss(student, teacher, None, STEP)
    assert sum(terms.values()).item() == pytest.approx(loop(student, teacher, 3, mode, causal), rel=1e-4)


@pytest.mark.paper("2201.12507", "losses:qkv_relation")
@pytest.mark.parametrize("mode", ["kl", "mse_logits"])
def test_neither_keys_nor_queries_at_padding_count(host, mode):
    loss = built(host, (2, 8), (3, 8), mode=mode)
    student, teacher = trace(2, 8), trace(3, 8)
    before = loss(student, teacher, None, STEP)
    for side_ in (student, teacher):
        for signal in side_.signals.values():
            noise = 30 * torch.randn_like(signal.tensor)
            signal.tensor.copy_(torch.where(VALID[:, None, :, None], signal.tensor, noise))
    torch.testing.assert_close(loss(student, teacher, None, STEP), before)
    bare = [Trace({site: Signal(s.tensor, "heads") for site, s in t.signals.items()}) for t in (student, teacher)]
    assert sum(loss(*bare, None, STEP).values()) > 2 * sum(before.values())  # there was something to leave out


@pytest.mark.paper("2201.12507", "losses:qkv_relation")
@pytest.mark.parametrize("mode", ["kl", "mse_logits"])
def test_equal_signals_and_rotations_within_a_relation_head_give_0(host, mode):
    loss = built(host, (4, 6), (4, 6), mode=mode)
    teacher = trace(4, 6)
    assert sum(loss(teacher, teacher, None, STEP).values()).item() == pytest.approx(0, abs=1e-6)

    def turned(size):
        turn = torch.linalg.qr(torch.randn(24 // size, size, size))[0]
        return Trace(
            {
                site: Signal(
                    torch.einsum(
                        "bnac,acd->bnad", s.tensor.transpose(1, 2).reshape(3, 6, -1, size), turn
                    ).reshape(3, 6, 4, 6).transpose(1, 2), "heads", valid=VALID,
                )
                for site, s in teacher.signals.items()
            }
        )  # fmt: skip

    assert sum(loss(turned(6), teacher, None, STEP).values()).item() == pytest.approx(0, abs=1e-5)
    assert sum(loss(turned(12), teacher, None, STEP).values()).item() > 0.01  # across two heads it is another relation


def test_heads_are_the_teachers_or_those_asked_for_and_the_tail_has_no_influence(host):
    assert built(host, (2, 8), (3, 8), relation_heads=5).heads == 5
    tensor = torch.randn(1, 2, 4, 7)  # 14 = 3 * 4 + 2
    before = relation_scores(tensor, 3)
    tensor[:, 1, :, -2:] += 10
    assert torch.equal(relation_scores(tensor, 3), before)
    assert before.shape == (1, 3, 4, 4)


def test_grouped_keys_and_values_are_compared_in_their_own_width(host):
    loss = built(host, (4, 8), (4, 8))
    loss.build(geometry(4, 8, "student", kv=2), geometry(4, 8, "teacher", kv=1), {})
    terms = loss(trace(4, 8, kv=2), trace(4, 8, kv=1), None, STEP)
    assert set(terms) == {"q", "k", "v"}
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    with pytest.raises(MismatchError, match="k of teacher is narrower than 12"):
        built(host, (4, 8), (12, 8)).build(geometry(4, 8, "student"), geometry(12, 8, "teacher", kv=1), {})


def test_other_layers_can_be_chosen(host):
    ours, theirs = side(PAIRS["text"], "student"), side(PAIRS["text"], "heads")
    for mode in ("kl", "mse_logits"):
        loss = host.create(Kind.LOSS, "qkv_relation", {"mode": mode, "student_layer": 0, "teacher_layer": 1})
        loss.build(ours.geometry, theirs.geometry, {})
        assert loss.heads == 4
        assert {str(s) for s in loss.sites().student} == {"q.0", "k.0", "v.0"}
        assert {str(s) for s in loss.sites().teacher} == {"q.1", "k.1", "v.1"}
