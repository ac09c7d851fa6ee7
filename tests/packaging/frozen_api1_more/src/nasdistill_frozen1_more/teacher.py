"""A teacher with two fixed filters: one for standing bars, one for lying ones; further outputs are random."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from nasdistill.errors import MismatchError, UsageError, did_you_mean
from nasdistill.interfaces import Example, SingleTeacher, Teacher
from nasdistill.seeds import seeded
from nasdistill.spec.options import ComponentOptions
from nasdistill.weights import model_hash

FILTERS = {"long": 8, "short": 4}


class EdgesOptions(ComponentOptions):
    """Options of `edges`."""

    sharpness: float = Field(4.0, gt=0, le=100, description="What the logits are multiplied by.")


class EdgeNet(nn.Module):
    """(B, C, H, W) -> (B, K)."""

    def __init__(self, channels, outputs, length, sharpness):
        super().__init__()
        self.standing = nn.Conv2d(channels, 1, (length, 1), bias=False)
        self.lying = nn.Conv2d(channels, 1, (1, length), bias=False)
        self.head = nn.Linear(2, outputs)
        with torch.no_grad():
            self.standing.weight.fill_(1 / (length * channels))
            self.lying.weight.fill_(1 / (length * channels))
            self.head.weight[:2] = sharpness * torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
            self.head.bias.zero_()

    def forward(self, image):
        found = [part(image).amax((1, 2, 3)) for part in (self.standing, self.lying)]
        return self.head(torch.stack(found, 1))


class Edges(Teacher):
    """See the module's text."""

    options_model = EdgesOptions
    examples = (Example(context={"locator": "long", "other_locator": "short"}),)

    @classmethod
    def locators(cls):
        return tuple(FILTERS)

    def open(self, locator, task, *, cache_dir, device="cpu", progress=None):
        if locator not in FILTERS:
            raise UsageError(f"{self.id} has no filters {locator!r}. {did_you_mean(locator, FILTERS)}")
        if task.io.kind != "image":
            raise MismatchError(f"{self.id} needs images, the task is {task.io}")
        with seeded(0, "edges"):
            model = EdgeNet(task.io.shape[0], task.io.outputs, FILTERS[locator], self.options.sharpness)
        label = f"{self.id}:{locator}"
        task.check(model, label)
        return SingleTeacher(model.to(device), label=label, fingerprint=model_hash(model))
