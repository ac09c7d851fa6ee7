"""Images of one bar in noise: does it stand or lie? Everything is drawn from a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from nasdistill.files import content_hash
from nasdistill.interfaces import Batch, Example, Metric, Task
from nasdistill.seeds import torch_generator
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import ComponentOptions


class BarsOptions(ComponentOptions):
    """Options of `bars`."""

    images: int = Field(120, ge=20, le=1200, description="Images of all splits together.")


class Bars(Task):
    """Standing (1) or lying (0)."""

    options_model = BarsOptions
    metric: ClassVar[Metric] = Metric("accuracy")
    examples = (Example(context={"other_options": {"images": 60}}),)

    def prepare(self, cache_dir=None, progress=None):
        if hasattr(self, "_parts"):
            return
        n, draw = self.options.images, torch_generator(0, "bars")
        labels = torch.arange(n) % 2
        images = 0.3 * torch.randn(n, 1, 8, 8, generator=draw)
        for number, place in enumerate(torch.randint(0, 8, (n,), generator=draw).tolist()):
            if labels[number]:
                images[number, 0, :, place] += 1.0
            else:
                images[number, 0, place] += 1.0
        where = torch.arange(n) // 2 % 5
        split = {"train": where < 3, "validation": where == 3, "test": where == 4}
        self._parts = {name: (images[mask], labels[mask]) for name, mask in split.items()}

    @property
    def io(self):
        return IOSpec("image", (1, 8, 8), 2)

    @property
    def fingerprint(self):
        return content_hash({"bars": 1, "images": self.options.images})

    @property
    def preprocessing(self):
        return {"size": [8, 8], "channels": 1}

    def size(self, split):
        return len(self._parts[split][1])

    def batches(self, split, *, batch_size, epoch=0, seed=0, train=False) -> Iterator[Batch]:
        images, labels = self._parts[split]
        ids = torch.arange(len(labels))
        if train:
            ids = ids[torch.randperm(len(ids), generator=torch_generator(seed, "order", epoch))]
        for rows in torch.split(ids, batch_size):
            yield Batch({"image": images[rows]}, labels[rows], rows, None, epoch)

    def forward(self, model, batch):
        return model(batch.image)

    def loss(self, output, batch):
        if batch.labels is None or (batch.labelled is not None and not bool(batch.labelled.any())):
            return output.sum() * 0
        known = slice(None) if batch.labelled is None else batch.labelled
        return F.cross_entropy(output[known], batch.labels[known])

    def score(self, outputs, labels):
        return float((outputs.argmax(1) == labels).double().mean())

    def example(self, batch_size=1):
        images, _ = self._parts["train"]
        return (images[torch.arange(batch_size) % len(images)],)
