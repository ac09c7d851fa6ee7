"""The runner: what careless and hostile proxies can't do, and how failures are told and ranked."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasdistill.interfaces import Proxy, ProxyScore
from nasdistill.measure.guard import Guard
from nasdistill.measure.proxies import ProxyOutcome, consensus, normal_init, pool_values, rank_pool, run_proxy
from nasdistill.spec.component import ProxyTags
from nasdistill.testing.kit.models import DIGITS, SmallResNet, built, call, digits, digits_loss


class Custom(Proxy):
    """A proxy made of a function."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def score(self, candidate):
        result = self.act(candidate)
        return ProxyScore(1.0) if result is None else result


def run(act, model=None, teacher=None, tags=None, **changes):
    values = {"batches": (digits(8),), "forward": call, "loss": digits_loss, "io": DIGITS}
    model = model if model is not None else built(SmallResNet)
    return run_proxy(Custom(act), tags or ProxyTags(), model=model, teacher=teacher, **{**values, **changes})


# ---- what a proxy gets ---------------------------------------------------------------------------------------------


def test_copies_in_the_declared_mode():
    model, teacher = built(SmallResNet).eval(), built(SmallResNet, seed=1).train()
    seen = {}

    def act(candidate):
        seen["candidate"] = candidate

    run(act, model, teacher, ProxyTags(needs_teacher=True, mode="train"))
    assert seen["candidate"].model is not model
    assert seen["candidate"].model.training
    assert seen["candidate"].teacher.training
    run(act, model, teacher, ProxyTags(needs_teacher=True, mode="eval"))
    assert not seen["candidate"].model.training
    assert not seen["candidate"].teacher.training
    run(act, model, teacher, ProxyTags())
    assert seen["candidate"].teacher is None  # not declared, not given


def test_a_copy_may_be_destroyed():
    model = built(SmallResNet)

    def act(candidate):
        candidate.batch.image.fill_(math.nan)
        for parameter in candidate.model.parameters():
            parameter.data.zero_()
        del candidate.model.fc
        candidate.model.forward = None

    batch = digits(8)
    assert run(act, model, batches=(batch,)).value == 1.0
    assert model(batch.image).isfinite().all()


def test_the_seed_reaches_both_generators():
    def act(candidate):
        own = float(torch.rand((), generator=candidate.generator, dtype=torch.float64))
        return ProxyScore(own, {"global": float(torch.rand((), dtype=torch.float64))})

    first, second, other = run(act, seed=1), run(act, seed=1), run(act, seed=2)
    assert (first.value, first.parts) == (second.value, second.parts)
    assert first.value != other.value
    assert first.parts != other.parts


def test_normal_initialisation():
    def act(candidate):
        weight = candidate.model.stage2[0].conv2.weight
        norm = candidate.model.stem[1]
        return ProxyScore(float(weight.detach().std()), {"bias": float(candidate.model.fc.bias.detach().abs().sum()),
                                                "var": float(norm.running_var.mean())})  # fmt: skip

    model = built(SmallResNet)
    model.stem[1].running_var.fill_(9.0)
    outcome = run(act, model, tags=ProxyTags(init="normal"))
    assert outcome.value == pytest.approx(1.0, abs=0.05)
    assert outcome.parts == {"bias": 0.0, "var": 1.0}
    assert float(model.stem[1].running_var.mean()) == 9.0


def test_normal_initialisation_of_attention_and_norms():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    nn.init.constant_(layer.norm1.weight, 5.0)
    normal_init(layer, torch.Generator().manual_seed(0))
    assert 0.8 < float(layer.self_attn.in_proj_weight.detach().std()) < 1.2
    assert bool((layer.norm1.weight == 1.0).all())
    assert bool((layer.self_attn.in_proj_bias == 0.0).all())


# ---- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_failures(value):
    outcome = run(lambda _: ProxyScore(value, {"a": 1.0, "b": math.nan}))
    assert outcome.value is None
    assert outcome.problem == f"its score is {value}"
    assert outcome.parts == {"a": 1.0}


def test_exceptions_are_one_line():
    def act(candidate):
        raise RuntimeError("\n" + "long " * 200 + "\nsecond")

    outcome = run(act)
    assert outcome.value is None
    assert outcome.problem.startswith("RuntimeError: long long")
    assert len(outcome.problem) <= 300
    assert "\n" not in outcome.problem
    assert "second" not in outcome.problem


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_out_of_memory_says_so(error):
    def act(candidate):
        raise error

    assert "out of memory" in run(act).problem


def test_a_real_allocation_failure():
    assert "out of memory" in run(lambda _: ProxyScore(float(torch.empty(2**60).sum()))).problem


