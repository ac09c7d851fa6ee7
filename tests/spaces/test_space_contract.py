"""What every space promises, for the bundled ones: points, canonical form, cost, graph, building, reading garbage."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import networkx as nx
import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nasdistill.errors import ArchitectureError, ConfigError
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec

NAMES = ("conv_vit", "resnet_s0")
DIGITS = IOSpec("image", (1, 8, 8), 10)
INPUTS = (DIGITS, IOSpec("image", (3, 32, 32), 7), IOSpec("image", (3, 64, 64), 5), IOSpec("image", (2, 11, 6), 3))
QUICK = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = {
    "conv_vit": {"width": [16, 32], "depth": [1, 2], "heads": [1, 2], "mlp_ratio": [1], "attention": ["softmax"]},
    "resnet_s0": {"width": [8, 16], "blocks": [1, 2], "stages": [1, 2]},
}


@pytest.fixture(params=NAMES)
def space(request, host):
    return host.create(Kind.SEARCH_SPACE, request.param)


@pytest.fixture(params=NAMES)
def small(request, host):
    return host.create(Kind.SEARCH_SPACE, request.param, SMALL[request.param])


def draw(space, seed: int) -> Architecture:
    return space.sample(random.Random(seed))


# ---- points ---------------------------------------------------------------------------------------------------------


@MANY
@given(seed=st.integers(0, 2**32))
def test_samples_are_canonical_valid_and_survive_json(space, seed):
    arch = draw(space, seed)
    space.check(arch)
    assert set(arch.params) == {axis.name for axis in space.axes()}
    again = Architecture.from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert hash(again) == hash(arch)
    assert again.fingerprint == arch.fingerprint
    assert space.architecture(arch.params) == arch
    assert space.architecture(space.features(arch)) == arch  # the inactive axes say nothing


def test_fingerprints_are_equal_in_another_process(space):
    archs = [draw(space, seed) for seed in range(5)]
    code = (
        "import json, sys\n"
        "from nasdistill.spec.architecture import Architecture\n"
        "print(json.dumps([Architecture.from_json(v).fingerprint for v in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([arch.to_json() for arch in archs]),
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "12345"},
    )  # fmt: skip
    assert json.loads(done.stdout) == [arch.fingerprint for arch in archs]


def test_axes_are_stable_and_defaults_are_choices(space, host):
    again = host.create(Kind.SEARCH_SPACE, space.id)
    facts = [(a.name, a.choices, a.default, a.ordered) for a in space.axes()]
    assert facts == [(a.name, a.choices, a.default, a.ordered) for a in space.axes()]
    assert facts == [(a.name, a.choices, a.default, a.ordered) for a in again.axes()]
    assert len({a.name for a in space.axes()}) == len(facts)
    for axis in space.axes():
        assert len({type(choice) for choice in axis.choices}) == 1


@MANY
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 3))
def test_mutation_and_crossover_stay_inside(space, seed, changes):
    rng = random.Random(seed)
    first, second = space.sample(rng), space.sample(rng)
    child = space.mutate(first, rng, changes)
    space.check(child)
    assert child != first
    mixed = space.crossover(first, second, rng)
    space.check(mixed)
    shared = [name for name in first.params if first.params[name] == second.params[name]]
    for axis in space.axes():
        if axis.name in shared and axis.is_active(mixed.params):
            assert mixed.params[axis.name] == first.params[axis.name]


@MANY
@given(seed=st.integers(0, 2**32))
def test_mutation_is_local(space, seed):
    rng = random.Random(seed)
    arch = space.sample(rng)
    child = space.mutate(arch, rng)
    active = {a.name for a in space.axes() if a.is_active(arch.params) and a.is_active(child.params)}
    assert sum(arch.params[name] != child.params[name] for name in active) == 1


def test_enumeration_is_complete_and_has_the_closed_form_size(small):
    points = list(small.enumerate())
    assert len(points) == len(set(points)) == small.size()
    assert points == list(small.enumerate())
    found = {small.sample(random.Random(seed)) for seed in range(60)}
    assert found <= set(points)


def test_inactive_axes_do_not_make_another_architecture(space):
    shallow = {axis.name: axis.choices[0] for axis in space.axes()}
    inactive = [axis for axis in space.axes() if not axis.is_active(shallow)]
    assert inactive
    first = space.architecture(shallow)
    for axis in inactive:
        for choice in axis.choices:
            assert space.architecture({**shallow, axis.name: choice}) == first
    other = next(choice for choice in inactive[0].choices if choice != inactive[0].default)
    raw = Architecture.of(space.id, {**first.params, inactive[0].name: other})
    assert any("inactive" in reason for reason in space.validate(raw))


def test_an_invalid_point_is_refused_with_every_reason(space):
    params = dict(space.default().params)
    names = list(params)
    params[names[0]] = 12345
    params[names[1]] = float(params[names[1]])  # 1.0 is not 1 in JSON
    del params[names[2]]
    params["widht"] = 3
    arch = Architecture.of("spaces:other", params, version=99)
    reasons = space.validate(arch)
    for word in ("spaces:other", "version 99", repr(names[0])[1:-1], "12345", repr(names[2]), "widht"):
        assert any(word in reason for reason in reasons), word
    with pytest.raises(ArchitectureError) as caught:
        space.check(arch)
    assert all(reason in caught.value.message for reason in reasons)
    with pytest.raises(ArchitectureError):
        space.build(arch, DIGITS)
    with pytest.raises(ArchitectureError):
        space.cost(arch, DIGITS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_raises_only_architecture_errors(space, data):
    axes = [axis.name for axis in space.axes()]
    value = data.draw(
        JSON
        | st.fixed_dictionaries(
            {"params": st.dictionaries(st.sampled_from(axes) | st.text(max_size=5), JSON, max_size=6) | JSON},
            optional={"space": st.just(space.id) | JSON, "space_version": JSON, "format": JSON, "fingerprint": JSON},
        )
        | st.builds(
            lambda changes: {"space": space.id, "params": {**space.default().params, **changes}},
            st.dictionaries(st.sampled_from(axes), JSON, max_size=3),
        )
    )
    try:
        arch = Architecture.from_json(value)
        space.check(arch)
    except ArchitectureError as error:
        assert str(error)
    else:
        assert arch.space == space.id
        space.cost(arch, DIGITS)


# ---- optuna ---------------------------------------------------------------------------------------------------------


def test_a_fixed_trial_gives_the_point_it_holds(space):
    arch = draw(space, 3)
    trial = optuna.trial.FixedTrial({f"s.{name}": value for name, value in arch.params.items()})
    assert space.suggest(trial, prefix="s.") == arch


def test_a_study_proposes_points_with_all_axes(space):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = []
    for _ in range(8):
        trial = study.ask()
        seen.append(space.suggest(trial))
        assert set(trial.params) == {axis.name for axis in space.axes()}
        study.tell(trial, 0.0)
    for arch in seen:
        space.check(arch)


# ---- networks -------------------------------------------------------------------------------------------------------


def flops(model: torch.nn.Module, image: torch.Tensor) -> int:
    """Counted by torch, with attention as plain matrix products (its fused CPU kernel is not counted)."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


