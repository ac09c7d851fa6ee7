"""Losses on answers: `logit_kl`, `logit_mse`, `distilbert` and `embedding` against loops, masks and closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nasdistill.errors import ConfigError, MismatchError
from nasdistill.interfaces import Batch, ModelGeometry, Signal, Site, SiteShape, StepInfo, Trace
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.pairs import PAIRS, side
from nasdistill_losses.distilbert import cosine_loss, hard_loss, soft_loss
from nasdistill_losses.embedding import in_batch_similarity_loss, vector_loss
from nasdistill_losses.kd import kd_loss
from nasdistill_losses.logit_kl import logit_kl_loss
from nasdistill_losses.logit_mse import logit_mse_loss

STEP = StepInfo()
LENGTHS = [6, 4, 1]
VALID = torch.arange(6)[None] < torch.tensor(LENGTHS)[:, None]
PLACES = [(b, t) for b, n in enumerate(LENGTHS) for t in range(n)]


def kl(teacher, student):
    """KL of two probability vectors, term by term."""
    return sum(p * math.log(p / q) for p, q in zip(teacher.tolist(), student.tolist(), strict=True))


def token_trace(logits, hidden, valid=VALID):
    return Trace(
        {
            Site("logits"): Signal(logits, "tokens", valid=valid),
            Site("hidden", 1): Signal(hidden, "tokens", valid=valid),
        }
    )


def token_geometry(vocabulary, width, label):
    sites = {Site("logits"): SiteShape((6, vocabulary), "tokens"), Site("hidden", 1): SiteShape((6, width), "tokens")}
    return ModelGeometry(sites, layers=2, label=label)


def language_batch():
    """Three sequences of which some tokens are masked: a label there, -100 elsewhere."""
    labels = torch.full((3, 6), -100)
    labels[0, 1], labels[0, 4], labels[1, 3], labels[2, 0] = 2, 0, 4, 1
    return Batch({"attention_mask": VALID.long()}, labels, torch.arange(3))


def built(host, name, options=None, widths=(7, 7)):
    loss = host.create(Kind.LOSS, name, options)
    loss.build(token_geometry(5, widths[0], "student"), token_geometry(5, widths[1], "teacher"), {})
    return loss


def spoil(trace):
    """What the model might have said at padding."""
    return Trace(
        {
            site: replace(s, tensor=torch.where(VALID[..., None], s.tensor, 90 * torch.randn_like(s.tensor)))
            for site, s in trace.signals.items()
        }
    )


# ---- logit_kl and logit_mse --------------------------------------------------------------------------------------


@pytest.mark.paper("2407.14679", "losses:logit_kl")
def test_logit_kl_is_the_mean_over_all_positions(host):
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    loop = [kl((teacher[p] / 2).softmax(0), (student[p] / 2).softmax(0)) for p in PLACES]
    loss = built(host, "logit_kl", {"temperature": 2.0})
    traces = token_trace(student, torch.zeros(3, 6, 7)), token_trace(teacher, torch.zeros(3, 6, 7))
    value = loss(*traces, language_batch(), STEP)["kl"]
    assert value.item() == pytest.approx(sum(loop) / 11, rel=1e-5)
    torch.testing.assert_close(loss(*map(spoil, traces), language_batch(), STEP)["kl"], value)
    assert logit_kl_loss(teacher[0], teacher[0]).item() == 0.0


@pytest.mark.paper("2109.11105", "losses:logit_kl")
def test_logit_kl_has_the_gradient_of_the_cross_entropy_with_soft_targets():
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    cross = -((teacher / 3).softmax(1) * (student / 3).log_softmax(1)).sum(1).mean()
    one, two = (torch.autograd.grad(v, student)[0] for v in (logit_kl_loss(student, teacher, 3.0), cross))
    torch.testing.assert_close(one, two)
    # One row for each sample, and T^2 apart, it is `kd`.
    torch.testing.assert_close(9 * logit_kl_loss(student, teacher, 3.0), kd_loss(student, teacher, 3.0))


def test_logit_kl_at_labelled_positions_alone(host):
    loss = built(host, "logit_kl", {"positions": "labelled"})
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    traces = token_trace(student, torch.zeros(3, 6, 7)), token_trace(teacher, torch.zeros(3, 6, 7))
    batch = language_batch()
    masked = [(0, 1), (0, 4), (1, 3), (2, 0)]
    loop = sum(kl(teacher[p].softmax(0), student[p].softmax(0)) for p in masked) / 4
    assert loss(*traces, batch, STEP)["kl"].item() == pytest.approx(loop, rel=1e-5)
    none = replace(batch, labels=torch.full((3, 6), -100))
    assert loss(*traces, none, STEP)["kl"].item() == 0.0
    # One label for a whole sequence: all of its tokens, or none.
    whole = loss(*traces, replace(batch, labels=torch.tensor([1, -100, 0])), STEP)["kl"]
    rows = [p for p in PLACES if p[0] != 1]
    assert whole.item() == pytest.approx(sum(kl(teacher[p].softmax(0), student[p].softmax(0)) for p in rows) / 7)


@pytest.mark.paper("2109.11105", "losses:logit_mse")
def test_logit_mse_by_loop(host):
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    loop = sum(float(((student[p] - teacher[p]) / 2).square().mean()) for p in PLACES) / 11
    traces = token_trace(student, torch.zeros(3, 6, 7)), token_trace(teacher, torch.zeros(3, 6, 7))
    value = built(host, "logit_mse", {"temperature": 2.0})(*map(spoil, traces), language_batch(), STEP)["mse"]
    assert value.item() == pytest.approx(loop, rel=1e-5)
    classes = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(logit_mse_loss(*classes), F.mse_loss(*classes))


@pytest.mark.parametrize("name", ["kd", "logit_kl", "logit_mse"])
def test_losses_on_logits_of_a_language_model_do_not_see_padding(host, name):
    ours, theirs = side(PAIRS["decoder"], "student"), side(PAIRS["decoder"], "teacher")
    loss = host.create(Kind.LOSS, name)
    loss.build(ours.geometry, theirs.geometry, {})
    value = sum(loss(ours.trace, theirs.trace, ours.batch, STEP).values())
    valid = ours.batch.inputs["attention_mask"].bool()
    student, teacher = ours.trace.logits, theirs.trace.logits
    if name == "kd":
        expected = kd_loss(student, teacher, 4.0, valid)
    else:
        function = logit_kl_loss if name == "logit_kl" else logit_mse_loss
        expected = function(student[valid], teacher[valid])
    torch.testing.assert_close(value, expected)


# ---- distilbert --------------------------------------------------------------------------------------------------


def test_distilbert_by_loop(host):
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    hidden = torch.randn(3, 6, 7), torch.randn(3, 6, 7)
    batch = language_batch()
    soft = 4 * sum(kl((teacher[p] / 2).softmax(0), (student[p] / 2).softmax(0)) for p in PLACES) / 11
    masked = [(b, t) for b in range(3) for t in range(6) if batch.labels[b, t] >= 0]
    hard = -sum(float(student[p].log_softmax(0)[batch.labels[p]]) for p in masked) / 4
    cosine = sum(1 - float(F.cosine_similarity(hidden[0][p], hidden[1][p], dim=0)) for p in PLACES) / 11
    terms = built(host, "distilbert")(token_trace(student, hidden[0]), token_trace(teacher, hidden[1]), batch, STEP)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {"soft": 5 * soft, "hard": 2 * hard, "cosine": cosine}, rel=1e-5
    )


@pytest.mark.paper("2311.13657", "losses:distilbert")
def test_distilbert_ignores_what_stands_at_padding_in_all_three_terms(host):
    traces = [token_trace(torch.randn(3, 6, 5), torch.randn(3, 6, 7)) for _ in range(2)]
    loss, batch = built(host, "distilbert"), language_batch()
    before, after = loss(*traces, batch, STEP), loss(*map(spoil, traces), batch, STEP)
    torch.testing.assert_close(after, before)


@pytest.mark.paper("2311.13657", "losses:distilbert")
def test_restricting_the_soft_targets_changes_them_alone(host):
    traces = [token_trace(torch.randn(3, 6, 5), torch.randn(3, 6, 7)) for _ in range(2)]
    batch = language_batch()
    plain = built(host, "distilbert")(*traces, batch, STEP)
    narrow = built(host, "distilbert", {"restrict_ce_to_mask": True})(*traces, batch, STEP)
    assert narrow["hard"] == plain["hard"]
    assert narrow["cosine"] == plain["cosine"]
    rows = batch.labels >= 0
    torch.testing.assert_close(narrow["soft"], 5 * soft_loss(traces[0].logits[rows], traces[1].logits[rows]))
    assert narrow["soft"] != plain["soft"]


@pytest.mark.paper("2311.13657", "losses:distilbert")
def test_the_hard_term_alone_is_plain_masked_language_modelling(host):
    loss = built(host, "distilbert", {"soft_weight": 0, "hard_weight": 1, "cosine_weight": 0}, widths=(7, 9))
    assert (loss.sites().student, loss.sites().teacher) == ({Site("logits")}, set())
    assert not list(loss.parameters())
    logits, batch = torch.randn(3, 6, 5), language_batch()
    terms = loss(token_trace(logits, torch.zeros(3, 6, 7)), Trace(), batch, STEP)
    torch.testing.assert_close(
        terms, {"hard": F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)}
    )
    # No masked token, or none whose label may be used: 0, not nan.
    for none in (
        replace(batch, labels=torch.full((3, 6), -100)),
        replace(batch, labelled=torch.zeros(3, dtype=torch.bool)),
        replace(batch, labels=None),
    ):
        assert loss(token_trace(logits, torch.zeros(3, 6, 7)), Trace(), none, STEP)["hard"].item() == 0.0
    with pytest.raises(MismatchError, match=r"labels \(3, 2\)"):
        loss(token_trace(logits, torch.zeros(3, 6, 7)), Trace(), replace(batch, labels=torch.zeros(3, 2)), STEP)


@pytest.mark.paper("2311.13657", "losses:distilbert")
def test_the_factor_of_the_temperature_keeps_the_gradients_size():
    student = (torch.randn(8, 20) * 1e-2).requires_grad_()
    teacher = torch.randn(8, 20) * 1e-2
    norms = [torch.autograd.grad(soft_loss(student, teacher, t), student)[0].norm().item() for t in (1.0, 4.0)]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
    scaled = torch.randn(8, 6)
    assert cosine_loss(scaled, scaled).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(cosine_loss(5 * scaled, scaled + 1), cosine_loss(scaled, scaled + 1))
    assert hard_loss(torch.zeros(2, 4), torch.tensor([1, -100])).item() == pytest.approx(math.log(4))


def test_distilbert_maps_other_widths_and_learns_from_sample_labels(host):
    loss = built(host, "distilbert", widths=(4, 7))
    assert tuple(loss.projector.weight.shape) == (7, 4)
    ours, theirs = side(PAIRS["text"], "student"), side(PAIRS["text"], "teacher")
    loss = host.create(Kind.LOSS, "distilbert")
    loss.build(ours.geometry, theirs.geometry, {})
    terms = loss(ours.trace, theirs.trace, ours.batch, STEP)
    torch.testing.assert_close(terms["hard"], 2 * F.cross_entropy(ours.trace.logits, ours.batch.labels))
    torch.testing.assert_close(terms["soft"], 5 * kd_loss(ours.trace.logits, theirs.trace.logits, 2.0))
    with pytest.raises(ConfigError, match="all three weights are 0"):
        built(host, "distilbert", {"soft_weight": 0, "hard_weight": 0, "cosine_weight": 0})


# ---- embedding ---------------------------------------------------------------------------------------------------


def test_embedding_by_loop():
    student, teacher = torch.randn(4, 3), torch.randn(4, 6)

    def cosine(rows, i, j):
        return float(rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm()))

    loop = sum((cosine(student, i, j) - cosine(teacher, i, j)) ** 2 for i in range(4) for j in range(4)) / 16
    assert in_batch_similarity_loss(student, teacher).item() == pytest.approx(loop, rel=1e-5)
    torch.testing.assert_close(vector_loss(student, teacher[:, :3], "mse"), F.mse_loss(student, teacher[:, :3]))
    angles = [1 - F.cosine_similarity(s, t, dim=0) for s, t in zip(student, teacher[:, :3], strict=True)]
    torch.testing.assert_close(vector_loss(student, teacher[:, :3]), torch.stack(angles).mean())


def test_similarities_do_not_change_with_a_rotation_or_the_scale_of_all_vectors():
    student = torch.randn(5, 4)
    rotated = 3 * student @ torch.linalg.qr(torch.randn(4, 4))[0]
    assert in_batch_similarity_loss(rotated, student).item() == pytest.approx(0, abs=1e-10)
    assert vector_loss(rotated, student).item() > 0.01


def test_embeddings_of_other_widths_get_a_map_and_answers_per_token_are_refused(host):
    ours, theirs = side(PAIRS["embedding"], "student"), side(PAIRS["embedding"], "teacher")
    loss = host.create(Kind.LOSS, "embedding")
    loss.build(ours.geometry, theirs.geometry, {})
    assert tuple(loss.projector.weight.shape) == (24, 16)
    terms = loss(ours.trace, theirs.trace, ours.batch, STEP)
    torch.testing.assert_close(terms["vector"], vector_loss(loss.projector(ours.trace.logits), theirs.trace.logits))
    torch.testing.assert_close(
        terms["similarity"], in_batch_similarity_loss(ours.trace.logits, theirs.trace.logits)
    )  # fmt: skip
    decoder = side(PAIRS["decoder"], "student").geometry
    with pytest.raises(MismatchError, match=r"\(7, 40\) at logits"):
        loss.build(decoder, decoder, {})
    with pytest.raises(ConfigError, match="both weights are 0"):
        host.create(Kind.LOSS, "embedding", {"vector_weight": 0, "similarity_weight": 0})
