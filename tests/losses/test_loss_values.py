"""Losses against naive loops, closed forms and values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nasdistill.errors import ConfigError
from nasdistill.interfaces import Batch, ModelGeometry, Signal, Site, SiteShape, StepInfo, Trace
from nasdistill.testing.kit.traces import Text, plan_of, text_batch, trace_of
from nasdistill_losses.hidden import HiddenStates, hidden_loss
from nasdistill_losses.kd import KnowledgeDistillation, kd_loss
from nasdistill_losses.minilm import MiniLM
from nasdistill_losses.minilmv2 import MiniLMv2
from nasdistill_losses.relation import SampleRelations, angle_loss, distance_loss, similarity_loss
from nasdistill_losses.spatial_attention import spatial_attention_loss
from nasdistill_proxies.diswot import relation_score

BATCH = Batch({}, None, torch.arange(3))
STEP = StepInfo()
LENGTHS = [6, 4, 1]
VALID = torch.arange(6)[None] < torch.tensor(LENGTHS)[:, None]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def kl(teacher, student):
    """KL of two probability vectors, term by term."""
    return sum(p * math.log(p / q) for p, q in zip(teacher.tolist(), student.tolist(), strict=True) if p > 0)


# ---- kd ----------------------------------------------------------------------------------------------------------


def test_kd_by_hand():
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    p = math.e / (1 + math.e)  # softmax of (1, 0)
    expected = 4 * (p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)) / 2
    assert kd_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_equals_torchs_divergence(temperature):
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = F.kl_div(
        torch.log_softmax(student / temperature, 1), torch.softmax(teacher / temperature, 1), reduction="batchmean"
    )
    torch.testing.assert_close(kd_loss(student, teacher, temperature), temperature**2 * expected)


def test_kd_at_high_temperature_is_logit_matching():
    """T^2 KL tends to half the mean squared difference of centred logits (over K classes): the paper's limit."""
    student, teacher = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = centred.square().sum(1).mean() / (2 * 6)
    torch.testing.assert_close(kd_loss(student, teacher, 300.0).double(), limit, rtol=2e-2, atol=0)


def test_kd_computes_half_precision_logits_in_float32():
    student, teacher = torch.randn(4, 200).bfloat16(), torch.randn(4, 200).bfloat16()
    assert torch.equal(kd_loss(student, teacher), kd_loss(student.float(), teacher.float()))


def test_kd_ignores_a_constant_added_to_logits():
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(kd_loss(student + 5, teacher - 3), kd_loss(student, teacher), rtol=1e-4, atol=1e-6)


def test_kd_of_tokens_averages_each_sample_over_its_own_length():
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    loop = sum(
        sum(4.0 * kl((teacher[b, t] / 2).softmax(0), (student[b, t] / 2).softmax(0)) for t in range(n)) / n
        for b, n in enumerate(LENGTHS)
    )
    assert kd_loss(student, teacher, 2.0, VALID).item() == pytest.approx(loop / 3, rel=1e-5)


def test_kd_of_dense_outputs_averages_over_positions():
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    loss = KnowledgeDistillation({"temperature": 1.0})
    value = loss(
        *(Trace({Site("logits"): Signal(x, "map")}) for x in (student, teacher)), BATCH, STEP
    )["kd"]  # fmt: skip
    pixels = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (student, teacher)]
    torch.testing.assert_close(value, kd_loss(*pixels, 1.0))


def test_kd_options_are_checked():
    with pytest.raises(ConfigError, match="temperature"):
        KnowledgeDistillation({"temperature": 0})
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        KnowledgeDistillation({"temperatur": 2})


# ---- hidden ------------------------------------------------------------------------------------------------------


