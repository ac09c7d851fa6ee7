"""What the engine costs over a loop written by hand: the same distillation step, paired and interleaved.

Both train twins of one student on the same batches: cross-entropy plus KD on cached teacher logits, AdamW, cosine rate,
gradient clipping. One step of the hand-written loop runs after each step of the engine, in the same process, so both
see the same machine. The engine's time is everything from the end of one step to the end of the next: data, cache,
trace, losses, backward, optimiser, bookkeeping. The hand-written loop keeps the teacher's logits in one tensor. At the
end the twins' weights are compared bit by bit, which shows that the work was the same.

Goal: at most 3 % at a step of about 20 ms. The small students show the fixed cost, about a tenth of a millisecond.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import finish, mean_sd, parser, say, start
from torch import Tensor, nn

from nasdistill.distill import TeacherCache, fill_cache, train
from nasdistill.host import Host
from nasdistill.interfaces import Batch, Site, StepInfo
from nasdistill.interfaces.teacher import SingleTeacher
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig

BATCH, TEMPERATURE = 64, 4.0

STUDENTS = {
    # name: (space, parameters): about 2, 5 and 20 ms a step on one core
    "small": ("resnet_s0", {"width": 8, "stages": 2, "stage0.blocks": 1, "stage1.blocks": 1}),
    "medium": ("conv_vit", {"depth": 2, "width": 32, "stem_width": 16}),
    "large": ("conv_vit", {"depth": 4, "width": 96, "stem_width": 32}),
}


@dataclass
class HandLoop:
    """The loop written by hand, one step at a time."""

    student: nn.Module
    batches: list[list[Batch]]
    logits: list[list[Tensor]]
    training: TrainingConfig
    total: int
    seconds: list[float] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        decay = [p for p in self.student.parameters() if p.ndim > 1]
        free = [p for p in self.student.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.training.weight_decay}, {"params": free, "weight_decay": 0.0}]
        self.parameters = decay + free
        self.optimizer = torch.optim.AdamW(groups, lr=self.training.lr, fused=True)
        self.student.train()

    def take(self) -> None:
        """Make one step."""
        epoch, number = divmod(self.step, len(self.batches[0]))
        batch, target = self.batches[epoch][number], self.logits[epoch][number]
        warm = round(self.training.warmup * self.total)
        if self.step < warm:
            lr = self.training.lr * (self.step + 1) / warm
        else:
            lr = self.training.lr * (1 + math.cos(math.pi * (self.step - warm) / (self.total - warm))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        output = self.student(batch.image)
        ours = torch.log_softmax(output / TEMPERATURE, dim=-1)
        theirs = torch.log_softmax(target / TEMPERATURE, dim=-1)
        kd = TEMPERATURE**2 * (theirs.exp() * (theirs - ours)).sum(-1).mean()
        loss = 0.5 * F.cross_entropy(output, batch.labels) + 0.5 * kd
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is not finite")
        self.step += 1


class Held:
    """The task with its training batches made beforehand: both loops get the same objects, at no cost."""

    def __init__(self, task: Any, batches: list[list[Batch]]) -> None:
        self._task, self._held = task, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batches(self, split: str, *, epoch: int = 0, train: bool = False, **arguments: Any) -> Any:
        """Yield held batches for training, real ones otherwise."""
        return iter(self._held[epoch]) if train else self._task.batches(split, epoch=epoch, **arguments)


def compare(host: Host, task: Any, teacher: Any, name: str, epochs: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train a pair and return its figures."""
    kind, parameters = STUDENTS[name]
    space = host.create(Kind.SEARCH_SPACE, kind)
    with seeded(seed, "student"):
        student = space.build(space.architecture(parameters), task.io)
    twin = copy.deepcopy(student)
    training = TrainingConfig(batch_size=BATCH, threads=torch.get_num_threads(), distinct_epochs=None)
    epochs_of = [
        list(task.batches("train", batch_size=BATCH, epoch=epoch, seed=seed, train=True)) for epoch in range(epochs)
    ]
    held = Held(task, epochs_of)
    cache = TeacherCache(folder)
    fill_cache(cache, held, teacher, frozenset({Site("logits")}), training, epochs=epochs, data_seed=seed)
    with torch.no_grad():
        logits = [[task.forward(teacher.model, batch) for batch in batches] for batches in epochs_of]
    total = epochs * len(epochs_of[0])
    hand = HandLoop(twin, epochs_of, logits, training, total)
    ours: list[float] = []
    theirs: list[float] = []
    clock = time.process_time
    last = None

    def interleave(info: StepInfo, terms: dict[str, Tensor]) -> None:
        nonlocal last
        begin = clock()
        if last is not None:
            ours.append(begin - last)
        hand.take()
        middle = clock()
        if last is not None:
            theirs.append(middle - begin)
        last = clock()

    objective = ObjectiveConfig(
        task_weight=0.5, losses=(LossConfig(name="kd", weight=0.5, options={"temperature": TEMPERATURE}),)
    )
    train(
        student, held, teacher, objective, training,
        epochs=epochs, seed=seed, data_seed=seed, host=host, cache=cache, on_step=interleave,
    )  # fmt: skip
    skip = len(ours) // 10  # first steps allocate memory
    ratios = [a / b for a, b in zip(ours[skip:], theirs[skip:], strict=True)]
    pairs = zip(student.state_dict().values(), twin.state_dict().values(), strict=True)
    return {
        "hand_ms": 1e3 * statistics.median(theirs[skip:]),
        "engine_ms": 1e3 * statistics.median(ours[skip:]),
        "overhead": 100 * (statistics.median(ratios) - 1),
        "added_us": 1e6 * statistics.median(a - b for a, b in zip(ours[skip:], theirs[skip:], strict=True)),
        "equal": all(torch.equal(one, other) for one, other in pairs),
        "steps": len(ratios),
        "cached": cache.misses == total and cache.hits == total,
    }


