"""Transforms that are sound but for one thing."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from zoo_base import Broken

from nasdistill.errors import MismatchError
from nasdistill.interfaces import Example, Site, Transform, Transformed
from nasdistill.measure import count_params
from nasdistill.spec.component import TransformSpec
from nasdistill.spec.io import Cost
from nasdistill.spec.options import ComponentOptions
from nasdistill.testing.kit.traces import Text


class Keep(ComponentOptions):
    """How much stays."""

    keep: float = Field(0.5, gt=0, le=1, description="Share that stays.")


class Masked(nn.Module):
    """A linear layer, some of whose weights count as zero."""

    def __init__(self, layer):
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Sound(Transform):
    """Magnitude pruning: in each linear layer the largest weights stay."""

    options_model = Keep
    examples = (Example(), Example({"keep": 1.0}, name="identity"))
    layer = Masked

    def apply(self, model, calibration, forward):
        self.prepare(model, calibration, forward)
        config = {"layers": [name for name, layer in model.named_modules() if type(layer) is nn.Linear]}
        found = self.rebuild(model, config)
        for name in config["layers"]:
            layer = found.get_submodule(name)
            kept = max(1, round(self.options.keep * layer.weight.numel()))
            score = self.score(model.get_submodule(name)).flatten()
            mask = torch.zeros_like(score).scatter_(0, score.topk(kept).indices, 1.0)
            layer.mask.copy_(mask.view_as(layer.mask))
        return self.told(found, config, model)

    def prepare(self, model, calibration, forward):
        pass

    def score(self, layer):
        return layer.weight.detach().abs()

    def told(self, found, config, model):
        layers = [found.get_submodule(name) for name in config["layers"]]
        return Transformed(
            found,
            {"kept": float(sum(layer.mask.sum() for layer in layers))},
            config,
            losses=lambda: {"l1": sum(layer.weight.abs().mean() for layer in layers)},
            cost=Cost(count_params(found), 0),
        )

    def rebuild(self, model, config):
        found = copy.deepcopy(model)
        for name in config["layers"]:
            parent, _, attribute = name.rpartition(".")
            setattr(found.get_submodule(parent), attribute, self.layer(model.get_submodule(name)))
        return found


def text():
    return Text(16, 2, 2)


TEXT = {"model": f"{__name__}:text", "batch": "nasdistill.testing.kit.traces:text_batch"}


class Textual(Sound):
    """The same, tried on text."""

    examples = (Example(context=TEXT), Example({"keep": 1.0}, TEXT, "identity"))


class Few(nn.Module):
    """A linear layer that reads some of its inputs."""

    def __init__(self, layer, kept):
        super().__init__()
        self.linear = nn.Linear(kept, layer.out_features)
        self.register_buffer("index", torch.arange(kept))

    def forward(self, x):
        return self.linear(x[..., self.index])


class Selecting(Transform):
    """The classifier reads the inputs with the largest weights; it asks that these are normalised."""

    options_model = Keep
    examples = Sound.examples

    def apply(self, model, calibration, forward):
        if not any(isinstance(module, nn.LayerNorm) for module in model.modules()):
            raise MismatchError("the classifier's inputs are not normalised, so their weights say nothing")
        layer = model.head
        kept = max(1, round(self.options.keep * layer.in_features))
        index = layer.weight.detach().norm(dim=0).topk(kept).indices.sort().values
        found = self.rebuild(model, {"kept": kept})
        with torch.no_grad():
            found.head.index.copy_(index)
            found.head.linear.weight.copy_(layer.weight[:, index])
            found.head.linear.bias.copy_(layer.bias)
        return Transformed(found, {}, {"kept": kept}, {Site("pooled"): self.kept(index)})

    def kept(self, index):
        return index

    def rebuild(self, model, config):
        found = copy.deepcopy(model)
        found.head = Few(model.head, config["kept"])
        return found


ONE = {"model": "SmallResNet"}


class Quick(Sound):
    """The same, tried on one network only."""

    examples = (Example(context=ONE), Example({"keep": 1.0}, ONE, "identity"))


class Choosy(Quick):
    """Fits nothing."""

    def apply(self, model, calibration, forward):
        raise MismatchError("this network has no mixture of experts")


class Crude(Selecting):
    """Stumbles over a network that it does not fit."""

    def apply(self, model, calibration, forward):
        assert hasattr(model, "head"), "no head"
        return super().apply(model, calibration, forward)


class Switching(Quick):
    """Leaves its input in training mode."""

    def prepare(self, model, calibration, forward):
        model.train()


class SharingLayer(Masked):
    def __init__(self, layer):
        super().__init__(layer)
        self.bias = layer.bias


class Sharing(Quick):
    """Takes the biases over as they are."""

    layer = SharingLayer


class Whitening(Quick):
    """Normalises the caller's images."""

    def prepare(self, model, calibration, forward):
        for batch in calibration:
            batch.image.sub_(batch.image.mean())


class Supervised(Quick):
    """Takes labels for granted."""

    def prepare(self, model, calibration, forward):
        for batch in calibration:
            int(batch.labels.max())


class Sampled(Quick):
    """Takes calibration data for granted."""

    def prepare(self, model, calibration, forward):
        forward(copy.deepcopy(model), calibration[0])


class Taylor(Quick):
    """Scores by gradients, in whatever mode it is called."""

    def prepare(self, model, calibration, forward):
        twin = copy.deepcopy(model)
        for batch in calibration:
            forward(twin, batch).square().mean().backward()


