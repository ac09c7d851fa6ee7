"""What every distillation loss promises, checked for each of them on real (tiny) models."""

from __future__ import annotations

import copy

import pytest
import torch
from loss_toys import (
    Conv,
    Strict,
    Text,
    Vision,
    forward,
    image_batch,
    mapped,
    plan_of,
    repeated,
    text_batch,
    trace_of,
)

from nasdistill.errors import MismatchError
from nasdistill.interfaces import DistillationLoss, Site, StepInfo
from nasdistill.spec.component import Kind
from nasdistill.trace import even_layer_map

# (loss, options, student, teacher): makers of models; the batch follows from the student
PAIRS = {
    "kd": ("kd", {}, lambda: Text(16, 2, 2), lambda: Text()),
    "kd-cold": ("kd", {"temperature": 1.0}, lambda: Conv(), lambda: Vision()),
    "hidden-text": ("hidden", {}, lambda: Text(16, 2, 2), lambda: Text()),
    "hidden-cosine": ("hidden", {"metric": "cosine", "layers": "last"}, lambda: Text(16, 2, 2), lambda: Text()),
    "hidden-normalised": ("hidden", {"normalise": True}, lambda: Text(24, 3, 2), lambda: Text()),
    "hidden-pairs": ("hidden", {"layers": [[0, 0], [-1, -1]]}, lambda: Text(16, 2, 2), lambda: Text()),
    "hidden-maps": ("hidden", {}, lambda: Conv((4, 6, 8)), lambda: Conv()),
    "hidden-conv-from-vit": ("hidden", {}, lambda: Conv((4, 8)), lambda: Vision(prefix=True)),
    "hidden-grids": ("hidden", {}, lambda: Vision(16, 2, 2, stride=2), lambda: Vision(stride=1, prefix=True)),
    "minilm": ("minilm", {}, lambda: Text(16, 2, 2), lambda: Text()),
    "minilm-causal": ("minilm", {}, lambda: Text(16, 2, 2, causal=True), lambda: Text(causal=True)),
    "minilm-mixed": ("minilm", {}, lambda: Text(16, 2, 2), lambda: Text(causal=True)),
    "minilmv2": ("minilmv2", {}, lambda: Text(16, 1, 2), lambda: Text(24, 3)),
    "minilmv2-cross": ("minilmv2", {"relations": ["qk", "vv"]}, lambda: Text(16, 1, 2), lambda: Text(24, 3)),
    "minilmv2-vision": ("minilmv2", {}, lambda: Vision(16, 2, 2), lambda: Vision()),
    "spatial-maps": ("spatial_attention", {}, lambda: Conv((4, 6, 8)), lambda: Conv()),
    "spatial-kl": ("spatial_attention", {"mode": "kl"}, lambda: Conv((4, 6, 8)), lambda: Conv()),
    "spatial-conv-from-vit": ("spatial_attention", {}, lambda: Conv((4, 8)), lambda: Vision(prefix=True)),
    "spatial-vit": ("spatial_attention", {"power": 4}, lambda: Vision(16, 2, 2, stride=1), lambda: Vision()),
    "relation": ("relation", {}, lambda: Text(16, 2, 2), lambda: Text()),
    "relation-maps": ("relation", {}, lambda: Conv((4, 8)), lambda: Vision()),
    "relation-distance": ("relation", {"form": "distance"}, lambda: Text(16, 2, 2), lambda: Text()),
    "relation-angle": ("relation", {"form": "angle"}, lambda: Text(16, 2, 2), lambda: Text()),
    "relation-logits": (
        "relation",
        {"form": "distance_angle", "student_site": "logits", "teacher_site": "pooled"},
        lambda: Conv(),
        lambda: Vision(),
    ),
}
LOSSES = sorted({loss for loss, *_ in PAIRS.values()})
STEP = StepInfo()