def main() -> None:
    args = parser(__doc__.splitlines()[0]).parse_args()
    start(args)
    host = Host.load(third_party=False)
    task = host.create(Kind.TASK, "image_classification", {"data": "digits"})
    task.prepare()
    space = host.create(Kind.SEARCH_SPACE, "conv_vit")
    with seeded(0, "teacher"):  # its logits matter, not its accuracy
        model = space.build(space.architecture({"depth": 2}), task.io)
    teacher = SingleTeacher(model, label="untrained conv_vit", fingerprint="step_overhead")
    epochs = 4 if args.quick else 20
    rows = []
    for name in list(STUDENTS)[: 2 if args.quick else None]:  # a network of each family
        found = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found.append(compare(host, task, teacher, name, epochs, seed, Path(folder)))
            say(f"{name}, seed {seed}: {found[-1]['overhead']:+.2f} %")
        mean, sd = mean_sd([run["overhead"] for run in found])
        rows.append(
            {
                "student": name,
                "hand_ms": mean_sd([run["hand_ms"] for run in found])[0],
                "engine_ms": mean_sd([run["engine_ms"] for run in found])[0],
                "overhead": mean,
                "sd": sd,
                "added_us": mean_sd([run["added_us"] for run in found])[0],
                "steps": sum(run["steps"] for run in found),
                "equal": "yes" if all(run["equal"] for run in found) else "no",
                "cached": all(run["cached"] for run in found),
                "runs": found,
            }
        )
    finish(
        args,
        rows,
        [
            ("student", "student", ""), ("hand_ms", "by hand, ms", ".2f"), ("engine_ms", "engine, ms", ".2f"),
            ("overhead", "overhead, %", "+.2f"), ("sd", "sd", ".2f"), ("added_us", "added, us", ".0f"),
            ("steps", "pairs", "d"), ("equal", "same weights", ""),
        ],
        {"goal": "at most 3 % at a step of about 20 ms", "clock": "process time", "batch_size": BATCH},
    )  # fmt: skip


if __name__ == "__main__":
    main()
