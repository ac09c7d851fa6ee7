"""Latent attention: the exact properties of its start from softmax weights, its two paths and its cache."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nasdistill.errors import ConfigError, MismatchError
from nasdistill.interfaces import (
    AttentionContext,
    AttentionGeometry,
    AttentionMask,
    AttentionView,
    RotaryEmbedding,
)
from nasdistill.seeds import seeded
from nasdistill.testing.kit.attention import SelfAttention, view_of
from nasdistill_attention.mla import LatentAttention, MLAOptions, energy_rank, joint_decomposition

CAUSAL = AttentionMask(causal=True)
FULL = {"cache": 1.0, "q_rank": "full"}


def softmax_layer(dim=32, heads=4, kv_heads=4, seed=0):
    with seeded(seed, "layer"):
        return SelfAttention(dim, heads, kv_heads).double()


def tokens(n=9, dim=32, batch=2, seed=0, dtype=torch.float64):
    return torch.randn(batch, n, dim, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rotary_view(heads=4, kv_heads=2, dim=32, style="half", scaling=1.0, partial=1.0, scale=None, biases=True, seed=0):
    """A softmax layer with rotary positions, as a view."""
    view = view_of(softmax_layer(dim, heads, kv_heads, seed))
    turned = int(dim // heads * partial)
    inv_freq = 100.0 ** -(torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    view = dataclasses.replace(view, rotary=RotaryEmbedding(style, turned, inv_freq, scaling))
    view = view if biases else dataclasses.replace(view, b_q=None, b_k=None, b_v=None, b_o=None)
    return view if scale is None else dataclasses.replace(view, scale=scale)


def attend_by_hand(view: AttentionView, x, mask=None, positions=None):
    """The layer that a view describes, written out."""
    geometry = view.geometry

    def project(weight, bias):
        y = x @ weight.T
        y = y if bias is None else y + bias
        return y.unflatten(-1, (-1, geometry.head_dim)).transpose(1, 2)

    q, k, v = project(view.w_q, view.b_q), project(view.w_k, view.b_k), project(view.w_v, view.b_v)
    if view.rotary is not None:
        q, k = view.rotary.rotate(q, positions), view.rotary.rotate(k, positions)
    times = geometry.heads // geometry.kv_heads
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = q @ k.transpose(-1, -2) * view.scale
    if mask is not None:
        scores = scores.masked_fill(~mask.dense(x.shape[1], x.shape[1]), -math.inf)
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ view.w_o.T
    return out if view.b_o is None else out + view.b_o


def run(module, x, mask=CAUSAL, **context):
    with torch.no_grad():
        return module(x, AttentionContext(mask=mask, **context)).out


# ---- the start -------------------------------------------------------------------------------------------------------


@pytest.mark.paper("2503.11132", "attention:mla")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("path", ["expanded", "absorbed"])
def test_at_full_rank_without_rotary_positions_it_is_the_softmax_layer(kv_heads, path):
    layer = softmax_layer(kv_heads=kv_heads)
    module = LatentAttention.from_softmax(view_of(layer), {**FULL, "path": path})
    x = tokens()
    for mask in (None, CAUSAL, AttentionMask(key_valid=torch.arange(9)[None] < torch.tensor([[9], [5]]))):
        with torch.no_grad():
            torch.testing.assert_close(run(module, x, mask), layer(x, mask), atol=1e-9, rtol=0)
    assert module.sizes.kv_rank == min(2 * kv_heads * 8, 32)


def test_with_as_many_key_heads_half_of_the_cache_loses_nothing():
    layer, x = softmax_layer(), tokens()
    module = LatentAttention.from_softmax(view_of(layer))  # the default
    with torch.no_grad():
        torch.testing.assert_close(run(module, x), layer(x, CAUSAL), atol=1e-9, rtol=0)
    cache = module.start_cache()
    run(module, x, cache=cache)
    assert cache.numbers == 32 == 2 * 4 * 8 / 2
    assert torch.equal(module.q_up.weight, view_of(layer).w_q)


def test_every_combination_of_biases_is_kept():
    view = view_of(softmax_layer(kv_heads=2))
    x = tokens()
    for without in ((), ("b_k",), ("b_q", "b_k", "b_v"), ("b_o",), ("b_q", "b_k", "b_v", "b_o")):
        some = dataclasses.replace(view, **dict.fromkeys(without))
        module = LatentAttention.from_softmax(some, FULL if without else {"cache": 1.0})
        torch.testing.assert_close(run(module, x), attend_by_hand(some, x, CAUSAL), atol=1e-9, rtol=0)
        cost = LatentAttention.cost(some.geometry, 9, 9, module.options)
        assert cost.params == sum(p.numel() for p in module.parameters())


@pytest.mark.paper("2503.11132", "attention:mla")
def test_the_error_of_cutting_is_the_root_of_the_discarded_squares():
    view = view_of(softmax_layer(kv_heads=2))
    stacked = torch.cat([w.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for w in (view.w_k, view.w_v)])
    for rank in (3, 11):
        module = LatentAttention.from_softmax(view, {"kv_rank": rank, "q_rank": rank})
        made = torch.cat([module.k_up.weight, module.v_up.weight]) @ module.kv_down.weight
        for weight, low in ((stacked, made), (view.w_q, module.q_up.weight @ module.q_down.weight)):
            left = torch.linalg.svdvals(weight)[rank:].square().sum().sqrt()
            assert left > 0.1
            torch.testing.assert_close((weight - low).norm(), left)


@pytest.mark.paper("2503.11132", "attention:mla")
def test_repeating_heads_leaves_the_joint_subspace_and_scales_the_spectrum():
    view = view_of(softmax_layer(kv_heads=2))
    stacked = torch.cat([w.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for w in (view.w_k, view.w_v)])
    rows, singular, right = joint_decomposition(view.w_k, view.w_v, 4, 2)
    torch.testing.assert_close(singular, torch.linalg.svdvals(stacked)[: len(singular)])
    torch.testing.assert_close(singular, math.sqrt(2) * torch.linalg.svdvals(torch.cat([view.w_k, view.w_v])))
    own = torch.linalg.svd(stacked, full_matrices=False).Vh
    for rank in (1, 5, 20):  # the projector onto the span, which has no sign to choose
        torch.testing.assert_close(own[:rank].T @ own[:rank], right[:rank].T @ right[:rank])
    keys_then_values = torch.cat([rows[:, :8].flatten(0, 1), rows[:, 8:].flatten(0, 1)])
    torch.testing.assert_close(keys_then_values @ torch.diag(singular) @ right, stacked)
    torch.testing.assert_close(keys_then_values.T @ keys_then_values, torch.eye(32, dtype=torch.float64))


@pytest.mark.paper("2503.11132", "attention:mla")
def test_ranks_by_energy():
    spectrum = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0] + [0.0] * 15)  # squares 9, 4, 1, 1, 1 of 16
    assert energy_rank(spectrum, 0.5, multiple=1) == 1  # 9/16 is above, at least one
    assert energy_rank(spectrum, 9 / 16, multiple=1) == 1
    assert energy_rank(spectrum, 0.80, multiple=1) == 1
    assert energy_rank(spectrum, 13 / 16, multiple=1) == 2
    assert energy_rank(spectrum, 0.99, multiple=1) == 4
    assert energy_rank(spectrum, 13 / 16) == 8
    assert energy_rank(torch.ones(20), 0.45) == 16  # nine rounded up
    assert energy_rank(torch.ones(20), 1.0) == 20  # 24 would be more than there are
    view = view_of(softmax_layer(kv_heads=2))
    singular = joint_decomposition(view.w_k, view.w_v, 4, 2)[1]
    module = LatentAttention.from_softmax(view, {"energy": 0.6})
    assert module.sizes.kv_rank == energy_rank(singular, 0.6) < 32
    assert module.options.kv_rank == module.sizes.kv_rank
    assert module.options.energy is None


def test_options_of_a_module_rebuild_it_from_another_layer():
    module = LatentAttention.from_softmax(
        view_of(softmax_layer(kv_heads=2)), {"energy": 0.6, "latent_norm": True, "q_rank": "match"}
    )
    fresh = LatentAttention.from_softmax(view_of(softmax_layer(kv_heads=2, seed=1)), module.options.model_dump())
    fresh.load_state_dict(module.state_dict())
    torch.testing.assert_close(run(fresh, tokens()), run(module, tokens()), atol=0, rtol=0)


def test_the_query_rank_matches_the_parameters():
    view = view_of(softmax_layer(64, 4, 2))
    for rank in (4, 16, 32):
        module = LatentAttention.from_softmax(
            dataclasses.replace(view, b_q=None, b_k=None, b_v=None), {"kv_rank": rank, "q_rank": "match"}
        )
        before = view.w_q.numel() + view.w_k.numel() + view.w_v.numel() + view.w_o.numel() + view.b_o.numel()
        after = sum(p.numel() for p in module.parameters())
        assert module.sizes.q_rank % 8 == 0
        assert before - 8 * 128 < after <= before or module.sizes.q_rank == 64
    # Llama-3.2-1B with the paper's sizes: within 1.2 % of the ranks that its configurations name.
    from nasdistill_attention.mla import sizes_of

    geometry = AttentionGeometry(2048, 32, 64, kv_heads=8)
    for kv_rank, published in ((64, 1424), (128, 1344)):
        found = sizes_of(geometry, MLAOptions(kv_rank=kv_rank, rope_dim=32, q_rank="match"), rotary=True)
        assert abs(found.q_rank / published - 1) < 0.012


@pytest.mark.paper("2503.11132", "attention:mla")
def test_half_precision_is_decomposed_in_float32():
    layer = softmax_layer(kv_heads=2).bfloat16()
    view = view_of(layer)
    module = LatentAttention.from_softmax(view, {"kv_rank": 24, "q_rank": 8})
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    names = [field.name for field in dataclasses.fields(view) if field.name.startswith(("w_", "b_"))]
    wide = dataclasses.replace(view, **{name: getattr(view, name).float() for name in names})
    expected = LatentAttention.from_softmax(wide, {"kv_rank": 24, "q_rank": 8})
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name].bfloat16(), atol=0, rtol=0)


def test_a_random_start_has_the_same_shapes_and_keeps_the_output_projection():
    view = view_of(softmax_layer())
    made = [LatentAttention.from_softmax(view, {"init": init}) for init in ("svd", "random")]
    shapes = [{name: value.shape for name, value in module.state_dict().items()} for module in made]
    assert shapes[0] == shapes[1]
    assert torch.equal(made[1].out.weight, view.w_o)
    assert not torch.allclose(made[0].kv_down.weight, made[1].kv_down.weight)


# ---- rotary positions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("rope_rows", ["fast", "last"])
def test_with_one_key_head_and_all_channels_rotary_it_is_the_softmax_layer(style, rope_rows):
    """The one case in which a shared rotary key loses nothing: it proves convention, table, order and positions."""
    view = rotary_view(kv_heads=1, style=style, scaling=1.3, scale=0.2)
    options = {"kv_rank": 16, "q_rank": "full", "rope_dim": 8, "rope_rows": rope_rows}
    x = tokens()
    for path in ("expanded", "absorbed"):
        module = LatentAttention.from_softmax(view, {**options, "path": path})
        torch.testing.assert_close(run(module, x), attend_by_hand(view, x, CAUSAL), atol=1e-6, rtol=0)
        positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [5, 6, 7, 20, 21, 22, 23, 30, 31]])
        found = run(module, x, positions=positions)
        torch.testing.assert_close(found, attend_by_hand(view, x, CAUSAL, positions), atol=1e-5, rtol=0)


def test_of_a_partly_rotary_head_the_rest_is_position_free():
    view = rotary_view(kv_heads=1, partial=0.5)
    module = LatentAttention.from_softmax(view, {"kv_rank": 16, "q_rank": "full", "rope_dim": 4})
    torch.testing.assert_close(run(module, tokens()), attend_by_hand(view, tokens(), CAUSAL), atol=1e-6, rtol=0)


def test_the_rotary_key_is_the_mean_of_the_original_key_heads():
    view = rotary_view(kv_heads=2)
    module = LatentAttention.from_softmax(view, {"rope_rows": "last"})
    rows = view.w_k.unflatten(0, (2, 8))[:, -4:]
    torch.testing.assert_close(module.k_rope.weight, rows.mean(0))
    torch.testing.assert_close(module.k_rope.bias, view.b_k.unflatten(0, (2, 8))[:, -4:].mean(0))
    # The shortened table is that of a head of four channels: 100 ** -(0, 1 / 2).
    assert module.frequencies.tolist() == pytest.approx([1.0, 0.1])
    assert LatentAttention.from_softmax(view, None).frequencies.tolist() == pytest.approx([1.0, 100**-0.25])


def test_with_several_key_heads_full_rank_is_another_function():
    view = rotary_view(kv_heads=2)
    module = LatentAttention.from_softmax(view, {**FULL, "kv_rank": 32})
    assert (run(module, tokens()) - attend_by_hand(view, tokens(), CAUSAL)).abs().max() > 1e-3


def test_the_scale_follows_the_channels_and_keeps_a_layers_own_factor():
    plain = LatentAttention.from_softmax(rotary_view(), {"rope_dim": 4, "nope_dim": 2})
    assert plain.scale == pytest.approx(1 / math.sqrt(6))
    own = LatentAttention.from_softmax(rotary_view(scale=1.0), {"rope_dim": 4})
    assert own.scale == pytest.approx(1.0)


# ---- paths, cache, causality -----------------------------------------------------------------------------------------

LOW = [{"kv_rank": 6}, {"kv_rank": 6, "latent_norm": True}, {"kv_rank": 30}]


@pytest.mark.paper("2503.11132", "attention:mla")
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("options", LOW)
def test_both_paths_give_the_same_output_and_map(options, rotary):
    view = rotary_view() if rotary else view_of(softmax_layer(kv_heads=2))
    one, other = (LatentAttention.from_softmax(view, {**options, "path": path}) for path in ("expanded", "absorbed"))
    mask = AttentionMask(causal=True, key_valid=torch.arange(9)[None] < torch.tensor([[9], [5]]))
    ctx = AttentionContext(mask=mask, bias=torch.linspace(-1, 1, 81, dtype=torch.float64).view(9, 9), need_map=True)
    with torch.no_grad():
        first, second = one(tokens(), ctx), other(tokens(), ctx)
    torch.testing.assert_close(first.out, second.out, atol=1e-9, rtol=0)
    torch.testing.assert_close(first.map, second.map, atol=1e-9, rtol=0)


@pytest.mark.paper("2503.11132", "attention:mla")
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("path", ["auto", "expanded", "absorbed"])
def test_decoding_with_the_cache_equals_the_full_pass(path, rotary):
    view = rotary_view() if rotary else view_of(softmax_layer(kv_heads=2))
    module = LatentAttention.from_softmax(view, {"kv_rank": 6, "path": path})
    x, cache = tokens(12), module.start_cache()
    steps = [x[:, :4], x[:, 4:9], *(x[:, i : i + 1] for i in range(9, 12))]
    found = torch.cat([run(module, step, cache=cache) for step in steps], dim=1)
    torch.testing.assert_close(found, run(module, x), atol=1e-6, rtol=0)
    assert cache.tokens == 12
    assert cache.numbers == 6 + (4 if rotary else 0)


@pytest.mark.paper("2503.11132", "attention:mla")
def test_the_cache_has_the_size_of_the_formula():
    """Llama-3.2-1B's sizes: 96 numbers per token and layer where keys and values take 1024."""
    geometry = AttentionGeometry(128, 32, 64, kv_heads=8)
    options = MLAOptions(kv_rank=64, rope_dim=32, q_rank=8)
    module = LatentAttention(geometry, options, scale=0.1, frequencies=torch.ones(16).numpy())
    cache = module.start_cache()
    run(module, torch.randn(1, 3, 128), cache=cache)
    assert cache.numbers == 96
    assert sum(part.numel() for part in (cache.latent, cache.key)) == 3 * 96
    assert cache.numbers / (2 * 8 * 64) == pytest.approx(0.094, abs=5e-4)