@QUICK
@given(seed=st.integers(0, 2**32), which=st.integers(0, len(INPUTS) - 1))
@pytest.mark.paper("2407.14679", "spaces:conv_vit")
def test_points_build_run_and_cost_what_is_said(host, seed, which):
    io = INPUTS[which]
    for name, options in (
        ("conv_vit", {"attention": ["softmax"], "depth": [1, 2, 3]}),
        ("resnet_s0", {"blocks": [1, 2]}),
    ):
        space = host.create(Kind.SEARCH_SPACE, name, options)
        arch = draw(space, seed)
        model = space.build(arch, io).eval()
        image = torch.randn(2, *io.shape)
        with torch.no_grad():
            logits = model(image)
        assert logits.shape == (2, io.outputs)
        assert logits.isfinite().all()
        cost = space.cost(arch, io)
        assert cost.params == sum(p.numel() for p in model.parameters())
        assert 2 * cost.macs == flops(model, image[:1])


@MANY
@given(seed=st.integers(0, 2**32), which=st.integers(0, len(INPUTS) - 1))
def test_graphs_are_connected_acyclic_and_add_up(space, seed, which):
    arch, io = draw(space, seed), INPUTS[which]
    graph = space.graph(arch, io)
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.is_weakly_connected(graph)
    assert [node for node in graph if graph.in_degree(node) == 0] == ["input"]
    assert [graph.nodes[node]["shape"] for node in graph if graph.out_degree(node) == 0] == [(io.outputs,)]
    for _, data in graph.nodes(data=True):
        assert {"op", "label", "shape", "params"} <= set(data)
    cost = space.cost(arch, io)
    assert sum(data["params"] for _, data in graph.nodes(data=True)) == cost.params
    assert sum(data["macs"] for _, data in graph.nodes(data=True)) == cost.macs


def test_graph_nodes_with_parameters_are_modules_of_the_network(space):
    arch = draw(space, 1)
    model = space.build(arch, DIGITS)
    named = {**dict(model.named_modules()), **dict(model.named_parameters())}
    for name, data in space.graph(arch, DIGITS).nodes(data=True):
        if data["params"]:
            found = named[name]
            own = found.numel() if isinstance(found, torch.Tensor) else sum(p.numel() for p in found.parameters())
            assert own == data["params"], name


def test_the_smallest_point_trains_on_one_image_size_up(space):
    arch = space.architecture({axis.name: axis.choices[0] for axis in space.axes()})
    model = space.build(arch, DIGITS).train()
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_building_draws_from_the_global_generator_only(space):
    arch = draw(space, 5)
    weights = []
    for _ in range(2):
        torch.manual_seed(7)
        weights.append(torch.cat([p.flatten() for p in space.build(arch, DIGITS).parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    "io", [IOSpec("tokens", (16,), 4, 100), IOSpec("image", (8, 8), 4), IOSpec("image", (1, 3, 8), 4)], ids=str
)
def test_other_inputs_are_refused_in_words(space, io):
    reason = space.accepts(io)
    assert reason
    assert str(io.shape) in reason
    for method in (space.build, space.cost, space.graph):
        with pytest.raises(ArchitectureError, match="cannot be built"):
            method(space.default(), io)


def test_options_are_checked(host):
    for name, options in (
        ("conv_vit", {"depht": [1]}),
        ("conv_vit", {"depth": []}),
        ("conv_vit", {"width": [32, 32]}),
        ("conv_vit", {"attention_options": {"window": {}}, "attention": ["softmax"]}),
        ("conv_vit", {"head_dim": 0, "width": [32], "heads": [3]}),
        ("resnet_s0", {"stem_stride": [3]}),
        ("resnet_s0", {"blocks": [0, 1]}),
    ):
        with pytest.raises(ConfigError):
            host.create(Kind.SEARCH_SPACE, name, options)


def test_choices_may_be_given_in_any_order(host):
    one = host.create(Kind.SEARCH_SPACE, "resnet_s0", {"blocks": [3, 1], "width": [32, 16]})
    two = host.create(Kind.SEARCH_SPACE, "resnet_s0", {"blocks": [1, 3], "width": [16, 32]})
    assert one.axes()[0].choices == two.axes()[0].choices == (16, 32)
    assert one.default() == two.default()
