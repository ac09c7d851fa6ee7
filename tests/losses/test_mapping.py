"""Rules that pair layers, exact transport, and the vectors and maps that paired layers are compared by."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from nasdistill.errors import ConfigError, MismatchError
from nasdistill.interfaces import ModelGeometry, Signal, Site, SiteShape, StepInfo, Trace
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.pairs import PAIRS, side
from nasdistill_losses._mapping import rule_pairs, transport_plan
from nasdistill_losses._vectors import choose_position, sample_vectors
from nasdistill_losses.hidden import hidden_loss
from nasdistill_losses.hidden_ce import hidden_ce_loss
from nasdistill_losses.hidden_cos import hidden_cos_loss
from nasdistill_losses.pkd import pkd_loss

LENGTHS = [6, 4, 1]
VALID = torch.arange(6)[None] < torch.tensor(LENGTHS)[:, None]
LAYERWISE = ("hidden", "hidden_ce", "hidden_cos", "pkd", "mi_alpha", "infonce", "tuba", "nwj")


def text_geometry(layers, width, label, tokens=6):
    sites = {Site("hidden", i): SiteShape((tokens, width), "tokens") for i in range(layers)}
    sites[Site("embedding")] = SiteShape((tokens, width), "tokens")
    return ModelGeometry(sites, layers=layers, label=label)


def text_trace(layers, width, count=3):
    names = [*(Site("hidden", i) for i in range(layers)), Site("embedding")]
    valid = (torch.arange(6)[None] < torch.tensor([6, 4, 2])[:, None])[:count]
    return Trace({site: Signal(torch.randn(count, 6, width), "tokens", valid=valid) for site in names})


@pytest.mark.parametrize(
    ("mapping", "students", "teachers", "expected"),
    [
        ("skip", 4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ("skip", 5, 12, [(0, 1), (1, 3), (2, 6), (3, 8), (4, 11)]),
        ("skip", 3, 2, [(0, 0), (1, 0), (2, 1)]),
        ("last", 3, 12, [(0, 9), (1, 10), (2, 11)]),
        ("last", 3, 2, [(1, 0), (2, 1)]),
        ("first", 3, 12, [(0, 0), (1, 1), (2, 2)]),
        ("first", 3, 2, [(0, 0), (1, 1)]),
        ("emd", 2, 3, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
    ],
)
def test_rules(mapping, students, teachers, expected):
    assert rule_pairs(mapping, students, teachers) == expected


def brute_force(cost):
    """The least cost over all permutations of as many copies of each layer as make both sides equal."""
    rows, columns = cost.shape
    total = math.lcm(rows, columns)
    spread = cost.repeat_interleave(total // rows, 0).repeat_interleave(total // columns, 1)
    return min(
        sum(spread[i, j].item() for i, j in enumerate(order)) for order in itertools.permutations(range(total))
    ) / total  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2, 6), (3, 6), (4, 4), (1, 5)])
def test_transport_is_exact_on_tiny_cases(shape):
    from scipy.optimize import linprog

    cost = torch.randn(shape, dtype=torch.float64)
    plan = transport_plan(cost)
    torch.testing.assert_close(plan.sum(0), torch.full((shape[1],), 1 / shape[1], dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((shape[0],), 1 / shape[0], dtype=torch.float64))
    assert bool((plan >= 0).all())
    found = (plan * cost).sum().item()
    assert found == pytest.approx(brute_force(cost), abs=1e-12)
    # The same as a linear programme, solved by another method.
    rows = torch.eye(shape[0]).repeat_interleave(shape[1], 1)
    columns = torch.eye(shape[1]).repeat(1, shape[0])
    levels = [*[1 / shape[0]] * shape[0], *[1 / shape[1]] * shape[1]]
    solved = linprog(cost.flatten().numpy(), A_eq=torch.cat([rows, columns]).numpy(), b_eq=levels)
    assert found == pytest.approx(solved.fun, abs=1e-8)


def test_transport_of_what_is_not_finite_shows_in_the_sum():
    cost = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    assert torch.equal(transport_plan(cost), torch.full((2, 2), 0.25))


@pytest.mark.paper("2109.11105", "losses:hidden_ce")
@pytest.mark.parametrize("name", ["hidden", "hidden_ce", "hidden_cos", "pkd", "mi_alpha"])
def test_emd_is_the_plan_times_the_losses_of_all_pairs_and_a_constant_for_gradients(host, name):
    ours, theirs = text_geometry(2, 4, "student"), text_geometry(3, 5, "teacher")
    loss = host.create(Kind.LOSS, name, {"mapping": "emd", "embedding": True})
    loss.build(ours, theirs, {0: 0, 1: 2})
    traces = text_trace(2, 4), text_trace(3, 5)
    leaves = {site: signal.tensor.requires_grad_() for site, signal in traces[0].signals.items()}
    terms = loss(*traces, None, StepInfo())
    assert list(terms) == ["emd", "embedding-embedding"]
    # Every pair by itself, with the parts that the pair has.
    pairs = [(s, t) for s in range(2) for t in range(3)]
    alone = host.create(Kind.LOSS, name, {"layers": pairs})
    alone.build(ours, theirs, {})
    # A shared map has one name in both; other parts are named after their pair.
    alone.load_state_dict({key: value for key, value in loss.state_dict().items() if "embedding" not in key})
    values = torch.stack([6 * value for value in alone(*traces, None, StepInfo()).values()]).reshape(2, 3)
    plan = transport_plan(values)
    torch.testing.assert_close(terms["emd"], (plan * values).sum())
    assert float(terms["emd"].detach()) == pytest.approx(brute_force(values), abs=1e-5)
    found = torch.autograd.grad(sum(terms.values()), list(leaves.values()))
    embedding = host.create(Kind.LOSS, name, {"layers": [[0, 0]], "embedding": True})
    embedding.build(ours, theirs, {})
    embedding.load_state_dict({key: loss.state_dict()[key] for key in embedding.state_dict()})
    rest = embedding(*traces, None, StepInfo())["embedding-embedding"]
    expected = torch.autograd.grad((plan * values).sum() + rest, list(leaves.values()))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", LAYERWISE)
def test_mappings_choose_the_layers_and_the_spaces_map_is_the_default(host, name):
    ours, theirs = text_geometry(2, 4, "student"), text_geometry(6, 5, "teacher")

    def chosen(**options):
        loss = host.create(Kind.LOSS, name, options)
        loss.build(ours, theirs, {0: 0, 1: 4})
        return [(str(s), str(t)) for s, t in loss.pairs]

    def layers(*pairs):
        return [(f"hidden.{s}", f"hidden.{t}") for s, t in pairs]

    assert chosen() == chosen(mapping="space") == layers((0, 0), (1, 4))
    assert chosen(mapping="skip") == layers((0, 2), (1, 5))
    assert chosen(mapping="last", embedding=True) == [*layers((0, 4), (1, 5)), ("embedding", "embedding")]
    assert chosen(mapping="first") == layers((0, 0), (1, 1))
    assert len(chosen(mapping="emd")) == 12
    with pytest.raises(ConfigError, match="both choose layers"):
        chosen(mapping="skip", layers="last")


def test_a_model_without_embeddings_or_norms_is_refused(host):
    conv, text = side(PAIRS["conv"], "student").geometry, text_geometry(2, 4, "student")
    with pytest.raises(MismatchError, match="no site embedding"):
        host.create(Kind.LOSS, "pkd", {"embedding": True}).build(conv, conv, {})
    for mapping in ("space", "skip"):
        with pytest.raises(MismatchError, match="student"):
            host.create(Kind.LOSS, "hidden_cos", {"student_signal": "norm", "mapping": mapping}).build(text, text, {})


# ---- the losses --------------------------------------------------------------------------------------------------


@pytest.mark.paper("2109.11105", "losses:hidden_cos")
@pytest.mark.paper("2109.11105", "losses:pkd")
def test_hidden_losses_by_loop():
    student, teacher = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    cross = cosine = patient = 0.0
    for b, n in enumerate(LENGTHS):
        for t in range(n):
            s, w = student[b, t], teacher[b, t]
            p = w.softmax(0)
            cross -= sum(float(x * y) for x, y in zip(p, s.log_softmax(0), strict=True)) / n / 3
            cosine += float(1 - (s @ w) / (s.norm() * w.norm())) / n / 3
        patient += float((student[b, 0] / student[b, 0].norm() - teacher[b, 0] / teacher[b, 0].norm()).pow(2).sum()) / 3
    assert hidden_ce_loss(student, teacher, VALID).item() == pytest.approx(cross, rel=1e-5)
    assert hidden_cos_loss(student, teacher, VALID).item() == pytest.approx(cosine, rel=1e-5)
    assert pkd_loss(student[:, 0], teacher[:, 0]).item() == pytest.approx(patient, rel=1e-5)
    assert hidden_cos_loss(3 * student, student, VALID).item() == pytest.approx(0, abs=1e-6)


def test_cross_entropy_is_least_at_the_teacher_and_that_least_is_the_entropy():
    teacher = torch.randn(2, 3, 5)
    p = teacher.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(hidden_ce_loss(teacher, teacher), entropy)
    assert hidden_ce_loss(teacher + 0.1 * torch.randn(2, 3, 5), teacher) > entropy


def test_a_vector_without_direction_counts_nothing():
    teacher = torch.randn(1, 2, 4)
    teacher[0, 1] = 0
    student = teacher.clone().requires_grad_()
    value = hidden_cos_loss(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(student.grad).all()


@pytest.mark.paper("2407.14679", "losses:hidden_cos")
def test_one_linear_map_serves_all_layers_and_there_is_none_for_equal_widths(host):
    ours, theirs = text_geometry(3, 4, "student"), text_geometry(6, 7, "teacher")
    loss = host.create(Kind.LOSS, "hidden_cos", {"embedding": True})
    loss.build(ours, theirs, {0: 1, 1: 3, 2: 5})
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {
        "projectors.4_to_7.weight": (7, 4), "projectors.4_to_7.bias": (7,),
    }  # fmt: skip
    traces = text_trace(3, 4), text_trace(6, 7)
    terms = loss(*traces, None, StepInfo())
    valid, linear = traces[0].signal("embedding").valid, loss.projectors["4_to_7"]
    by_hand = [
        hidden_cos_loss(linear(traces[0][f"hidden.{s}"]), traces[1][f"hidden.{t}"], valid)
        for s, t in ((0, 1), (1, 3), (2, 5))
    ]
    last = hidden_cos_loss(linear(traces[0]["embedding"]), traces[1]["embedding"], valid)
    torch.testing.assert_close(sum(terms.values()), sum(by_hand) / 3 + last)
    loss.build(ours, text_geometry(6, 4, "teacher"), {0: 1, 1: 3, 2: 5})
    assert not list(loss.parameters())


def test_pkd_is_blind_to_scale_and_to_all_but_the_class_token(host):
    loss = host.create(Kind.LOSS, "pkd")
    loss.build(text_geometry(2, 4, "student"), text_geometry(2, 4, "teacher"), {0: 0, 1: 1})
    student, teacher = text_trace(2, 4), text_trace(2, 4)
    before = sum(loss(student, teacher, None, StepInfo()).values())
    changed = {
        site: Signal(torch.cat([7 * s.tensor[:, :1], torch.randn(3, 5, 4)], 1), "tokens", valid=s.valid)
        for site, s in student.signals.items()
    }
    torch.testing.assert_close(sum(loss(Trace(changed), teacher, None, StepInfo()).values()), before)
    cosines = [F.cosine_similarity(student[f"hidden.{i}"][:, 0], teacher[f"hidden.{i}"][:, 0]) for i in range(2)]
    torch.testing.assert_close(before, (2 - 2 * torch.stack(cosines)).mean())


def test_where_a_samples_vector_stands():
    tokens = torch.arange(24.0).reshape(2, 6, 2)
    left = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()  # padding before the text
    right = left.flip(1)
    for valid, first, last in ((left, [2, 0], [5, 5]), (right, [0, 0], [3, 5])):
        signal = Signal(tokens, "tokens", valid=valid)
        assert torch.equal(sample_vectors(signal, "first"), tokens[[0, 1], first])
        assert torch.equal(sample_vectors(signal, "last"), tokens[[0, 1], last])
        expected = torch.stack([tokens[i][valid[i]].mean(0) for i in range(2)])
        torch.testing.assert_close(sample_vectors(signal, "mean"), expected)
    whole = Signal(tokens, "tokens")
    assert torch.equal(sample_vectors(whole, "last"), tokens[:, -1])
    vector = torch.randn(2, 3)
    assert torch.equal(sample_vectors(Signal(vector, "vector"), "first"), vector)
    maps = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(sample_vectors(Signal(maps, "map"), "mean"), maps.mean((2, 3)))


@pytest.mark.parametrize(
    ("pair", "role", "signal", "expected"),
    [
        ("text", "student", "hidden", "first"), ("decoder", "student", "hidden", "last"),
        ("vit", "student", "hidden", "mean"), ("conv_from_vit", "teacher", "hidden", "first"),
        ("conv", "student", "features", "mean"),
    ],
)  # fmt: skip
def test_the_position_that_is_chosen(pair, role, signal, expected):
    assert choose_position("auto", side(PAIRS[pair], role).geometry, Site(signal, 0)) == expected


def test_what_comes_behind_a_norm_is_the_block_before_it_normalised(host):
    student = side(PAIRS["decoder"], "student")
    loss = host.create(
        Kind.LOSS, "hidden_cos", {"student_signal": "norm", "teacher_signal": "norm", "layers": [[-1, -1]]}
    )
    teacher = side(PAIRS["decoder"], "even")
    loss.build(student.geometry, teacher.geometry, {})
    value = sum(loss(student.trace, teacher.trace, student.batch, StepInfo()).values())
    states = [
        x.model.encoder.layers[-1].norm1(x.trace[f"hidden.{n}"]) for x, n in ((student, 0), (teacher, 1))
    ]  # fmt: skip
    valid = student.trace.signal("hidden.0").valid
    torch.testing.assert_close(value, hidden_cos_loss(*states, valid))
    assert hidden_loss(*states, valid, metric="cosine").item() == pytest.approx(value.item(), rel=1e-5)