def test_a_share_of_the_cache_counts_the_rotary_key():
    for share in (0.25, 0.5):
        module = LatentAttention.from_softmax(rotary_view(kv_heads=2), {"cache": share})
        assert module.sizes.kv_rank + module.sizes.rope == share * 2 * 2 * 8


def test_auto_absorbs_where_it_multiplies_less():
    module = LatentAttention.from_softmax(view_of(softmax_layer(kv_heads=2)), {"kv_rank": 6})
    wide = LatentAttention.from_softmax(view_of(softmax_layer(kv_heads=4)), {"kv_rank": 32})
    assert module._absorbs(1, 50)
    assert not wide._absorbs(50, 50)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_converted_is_refused_by_name():
    plain, turned = view_of(softmax_layer(), "layers.3.attn"), rotary_view()
    by_row = dataclasses.replace(turned, rotary=RotaryEmbedding("half", 8, cos=torch.ones(9, 4), sin=torch.ones(9, 4)))
    norm = torch.nn.LayerNorm(8)
    for view, options, words in (
        (dataclasses.replace(plain, cross=True), None, "cross attention .layers.3.attn"),
        (dataclasses.replace(plain, k_norm=norm, q_norm=norm), None, "norm of q and k"),
        (by_row, None, "rotary embedding"),
        (plain, {"rope_dim": 4}, "no rotary"),
        (turned, {"rope_dim": 0}, "would be lost"),
        (rotary_view(partial=0.5), {"rope_dim": 8}, "4 rotary channels"),
    ):
        with pytest.raises(MismatchError, match=words):
            LatentAttention.from_softmax(view, options)
    for options, words in (
        ({"kv_rank": 4, "energy": 0.5}, "not both"),
        ({"rope_dim": 3}, "pairs"),
        ({"q_rank": 0}, "at least 1"),
        ({"kv_rank": 33}, "full rank of the keys and values, 32"),
        ({"q_rank": 40}, "full rank of the queries, 32"),
        ({"nope_dim": 9}, "heads of 8"),
    ):
        with pytest.raises(ConfigError, match=words):
            LatentAttention.from_softmax(plain, options)
    with pytest.raises(ValueError, match="cross"):
        LatentAttention.from_softmax(plain, None)(tokens(), AttentionContext(), tokens(4))