class Case:
    """A built loss with the traces of a student and a teacher."""

    def __init__(self, host, name, teacher_like_student=False):
        loss, options, student, teacher = PAIRS[name]
        torch.manual_seed(0)
        self.name = loss
        self.student = student()
        self.teacher = copy.deepcopy(self.student) if teacher_like_student else teacher()
        self.batch = text_batch() if isinstance(self.student, Text) else image_batch()
        self.plans = plan_of(self.student, self.batch, "student"), plan_of(self.teacher, self.batch, "teacher")
        self.loss = host.create(Kind.LOSS, loss, options)
        self.tags = host.tags(Kind.LOSS, loss)
        geometries = self.plans[0].geometry, self.plans[1].geometry
        self.loss.build(*geometries, even_layer_map(geometries[0].layers, geometries[1].layers))
        self.needs = self.loss.sites()

    def traces(self):
        return (
            trace_of(self.student, self.batch, self.needs.student, self.plans[0]),
            trace_of(self.teacher, self.batch, self.needs.teacher, self.plans[1]),
        )

    def value(self, student, teacher):
        terms = self.loss(student, teacher, self.batch, STEP)
        assert terms
        assert all(term.shape == () and bool(torch.isfinite(term)) for term in terms.values())
        return sum(terms.values())


@pytest.fixture(params=sorted(PAIRS))
def case(host, request):
    return Case(host, request.param)


def test_every_bundled_loss_is_here(host):
    assert {record.name for record in host.specs(Kind.LOSS)} == set(LOSSES)


def test_finite_nonnegative_and_declared_parameters(case):
    assert isinstance(case.loss, DistillationLoss)
    value = case.value(*case.traces())
    assert float(value.detach()) > 0
    if not case.tags.owns_parameters:
        assert not list(case.loss.parameters())


@pytest.mark.parametrize("name", sorted(PAIRS.keys() - {"relation-logits"}))  # that one compares different sites
@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
@pytest.mark.paper("2303.15678", "losses:relation")
@pytest.mark.paper("2306.01526", "losses:spatial_attention")
def test_zero_at_identity(host, name):
    case = Case(host, name, teacher_like_student=True)
    assert case.tags.zero_at_identity
    assert case.needs.student == case.needs.teacher
    assert abs(case.value(*case.traces()).item()) < 2e-6


@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
@pytest.mark.paper("2303.15678", "losses:relation")
@pytest.mark.paper("2306.01526", "losses:spatial_attention")
def test_no_gradient_into_the_teacher(case):
    student, teacher = case.traces()
    assert any(signal.tensor.requires_grad for signal in teacher.signals.values())
    case.value(student, teacher).backward()
    assert all(parameter.grad is None for parameter in case.teacher.parameters())
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in case.student.parameters())
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in case.student.parameters())


@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_repeating_the_batch_changes_nothing(case):
    student, teacher = (trace.detach() for trace in case.traces())
    once = case.value(student, teacher)
    case.batch = case.batch.select(torch.arange(case.batch.size).repeat(2))
    torch.testing.assert_close(case.value(repeated(student), repeated(teacher)), once, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(name for name in PAIRS if isinstance(PAIRS[name][2](), Text)))
@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_padding_has_no_influence(host, name):
    case = Case(host, name)
    student, teacher = (trace.detach() for trace in case.traces())
    before = case.value(student, teacher)
    noise = torch.Generator().manual_seed(5)

    def spoil(site, signal):
        if signal.valid is None:
            return signal.tensor
        keep = signal.valid[:, None, :, None] if signal.layout == "heads" else signal.valid[:, :, None]
        return torch.where(keep, signal.tensor, 50 * torch.randn(signal.tensor.shape, generator=noise))

    after = case.value(mapped(student, spoil), mapped(teacher, spoil))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-5)


def test_longer_padding_changes_nothing(host):
    """The same sentences padded to a greater length give the same loss."""
    for name in ("minilm", "minilmv2", "hidden-text", "relation"):
        case = Case(host, name)
        before = case.value(*case.traces())
        longer = {key: torch.nn.functional.pad(value, (0, 4)) for key, value in case.batch.inputs.items()}
        case.batch = type(case.batch)(longer, case.batch.labels, case.batch.ids)
        torch.testing.assert_close(case.value(*case.traces()), before, atol=1e-5, rtol=1e-4)


