"""What the bundled spaces promise beyond the contract suite, over many points: costs, locality, reading garbage."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nasdistill.errors import ArchitectureError, ConfigError
from nasdistill.measure.counting import count_macs, count_params
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill.testing import Example, generate_checks

NAMES = ("conv_vit", "resnet_s0")
DIGITS = IOSpec("image", (1, 8, 8), 10)
INPUTS = (DIGITS, IOSpec("image", (3, 32, 32), 7), IOSpec("image", (3, 64, 64), 5), IOSpec("image", (2, 11, 6), 3))


def examples(number: int) -> settings:
    return settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=NAMES)
def space(request, host):
    return host.create(Kind.SEARCH_SPACE, request.param)


def draw(space, seed: int) -> Architecture:
    return space.sample(random.Random(seed))


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


@examples(40)
@given(seed=st.integers(0, 2**32))
def test_mutation_is_local(space, seed):
    rng = random.Random(seed)
    arch = space.sample(rng)
    child = space.mutate(arch, rng)
    active = {a.name for a in space.axes() if a.is_active(arch.params) and a.is_active(child.params)}
    assert sum(arch.params[name] != child.params[name] for name in active) == 1


MOVES = {
    "samples_are_points", "points_survive_json", "mutation_stays_inside", "crossover_stays_inside",
    "suggestions_are_points", "layer_map_is_in_range",
}  # fmt: skip
OPTIONS = {
    "conv_vit": st.fixed_dictionaries({"depth": st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)}),
    "resnet_s0": st.fixed_dictionaries({"blocks": st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)}),
}


@examples(10)
@given(seed=st.integers(0, 2**32), data=st.data())
@pytest.mark.parametrize("name", NAMES)
def test_the_suites_checks_of_points_hold_for_any_seed_and_options(host, name, seed, data):
    record = host.record(Kind.SEARCH_SPACE, name)
    use = Example(data.draw(OPTIONS[name]))
    found = [bound for bound in generate_checks(host, record, examples=[use], seed=seed) if bound.check.name in MOVES]
    assert {bound.check.name for bound in found} == MOVES
    for bound in found:
        bound.check.run(bound.subject)  # without the gates, which build networks


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@examples(80)
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


@examples(6)
@given(seed=st.integers(0, 2**32), which=st.integers(0, len(INPUTS) - 1))
@pytest.mark.paper("2407.14679", "spaces:conv_vit")
def test_points_cost_what_is_said_whatever_the_image(host, seed, which):
    io = INPUTS[which]
    for name, options in (("conv_vit", {"depth": [1, 2, 3]}), ("resnet_s0", {"blocks": [1, 2]})):
        space = host.create(Kind.SEARCH_SPACE, name, options)
        arch = draw(space, seed)
        model = space.build(arch, io)
        cost = space.cost(arch, io)
        assert cost.params == count_params(model)
        assert cost.macs == count_macs(model, (torch.randn(1, *io.shape),))
        assert [data["shape"] for node, data in space.graph(arch, io).nodes(data=True)][-1] == (io.outputs,)


def test_graph_nodes_with_parameters_are_modules_of_the_network(space):
    arch = draw(space, 1)
    model = space.build(arch, DIGITS)
    named = {**dict(model.named_modules()), **dict(model.named_parameters())}
    for name, data in space.graph(arch, DIGITS).nodes(data=True):
        if data["params"]:
            found = named[name]
            own = found.numel() if isinstance(found, torch.Tensor) else sum(p.numel() for p in found.parameters())
            assert own == data["params"], name


@pytest.mark.parametrize(
    "io", [IOSpec("tokens", (16,), 4, 100), IOSpec("image", (8, 8), 4), IOSpec("image", (1, 3, 8), 4)], ids=str
)
def test_other_inputs_are_refused_in_words(space, io):
    assert str(io.shape) in space.accepts(io)
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
