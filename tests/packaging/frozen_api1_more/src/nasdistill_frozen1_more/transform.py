"""Linear layers whose weights are rounded to a grid; a grid of zero rounds nothing."""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import nn

from nasdistill.interfaces import Example, Transform, Transformed
from nasdistill.spec.options import ComponentOptions


class RoundedOptions(ComponentOptions):
    """Options of `rounded`."""

    step: float = Field(0.05, ge=0, le=1, description="Width of the grid; 0 keeps the weights.")


class Grid(nn.Module):
    """A linear layer with a scale of its own."""

    def __init__(self, features, outputs, bias):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(features, outputs, bias)

    def forward(self, x):
        return self.scale * self.linear(x)


class Rounded(Transform):
    """See the module's text."""

    options_model = RoundedOptions
    examples = (Example(name="coarse"), Example({"step": 0.0}, name="identity"))

    def apply(self, model, calibration, forward):
        config = {"layers": [name for name, layer in model.named_modules() if type(layer) is nn.Linear]}
        found = self.rebuild(model, config)
        with torch.no_grad():
            for name in config["layers"]:
                old, new = model.get_submodule(name), found.get_submodule(name)
                step = self.options.step
                new.linear.weight.copy_((old.weight / step).round() * step if step else old.weight)
                if old.bias is not None:
                    new.linear.bias.copy_(old.bias)
        return Transformed(found, {"layers": len(config["layers"])}, config)

    def rebuild(self, model, config):
        found = copy.deepcopy(model)
        for name in config["layers"]:
            old = found.get_submodule(name)
            layer = Grid(old.in_features, old.out_features, old.bias is not None)
            layer.to(old.weight.device, old.weight.dtype).train(old.training)
            parent, _, attribute = name.rpartition(".")
            setattr(found.get_submodule(parent), attribute, layer)
        return found
