"""Proxies that break one rule each."""

from __future__ import annotations

import dataclasses
import math

import torch
from zoo_base import Broken

from nasdistill.errors import TrialFailure
from nasdistill.interfaces import Proxy, ProxyScore
from nasdistill.spec.component import ProxySpec, ProxyTags


class Size(Proxy):
    """Logarithm of the number of weights."""

    def score(self, candidate):
        return ProxyScore(math.log(sum(parameter.numel() for parameter in candidate.model.parameters())))


class Spread(Proxy):
    """How much the untrained network's outputs differ between the samples."""

    @torch.no_grad()
    def score(self, candidate):
        output = candidate.forward(candidate.model, candidate.batch).double()
        return ProxyScore(float(output.var(0).sum()), {"size": float(output.abs().mean())})


class Slope(Proxy):
    """Size of the loss gradient."""

    def score(self, candidate):
        candidate.loss(candidate.forward(candidate.model, candidate.batch), candidate.batch).backward()
        return ProxyScore(sum(float(weight.grad.norm()) for weight in candidate.model.parameters()))


class TwoSlopes(Slope):
    """Sizes of two gradients, of the loss and of the outputs' size, each with a backward pass of its own."""

    def score(self, candidate):
        first = super().score(candidate).value
        candidate.model.zero_grad()
        candidate.forward(candidate.model, candidate.batch).square().mean().backward()
        return ProxyScore(first + sum(float(weight.grad.norm()) for weight in candidate.model.parameters()))


class Distance(Proxy):
    """Distance of the outputs to the teacher's, negative."""

    @torch.no_grad()
    def score(self, candidate):
        return ProxyScore(-float((self.outputs(candidate) - self.reference(candidate)).abs().mean()))

    def outputs(self, candidate):
        return candidate.forward(candidate.model, candidate.batch)

    def reference(self, candidate):
        return candidate.forward(candidate.teacher, candidate.batch)


class Noisy(Spread):
    """The spread of the outputs under noisy weights, drawn from the generator."""

    def score(self, candidate):
        for weight in candidate.model.parameters():
            weight.data += 0.1 * torch.randn(weight.shape, generator=candidate.generator)
        return super().score(candidate)


class Ranked(Spread):
    """Sum of the log ranks of two parts in a pool."""

    def aggregate(self, pool):
        rows = [[score.value for score in pool], [score.parts["size"] for score in pool]]
        places = [[1 + sum(other < value for other in row) for value in row] for row in rows]
        return [sum(math.log(row[i] / len(pool)) for row in places) for i in range(len(pool))]


class Stages(Spread):
    """Scores networks with stages only, and says so."""

    def score(self, candidate):
        if not hasattr(candidate.model, "stage1"):
            raise TrialFailure("unsupported", "the network has no stages")
        return super().score(candidate)

    examples = (dataclasses.replace(Proxy.examples[0], context={"families": ("resnet",)}),)


# -- broken ones ------------------------------------------------------------------------------------------------------


class Patching(Spread):
    """Replaces the forward of the model's class."""

    def score(self, candidate):
        kind = type(candidate.model)
        forward = kind.forward
        kind.forward = lambda self, *inputs: forward(self, *inputs)
        return super().score(candidate)


class Convolutions(Spread):
    """Divides by the number of batch normalisations, of which a transformer has none."""

    def score(self, candidate):
        norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in candidate.model.modules())
        return ProxyScore(super().score(candidate).value / norms if norms else math.nan)


class OddPart(Spread):
    """One of its parts is undefined."""

    def score(self, candidate):
        return ProxyScore(super().score(candidate).value, {"layer7": math.nan})


class FirstSample(Spread):
    """Looks at the first sample most."""

    @torch.no_grad()
    def score(self, candidate):
        output = candidate.forward(candidate.model, candidate.batch)
        return ProxyScore(float(output.std() + output[0].std()))