@pytest.mark.parametrize("answer", [3.0, ProxyScore("many"), ProxyScore(torch.ones(2)), ProxyScore(1 + 2j)])
def test_answers_of_another_type_are_failures(answer):
    outcome = run(lambda _: answer)
    assert outcome.value is None
    assert outcome.problem


def test_a_tensor_is_a_number():
    assert run(lambda _: ProxyScore(torch.tensor(2.5))).value == 2.5


def test_a_note_stands_beside_the_value():
    outcome = run(lambda _: ProxyScore(1.0, note="half of it is missing"))
    assert (outcome.value, outcome.problem) == (1.0, "half of it is missing")


def test_a_model_that_cannot_be_copied_is_a_failure():
    class Stubborn(SmallResNet):
        def __deepcopy__(self, memo):
            raise TypeError("one of a kind")

    outcome = run(lambda _: None, Stubborn())
    assert outcome.value is None
    assert "one of a kind" in outcome.problem


def test_missing_teacher_and_batches():
    assert "teacher" in run(lambda _: None, tags=ProxyTags(needs_teacher=True)).problem
    assert "1 batches" in run(lambda _: None, batches=()).problem


def test_labels_and_loss_are_for_those_who_declare_them():
    seen = []

    def look(candidate):
        seen.append((candidate.batch.labels, candidate.batch.labelled))

    labelled = dataclasses.replace(digits(8), labelled=torch.ones(8, dtype=torch.bool))
    assert run(look, batches=(labelled,)).value == 1.0
    assert seen.pop() == (None, None)
    assert run(look, batches=(labelled,), tags=ProxyTags(needs_labels=True)).value == 1.0
    assert torch.equal(seen[0][0], labelled.labels)

    def loss(candidate):
        outputs = candidate.forward(candidate.model, candidate.batch)
        return ProxyScore(float(candidate.loss(outputs, candidate.batch).detach()))

    assert "this proxy does not declare needs_labels" in run(loss).problem
    assert run(loss, tags=ProxyTags(needs_labels=True, needs_backward=True)).value > 0
    problem = run(lambda candidate: candidate.batch.labels.float()).problem
    assert "AttributeError" in problem
    assert "does not declare needs_labels" in problem


def test_leaving_the_program_is_a_failure():
    def leave(candidate):
        raise SystemExit(3)

    assert run(leave).problem == "it called sys.exit(3)"


def test_an_interrupt_is_no_failure_and_leaves_everything_in_place():
    def act(candidate):
        torch.set_default_dtype(torch.float64)
        raise KeyboardInterrupt

    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        run(act)
    assert torch.get_default_dtype() is torch.float32
    assert torch.equal(torch.get_rng_state(), state)


# ---- cheats --------------------------------------------------------------------------------------------------------


def patch_relu(*_):
    F.relu = F.gelu


def patch_class(*_):
    nn.BatchNorm2d.forward = lambda self, x: x


def global_hook(*_):
    nn.modules.module.register_module_forward_hook(lambda *_: None)


GLOBAL = {
    "default dtype": lambda *_: torch.set_default_dtype(torch.float64),
    "grad mode": lambda *_: torch.set_grad_enabled(False),
    "number of threads": lambda *_: torch.set_num_threads(2),
    "deterministic algorithms": lambda *_: torch.use_deterministic_algorithms(True),
    "anomaly detection": lambda *_: torch.autograd.set_detect_anomaly(True),
    "Python's random state": lambda *_: random.seed(1),
    "NumPy's random state": lambda *_: np.random.seed(1),
    "seed of torch's generator": lambda *_: torch.manual_seed(1),
    "global module hooks": global_hook,
    "torch.nn.functional.relu": patch_relu,
    "BatchNorm2d.forward": patch_class,
}


@pytest.mark.parametrize("what", GLOBAL)
def test_global_cheats_are_named_and_undone(what):
    relu, forward_of_norm = F.relu, nn.BatchNorm2d.forward
    states = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())
    threads = torch.get_num_threads()
    outcome = run(GLOBAL[what])
    assert outcome.value is None
    assert what in outcome.problem
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled()
    assert F.relu is relu
    assert nn.BatchNorm2d.forward is forward_of_norm
    assert not nn.modules.module._global_forward_hooks
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tobytes() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_drawing_from_torchs_generator_is_no_cheat():
    assert run(lambda _: ProxyScore(float(torch.rand(())))).value is not None


def weights(model):
    model.fc.weight.data.zero_()


def buffers(model):
    model.stem[1].running_mean.add_(1.0)


def gradients(model):
    model(digits(2).image).sum().backward()