def test_hidden_by_loop():
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    mse = cosine = normalised = 0.0
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            s, w = student[b, t], teacher[b, t]
            mse += float(((s - w) ** 2).mean()) / n / 3
            cosine += float(1 - (s @ w) / (s.norm() * w.norm())) / n / 3
            z = [(x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() for x in (s, w)]
            normalised += float(((z[0] - z[1]) ** 2).mean()) / n / 3
    assert hidden_loss(student, teacher, VALID).item() == pytest.approx(mse, rel=1e-5)
    assert hidden_loss(student, teacher, VALID, metric="cosine").item() == pytest.approx(cosine, rel=1e-5)
    assert hidden_loss(student, teacher, VALID, normalise=True).item() == pytest.approx(normalised, rel=1e-5)


def _geometry(name, shape, layout, grid=None, label="model", layers=1):
    return ModelGeometry({Site(name, 0): SiteShape(shape, layout, grid=grid)}, layers=layers, label=label)


def test_hidden_projects_maps_by_a_1x1_convolution():
    loss = HiddenStates()
    loss.build(_geometry("features", (3, 4, 4), "map"), _geometry("features", (5, 4, 4), "map"), {})
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)
    site = Site("features", 0)
    value = loss(*(Trace({site: Signal(x, "map")}) for x in (student, teacher)), BATCH, STEP)
    linear = loss.projectors["features_0-features_0"]
    convolved = F.conv2d(student, linear.weight[:, :, None, None], linear.bias)
    torch.testing.assert_close(value["features_0-features_0"], F.mse_loss(convolved, teacher))


def test_hidden_compares_a_map_with_image_tokens_behind_class_tokens():
    loss = HiddenStates({"teacher_signal": "hidden"})
    loss.build(_geometry("features", (5, 4, 4), "map"), _geometry("hidden", (18, 5), "tokens", (4, 4)), {})
    map_ = torch.randn(2, 5, 4, 4)
    tokens = torch.cat([torch.randn(2, 2, 5), map_.flatten(2).transpose(1, 2)], 1)
    value = loss(
        Trace({Site("features", 0): Signal(map_, "map")}),
        Trace({Site("hidden", 0): Signal(tokens, "tokens", grid=(4, 4))}),
        BATCH,
        STEP,
    )
    assert sum(value.values()).item() == 0.0


