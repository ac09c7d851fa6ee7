"""The losses against TextBrewer, torchdistill and TRL, wherever these have the same formula: equal to 1e-6.

The extra `peers` brings them; a library that is not installed is a counted skip. Losses that ours differ from on
purpose are compared up to the factor that the module's text names.
"""

from __future__ import annotations

import os

import pytest
import torch

from nasdistill_losses.distilbert import cosine_loss
from nasdistill_losses.hidden import hidden_loss
from nasdistill_losses.hidden_ce import hidden_ce_loss
from nasdistill_losses.hidden_cos import hidden_cos_loss
from nasdistill_losses.kd import kd_loss
from nasdistill_losses.logit_kl import logit_kl_loss
from nasdistill_losses.logit_mse import logit_mse_loss
from nasdistill_losses.pkd import pkd_loss
from nasdistill_losses.relation import angle_loss, distance_loss
from nasdistill_losses.spatial_attention import spatial_attention_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the libraries' own, on import
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def textbrewer():
    return pytest.importorskip("textbrewer.losses", exc_type=ImportError)


@pytest.fixture(scope="module")
def torchdistill():
    return pytest.importorskip("torchdistill.losses.mid_level", exc_type=ImportError)


@pytest.fixture(scope="module")
def trl():
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return pytest.importorskip("trl.experimental.gkd", exc_type=ImportError).GKDTrainer


def test_textbrewers_losses_on_logits(textbrewer):
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    same(logit_mse_loss(student, teacher, 2.0), textbrewer.kd_mse_loss(student, teacher, 2.0))
    p = (teacher / 2).softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    same(logit_kl_loss(student, teacher, 2.0) + entropy, textbrewer.kd_ce_loss(student, teacher, 2.0))
    same(kd_loss(student, teacher, 2.0) + 4 * entropy, 4 * textbrewer.kd_ce_loss(student, teacher, 2.0))


def test_textbrewers_losses_on_hidden_states(textbrewer):
    student, teacher = torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    mask = (torch.arange(6)[None] < torch.tensor([4, 4, 4])[:, None]).long()  # of equal length, so both means agree
    valid = mask.bool()
    for given in ((None, None), (valid, mask)):
        same(hidden_loss(student, teacher, given[0]), textbrewer.hid_mse_loss(student, teacher, given[1]))
        same(hidden_cos_loss(student, teacher, given[0]), textbrewer.cos_loss(student, teacher, given[1]))
    same(cosine_loss(student[valid], teacher[valid]), textbrewer.cos_loss(student, teacher, mask))
    same(pkd_loss(student[:, 0], teacher[:, 0]), textbrewer.pkd_loss(student, teacher))
    # Cross-entropy over channels: what it calls `att_ce` computes just that, for rows of any meaning.
    same(hidden_ce_loss(student.abs(), teacher.abs()), textbrewer.att_ce_loss(student.abs(), teacher.abs()))


def test_torchdistills_kd(torchdistill):
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    theirs = torchdistill.KDLoss("m", "output", "m", "output", temperature=3.0, alpha=0, beta=1)
    found = theirs({"m": {"output": student}}, {"m": {"output": teacher}})
    same(logit_kl_loss(student, teacher, 3.0), found)
    same(kd_loss(student, teacher, 3.0), 9 * found)


def test_torchdistills_relations_of_samples(torchdistill):
    student, teacher = torch.randn(6, 9), torch.randn(6, 12)
    signals = {"m": {"output": student}}, {"m": {"output": teacher}}
    # Its SPKDLoss divides rows by their L1 norm, which is another formula: nothing to compare with.
    distance = torchdistill.RKDLoss("m", "m", dist_factor=1.0, angle_factor=0.0, reduction="mean")(*signals)
    # The mean distance is one over different samples there, over all pairs here: 6 / 5 between distances, and its
    # square between squares of differences, which Huber's function takes below 1.
    same(distance_loss(student, teacher), (6 / 5) ** 2 * distance)
    angle = torchdistill.RKDLoss("m", "m", dist_factor=0.0, angle_factor=1.0, reduction="mean")(*signals)
    same(angle_loss(student, teacher), angle)


def test_torchdistills_attention_transfer(torchdistill):
    student, teacher = torch.randn(4, 3, 5, 5), torch.randn(4, 7, 5, 5)
    pair = {"student": {"io": "output", "path": "m"}, "teacher": {"io": "output", "path": "m"}, "weight": 1}
    theirs = torchdistill.ATLoss({"one": pair}, mode="code")
    found = theirs({"m": {"output": student}}, {"m": {"output": teacher}})
    same(spatial_attention_loss(student, teacher) / 25, found)  # a mean over positions there, a sum here


def test_trls_divergence_over_tokens(trl):
    student, teacher = torch.randn(3, 6, 11), torch.randn(3, 6, 11)
    labels = torch.where(torch.arange(6)[None] < torch.tensor([6, 4, 1])[:, None], 1, -100)
    valid = labels != -100
    found = trl.generalized_jsd_loss(student, teacher, labels=labels, beta=0, temperature=2.0)
    same(logit_kl_loss(student[valid], teacher[valid], 2.0), found)