def mode(model):
    model.stage1[0].eval()


def hooks(model):
    model.stage1.register_forward_hook(lambda *_: None)


def attribute(model):
    model.stem.forward = lambda x: x


def replaced(model):
    model.fc = nn.Linear(16, 10)


def added(model):
    model.stem.register_parameter("mask", nn.Parameter(torch.ones(1)))


def frozen(model):
    model.fc.weight.requires_grad_(False)


MODEL = {
    "fc.weight of the": weights,
    "stem.1.running_mean of the": buffers,
    "the gradient of stem.0.weight": gradients,
    "the train/eval mode of module 'stage1.0": mode,
    "forward hooks of module 'stage1'": hooks,
    "new attributes of module 'stem' of the": attribute,
    "modules of the": replaced,
    "parameters of module 'stem'": added,
    "requires_grad of fc.weight": frozen,
}


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("what", MODEL)
def test_reaching_past_the_copy_is_named_and_undone(what, side):
    mine, other = built(SmallResNet).train(), built(SmallResNet, seed=1).train()
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    sides = {"model": mine, "teacher": other} if side == "student" else {"model": other, "teacher": mine}
    outcome = run(lambda _: MODEL[what](mine), tags=ProxyTags(needs_teacher=True), **sides)
    assert outcome.value is None
    assert what in outcome.problem
    assert side in outcome.problem
    after = mine.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(module.training and not module._forward_hooks for module in mine.modules())
    assert all(p.grad is None and p.requires_grad for p in mine.parameters())
    assert "forward" not in vars(mine.stem)
    assert Guard({"student": mine}).settle() == []


def test_a_long_list_of_changes_is_shortened():
    model = built(SmallResNet)

    def act(candidate):
        for parameter in model.parameters():
            parameter.data.add_(1.0)

    assert "more" in run(act, model).problem


def test_nan_weights_are_no_change():
    model = built(SmallResNet)
    model.fc.weight.data.fill_(math.nan)
    assert run(lambda _: None, model).value == 1.0


# ---- pools ---------------------------------------------------------------------------------------------------------


def outcomes(*values):
    return {f"c{i}": ProxyOutcome(value) for i, value in enumerate(values)}


def test_failures_rank_last_and_ties_share_a_rank():
    assert rank_pool(outcomes(1.0, None, 5.0, 1.0, None)) == {"c0": 2.5, "c1": 4.5, "c2": 1.0, "c3": 2.5, "c4": 4.5}
    assert rank_pool({}) == {}


def test_pool_proxies_are_aggregated_without_the_failures():
    class Centred(Proxy):
        def score(self, candidate):
            return ProxyScore(0.0)

        def aggregate(self, pool):
            mean = sum(score.parts["x"] for score in pool) / len(pool)
            return [score.parts["x"] - mean for score in pool]

    pool = {
        "a": ProxyOutcome(0.0, {"x": 1.0}),
        "b": ProxyOutcome(None, problem="it broke"),
        "c": ProxyOutcome(0.0, {"x": 5.0}),
    }
    assert pool_values(pool, Centred()) == {"a": -2.0, "b": None, "c": 2.0}
    assert rank_pool(pool, Centred()) == {"a": 2.0, "b": 3.0, "c": 1.0}
    assert pool_values({"b": pool["b"]}, Centred()) == {"b": None}


def test_consensus_is_the_log_rank_sum():
    rows = {
        "a": {"x": 1.0, "y": 3.0},
        "b": {"x": 2.0, "y": 2.0},
        "c": {"x": 3.0, "y": None},
    }
    third, two = math.log(1 / 3), math.log(2 / 3)
    assert consensus(rows) == pytest.approx({"a": third, "b": two + two, "c": third})
    assert consensus({}) == {}


def test_consensus_is_monotone_and_does_not_depend_on_order_or_scale():
    rng = random.Random(0)
    rows = {i: {"x": rng.random(), "y": rng.random(), "z": rng.random()} for i in range(9)}
    plain = consensus(rows)
    assert consensus(dict(reversed(rows.items()))) == pytest.approx(plain)
    assert consensus({i: {**row, "x": math.exp(5 * row["x"])} for i, row in rows.items()}) == pytest.approx(plain)
    better = {**rows, 4: {name: 2.0 for name in "xyz"}}
    assert consensus(better)[4] == pytest.approx(0.0)
    assert consensus(better)[4] >= plain[4]


def test_consensus_refuses_rows_with_different_proxies():
    with pytest.raises(ValueError, match="'b'"):
        consensus({"a": {"x": 1.0}, "b": {"y": 1.0}})
