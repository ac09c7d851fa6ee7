"""Counts against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nasdistill.measure import count_macs, count_params, count_work
from nasdistill.measure.references import ReferenceAttention, reference_models
from nasdistill.spec.io import Cost


class Calls(nn.Module):
    """A network from a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def test_convolutions_and_linear_layers_equal_the_closed_form_and_torch():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False), nn.Flatten(), nn.Linear(8 * 16, 10),
    )  # fmt: skip
    x = torch.randn(1, 3, 8, 8)
    cost = (
        Cost.conv2d(3, 8, 3, height=8, width=8, bias=True)
        + Cost.norm(8)
        + Cost.conv2d(8, 8, 3, height=4, width=4, groups=8)
        + Cost.linear(128, 10)
    )
    work = count_work(model, (x,))
    assert (work.macs, work.activations, count_params(model)) == (cost.macs, cost.activations, cost.params)
    assert work.operators == 5  # flattening is a view
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert work.macs == counter.get_total_flops() // 2
    assert count_macs(model, (x.expand(5, -1, -1, -1),)) == 5 * work.macs
    assert model.training


@pytest.mark.parametrize("mask", [None, torch.zeros(6, 9)], ids=["plain", "mask"])
def test_attention_counts_both_products(mask):
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)
    model = Calls(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert count_macs(model, (q, k, v)) == 2 * 4 * 6 * 9 * (8 + 8)


def test_fused_and_unfused_attention_count_the_same():
    model, example = reference_models()["reference_attention"]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        unfused = count_macs(model, example)
    blocks = 2 * 16 * 12 * 64 * 64 + 2 * 2 * 16 * 16 * 64
    assert count_macs(model, example) == unfused == blocks + 64 * 10
    assert isinstance(model, ReferenceAttention)


def test_the_fused_encoder_layer_is_seen_through():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    assert count_macs(layer, (torch.randn(1, 16, 32),)) == 16 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 16 * 16 * 32
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert not layer.training


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers(kind, gates):
    assert count_macs(kind(4, 8, bidirectional=True), (torch.randn(3, 5, 4),)) == 2 * 15 * gates * 8 * (4 + 8)


def test_products_with_vectors_and_einsum():
    matrix, vector = torch.randn(3, 5), torch.randn(5)
    assert count_macs(Calls(lambda m, v: (m @ v, torch.dot(v, v), torch.addmv(v[:3], m, v))), (matrix, vector)) == 35
    a = torch.randn(2, 3, 4)
    assert count_macs(Calls(lambda a: torch.einsum("bij,bkj->bik", a, a)), (a,)) == 2 * 3 * 3 * 4


def test_modes_and_gradients_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    model[1].eval()
    state = torch.random.get_rng_state()
    count_macs(model, (torch.randn(2, 4),))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert model[0].weight.grad is None
    assert torch.is_grad_enabled()
    assert state.shape == torch.random.get_rng_state().shape


def test_parameters():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    assert count_params(model) == 16 + 4 + 4
    assert count_params(model, trainable=True) == 16 + 4