def test_reads_only_the_sites_that_it_asked_for(case):
    plans = case.plans
    everything = [
        trace_of(model, case.batch, plan.geometry.sites, plan)
        for model, plan in zip((case.student, case.teacher), plans, strict=True)
    ]
    student, teacher = (
        Strict(trace, needs) for trace, needs in zip(everything, (case.needs.student, case.needs.teacher), strict=True)
    )
    strict = case.value(student, teacher)
    assert student.read == case.needs.student  # and it asks for nothing that it does not read
    assert teacher.read == case.needs.teacher
    torch.testing.assert_close(strict, case.value(*case.traces()))


def test_large_half_precision_signals_stay_finite(case):
    def large(site, signal):
        return (signal.tensor.detach() / signal.tensor.detach().abs().max() * 1e4).to(torch.bfloat16)

    student, teacher = (mapped(trace, large) for trace in case.traces())
    for signal in student.signals.values():
        signal.tensor.requires_grad_(True)
    case.value(student, teacher).backward()
    for signal in student.signals.values():
        assert signal.tensor.grad is None or bool(torch.isfinite(signal.tensor.grad).all())


def test_twenty_steps_lower_it(case):
    parameters = [*case.student.parameters(), *case.loss.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=5e-3)
    values = []
    for _ in range(21):
        value = case.value(*case.traces())
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert min(values[-3:]) < 0.9 * values[0]


def test_autocast_gives_nearly_the_same(case):
    with torch.autocast("cpu", torch.bfloat16):
        student, teacher = case.traces()
        low = case.value(student, teacher)
    high = case.value(*case.traces())
    assert torch.isfinite(low)
    assert abs(low.item() - high.item()) < 0.1 * high.item() + 0.05


def test_owned_parameters_are_registered_and_saved(host):
    case = Case(host, "hidden-maps")
    assert len(list(case.loss.parameters())) == 6  # weight and bias of three pairs
    assert all(p.requires_grad for p in case.loss.parameters())
    twin = Case(host, "hidden-maps")
    twin.loss.load_state_dict(case.loss.state_dict())
    student, teacher = case.traces()
    assert torch.equal(case.value(student, teacher), twin.value(student, teacher))
    case.value(student, teacher).backward()
    assert all(p.grad is not None for p in case.loss.parameters())
    assert not list(Case(host, "hidden-maps", teacher_like_student=True).loss.parameters())
    case.loss.build(case.plans[0].geometry, case.plans[1].geometry, {})  # building again replaces the parts
    assert len(list(case.loss.parameters())) == 6


def _geometry(model, label, batch=None):
    batch = batch or (text_batch() if isinstance(model, Text) else image_batch())
    return plan_of(model, batch, label).geometry


@pytest.mark.parametrize(
    ("loss", "options", "student", "teacher", "shapes"),
    [
        ("minilm", {}, Text(16, 1, 2), Text(24, 3), ["(1, 7, 16)", "(3, 7, 8)"]),
        ("minilm", {}, Vision(stride=2), Vision(stride=1), ["(2, 16, 12)", "(2, 64, 12)"]),
        ("minilmv2", {}, Vision(stride=2), Vision(stride=1), ["(2, 16, 12)", "(2, 64, 12)"]),
        ("minilmv2", {"relation_heads": 16, "fit": "refuse"}, Text(16, 1), Text(24, 3), ["16 relation heads", "24"]),
        ("hidden", {"layers": "last"}, Text(16, 2, 2), Vision(), ["(7, 16)", "(16, 24)"]),
        ("spatial_attention", {}, Text(16, 2, 2), Vision(), ["(7, 16)", "(16, 24)"]),
    ],
)
@pytest.mark.paper("2002.10957", "losses:minilm")
def test_impossible_pairs_are_refused_with_both_shapes(host, loss, options, student, teacher, shapes):
    built = host.create(Kind.LOSS, loss, options)
    with pytest.raises(MismatchError) as caught:
        built.build(_geometry(student, "the small one"), _geometry(teacher, "the big one"), {})
    assert all(shape in str(caught.value) for shape in shapes)
    assert caught.value.hint


