"""Shared attention maps: against a reference that shares them from outside, in models of three libraries."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from nasdistill.bridge.random_models import random_model
from nasdistill.bridge.timm import random_vit
from nasdistill.bridge.views import attention_views
from nasdistill.errors import ConfigError, DataError, MismatchError
from nasdistill.interfaces import Batch
from nasdistill.seeds import seeded
from nasdistill.testing.kit.attention import SmallEncoder, views_of
from nasdistill.trace.similarity import MapSimilarity
from nasdistill_attention.echoatt import (
    EchoAttention,
    blocks,
    by_dynamic,
    by_threshold,
    map_similarity,
    set_mix,
    settle,
)

DEPTH = {"bert": "num_hidden_layers", "gpt2": "n_layer", "llama": "num_hidden_layers", "vit": "num_hidden_layers"}
HEADS = {"bert": "classes", "gpt2": "causal_lm", "llama": "causal_lm", "vit": None}
ALL = {"first": 0, "last": 0}


def text(n=11):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (3, n), generator=generator)
    mask = torch.ones(3, n, dtype=torch.long)
    mask[1, 7:] = 0
    return Batch({"input_ids": ids, "attention_mask": mask}, None, torch.arange(3))


def images(channels=1, side=8):
    x = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(0))
    return Batch({"image": x}, None, torch.arange(3))


def run(model, batch):
    out = model(**batch.inputs) if "input_ids" in batch.inputs else model(batch.image)
    return getattr(out, "logits", out)


def made(family):
    """A stock model of four layers, its views, and a batch."""
    batch = images(3, 32) if family == "timm" else images() if family == "vit" else text()
    model = random_vit(depth=4) if family == "timm" else random_model(family, HEADS[family], **{DEPTH[family]: 4})
    with seeded(1, "weights"):
        for parameter in model.parameters():  # maps that are far from flat
            nn.init.normal_(parameter, std=0.4) if parameter.ndim > 1 else None
    return model, attention_views(model, lambda m: run(m, batch)), batch


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama", "vit", "timm"])
def stock(request):
    return made(request.param)


@pytest.fixture(scope="module")
def gpt2():
    return made("gpt2")


class SharedFromOutside(TorchFunctionMode):
    """The reference: counts a model's attention calls, and lets those that follow use the map of their leader."""

    def __init__(self, leaders):
        super().__init__()
        self.leaders, self.number, self.maps = leaders, 0, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        leader = self.leaders[self.number]
        if leader == self.number:  # the kernel itself gives the map, as its output for values that are unit vectors
            q, k = args[0], args[1]
            eye = torch.eye(k.shape[2]).expand(*k.shape[:3], -1)
            self.maps[leader] = func(q, k, eye, *args[3:], **kwargs)
        self.number += 1
        weights, v = self.maps[leader], args[2]
        return weights @ v.repeat_interleave(weights.shape[1] // v.shape[1], dim=1)


def from_outside(model, batch, groups, depth=4):
    leaders = {layer: layer for layer in range(depth)} | {layer: group[0] for group in groups for layer in group}
    with torch.no_grad(), SharedFromOutside(leaders):
        return run(model, batch)


def converted(stock, **options):
    model, views, batch = stock
    return EchoAttention({**ALL, **options}).convert(model, views, sorted(views), [batch])


# ---- the function ----------------------------------------------------------------------------------------------------


@pytest.mark.paper("2409.14595", "attention:echoatt")
@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0, 2, 3]], [[1, 2, 3]]])
def test_followers_use_the_map_of_their_leader(stock, groups):
    model, _, batch = stock
    echo = converted(stock, groups=groups).model
    with torch.no_grad():
        found, expected, before = run(echo, batch), from_outside(model, batch, groups), run(model, batch)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
    assert (found - before).abs().max() > 1e-3


@pytest.mark.paper("2409.14595", "attention:echoatt")
def test_blocks_of_one_layer_change_nothing_at_all(stock):
    model, _, batch = stock
    echo = converted(stock, block=1)
    with torch.no_grad():
        assert torch.equal(run(echo.model, batch), run(model, batch))
    assert echo.report["followers"] == 0


@pytest.mark.paper("2409.14595", "attention:echoatt")
def test_parameters_fall_by_the_followers_queries_and_keys(stock):
    _, views, _ = stock
    echo = converted(stock, groups=[[0, 1, 3]])
    gone = sum(
        part.numel() for layer in (1, 3) for view in [views[layer]] for part in (view.w_q, view.b_q, view.w_k, view.b_k)
        if part is not None
    )  # fmt: skip
    before, after = echo.report["parameters_before"], echo.report["parameters_after"]
    assert before - after == gone == before - sum(p.numel() for p in echo.model.parameters())