def test_hidden_reduces_the_finer_grid():
    loss = HiddenStates()
    loss.build(_geometry("features", (5, 4, 4), "map"), _geometry("features", (5, 8, 8), "map"), {})
    teacher = torch.randn(2, 5, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    student = F.interpolate(teacher, size=(4, 4), mode="bilinear", antialias=True)
    site = Site("features", 0)
    value = loss(*(Trace({site: Signal(x, "map")}) for x in (student, teacher)), BATCH, STEP)
    assert sum(value.values()).item() == pytest.approx(0.0, abs=1e-12)
    constant = [torch.full((2, 5, n, n), 3.0) for n in (4, 8)]
    value = loss(*(Trace({site: Signal(x, "map")}) for x in constant), BATCH, STEP)
    assert sum(value.values()).item() == pytest.approx(0.0, abs=1e-10)


# ---- minilm and minilmv2 -----------------------------------------------------------------------------------------


def _heads(heads, depth, tokens=6, label="model", layers=1, kv_heads=None):
    sites = {
        Site(name, layer): SiteShape(((kv_heads or heads) if name in "kv" else heads, tokens, depth), "heads")
        for name in "qkv"
        for layer in range(layers)
    }
    return ModelGeometry(sites, layers=layers, label=label)


def _attention_trace(q, k, v, valid=VALID, causal=False, mask="valid", layer=0):
    if isinstance(mask, str):
        mask = None if valid is None else valid[:, None, None, :]
    if mask is not None and causal:
        mask = mask & torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    make = [
        Signal(t, "heads", mask=mask, scale=t.shape[-1] ** -0.5, causal=causal, valid=valid) for t in (q, k, v)
    ]  # fmt: skip
    return Trace({Site(name, layer): signal for name, signal in zip("qkv", make, strict=True)})


def _random(heads, depth, **kwargs):
    q, k, v = torch.randn(3, 3, heads, 6, depth)
    return _attention_trace(q, k, v, **kwargs)


def _loop(teacher, student, heads, causal=False):
    """Mean over samples of sum KL / (heads * length) of the relation of (a, b) pairs, on truncated samples."""
    total = 0.0
    for b, n in enumerate(LENGTHS):
        for h in range(heads):
            rows = []
            for a, c in (teacher, student):
                scores = a[b, h, :n] @ c[b, h, :n].T / math.sqrt(a.shape[-1])
                if causal:
                    scores = scores.masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf"))
                rows.append(scores.double().softmax(-1))
            total += sum(kl(rows[0][t], rows[1][t]) for t in range(n)) / (heads * n) / len(LENGTHS)
    return total


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.paper("2002.10957", "losses:minilm")
def test_minilm_equals_the_loop_over_truncated_samples(causal):
    student, teacher = _random(2, 4, causal=causal), _random(2, 8, causal=causal)
    loss = MiniLM()
    loss.build(_heads(2, 4), _heads(2, 8), {})
    terms = loss(student, teacher, BATCH, STEP)
    parts = [(trace["q.0"], trace["k.0"]) for trace in (teacher, student)]
    assert terms["attention"].item() == pytest.approx(_loop(*parts, 2, causal), abs=1e-6)
    parts = [(trace["v.0"], trace["v.0"]) for trace in (teacher, student)]
    assert terms["value"].item() == pytest.approx(_loop(*parts, 2, causal), abs=1e-6)


def _resplit(x, heads):
    return x.transpose(1, 2).reshape(3, 6, heads, -1).transpose(1, 2)


@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_minilmv2_equals_the_loop_with_other_heads_and_widths():
    student, teacher = _random(2, 6), _random(4, 6)
    loss = MiniLMv2({"relation_heads": 3, "relations": ["qq", "kk", "vv", "qk"], "weights": [1, 2, 3, 4]})
    loss.build(_heads(2, 6), _heads(4, 6), {})
    terms = loss(student, teacher, BATCH, STEP)
    for name, weight in zip(("qq", "kk", "vv", "qk"), (1, 2, 3, 4), strict=True):
        parts = [tuple(_resplit(trace[f"{x}.0"], 3) for x in name) for trace in (teacher, student)]
        assert terms[name].item() == pytest.approx(weight * _loop(*parts, 3), abs=2e-6)


@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_minilmv2_weights_are_thirds_and_heads_fall_back_to_a_common_divisor():
    student, teacher = _random(2, 6), _random(4, 6)
    thirds, ones = MiniLMv2(), MiniLMv2({"weights": [1, 1, 1]})
    for loss in (thirds, ones):
        loss.build(_heads(2, 6), _heads(4, 6), {})  # widths 12 and 24, 48 relation heads asked for
        assert loss.heads == {"qq": 12, "kk": 12, "vv": 12}
    first, second = (sum(loss(student, teacher, BATCH, STEP).values()) for loss in (thirds, ones))
    torch.testing.assert_close(3 * first, second)
    with pytest.raises(ConfigError, match="2 weights for 3 relations"):
        MiniLMv2({"weights": [1, 1]})


@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_v2_with_the_attentions_own_heads_on_v_equals_v1s_value_term():
    student, teacher = _random(2, 4), _random(2, 8)
    first, second = MiniLM(), MiniLMv2({"relation_heads": 2, "relations": ["vv"]})
    for loss in (first, second):
        loss.build(_heads(2, 4), _heads(2, 8), {})
    assert torch.equal(first(student, teacher, BATCH, STEP)["value"], second(student, teacher, BATCH, STEP)["vv"])


@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_relations_do_not_see_rotations_or_permutations_inside_a_head():
    teacher = _random(2, 8)
    rotation = torch.linalg.qr(torch.randn(2, 8, 8)).Q
    for turned in (teacher["v.0"] @ rotation, teacher["v.0"][..., torch.randperm(8)]):
        student = Trace({**teacher.signals, Site("v", 0): replace(teacher.signal("v.0"), tensor=turned)})
        first, second = MiniLM(), MiniLMv2({"relation_heads": 2})
        for loss in (first, second):
            loss.build(_heads(2, 8), _heads(2, 8), {})
            assert sum(loss(student, teacher, BATCH, STEP).values()).item() == pytest.approx(0, abs=1e-6)
    # across heads it does matter
    mixed = Trace({**teacher.signals, Site("v", 0): replace(teacher.signal("v.0"), tensor=teacher["v.0"].flip(1))})
    assert first(mixed, teacher, BATCH, STEP)["value"].item() > 1e-3


@pytest.mark.paper("2002.10957", "losses:minilm")
def test_kl_of_two_tokens_by_hand():
    """Uniform teacher, sharp student: KL(teacher || student), not the other way round."""
    zero = torch.zeros(1, 1, 2, 1)
    q, k = torch.ones(1, 1, 2, 1), torch.tensor([[[[4.0], [0.0]]]])
    loss = MiniLM()
    loss.build(_heads(1, 1, 2), _heads(1, 1, 2), {})
    student = _attention_trace(q, k, zero, valid=None)
    teacher = _attention_trace(q, zero, zero, valid=None)
    p = math.exp(4) / (1 + math.exp(4))
    expected = 0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))
    terms = loss(student, teacher, BATCH, STEP)
    assert terms["attention"].item() == pytest.approx(expected, rel=1e-6)
    assert terms["value"].item() == 0.0