def test_other_class_counts_are_refused(host):
    student, teacher = Conv(), Conv()
    teacher.head = torch.nn.Linear(16, 7)
    with pytest.raises(MismatchError, match=r"\(5,\) at logits.*\(7,\) at logits"):
        host.create(Kind.LOSS, "kd").build(_geometry(student, "s"), _geometry(teacher, "t"), {})


def _sevenfold(model):
    """Give a toy a seventh class."""
    model.head = torch.nn.Linear(model.head.in_features, 7)
    return model


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("tag", "student", "teacher"),
    [
        ("same_width", Vision(16, 2), Vision(24, 2)),
        ("same_heads", Vision(24, 2), Vision(24, 3)),
        ("same_classes", Vision(24, 2), _sevenfold(Vision(24, 2))),
    ],
    ids=["width", "heads", "classes"],
)
@pytest.mark.paper("2002.10957", "losses:minilm")
@pytest.mark.paper("2012.15828", "losses:minilmv2")
def test_pairs_that_differ_are_refused_exactly_where_the_tags_say(host, loss, tag, student, teacher):
    built = host.create(Kind.LOSS, loss)
    pair = _geometry(student, "s"), _geometry(teacher, "t")
    if getattr(host.tags(Kind.LOSS, loss), tag):
        with pytest.raises(MismatchError):
            built.build(*pair, {})
    else:
        built.build(*pair, {})
        assert built.sites().student


@pytest.mark.parametrize("loss", ["minilm", "minilmv2"])
def test_models_without_attention_are_refused(host, loss):
    with pytest.raises(MismatchError, match="resnet_s0 has no site q"):
        host.create(Kind.LOSS, loss).build(_geometry(Conv(), "resnet_s0"), _geometry(Vision(), "teacher"), {})


def test_missing_layers_are_refused(host):
    loss = host.create(Kind.LOSS, "hidden", {"layers": [[5, 0]]})
    with pytest.raises(MismatchError, match=r"no site hidden.5"):
        loss.build(_geometry(Vision(), "s"), _geometry(Vision(), "t"), {})
    loss = host.create(Kind.LOSS, "relation", {"student_site": "attention.-1"})
    with pytest.raises(MismatchError, match="not scores"):
        loss.build(_geometry(Vision(), "s"), _geometry(Vision(), "t"), {})
    loss = host.create(Kind.LOSS, "relation", {"student_site": "nonsense"})
    with pytest.raises(MismatchError, match="unknown site"):
        loss.build(_geometry(Vision(), "s"), _geometry(Vision(), "t"), {})


def test_layer_map_is_followed(host):
    student, teacher = _geometry(Text(16, 2, 2), "s"), _geometry(Text(depth=6), "t")
    loss = host.create(Kind.LOSS, "hidden", {"layers": "map"})
    loss.build(student, teacher, {0: 1, 1: 4})
    assert loss.sites().teacher == {Site("hidden", 1), Site("hidden", 4)}
    loss.build(student, teacher, {})
    assert loss.sites().teacher == {Site("hidden", 2), Site("hidden", 5)}


def test_stage_maps_pair_by_resolution(host):
    loss = host.create(Kind.LOSS, "spatial_attention")
    loss.build(_geometry(Conv((4, 4, 4, 4)), "s"), _geometry(Conv((4, 4)), "t"), {})
    assert loss.sites().student == loss.sites().teacher == {Site("features", 0), Site("features", 1)}


def test_the_forward_of_the_task_is_unchanged(case):
    before = forward(case.student, case.batch)
    case.value(*case.traces())
    torch.testing.assert_close(forward(case.student, case.batch), before)