class Ones(Spread):
    """Puts ones in place of the data."""

    @torch.no_grad()
    def score(self, candidate):
        inputs = {name: torch.ones_like(value) for name, value in candidate.batch.inputs.items()}
        batch = dataclasses.replace(candidate.batch, inputs=inputs)
        return ProxyScore(float(candidate.forward(candidate.model, batch).abs().sum()))


class Unsupervised(Proxy):
    """A gradient that needs no labels."""

    def score(self, candidate):
        candidate.forward(candidate.model, candidate.batch).square().sum().backward()
        return ProxyScore(sum(float(weight.grad.norm()) for weight in candidate.model.parameters()))


class Opportunist(Spread):
    """Takes a teacher into account where it can get one."""

    def score(self, candidate):
        bonus = 0.0 if candidate.teacher is None else 1.0
        return ProxyScore(super().score(candidate).value + bonus)


class Evaluating(Spread):
    """Scores in eval mode, whatever it says."""

    def score(self, candidate):
        candidate.model.eval()
        return super().score(candidate)


class Sorted(Ranked):
    """Returns the pool's values in an order of its own."""

    def aggregate(self, pool):
        return sorted(super().aggregate(pool))


class Shortened(Ranked):
    """Leaves out the last of the pool."""

    def aggregate(self, pool):
        return super().aggregate(pool)[:-1]


