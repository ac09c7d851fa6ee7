"""No tag can lie: whichever value of a tag is changed, a check fails; what cannot be told is listed with the reason."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import zoo_attention
import zoo_loss
import zoo_proxy
import zoo_search_space
import zoo_teacher

from nasdistill.spec.component import SPEC_CLASSES, Kind
from nasdistill.testing import isolated_host
from nasdistill.testing.attempt import attempt
from nasdistill.testing.generator import generate_checks
from nasdistill.testing.kit.space import TINY_SPACE

REFUSED = "undeclared_features_are_refused"
UNASKED = "nothing_is_declared_that_cannot_be_asked"
CONVERTED = "converted_models_are_causal"
LAYERS = "undeclared_layers_are_refused"

CHECKS = {
    Kind.ATTENTION: {
        "level": ["works"],
        "causal": ["works", REFUSED, LAYERS, "causality_is_true", "looking_ahead_is_true", CONVERTED],
        "bidirectional": ["works", REFUSED, LAYERS],
        "cross": [REFUSED, LAYERS, "cross_attention_works"],
        "gqa": [REFUSED, LAYERS, "grouped_heads_are_repeated_heads"],
        "padding": [REFUSED, UNASKED, "padded_keys_change_nothing"],
        "bias": [REFUSED, UNASKED, "bias_shifts_the_scores"],
        "exact": ["exact_is_true", "exact_conversion_changes_no_output", "softmax_is_declared_exact"],
        "complexity": ["complexity_is_true"],
        "stateful": ["stateful_is_true", "converted_models_remember_nothing"],
        "returns_map": [REFUSED, UNASKED, "map_is_true"],
        "decodes": [REFUSED, UNASKED, "decoding_equals_the_full_pass"],
        "exportable": ["exportable_is_true"],
        "owns_parameters": ["owns_parameters_is_true"],
        "patterns": [REFUSED, UNASKED, "patterns_are_honoured"],
    },
    Kind.LOSS: {
        "level": ["level_is_true"],
        "needs_labels": ["needs_labels_is_true"],
        "owns_parameters": ["owns_parameters_is_true"],
        "same_width": ["same_width_is_true"],
        "same_heads": ["same_heads_is_true"],
        "same_classes": ["same_classes_is_true"],
        "zero_at_identity": ["zero_at_identity_is_true", "nonzero_at_identity_is_true"],
    },
    Kind.PROXY: {
        "needs_data": ["needs_data_is_true"],
        "needs_labels": ["needs_labels_is_true"],
        "needs_teacher": ["needs_teacher_is_true", "score_is_finite"],
        "needs_backward": ["needs_backward_is_true"],
        "pool": ["pool_is_true"],
        "stochastic": ["stochastic_is_true"],
        "cost": ["cost_is_true"],
        "mode": ["mode_is_true"],
        "init": [],
    },
    Kind.SEARCH_SPACE: {
        "family": ["family_is_true"], "inherits": ["inherits_is_true"], "supernet": ["supernet_is_true"],
    },
    Kind.TARGET: {"clock": ["clock_is_true"], "exports": ["exports_is_true"]},
    Kind.TEACHER: {"cacheable": ["cacheable_is_true"], "locator": []},
}  # fmt: skip
"""Kind -> tag -> the checks that are about it."""

BUNDLED = {
    Kind.ATTENTION: ["attention:softmax", "attention:linear", "attention:window"],
    Kind.LOSS: ["losses:kd", "losses:hidden", "losses:minilm", "losses:relation"],
    Kind.PROXY: ["proxies:params", "proxies:nwot", "proxies:grad_norm", "proxies:zico", "proxies:diswot"],
    Kind.TARGET: ["targets:torch_cpu", "targets:simulated", "targets:onnxruntime_cpu"],
    Kind.TEACHER: ["teachers:torch"],
}
ZOO = {
    zoo_attention: [
        "ahead", "onlycausal", "stepwise", "hierarchical", "sorting", "jumpy", "projected", "swapping", "gaining",
    ],
    zoo_loss: ["maps", "tokens", "right", "offset"],
    zoo_proxy: ["two_slopes", "noisy", "ranked"],
    zoo_search_space: ["elastic", "words", "tokens"],
    zoo_teacher: ["following"],
}  # fmt: skip
"""Bundled and sound components whose tags are changed, between them every value of every tag."""

REQUEST = "a request to the host, which does as it is told: no score contradicts it"
FREE = "it says what is done with signals, and any signal may serve for that"
UNTOLD = {
    ("proxy", "mode"): REQUEST,
    ("proxy", "init"): REQUEST,
    ("teacher", "locator"): "a few words for people",
    ("loss", "level", "relation"): FREE,
    ("loss", "level", "sequence"): FREE,
    ("loss", "level", "diffusion"): FREE,
    ("loss", "level", "feature", "relation"): "it relates samples by their features, which a feature loss reads, too",
    ("attention", "complexity", "n", "sorting"): "sorting is no product, and the products are linear",
}
"""Kind, tag and, where not all are meant, new value and component -> why no check can tell."""

ONLY = {
    "exportable": ("softmax", "jumpy"),
    "complexity": ("softmax", "linear", "window", "hierarchical", "sorting", "swapping"),
}
"""Tags whose checks take longest, and the components of which they are changed."""


def specs():
    """Yield the components."""
    host = isolated_host()
    yield from (host.record(kind, name).spec for kind, names in BUNDLED.items() for name in names)
    yield TINY_SPACE
    for zoo, names in ZOO.items():
        sound = {spec.name: spec for spec in [*zoo.SOUND, *getattr(zoo, "SOUND_IF_QUICK", [])]}
        yield from (sound[name] for name in names)


def choices(tags_class, name) -> tuple[object, ...]:
    """Return the values that a tag can have; none for a text."""
    hint = typing.get_type_hints(tags_class)[name]
    return (False, True) if hint is bool else typing.get_args(hint)


def flips():
    """Yield each component with one tag changed, as test parameters."""
    for spec in specs():
        for tag in dataclasses.fields(spec.tags):
            if spec.name not in ONLY.get(tag.name, (spec.name,)):
                continue
            for value in choices(type(spec.tags), tag.name):
                where = (spec.kind.value, tag.name, value, spec.name)
                if value != getattr(spec.tags, tag.name) and not any(where[:n] in UNTOLD for n in (2, 3, 4)):
                    marks = [pytest.mark.slow] if tag.name == "exportable" else []
                    yield pytest.param(spec, tag.name, value, id="-".join(map(str, where)), marks=marks)


def failing(spec, tag):
    """Return the first check about a tag that fails, and its message."""
    host = isolated_host(spec)
    for bound in generate_checks(host, host.record(spec.kind, f"local:{spec.name}"), thorough=True):
        if bound.check.name in CHECKS[spec.kind][tag]:
            status, message = attempt(lambda bound=bound: bound.check.run(bound.subject), spec.name)
            if status == "failed":
                return bound.check.name, message
    return None


@pytest.mark.parametrize(("spec", "tag", "value"), list(flips()))
def test_a_changed_tag_fails_a_check(spec, tag, value):
    changed = dataclasses.replace(spec, tags=dataclasses.replace(spec.tags, **{tag: value}))
    assert failing(changed, tag) is not None


def test_every_value_of_every_tag_is_changed():
    found = {(p.values[0].kind.value, p.values[1], p.values[2]) for p in flips()}
    missing = []
    for kind, cls in SPEC_CLASSES.items():
        for spec_field in dataclasses.fields(cls):
            if spec_field.name != "tags":
                continue
            tags_class = spec_field.default_factory
            for tag in dataclasses.fields(tags_class):
                assert tag.name in CHECKS[kind]
                for value in choices(tags_class, tag.name):
                    where = (kind.value, tag.name, value)
                    if where not in found and where not in UNTOLD and where[:2] not in UNTOLD:
                        missing.append(where)
    assert missing == []