@pytest.mark.paper("2409.14595", "attention:echoatt")
def test_equal_queries_and_keys_on_equal_inputs_share_without_a_change():
    with seeded(0, "model"):
        model = SmallEncoder(dim=16, depth=2, heads=2)
    first, second = model.blocks
    with torch.no_grad():
        for part in (first.attn.o, first.mlp[2]):  # the first block adds nothing: both see the same input
            part.weight.zero_()
            part.bias.zero_()
        for name in ("q", "k"):
            getattr(second.attn, name).load_state_dict(getattr(first.attn, name).state_dict())
        second.norm1.load_state_dict(first.norm1.state_dict())
        echo = EchoAttention(ALL).convert(model, views_of(model), [0, 1], [images()]).model
        torch.testing.assert_close(echo(images().image), model(images().image), atol=1e-6, rtol=0)


def test_gradients_of_followers_reach_the_leader(stock):
    model, _, batch = stock
    echo = converted(stock, groups=[[0, 1, 2]]).model
    run(echo, batch).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in echo.parameters() if p.requires_grad)
    # The share that comes through the followers: cut it off, and the leader's gradient is another one.
    cut = copy.deepcopy(echo)
    cut.zero_grad()
    slots = {id(m.sharing.slot): m.sharing.slot for m in cut.modules() if hasattr(m, "sharing")}
    assert len(slots) == 1
    slot = next(iter(slots.values()))
    take = slot.take
    slot.take = lambda: take().detach()
    run(cut, batch).square().sum().backward()
    view = attention_views(model, lambda m: run(m, batch), layers=[0])[0]
    name = view.sources["q"].weight
    grads = [dict(one.named_parameters())[name].grad for one in (echo, cut)]
    assert (grads[0] - grads[1]).abs().max() > 1e-6


def test_dropout_is_shared():
    model = random_model("bert", "classes", num_hidden_layers=2, attention_probs_dropout_prob=0.5,
                         hidden_dropout_prob=0.0)  # fmt: skip
    batch = text()
    views = attention_views(model, lambda m: run(m, batch))
    echo = EchoAttention(ALL).convert(model, views, [0, 1], [batch]).model.train()
    seen = []
    slot = echo.get_submodule(views[0].path).sharing.slot
    put, take = slot.put, slot.take
    slot.put = lambda weights: (seen.append(weights), put(weights))
    slot.take = lambda: (seen.append(take()), seen[-1])[1]
    run(echo, batch)
    assert seen[0] is seen[1]
    dropped = (seen[0] == 0).float()[0].mean()  # the first sequence has no padding
    assert 0.4 < dropped < 0.6


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.paper("2409.14595", "attention:echoatt")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_causality_and_padding_are_kept(family):
    stock = made(family)
    echo, batch = converted(stock, block=4).model, stock[2]
    ids = batch.inputs["input_ids"]
    changed = ids.clone()
    changed[:, 6:] = 5
    with torch.no_grad():
        torch.testing.assert_close(echo(input_ids=ids).logits[:, :6], echo(input_ids=changed).logits[:, :6])
        padded = run(echo, batch)[1, :7]
        alone = echo(input_ids=ids[1:2, :7]).logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.paper("2409.14595", "attention:echoatt")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoding_with_the_librarys_cache_equals_the_full_pass(family):
    stock = made(family)
    echo, ids = converted(stock).model, stock[2].inputs["input_ids"]
    with torch.no_grad():
        whole = echo(input_ids=ids, use_cache=False).logits
        step, found = echo(input_ids=ids[:, :5], use_cache=True), []
        found.append(step.logits)
        for place in range(5, ids.shape[1]):
            step = echo(input_ids=ids[:, place : place + 1], past_key_values=step.past_key_values, use_cache=True)
            found.append(step.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), whole, atol=1e-5, rtol=1e-5)


# ---- living with it --------------------------------------------------------------------------------------------------


def test_copies_and_pickles_share_among_themselves_only(gpt2):
    batch = gpt2[2]
    echo = converted(gpt2).model
    run(echo, batch).sum().backward()  # leaves a map in the slots, which cannot be copied
    for twin in (copy.deepcopy(echo), pickle.loads(pickle.dumps(echo))):
        slots = [{m.sharing.slot for m in one.modules() if hasattr(m, "sharing")} for one in (echo, twin)]
        assert len(slots[1]) == 2
        assert not slots[0] & slots[1]
        with torch.no_grad():
            assert torch.equal(run(twin, batch), run(echo, batch))