class SqueezingLayer(Masked):
    def forward(self, x):
        out = super().forward(x)
        return out.squeeze(0) if out.shape[-1] == 10 else out


class Squeezing(Quick):
    """Loses the axis of a batch of one."""

    layer = SqueezingLayer


class Silent(Quick):
    """Names no setting that changes nothing."""

    examples = (Example(context=ONE),)


class HalfLayer(Masked):
    def forward(self, x):
        return F.linear(x, (self.weight * self.mask).half().float(), self.bias)


class Rounding(Quick):
    """Rounds in any case."""

    layer = HalfLayer


class Remembering(Quick):
    """Rebuilds what it remembers."""

    def prepare(self, model, calibration, forward):
        self.names = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]

    def rebuild(self, model, config):
        return super().rebuild(model, {"layers": self.names})


class ForgetfulLayer(Masked):
    def __init__(self, layer):
        super().__init__(layer)
        mask = self.mask
        del self.mask
        self.register_buffer("mask", mask, persistent=False)


class Forgetful(Quick):
    """Stores no masks."""

    layer = ForgetfulLayer


class ClosedLayer(Masked):
    def __init__(self, layer):
        super().__init__(layer)
        self.compute = lambda x: F.linear(x, self.weight * self.mask, self.bias)

    def forward(self, x):
        return self.compute(x)


class Closed(Quick):
    """Computes in a closure, which no copy takes along."""

    layer = ClosedLayer


class DetachedLayer(Masked):
    def forward(self, x):
        return F.linear(x, self.weight.detach() * self.mask, self.bias)


class Detached(Quick):
    """Computes with detached weights."""

    layer = DetachedLayer


class Telling(Quick):
    """Changes something about what it tells."""

    @staticmethod
    def change(result, model):
        raise NotImplementedError

    def told(self, found, config, model):
        result = super().told(found, config, model)
        self.change(result, model)
        return result


class Verbose(Telling):
    """Reports tensors."""

    @staticmethod
    def change(result, model):
        result.report["masks"] = torch.ones(2)


class Sparse(Telling):
    """Counts what is not zero."""

    @staticmethod
    def change(result, model):
        result.cost = Cost(count_params(result.model) - 1, 0)


class Frozen(Telling):
    """Its losses train nothing."""

    @staticmethod
    def change(result, model):
        terms = result.losses
        result.losses = lambda: {name: value.detach() for name, value in terms().items()}


class Stale(Telling):
    """Its losses are of the first forward for ever."""

    @staticmethod
    def change(result, model):
        terms = {name: value * 1.0 for name, value in result.losses().items()}
        result.losses = lambda: terms


class Floating(Selecting):
    """Says the kept channels as numbers with a point."""

    def kept(self, index):
        return index.float()


class Repeating(Selecting):
    """Names a channel twice."""

    def kept(self, index):
        return torch.cat([index, index[:1]])


class Beyond(Selecting):
    """Counts channels from 1, and beyond the last."""

    def kept(self, index):
        return index + 1000


def spec(name, cls):
    return TransformSpec(
        name, f"{__name__}:{cls.__name__}", "one of the zoo", options=f"{__name__}:Keep", references=("original",)
    )


SOUND = [spec("sound", Sound), spec("selecting", Selecting), spec("textual", Textual)]
BROKEN = [
    Broken("fits_a_network", spec("choosy", Choosy), "refuses every network"),
    Broken("refuses_in_order", spec("crude", Crude), "AssertionError instead of MismatchError"),
    Broken("input_is_left_alone", spec("switching", Switching), "train/eval mode"),
    Broken("shares_no_weights", spec("sharing", Sharing), "bias of the result"),
    Broken("calibration_is_left_alone", spec("whitening", Whitening), "inputs['image'] differs"),
    Broken("labels_may_be_missing", spec("supervised", Supervised), "AttributeError"),
    Broken("calibration_may_be_empty", spec("sampled", Sampled), "IndexError"),
    Broken("grad_mode_plays_no_part", spec("taylor", Taylor), "RuntimeError"),
    Broken("result_computes", spec("squeezing", Squeezing), "shape (10,) instead of (1, 10)"),
    Broken("identity_is_exact", spec("silent", Silent), "no example is named"),
    Broken("identity_is_exact", spec("rounding", Rounding), "move by"),
    Broken("rebuilds_from_config", spec("remembering", Remembering), "AttributeError while rebuilding"),
    Broken("rebuilds_from_config", spec("forgetful", Forgetful), "off by"),
    Broken("result_can_be_copied", spec("closed", Closed), "when the original's weights change"),
    Broken("result_trains", spec("detached", Detached), "no gradient reaches"),
    Broken("config_and_report_are_json", spec("verbose", Verbose), "report is not JSON"),
    Broken("index_maps_are_positions", spec("floating", Floating), "torch.float32"),
    Broken("index_maps_are_positions", spec("repeating", Repeating), "more than once"),
    Broken("index_maps_are_positions", spec("beyond", Beyond), "16 channels"),
    Broken("losses_are_scalars", spec("frozen", Frozen), "has no gradient"),
    Broken("losses_are_scalars", spec("stale", Stale), "second time"),
    Broken("cost_counts_parameters", spec("sparse", Sparse), "parameters are counted"),
]
