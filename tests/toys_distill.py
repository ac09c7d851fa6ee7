"""Small real parts for the tests of the distillation engine: a task, students, a teacher, losses, a factory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nasdistill.errors import MismatchError
from nasdistill.interfaces import (
    Batch,
    DistillationLoss,
    Evaluation,
    Metric,
    ModelGeometry,
    SingleTeacher,
    Site,
    SiteNeeds,
    Split,
    StepInfo,
    Task,
    Terms,
    Trace,
)
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.io import IOSpec
from nasdistill.spec.options import ComponentOptions

CLASSES, SIZE = 4, 6


class ToyOptions(ComponentOptions):
    train: int = Field(100, description="Training samples.")
    labelled: float = Field(1.0, description="Share of the training labels that may be used.")
    poison: int = Field(-1, description="Epoch from which the inputs are not finite.")


class ToyTask(Task):
    """Noisy 6 x 6 images of four fixed patterns; a shift and a little noise as augmentation."""

    options_model = ToyOptions
    metric: ClassVar[Metric] = Metric("accuracy")

    def prepare(self, cache_dir=None, progress=None) -> None:
        if hasattr(self, "_data"):
            return
        generator = torch.Generator().manual_seed(7)
        patterns = torch.randn(CLASSES, 1, SIZE, SIZE, generator=generator)
        self._data = {}
        for split, rows in {"train": self.options.train, "validation": 60, "test": 40}.items():
            labels = torch.randint(CLASSES, (rows,), generator=generator)
            images = patterns[labels] + 0.8 * torch.randn(rows, 1, SIZE, SIZE, generator=generator)
            self._data[split] = (images, labels)

    @property
    def io(self) -> IOSpec:
        return IOSpec("image", (1, SIZE, SIZE), CLASSES)

    @property
    def fingerprint(self) -> str:
        return f"toy-{self.options.model_dump_json()}"

    def size(self, split: Split) -> int:
        return len(self._data[split][0])

    def batches(
        self, split: Split, *, batch_size: int, epoch: int = 0, seed: int = 0, train: bool = False
    ) -> Iterator[Batch]:
        images, labels = self._data[split]
        order = torch.arange(len(images))
        if train:
            generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
            order = torch.randperm(len(images), generator=generator)
            noise = 0.1 * torch.randn(images.shape, generator=generator)
            shifts = torch.randint(-1, 2, (len(images),), generator=generator)
        for begin in range(0, len(images), batch_size):
            ids = order[begin : begin + batch_size]
            x = images[ids]
            if train:
                x = torch.stack([torch.roll(images[i], int(shifts[i]), -1) for i in ids]) + noise[ids]
            if train and 0 <= self.options.poison <= epoch:
                x = x / 0.0
            allowed = None
            if split == "train" and self.options.labelled < 1:
                allowed = ids < self.options.labelled * len(images)
            yield Batch({"image": x}, labels[ids], ids, allowed, epoch=epoch if train else 0)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch.image)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        if batch.labelled is None:
            return F.cross_entropy(output, batch.labels)
        if not batch.labelled.any():
            return output.sum() * 0.0
        return F.cross_entropy(output[batch.labelled], batch.labels[batch.labelled])

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        return float((outputs.argmax(-1) == labels).float().mean())

    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (self._data["validation"][0][:batch_size],)


def toy_task(**options: Any) -> ToyTask:
    task = ToyTask(options)
    task.prepare()
    return task


class Perceptron(nn.Module):
    """Two linear layers; dropout on request."""

    def __init__(self, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(SIZE * SIZE, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.first(x.flatten(1))))))


class Convolutional(nn.Module):
    """Convolution, batch norm, pooling."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attentive(nn.Module):
    """Six row tokens, blocks of self-attention, mean pooling."""

    def __init__(self, width: int = 12, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(SIZE, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def made(kind: type[nn.Module], seed: int = 0, **arguments: Any) -> nn.Module:
    with seeded(seed, "toy"):
        return kind(**arguments)


def toy_teacher(kind: type[nn.Module] = Attentive, seed: int = 100, **arguments: Any) -> SingleTeacher:
    arguments = arguments or ({"width": 24, "depth": 3, "heads": 3} if kind is Attentive else {})
    return SingleTeacher(made(kind, seed, **arguments), label="toy teacher", fingerprint=f"{kind.__name__}-{seed}")


class Counting(SingleTeacher):
    """Counts the batches it was asked for."""

    asked = 0

    def trace(self, batch, sites, step, tracer):
        self.asked += 1
        return super().trace(batch, sites, step, tracer)


def counting_teacher(**arguments: Any) -> Counting:
    return Counting(made(Attentive, 100, width=24, depth=3, heads=3), label="toy teacher", fingerprint="counting")


class KDOptions(ComponentOptions):
    temperature: float = 2.0


class ToyKD(DistillationLoss):
    options_model = KDOptions

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        if student["logits"].shape != teacher["logits"].shape:
            raise MismatchError(f"logits {student['logits'].shape} and {teacher['logits'].shape}")

    def sites(self) -> SiteNeeds:
        return SiteNeeds.of(["logits"], ["logits"])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        return {"kd": kd(student.logits, teacher.logits, self.options.temperature)}


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    return F.kl_div(p, q, reduction="batchmean", log_target=True) * temperature**2


class ToyHidden(DistillationLoss):
    """Last block on last block through a projector."""

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        if "hidden.-1" not in student:
            raise MismatchError(f"{student.label} has no hidden states; the teacher's are {teacher['hidden.-1'].shape}")
        self.here, self.there = student.resolve(Site("hidden", -1)), teacher.resolve(Site("hidden", -1))
        self.map = dict(layer_map)
        self.projector = nn.Linear(student[self.here].width, teacher[self.there].width)
        self.register_buffer("seen", torch.zeros(()))

    def sites(self) -> SiteNeeds:
        return SiteNeeds.of([self.here], [self.there])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        target = teacher[self.there]
        noise = 0.01 * torch.randn(target.shape, generator=step.generator)
        difference = self.projector(student[self.here]) - target - noise
        return {"mean": difference.mean().square(), "spread": difference.square().mean()}

    def after_step(self, step: StepInfo) -> None:
        self.seen += 1


class ToyMaps(DistillationLoss):
    """Attention maps of the last layers, averaged over heads."""

    def build(self, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int]) -> None:
        self.here, self.there = student.resolve(Site("attention", -1)), teacher.resolve(Site("attention", -1))

    def sites(self) -> SiteNeeds:
        return SiteNeeds.of([self.here], [self.there])

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        return {"maps": (student[self.here].mean(1) - teacher[self.there].mean(1)).square().sum(-1).mean()}


class Exploding(ToyKD):
    """Grows without bound from the second epoch on."""

    def forward(self, student: Trace, teacher: Trace, batch: Batch, step: StepInfo) -> Terms:
        return {"kd": student.logits.square().mean() * (10.0 ** (8 * step.epoch))}


class CoTrained(ToyKD):
    wants_teacher_grad = True


class Factory:
    """Just enough of a host."""

    losses: ClassVar[dict[str, type[DistillationLoss]]] = {
        "kd": ToyKD, "hidden": ToyHidden, "maps": ToyMaps, "exploding": Exploding, "cotrained": CoTrained,
    }  # fmt: skip

    def create(self, kind, name, options=None, **context):
        return self.losses[name.rpartition(":")[2]](options, host=self)

    def load(self, kind, name):
        return self.losses[name]

    def canonical(self, kind, name):
        return f"toys:{name}"

    def tags(self, kind, name):
        raise NotImplementedError


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def finite(evaluation: Evaluation | None) -> bool:
    return evaluation is not None and math.isfinite(evaluation.loss)