def test_rows_that_may_attend_to_nothing_do_not_count():
    student, teacher = _random(2, 4), _random(2, 4)
    empty = VALID[:, None, None, :] & torch.tensor([True] * 5 + [False])[None, None, :, None]
    loss = MiniLM()
    loss.build(_heads(2, 4), _heads(2, 4), {})
    for trace in (student, teacher):
        for site, signal in trace.signals.items():
            trace.signals[site] = replace(signal, mask=empty, tensor=signal.tensor.requires_grad_(trace is student))
    loss(student, teacher, BATCH, STEP)["attention"].backward()
    gradient = student["q.0"].grad
    assert bool(torch.isfinite(gradient).all())
    assert not gradient[0, :, 5].any()
    assert gradient[0, :, 4].any()


@pytest.mark.paper("2002.10957", "losses:minilm")
def test_padding_is_read_off_the_mask_where_nobody_says_it():
    student, teacher = _random(2, 4), _random(2, 4)
    loss = MiniLM()
    loss.build(_heads(2, 4), _heads(2, 4), {})
    told = loss(student, teacher, BATCH, STEP)
    for trace in (student, teacher):
        for site, signal in trace.signals.items():
            trace.signals[site] = replace(signal, valid=None)
    untold = loss(student, teacher, BATCH, STEP)
    for name in told:
        assert torch.equal(told[name], untold[name])


def test_shared_value_heads_count_for_each_query_head():
    student, teacher = _random(4, 4), _random(4, 4)
    one = replace(student.signal("v.0"), tensor=student["v.0"][:, :1])
    student = Trace({**student.signals, Site("v", 0): one})
    same = Trace({**student.signals, Site("v", 0): replace(one, tensor=one.tensor.expand(-1, 4, -1, -1))})
    loss = MiniLM()
    loss.build(_heads(4, 4, kv_heads=1), _heads(4, 4), {})
    assert torch.equal(*(loss(t, teacher, BATCH, STEP)["value"] for t in (student, same)))