def test_checkpointing_gives_the_same_gradients_or_refuses():
    batch = text()
    model = random_model("gpt2", "causal_lm", n_layer=4, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    views = attention_views(model, lambda m: run(m, batch))
    echo = EchoAttention(ALL).convert(model, views, sorted(views), [batch]).model.train()
    run(echo, batch).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in echo.named_parameters()}
    echo.zero_grad()
    echo.activation_checkpointing_enable({"use_reentrant": False})
    run(echo, batch).square().sum().backward()
    for name, parameter in echo.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)
    with seeded(0, "model"):
        small = SmallEncoder(depth=2)
    shared = EchoAttention(ALL).convert(small, views_of(small), [0, 1], []).model
    x = torch.randn(2, 9, 16, requires_grad=True)
    for block in shared.blocks:
        x = checkpoint(block, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        x.sum().backward()


def test_nothing_is_kept_after_a_forward_without_gradients(gpt2):
    echo = converted(gpt2).model
    with torch.no_grad():
        run(echo, gpt2[2])
    assert all(module.sharing.slot._map is None for module in echo.modules() if hasattr(module, "sharing"))
    with pytest.raises(RuntimeError, match="has not run before it"):
        echo.transformer.h[1](torch.randn(1, 4, 16))


def test_followers_may_start_from_their_own_maps(gpt2):
    model, _, batch = gpt2
    echo, plain = converted(gpt2, mix=1.0), converted(gpt2)
    with torch.no_grad():
        torch.testing.assert_close(run(echo.model, batch), run(model, batch), atol=1e-5, rtol=1e-5)
        set_mix(echo.model, 0.5)
        between = run(echo.model, batch)
        config = settle(echo.model, echo.config)
        torch.testing.assert_close(run(echo.model, batch), run(plain.model, batch), atol=0, rtol=0)
    assert (between - run(plain.model, batch)).abs().max() > 1e-3
    assert config == plain.config
    assert echo.model.state_dict().keys() == plain.model.state_dict().keys()


# ---- similarity and partition ----------------------------------------------------------------------------------------


@pytest.mark.paper("2409.14595", "attention:echoatt")
def test_similarity_is_the_mean_cosine_of_the_models_own_maps():
    model = random_model("bert", "classes", num_hidden_layers=3)
    batch = text()
    found = map_similarity(model, attention_views(model, lambda m: run(m, batch)), [0, 1, 2], [batch, batch])
    eager = random_model("bert", "classes", num_hidden_layers=3)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        maps = eager(**batch.inputs, output_attentions=True).attentions
    rows = batch.inputs["attention_mask"].bool()[:, None].expand(-1, 2, -1)
    matrix = torch.tensor(found.plain())
    for a, b in itertools.product(range(3), repeat=2):
        expected = F.cosine_similarity(maps[a], maps[b], dim=-1)[rows].mean()
        torch.testing.assert_close(matrix[a, b], expected, atol=1e-5, rtol=0)
    assert torch.allclose(matrix, matrix.T)
    assert torch.allclose(matrix.diag(), torch.ones(3))
    assert ((matrix >= 0) & (matrix <= 1)).all()


def test_the_corrected_similarity_sees_through_flat_maps():
    """Untrained layers look alike because their rows are nearly flat; what is left of them has nothing in common."""
    generator = torch.Generator().manual_seed(0)
    flat = {layer: (0.1 * torch.randn(2, 4, 50, 50, generator=generator)).softmax(-1) for layer in (0, 1)}
    peaked = {layer: (4 * torch.randn(2, 4, 50, 50, generator=generator)).softmax(-1) for layer in (0, 1)}
    seen = []
    for maps in (flat, peaked):
        found = MapSimilarity()
        found.add(maps)
        seen.append((found.plain()[0][1], found.corrected()[0][1], found.entropy()[0]))
        assert found.corrected()[0][0] == pytest.approx(1.0, abs=1e-5)
    assert seen[0][0] > 0.98
    assert abs(seen[0][1]) < 0.05
    assert seen[0][2] > 0.99
    assert seen[1][0] < 0.3
    assert seen[1][2] < 0.7
    uniform = MapSimilarity()
    uniform.add({0: torch.full((1, 1, 3, 4), 0.25), 1: torch.full((1, 1, 3, 4), 0.25)})
    assert uniform.plain() == [[1.0, 1.0], [1.0, 1.0]]
    assert uniform.corrected() == [[None, None], [None, None]]


def test_opposite_maps_and_padding_in_the_similarity():
    one, other = torch.tensor([[[[0.75, 0.25], [1.0, 0.0]]]]), torch.tensor([[[[0.25, 0.75], [1.0, 0.0]]]])
    both, first = MapSimilarity(), MapSimilarity()
    both.add({3: one, 5: other}, torch.tensor([[True, True], [True, False]]))
    first.add({3: one, 5: other}, torch.tensor([[True, True], [True, False]]), torch.tensor([[True, False]]))
    assert both.layers == [3, 5]
    assert both.corrected()[0][1] == pytest.approx(-1.0)  # the row with one key says nothing
    assert both.plain()[0][1] == pytest.approx((0.6 + 1.0) / 2)
    assert first.plain()[0][1] == pytest.approx(0.6)
    unlike = MapSimilarity()
    unlike.add({0: one, 1: torch.cat([one, one], dim=1)})
    assert unlike.plain()[0][1] is None


def table(values):
    return {(a, b): values[a][b] for a, b in itertools.product(range(len(values)), repeat=2)}


def test_partitions():
    assert blocks([2, 3, 4, 5, 6], 2) == [[2, 3], [4, 5], [6]]
    values = [[1.0, 0.9, 0.8, 0.1], [0.9, 1.0, 0.95, 0.2], [0.8, 0.95, 1.0, 0.3], [0.1, 0.2, 0.3, 1.0]]
    similarity = table(values)
    assert by_threshold(range(4), similarity, 0.75, 4) == [[0, 1, 2], [3]]
    assert by_threshold(range(4), similarity, 0.75, 2) == [[0, 1], [2], [3]]
    assert by_threshold(range(4), similarity, 0.85, 4) == [[0, 1], [2], [3]]
    assert by_dynamic(range(4), similarity, 1, 4) == [[0], [1, 2], [3]]
    assert by_dynamic(range(4), similarity, 2, 4) == [[0, 1, 2], [3]]
    assert by_dynamic(range(4), similarity, 2, 2) == [[0, 1], [2, 3]]
    assert by_dynamic(range(4), similarity, 9, 4) == [[0, 1, 2, 3]]
    assert by_dynamic(range(4), {**similarity, (1, 2): None, (0, 2): None}, 2, 3) == [[0, 1], [2, 3]]


def test_dynamic_programming_finds_the_best_of_all_partitions():
    generator = torch.Generator().manual_seed(0)
    for depth, followers in ((6, 2), (6, 4), (7, 3)):
        similarity = table(torch.rand(depth, depth, generator=generator).tolist())

        def worth(groups, similarity=similarity):
            return sum(similarity[group[0], layer] for group in groups for layer in group[1:])

        every = []
        for cuts in itertools.product([False, True], repeat=depth - 1):
            groups = [[0]]
            for layer, cut in enumerate(cuts, 1):
                groups.append([layer]) if cut else groups[-1].append(layer)
            if depth - len(groups) == followers and max(map(len, groups)) <= 3:
                every.append(groups)
        best = by_dynamic(range(depth), similarity, followers, 3)
        assert worth(best) == pytest.approx(max(map(worth, every)))


def test_first_and_last_layers_are_protected(gpt2):
    model, views, batch = gpt2
    for options, groups in (({}, [[1, 2]]), ({"first": 2}, []), ({"last": 0}, [[1, 2]]), ({"first": 0}, [[0, 1]])):
        assert EchoAttention(options).convert(model, views, [0, 1, 2, 3], [batch]).report["groups"] == groups
    by = EchoAttention({**ALL, "by": "dynamic"}).convert(model, views, [0, 1, 2, 3], [batch])
    assert by.report["followers"] == 2


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusals(gpt2):
    model, views, batch = gpt2
    with pytest.raises(DataError, match="no calibration data"):
        EchoAttention({**ALL, "by": "threshold"}).convert(model, views, [0, 1, 2, 3], [])
    with pytest.raises(ConfigError, match=r"layers \[3\]"):
        EchoAttention({"groups": [[0, 3]]}).convert(model, views, [0, 1], [batch])
    for groups, words in (([[0, 1], [1, 2]], "two groups"), ([[1, 0]], "leader first")):
        with pytest.raises(ConfigError, match=words):
            EchoAttention({"groups": groups})
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with pytest.raises(MismatchError, match="attn_implementation"):
        EchoAttention(ALL).convert(eager, views, [0, 1, 2, 3], [batch])
    with seeded(0, "model"):
        uneven = SmallEncoder(depth=2)
        uneven.blocks[1].attn = SmallEncoder(depth=1, heads=4).blocks[0].attn
    with pytest.raises(MismatchError, match=r"\[2, 4\] heads"):
        EchoAttention(ALL).convert(uneven, views_of(uneven), [0, 1], [images()])
    packed = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    found = attention_views(packed, lambda m: m(torch.randn(2, 9, 16)))
    with pytest.raises(MismatchError, match=r"in_proj_weight|scaled_dot_product"):
        EchoAttention({"groups": [[0, 1]]}).convert(nn.Sequential(packed), {0: found[0], 1: found[0]}, [0, 1], [])
