"""The exact properties of every proxy's formula, on real digits and real networks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasdistill.errors import TrialFailure
from nasdistill.testing.kit.models import Mlp, SmallResNet, SmallViT, built, call, digits, digits_loss
from nasdistill.testing.kit.scoring import candidate
from nasdistill_proxies._features import trace_head, use_batch_statistics
from nasdistill_proxies._weights import loss_gradients, product_weights, weight_gradients
from nasdistill_proxies.cka import Cka, centred_gram, linear_cka, spread
from nasdistill_proxies.diswot import UNRELATED, DisWot, relation_score, semantic_score
from nasdistill_proxies.grad_norm import GradNorm, gradient_norms
from nasdistill_proxies.jacov import Jacov, jacobian_covariance
from nasdistill_proxies.nwot import Nwot, code_kernel, log_determinant
from nasdistill_proxies.snip import Snip, snip_saliency
from nasdistill_proxies.synflow import SynFlow, linearise, ones_like_batch, synaptic_flow
from nasdistill_proxies.zico import ZiCo, inverse_variation

# ---- weights and gradients -----------------------------------------------------------------------------------------


def test_product_weights_are_those_of_matrix_products_once_each():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.norm = nn.LayerNorm(4)
            self.conv = nn.Conv1d(4, 4, 3)
            self.head = nn.Linear(4, 7, bias=False)
            self.tied = nn.Linear(4, 7, bias=False)
            self.tied.weight = self.head.weight

    assert set(product_weights(Net())) == {
        "attention.in_proj_weight", "attention.out_proj.weight", "conv.weight", "head.weight",
    }  # fmt: skip


def test_unreached_weights_have_zero_gradients_and_frozen_ones_have_theirs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.dead = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x):
            return self.used(x.flatten(1))

    model = Net().requires_grad_(False)
    weights, gradients = loss_gradients(model, digits(), call, digits_loss)
    assert set(weights) == {"used.weight", "dead.weight"}
    assert gradients["dead.weight"].abs().sum() == 0
    assert gradients["used.weight"].abs().sum() > 0
    assert all(p.grad is None for p in model.parameters())


def test_a_network_without_products_is_refused():
    with pytest.raises(TrialFailure, match="no convolution or linear weight"):
        weight_gradients(nn.ReLU(), {}, lambda: torch.zeros(()))


# ---- gradient norm, SNIP -------------------------------------------------------------------------------------------


def test_grad_norm_is_the_sum_of_layer_norms():
    model = built(SmallResNet)
    batch = digits()
    digits_loss(call(model, batch), batch).backward()
    expected = sum(float(w.grad.norm()) for w in product_weights(model).values())
    assert GradNorm().score(candidate(built(SmallResNet), batch)).value == pytest.approx(expected, rel=1e-5)


def test_gradient_norms_of_known_tensors():
    assert gradient_norms({"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}) == {"a": 5.0, "b": 0.0}


def test_snip_equals_the_gradient_of_an_all_one_mask():
    """The published definition, with the masks really in the forward."""
    model = built(Mlp, 12, 9)
    batch = digits()
    masks = [torch.ones_like(layer.weight, requires_grad=True) for layer in model.layers]
    x = batch.image.flatten(1)
    for layer, mask in zip(model.layers, masks, strict=True):
        x = F.linear(x, layer.weight * mask)
        x = x if layer is model.layers[-1] else F.relu(x)
    gradients = torch.autograd.grad(digits_loss(x, batch), masks)
    expected = sum(float(g.abs().sum()) for g in gradients)
    assert Snip().score(candidate(model, batch)).value == pytest.approx(expected, rel=1e-5)


def test_snip_identity_per_layer():
    weights = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[3.0]])}
    assert snip_saliency(weights, {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([[-1.0]])}) == {"a": 4.0, "b": 3.0}


def test_signed_saliency_of_a_convolution_before_batch_norm_is_zero():
    """The loss does not change with the scale of such a weight, so sum w * g is 0: why SNIP takes absolute values."""
    model = built(SmallResNet).train()
    weights, gradients = loss_gradients(model, digits(64), call, digits_loss)
    name = "stage1.0.conv1.weight"
    signed = float((weights[name].detach() * gradients[name]).sum())
    assert abs(signed) < 1e-3 * snip_saliency({name: weights[name]}, gradients)[name]


# ---- SynFlow -------------------------------------------------------------------------------------------------------


def test_synflow_is_conserved_on_a_chain_without_biases():
    model = linearise(built(Mlp, 12, 9, 7))
    ones = ones_like_batch(digits())
    flow = float(call(model, ones).sum().detach())
    parts = synaptic_flow(model, lambda: call(model, ones))
    assert len(parts) == 4
    for value in parts.values():
        assert value == pytest.approx(flow, rel=1e-12)


def test_synflow_is_the_path_sum():
    """An independent reference: the flow of a chain is the product of the absolute weight matrices."""
    model = built(Mlp, 12, 9)
    product = torch.ones(64, dtype=torch.float64)
    for layer in model.layers:
        product = layer.weight.detach().double().abs() @ product
    score = SynFlow().score(candidate(model))
    assert score.value == pytest.approx(math.log(3 * float(product.sum())), rel=1e-9)


def test_doubling_a_layer_doubles_the_flow():
    before = SynFlow({"log": False}).score(candidate(built(Mlp, 12))).value
    model = built(Mlp, 12)
    model.layers[0].weight.data *= -2.0  # the sign does not matter
    assert SynFlow({"log": False}).score(candidate(model)).value == pytest.approx(2 * before, rel=1e-9)


def test_synflow_bypasses_batch_norm_and_ignores_the_data():
    plain = SynFlow().score(candidate(built(SmallResNet).eval())).value
    other = built(SmallResNet).eval()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(7.0)
            module.running_var.fill_(3.0)
    assert SynFlow().score(candidate(other, digits(5, 300))).value == plain


@pytest.mark.parametrize("log", [True, False])
def test_synflow_of_attention_and_layer_norm_is_finite(log):
    score = SynFlow({"log": log}).score(candidate(built(SmallViT, depth=6).eval()))
    assert math.isfinite(score.value)
    assert all(math.isfinite(part) and part >= 0 for part in score.parts.values())
    assert {"patch.weight", "blocks.5.fc2.weight", "head.weight"} <= set(score.parts)


def test_synflow_stays_finite_where_float32_overflows():
    model = built(Mlp, *[256] * 40)
    for layer in model.layers:
        layer.weight.data.fill_(1.0)
    score = SynFlow().score(candidate(model))
    assert score.value > math.log(torch.finfo(torch.float32).max)


def test_synflow_of_a_dead_network_is_a_failure():
    model = built(Mlp, 12)
    model.layers[0].weight.data.zero_()
    with pytest.raises(TrialFailure, match="flow"):
        SynFlow().score(candidate(model))


# ---- NASWOT --------------------------------------------------------------------------------------------------------


def reference_kernel(codes):
    """N minus the Hamming distance, pair by pair."""
    kernel = torch.zeros(len(codes), len(codes), dtype=torch.float64)
    for i, a in enumerate(codes):
        for j, b in enumerate(codes):
            kernel[i, j] = sum(int(x == y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    return kernel


def test_kernel_counts_agreements():
    code = torch.rand(5, 11, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(code_kernel(code), reference_kernel(code))


def test_nwot_equals_the_reference_on_a_network_with_modules_and_functions():
    model, batch = built(Mlp, 20, 15), digits(6)
    x, codes = batch.image.flatten(1), []
    for layer in model.layers[:-1]:
        x = layer(x)
        codes.append(x > 0)
        x = F.relu(x)
    expected = torch.linalg.slogdet(reference_kernel(torch.cat(codes, dim=1))).logabsdet
    score = Nwot().score(candidate(model, batch))
    assert score.value == pytest.approx(float(expected), rel=1e-9)
    assert score.parts == {"units": 35.0}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ReLU6])
def test_nwot_sees_every_activation_module_once(activation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), activation(), nn.Linear(40, 10))
    assert Nwot().score(candidate(model, digits(8))).parts == {"units": 40.0}


def test_nwot_reads_an_in_place_activation_before_it_overwrites():
    models = [nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.SiLU(inplace=i)) for i in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (Nwot().score(candidate(model, digits(8))).value for model in models)
    assert first == second


def test_nwot_does_not_change_with_positive_scale_or_with_the_head():
    base = Nwot().score(candidate(built(Mlp, 40, 30))).value
    scaled = built(Mlp, 40, 30)
    for layer in scaled.layers:
        layer.weight.data *= 3.0
    scaled.layers[-1].weight.data.normal_()
    assert Nwot().score(candidate(scaled)).value == pytest.approx(base, rel=1e-9)


def test_nwot_of_duplicates_is_a_failure():
    batch = digits(8)
    twice = batch.select(torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(TrialFailure, match="same activation code"):
        Nwot().score(candidate(built(Mlp, 40), twice))


def test_nwot_of_too_few_units_is_a_failure():
    # Three units have at most 3 + 1 independent codes; four samples with distinct codes of two units need K of rank 3.
    code = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).bool()
    with pytest.raises(TrialFailure, match="do not tell"):
        log_determinant(code_kernel(code), 2)


def test_nwot_without_activations_is_a_failure():
    with pytest.raises(TrialFailure, match="activation"):
        Nwot().score(candidate(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))


# ---- Jacobian covariance -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_jacov_is_at_most_minus_the_batch(seed):
    rows = torch.randn(12, 64, generator=torch.Generator().manual_seed(seed))
    assert jacobian_covariance(rows) <= -12.0


def test_jacov_reaches_its_bound_for_uncorrelated_rows():
    # Rows of a Hadamard matrix without the constant one: centred, orthogonal.
    rows = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    assert jacobian_covariance(rows) == pytest.approx(-3.0, abs=1e-8)


def test_jacov_equals_the_general_solver():
    rows = torch.randn(9, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = torch.linalg.eigvals(torch.corrcoef(rows)).real
    expected = -float((torch.log(values + 1e-5) + 1.0 / (values + 1e-5)).sum())
    assert jacobian_covariance(rows) == pytest.approx(expected, rel=1e-9)


def test_jacov_of_a_dead_network_is_a_failure():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[1].weight.data.zero_()
    with pytest.raises(TrialFailure, match="constant"):
        Jacov().score(candidate(model))


def test_jacov_uses_half_as_many_samples_as_the_input_has_numbers():
    """The Jacobians of 64 samples of 64 pixels are linearly dependent, which says nothing about the network."""
    batch = digits(64)
    value = Jacov().score(candidate(built(SmallResNet), batch)).value
    assert -1000.0 < value <= -32.0
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert Jacov().score(candidate(built(SmallResNet), batch.select(order))).value == pytest.approx(value, rel=1e-3)


def test_jacov_without_floating_inputs_is_a_failure():
    from nasdistill.interfaces import Batch

    tokens = Batch({"input_ids": torch.zeros(4, 5, dtype=torch.int64)}, None, torch.arange(4))
    with pytest.raises(TrialFailure, match="input_ids"):
        Jacov().score(candidate(nn.Linear(2, 2), tokens))


# ---- ZiCo ----------------------------------------------------------------------------------------------------------


def test_zico_of_two_batches_in_closed_form():
    first, second = {"a": torch.tensor([1.0, -1.0, 2.0])}, {"a": torch.tensor([3.0, 1.0, 2.0])}
    # (1 + 3) / 2, signs differ -> 1, no deviation -> left out
    assert inverse_variation([first, second])["a"] == pytest.approx(2.0 + 1.0)


def test_zico_is_bounded_below_by_the_number_of_live_weights():
    batches = (digits(), digits(start=200))
    gradients = [loss_gradients(built(SmallResNet), batch, call, digits_loss)[1] for batch in batches]
    values = inverse_variation(gradients)
    assert len(values) > 5
    for name, value in values.items():
        live = int((gradients[0][name] != gradients[1][name]).sum())
        assert value >= live


def test_zico_skips_layers_whose_gradients_do_not_vary():
    same, varied = torch.ones(3), (torch.zeros(2), torch.ones(2))
    assert set(inverse_variation([{"a": same, "b": varied[0]}, {"a": same, "b": varied[1]}])) == {"b"}


def test_zico_of_identical_batches_is_a_failure():
    batch = digits()
    with pytest.raises(TrialFailure, match="identical"):
        ZiCo().score(candidate(built(Mlp, 12), batch, batch))


def test_zico_keeps_nan():
    nan, one = torch.tensor([math.nan]), torch.ones(1)
    assert math.isnan(inverse_variation([{"a": nan}, {"a": one}])["a"])


def test_zico_needs_two_batches():
    assert ZiCo({"batches": 3}).batches_needed() == 3
    with pytest.raises(TrialFailure, match="3 batches"):
        ZiCo({"batches": 3}).score(candidate(built(Mlp, 12)))
    with pytest.raises(ValueError, match="two"):
        inverse_variation([{}])


# ---- DisWOT --------------------------------------------------------------------------------------------------------


def explicit_semantic(student, teacher):
    """The definition: per class a channel Gram matrix with normalised rows."""
    classes, width = student.shape
    total = 0.0
    for k in range(classes):
        grams = [F.normalize(torch.outer(g[k], g[k]), dim=1, eps=1e-300) for g in (student.double(), teacher.double())]
        total += float((grams[0] - grams[1]).square().sum())
    return -total / (classes * width)


def explicit_relation(student, teacher):
    size = len(student)
    grams = [F.normalize(f.double().flatten(1) @ f.double().flatten(1).T, dim=1) for f in (student, teacher)]
    return -float((grams[0] - grams[1]).square().sum()) / size**2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_semantic_closed_form_equals_the_definition(seed):
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 10, 16, generator=rng, dtype=torch.float64)
    student[:, 3] = 0.0  # a dead channel of one side
    teacher[:, [3, 5]] = 0.0  # of both, of the other
    student[4] = 0.0  # a class without a gradient
    assert semantic_score(student, teacher) == pytest.approx(explicit_semantic(student, teacher), abs=1e-6)


@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_semantic_closed_form_on_real_gradients():
    grads = []
    for seed in (0, 1):
        model = built(SmallResNet, seed=seed).train()
        grads.append(torch.autograd.grad(digits_loss(call(model, digits()), digits()), model.fc.weight)[0])
    value = semantic_score(*grads)
    assert value == pytest.approx(explicit_semantic(*grads), abs=1e-6)
    assert -4.0 <= value < 0.0


@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_semantic_properties():
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 12, generator=rng)
    assert semantic_score(teacher, teacher) == pytest.approx(0.0, abs=1e-12)
    assert semantic_score(-teacher, teacher) == pytest.approx(0.0, abs=1e-12)  # sign and cosine flip together
    assert semantic_score(0.01 * student, teacher) == pytest.approx(semantic_score(student, teacher), abs=1e-9)
    permuted = student[:, torch.randperm(12, generator=rng)]
    assert abs(semantic_score(permuted, teacher) - semantic_score(student, teacher)) > 1e-3
    with pytest.raises(ValueError, match="shapes"):
        semantic_score(student[:, :5], teacher)


@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_relation_properties():
    rng = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(9, 6, 4, 4, generator=rng), torch.randn(9, 10, 2, 2, generator=rng)
    value = relation_score(student, teacher)
    assert value == pytest.approx(explicit_relation(student, teacher), abs=1e-9)
    assert value < 0
    assert relation_score(teacher, teacher) == pytest.approx(0.0, abs=1e-12)
    assert relation_score(student[:, torch.randperm(6, generator=rng)], teacher) == pytest.approx(value, abs=1e-6)
    assert relation_score(1e-20 * student.double(), teacher) == pytest.approx(value, abs=1e-6)
    rotation = torch.linalg.qr(torch.randn(96, 96, generator=rng))[0]
    assert relation_score(student.flatten(1) @ rotation, teacher) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("kind", [SmallResNet, SmallViT])
@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_diswot_of_the_teacher_itself_is_zero(kind):
    score = DisWot().score(candidate(built(kind).train(), teacher=built(kind).eval()))
    assert score.value == pytest.approx(0.0, abs=1e-9)
    assert score.parts == pytest.approx({"relation": 0.0, "semantic": 0.0}, abs=1e-9)
    assert score.note == ""


@pytest.mark.paper("2303.15678", "proxies:diswot")
def test_diswot_is_the_sum_of_its_terms_and_ignores_the_scale_of_the_loss():
    def once(**changes):
        return DisWot().score(candidate(built(SmallResNet), teacher=built(SmallResNet, seed=1), **changes))

    score = once()
    assert score.value == sum(score.parts.values()) < 0
    scaled = once(loss=lambda output, batch: 1000.0 * digits_loss(output, batch))
    assert scaled.value == pytest.approx(score.value, abs=1e-6)
    only = DisWot({"terms": "relation"}).score(candidate(built(SmallResNet), teacher=built(SmallResNet, seed=1)))
    assert only.value == score.parts["relation"]


def test_diswot_counts_the_semantic_term_of_other_widths_as_unrelated_and_says_so():
    student, teacher = built(SmallResNet, width=4), built(SmallResNet, width=8)
    score = DisWot().score(candidate(student, teacher=teacher))
    assert score.parts["semantic"] == UNRELATED
    assert "8 features" in score.note
    assert "16" in score.note
    with pytest.raises(TrialFailure, match="8 features"):
        DisWot({"terms": "semantic"}).score(candidate(student, teacher=teacher))
    # Orthogonal gradients really give that value, so it is the neutral point of the scale.
    a, b = torch.eye(4)[:2], torch.eye(4)[2:]
    ones = torch.ones(4)
    assert semantic_score(a + 1e-9 * ones, b + 1e-9 * ones) == pytest.approx(UNRELATED, abs=1e-6)


def test_diswot_compares_families():
    score = DisWot().score(candidate(built(SmallResNet, width=8), teacher=built(SmallViT, width=16)))
    assert math.isfinite(score.value)
    assert score.note == ""  # both classifiers read 16 features


def test_diswot_normal_initialisation_forgets_the_weights_and_does_not_depend_on_the_memory():
    proxy = DisWot({"init": "normal"})
    first = proxy.score(candidate(built(SmallResNet, seed=0), teacher=built(SmallResNet, seed=1))).value
    again = proxy.score(candidate(built(SmallResNet, seed=5), teacher=built(SmallResNet, seed=1))).value
    fresh = DisWot({"init": "normal"}).score(candidate(built(SmallResNet, seed=5), teacher=built(SmallResNet, seed=9)))
    assert first == again == fresh.value
    options = {"init": "normal", "teacher_seed": 1}
    other = DisWot(options).score(candidate(built(SmallResNet, seed=5), teacher=built(SmallResNet, seed=9)))
    assert other.value != first


def test_the_teachers_side_is_computed_once_per_teacher_and_batch():
    calls = []

    def counting(model, batch):
        calls.append(model)
        return call(model, batch)

    proxy = DisWot()
    students = [built(SmallResNet, seed=seed) for seed in (0, 1)]
    values = [proxy.score(candidate(s, teacher=built(SmallResNet, seed=7), forward=counting)).value for s in students]
    assert len(calls) == 3
    assert values[1] == DisWot().score(candidate(students[1], teacher=built(SmallResNet, seed=7))).value
    proxy.score(candidate(students[1], teacher=built(SmallResNet, seed=8), forward=counting))
    assert len(calls) == 5  # another teacher
    proxy.score(candidate(students[1], digits(start=50), teacher=built(SmallResNet, seed=8), forward=counting))
    assert len(calls) == 7  # another batch


def test_dropout_of_the_teacher_adds_no_noise():
    class Noisy(SmallResNet):
        def forward(self, x):
            return F.dropout(super().forward(F.dropout(x, 0.5, self.training)), 0.5, self.training)

    for proxy in (DisWot(), Cka()):
        values = {proxy.score(candidate(built(SmallResNet), teacher=built(Noisy, seed=1))).value for _ in range(2)}
        values.add(type(proxy)().score(candidate(built(SmallResNet), teacher=built(SmallResNet, seed=1))).value)
        assert len(values) == 1


def test_batch_statistics_without_dropout():
    model = use_batch_statistics(nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(), nn.LayerNorm(2)).train())
    assert [module.training for module in model] == [True, False, False]


# ---- features ------------------------------------------------------------------------------------------------------


def test_features_are_the_last_map_before_pooling():
    model = built(SmallResNet)
    trace = trace_head(model, digits(3), call, 10, label="student")
    assert trace.features.shape == (3, 16, 4, 4)
    assert trace.classifier is model.fc.weight
    assert trace.width == 16
    assert (trace.features >= 0).all()  # after the last activation


def test_features_of_a_transformer_are_its_tokens():
    model = built(SmallViT)
    trace = trace_head(model, digits(3), call, 10, label="student")
    assert trace.features.shape == (3, 17, 16)
    assert trace.classifier is model.head.weight


def test_features_survive_functional_pooling_and_a_convolutional_classifier():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2))
            self.last = nn.Conv2d(6, 8, 1)
            self.head = nn.Conv2d(8, 10, 1)

        def forward(self, x):
            x = self.last(self.body(x)).mean((2, 3), keepdim=True)
            return self.head(x).flatten(1)

    trace = trace_head(Net(), digits(3), call, 10, label="student")
    assert trace.features.shape == (3, 8, 3, 3)
    assert trace.width == 8


def test_features_of_a_perceptron_are_the_classifiers_input():
    assert trace_head(built(Mlp, 12), digits(3), call, 10, label="student").features.shape == (3, 12)


def test_a_network_without_classifier_is_refused_and_no_hook_stays():
    model = built(SmallResNet)
    with pytest.raises(TrialFailure, match="student has no linear layer with 7 outputs"):
        trace_head(model, digits(3), call, 7, label="student")
    assert all(not module._forward_hooks for module in model.modules())


# ---- CKA -----------------------------------------------------------------------------------------------------------


def test_linear_cka_properties():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, 3, 3, generator=rng), torch.randn(12, 20, generator=rng)
    rotation = torch.linalg.qr(torch.randn(45, 45, generator=rng))[0]
    value = linear_cka(x, y)
    assert 0.0 < value < 1.0
    assert linear_cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(y, x) == pytest.approx(value, abs=1e-12)
    assert linear_cka(3.0 * x.flatten(1) @ rotation + 7.0, y) == pytest.approx(value, abs=1e-5)
    assert linear_cka(torch.ones(12, 4), y) == 0.0
    with pytest.raises(ValueError, match="samples"):
        linear_cka(x, y[:5])


def test_linear_cka_equals_the_definition():
    rng = torch.Generator().manual_seed(1)
    x, y = (
        torch.randn(10, 4, generator=rng, dtype=torch.float64),
        torch.randn(10, 6, generator=rng, dtype=torch.float64),
    )
    centre = torch.eye(10, dtype=torch.float64) - 0.1
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741
    assert linear_cka(x, y) == pytest.approx(float((k * l).sum() / (k.norm() * l.norm())), rel=1e-12)
    assert float(centred_gram(x).norm()) == pytest.approx(1.0)


def test_spread_keeps_the_last():
    assert spread(12, 3) == [3, 7, 11]
    assert spread(3, 3) == [0, 1, 2]
    assert spread(2, 3) == [0, 1, 1]
    assert spread(1, 2) == [0, 0]


@pytest.mark.parametrize("kind", [SmallResNet, SmallViT])
def test_cka_of_the_teacher_itself_is_one(kind):
    score = Cka().score(candidate(built(kind).train(), teacher=built(kind).eval()))
    assert score.value == pytest.approx(1.0, abs=1e-9)
    assert len(score.parts) == 3


def test_cka_compares_families_and_depths():
    student, teacher = built(SmallResNet, width=4), built(SmallViT, depth=5)
    score = Cka({"stages": 4}).score(candidate(student, teacher=teacher))
    assert 0.0 < score.value < 1.0
    assert score.value == pytest.approx(sum(score.parts.values()) / 4)