@pytest.mark.parametrize(("layers", "option", "expected"), [
    (24, "auto", 20), (24, "upper_middle", 20), (24, "last", 23), (12, "auto", 11), (4, "upper_middle", 3),
    (24, 18, 18), (24, -2, 22),
])  # fmt: skip
@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_teacher_layer_rule(layers, option, expected):
    for loss in (MiniLM({"teacher_layer": option}), MiniLMv2({"teacher_layer": option})):
        loss.build(_heads(2, 4, layers=3), _heads(2, 4, layers=layers), {})
        assert {site.layer for site in loss.sites().teacher} == {expected}
        assert {site.layer for site in loss.sites().student} == {2}


@pytest.mark.parametrize("kind", [MiniLM, MiniLMv2])
@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_layers_after_the_chosen_one_get_no_gradient(kind):
    student, teacher, batch = Text(16, 2, 3), Text(), text_batch()
    plans = plan_of(student, batch, "s"), plan_of(teacher, batch, "t")
    loss = kind({"student_layer": 1})
    loss.build(plans[0].geometry, plans[1].geometry, {})
    needs = loss.sites()
    terms = loss(
        trace_of(student, batch, needs.student, plans[0]),
        trace_of(teacher, batch, needs.teacher, plans[1]),
        batch,
        STEP,
    )
    sum(terms.values()).backward()
    reached = {name for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any(name.startswith("encoder.layers.0.linear2") for name in reached)
    assert "encoder.layers.1.self_attn.in_proj_weight" in reached
    assert not any(name.startswith(("encoder.layers.2", "encoder.layers.1.linear", "head")) for name in reached)


# ---- spatial attention -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.paper("2306.01526", "losses:spatial_attention")
def test_attention_transfer_by_loop(power):
    student, teacher = torch.randn(3, 4, 5, 6), torch.randn(3, 7, 5, 6)
    expected = cosine = 0.0
    for s, t in zip(student, teacher, strict=True):
        flat = [
            torch.tensor([float((x[:, i, j].abs() ** power).sum()) for i in range(5) for j in range(6)]) for x in (s, t)
        ]
        flat = [x / x.norm() for x in flat]
        expected += float(((flat[0] - flat[1]) ** 2).sum()) / 3
        cosine += (2 - 2 * float(flat[0] @ flat[1])) / 3
    value = spatial_attention_loss(student, teacher, power=power).item()
    assert value == pytest.approx(expected, rel=1e-5)
    assert value == pytest.approx(cosine, rel=1e-4, abs=1e-6)


@pytest.mark.paper("2306.01526", "losses:spatial_attention")
def test_attention_transfer_ignores_scale_channel_order_and_sign():
    student, teacher = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)
    base = spatial_attention_loss(student, teacher)
    for changed in (3.7 * student, student[:, torch.randperm(4)], -student):
        torch.testing.assert_close(spatial_attention_loss(changed, teacher), base, rtol=1e-5, atol=1e-7)
    assert spatial_attention_loss(student, student).item() == 0
    assert spatial_attention_loss(student, 2.5 * student.flip(1)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.paper("2306.01526", "losses:spatial_attention")
def test_position_divergence_by_loop():
    student, teacher = torch.randn(3, 4, 5, 6), torch.randn(3, 7, 5, 6)
    temperature = 3.0
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = [(x.abs().sum(0).flatten() / temperature).softmax(0) for x in (s, t)]
        expected += temperature**2 * kl(p[1], p[0]) / 3
    value = spatial_attention_loss(student, teacher, mode="kl", temperature=temperature)
    assert value.item() == pytest.approx(expected, rel=1e-4)


def test_maps_of_other_sizes_are_reduced():
    student = torch.randn(2, 4, 4, 4)
    teacher = F.interpolate(student, scale_factor=2, mode="nearest")
    assert spatial_attention_loss(student, teacher).item() < 0.2 * spatial_attention_loss(
        student, torch.randn(2, 4, 8, 8)
    )
    assert spatial_attention_loss(torch.ones(2, 4, 3, 4), torch.ones(2, 1, 9, 12)).item() == pytest.approx(0, abs=1e-10)


# ---- relations among samples -------------------------------------------------------------------------------------


@pytest.mark.paper("2303.15678", "losses:relation")
def test_similarity_by_loop():
    student, teacher = torch.randn(5, 8), torch.randn(5, 11)
    rows = []
    for x in (student, teacher):
        g = [[float(x[i] @ x[j]) for j in range(5)] for i in range(5)]
        rows.append([[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in g])
    expected = sum((a - b) ** 2 for r, q in zip(*rows, strict=True) for a, b in zip(r, q, strict=True)) / 5
    assert similarity_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.paper("2303.15678", "losses:relation")
def test_similarity_is_the_batch_size_times_diswots_relation_term():
    """What the search scores is what the loss lowers; the paper divides by B twice."""
    student, teacher = torch.randn(5, 3, 4, 4), torch.randn(5, 6, 2, 2)
    loss = SampleRelations({"student_site": "features.0", "teacher_site": "features.0"})
    loss.build(_geometry("features", (3, 4, 4), "map"), _geometry("features", (6, 2, 2), "map"), {})
    value = loss(*(Trace({Site("features", 0): Signal(x, "map")}) for x in (student, teacher)), BATCH, STEP)
    assert value["similarity"].item() / 5 == pytest.approx(-relation_score(student, teacher), rel=1e-5)


@pytest.mark.parametrize("loss", [similarity_loss, distance_loss, angle_loss])
@pytest.mark.paper("2303.15678", "losses:relation")
def test_sample_relations_ignore_scale_and_rotation(loss):
    student, teacher = torch.randn(5, 8), torch.randn(5, 11)
    base = loss(student, teacher)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    for changed in (2.5 * student, student[:, torch.randperm(8)], student @ rotation):
        torch.testing.assert_close(loss(changed, teacher), base, rtol=1e-4, atol=1e-6)
        assert loss(changed, student).item() == pytest.approx(0, abs=1e-10)
    assert bool(torch.isfinite(loss(student[:1], teacher[:1])))


def test_distances_and_angles_ignore_a_shift_similarity_does_not():
    student, teacher = torch.randn(5, 8), torch.randn(5, 8)
    for loss in (distance_loss, angle_loss):
        torch.testing.assert_close(loss(student + 3, teacher), loss(student, teacher), rtol=1e-4, atol=1e-6)
    assert abs(similarity_loss(student + 3, teacher) - similarity_loss(student, teacher)).item() > 0.1


def test_distances_and_angles_by_loop():
    student, teacher = torch.randn(4, 3), torch.randn(4, 5)

    def huber(x):
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    distances, angles = [], []
    for x in (student, teacher):
        d = {(i, j): float((x[i] - x[j]).norm()) for i in range(4) for j in range(4)}
        mean = sum(d.values()) / 16
        distances.append({key: value / mean for key, value in d.items()})
        angles.append({
            (i, j, k): float((x[i] - x[j]) @ (x[k] - x[j])) / (d[i, j] * d[k, j]) if j not in (i, k) else 0.0
            for i in range(4) for j in range(4) for k in range(4)
        })  # fmt: skip
    expected = [sum(huber(a[key] - b[key]) for key in a) / len(a) for a, b in (distances, angles)]
    assert distance_loss(student, teacher).item() == pytest.approx(expected[0], rel=1e-5)
    assert angle_loss(student, teacher).item() == pytest.approx(expected[1], rel=1e-4)


def test_equal_samples_give_finite_gradients():
    student = torch.randn(3, 4)[[0, 0, 1]].requires_grad_(True)
    teacher = torch.randn(3, 4)
    for loss in (similarity_loss, distance_loss, angle_loss):
        (gradient,) = torch.autograd.grad(loss(student, teacher), student)
        assert bool(torch.isfinite(gradient).all())
    assert bool(torch.isfinite(similarity_loss(torch.zeros(3, 4), teacher)))