def first_filters(model):
    """The first convolution's weights, a row for each filter; None without one."""
    found = [module.weight.detach().flatten(1) for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    return found[0] if found else None


class Correlated(Spread):
    """Correlates the first two filters of the first layer."""

    def score(self, candidate):
        filters = first_filters(candidate.model)
        same = 0.0 if filters is None else float(torch.corrcoef(filters)[0, 1])
        return ProxyScore(super().score(candidate).value - same)


class Picky(Spread):
    """Wants three filters at least."""

    def score(self, candidate):
        filters = first_filters(candidate.model)
        if filters is None or len(filters) < 3:
            raise TrialFailure("too_small", "the network has fewer than three filters")
        return super().score(candidate)


class Repairing(Spread):
    """Turns NaN into 0."""

    def score(self, candidate):
        value = super().score(candidate).value
        return ProxyScore(0.0 if math.isnan(value) else value)


class Swallowing(Spread):
    """Gives networks that fail the score 0."""

    def score(self, candidate):
        try:
            return super().score(candidate)
        except RuntimeError:
            return ProxyScore(0.0)


class Rewording(Spread):
    """Keeps to itself what a network raised."""

    def score(self, candidate):
        try:
            return super().score(candidate)
        except RuntimeError:
            raise TrialFailure("failed", "the score could not be computed") from None


class Greedy(Spread):
    """Averages over all the batches that it can get."""

    def score(self, candidate):
        single = [dataclasses.replace(candidate, batches=(batch,)) for batch in candidate.batches]
        return ProxyScore(sum(super(Greedy, self).score(item).value for item in single) / len(single))


class Eager(Slope):
    """Prepares a weight in its constructor, with a gradient only where gradients are on."""

    def __init__(self, options=None, *, host=None):
        super().__init__(options, host=host)
        self.weight = 1.0 + torch.is_grad_enabled()

    def score(self, candidate):
        return ProxyScore(self.weight * super().score(candidate).value)


class Forgetful(Distance):
    """Takes the first teacher that it meets for that of all candidates."""

    def reference(self, candidate):
        if not hasattr(self, "kept"):
            self.kept = super().reference(candidate)
        return self.kept


def spec(name, cls, **tags):
    return ProxySpec(
        name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",), tags=ProxyTags(**tags)
    )


BACKWARD = {"needs_backward": True, "cost": "backward"}
LABELS = {**BACKWARD, "needs_labels": True}
SOUND = [
    spec("size", Size, needs_data=False, cost="analytic"),
    spec("spread", Spread),
    spec("slope", Slope, **LABELS),
    spec("two_slopes", TwoSlopes, needs_labels=True, needs_backward=True, cost="heavy"),
    spec("distance", Distance, needs_teacher=True),
    spec("noisy", Noisy, stochastic=True),
    spec("ranked", Ranked, pool=True),
    spec("stages", Stages),
    spec("redrawn", Spread, init="normal"),
    spec("evaluating", Evaluating, mode="eval"),
]
BROKEN = [
    Broken("callers_objects_are_left_alone", spec("patching", Patching), "forward (it was replaced)"),
    Broken("score_is_finite", spec("convolutions", Convolutions), "small vit"),
    Broken("parts_are_finite", spec("odd_part", OddPart), "'layer7'"),
    Broken("order_of_the_batch_does_not_matter", spec("first_sample", FirstSample), "another order"),
    Broken("needs_data_is_true", spec("ones", Ones), "needs_data=True"),
    Broken("needs_data_is_true", spec("reads_data", Spread, needs_data=False), "needs_data=False"),
    Broken("needs_labels_is_true", spec("unsupervised", Unsupervised, **LABELS), "needs_labels=True"),
    Broken("needs_labels_is_true", spec("supervised", Slope, **BACKWARD), "needs_labels=False"),
    Broken("needs_teacher_is_true", spec("alone", Spread, needs_teacher=True), "needs_teacher=True"),
    Broken("needs_teacher_is_true", spec("opportunist", Opportunist), "needs_teacher=False"),
    Broken("needs_backward_is_true", spec("idle", Spread, needs_backward=True), "no backward pass runs"),
    Broken("needs_backward_is_true", spec("secret", Slope, needs_labels=True, cost="backward"), "needs_backward=False"),
    Broken("cost_is_true", spec("no_forward", Size, needs_data=False, cost="forward"), "it is analytic"),
    Broken("cost_is_true", spec("no_backward", Spread, cost="backward"), "no backward pass runs"),
    Broken("cost_is_true", spec("runs", Spread, cost="analytic"), "although the analytic cost is given"),
    Broken("cost_is_true", spec("dear", Slope, needs_labels=True, needs_backward=True, cost="forward"), "a backward"),
    Broken("cost_is_true", spec("light", Slope, needs_labels=True, needs_backward=True, cost="heavy"), "one each"),
    Broken("cost_is_true", spec("much", TwoSlopes, **LABELS), "it is heavy"),
    Broken("mode_is_true", spec("eval", Evaluating), "runs in eval mode"),
    Broken("stochastic_is_true", spec("random", Noisy), "stochastic=False"),
    Broken("stochastic_is_true", spec("fixed", Spread, stochastic=True), "the same score"),
    Broken("pool_is_true", spec("own_value", Spread, pool=True), "keep their values"),
    Broken("pool_is_true", spec("secretly_ranked", Ranked), "pool=False"),
    Broken("aggregate_keeps_the_pool", spec("sorted", Sorted, pool=True), "in the order"),
    Broken("aggregate_keeps_the_pool", spec("shortened", Shortened, pool=True), "4 candidates are aggregated to"),
    Broken("smallest_networks_work", spec("correlated", Correlated), "raises IndexError"),
    Broken("smallest_networks_work", spec("picky", Picky), "fewer than three filters"),
    Broken("nan_weights_have_no_score", spec("repairing", Repairing), "the score 0.0"),
    Broken("failing_networks_have_no_score", spec("swallowing", Swallowing), "the score 0.0"),
    Broken("failing_networks_have_no_score", spec("rewording", Rewording), "could not be computed"),
    Broken("more_batches_are_ignored", spec("greedy", Greedy), "one batch more"),
    Broken("callers_context_does_not_matter", spec("eager", Eager, **LABELS), "within torch.no_grad"),
    Broken("remembers_nothing_that_matters", spec("forgetful", Forgetful, needs_teacher=True), "a fresh component"),
]
