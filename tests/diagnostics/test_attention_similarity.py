"""The similarity map of layers: against transformers' own attention maps, and what it says of flat ones."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasdistill.bridge.random_models import random_model
from nasdistill.bridge.timm import random_vit
from nasdistill.errors import MismatchError
from nasdistill.interfaces import Batch
from nasdistill.spec.component import Kind
from nasdistill.trace import make_tracer


def forward(model, batch):
    out = model(**batch.inputs) if "input_ids" in batch.inputs else model(batch.image)
    return getattr(out, "logits", out)


TASK = SimpleNamespace(forward=forward)


def text(n, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(4, n, dtype=torch.long)
    mask[1, n - 3 :] = 0
    ids = torch.randint(3, 60, (4, n), generator=generator)
    return Batch({"input_ids": ids, "attention_mask": mask}, None, torch.arange(4))


def examine(host, models, batches, **options):
    diagnostic = host.create(Kind.DIAGNOSTIC, "attention_similarity", options)
    return diagnostic.examine(models, TASK, batches, make_tracer(forward))


def matrix(finding, name):
    rows = finding.tables[name]
    return torch.tensor([[row[column] for column in list(row)[1:]] for row in rows])


@pytest.mark.paper("2409.14595", "diagnostics:attention_similarity")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_it_is_the_mean_cosine_of_the_models_own_maps(host, family):
    sizes = {"n_layer": 3} if family == "gpt2" else {"num_hidden_layers": 3, "hidden_dropout_prob": 0.3}
    head = "causal_lm" if family == "gpt2" else "classes"
    model, batches = random_model(family, head, **sizes).train(), [text(9, 0), text(12, 1)]
    finding = examine(host, {"teacher": model}, batches)
    assert model.training
    model.eval()
    model.set_attn_implementation("eager")
    sums, count = torch.zeros(3, 3), 0
    for batch in batches:
        with torch.no_grad():
            maps = model(**batch.inputs, output_attentions=True).attentions
        rows = batch.inputs["attention_mask"].bool()[:, None].expand(-1, 2, -1)
        count += int(rows.sum())
        for a, b in itertools.product(range(3), repeat=2):
            sums[a, b] += F.cosine_similarity(maps[a], maps[b], dim=-1)[rows].sum()
    found = matrix(finding, "teacher: similarity")
    torch.testing.assert_close(found, sums / count, atol=1e-5, rtol=0)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.diag(), torch.ones(3), atol=1e-5, rtol=0)
    mean = finding.values["teacher: mean similarity of neighbours"]
    assert mean == pytest.approx(float((found[0, 1] + found[1, 2]) / 2))
    figure = finding.figures["teacher: similarity"]["data"][0]
    assert torch.equal(torch.tensor(figure["z"]), found)


@pytest.mark.paper("2409.14595", "diagnostics:attention_similarity")
def test_an_untrained_model_is_flat_and_its_layers_have_nothing_in_common(host):
    torch.manual_seed(0)
    images = Batch({"image": torch.randn(4, 3, 32, 32)}, None, torch.arange(4))
    finding = examine(host, {"teacher": random_vit(depth=4), "student": nn.Flatten()}, [images])
    plain, corrected = (matrix(finding, f"teacher: {name}") for name in ("similarity", "corrected similarity"))
    off = ~torch.eye(4, dtype=torch.bool)
    assert plain[off].min() > 0.99
    assert corrected[off].abs().max() < 0.5
    assert all(row["entropy"] > 0.99 for row in finding.tables["teacher: layers"])
    assert finding.values["teacher: neighbours with similarity from 0.8"] == 3
    assert finding.values["teacher: neighbours with corrected similarity from 0.8"] == 0
    assert "Without attention: student" in finding.text


def test_without_attention_there_is_nothing_to_compare(host):
    images = Batch({"image": torch.randn(2, 3, 8, 8)}, None, torch.arange(2))
    with pytest.raises(MismatchError, match="student: no attention"):
        examine(host, {"student": nn.Flatten()}, [images])
