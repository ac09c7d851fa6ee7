"""Shared weights for a wide space or for two parts of it: which end suffers, and does the inherited score rank?

A masked character model of 4 layers and width 64 on tinyshakespeare is the teacher. Students are cut from it by the
space `encoder`; their axes fall into two parts of 2 x 2 x 2 x 2 points, `small` and `large`. Arms:

- ``wide``: one set of shared weights over all that the axes allow (4 x 4 x 4 x 3 points), `steps` sandwich steps;
- ``partitioned``: one set for each part, half of the steps each, so that both arms make equally many;
- ``partitioned, longer``: one set for each part, `steps` each. Every step of a set trains its own two ends, so here an
  end is trained as often as in ``wide``, where one step trains both.

All start from the teacher and learn nothing but its last layer's relations (`qkv_relation`). Reported are the held-out
relation loss of the smallest and the largest student of the whole, the mean over 8 students drawn at random (4 of each
part), and Kendall's tau between the loss that these 8 have with their shared weights and the one that each reaches when
it is distilled alone: over all 8, where size decides much, and within the parts (mean). Training and validation text do
not overlap.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from _common import data_folder, finish, mean_sd, parser, say, start, timed
from torch import Tensor, nn

from nasdistill.distill import train
from nasdistill.distill.subnetworks import WHOLE, ladder, members
from nasdistill.distill.supernet import HeldOut, layer_map_of, train_supernet
from nasdistill.files import content_hash
from nasdistill.host import Host
from nasdistill.interfaces import Batch, Metric, SearchSpace, SingleTeacher, Split, SubSpace, Supernet, Task
from nasdistill.measure.rank import correlation
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.spec.io import IOSpec
from nasdistill.store import weights_hash

LENGTH, IGNORED = 16, -100
RELATION = ObjectiveConfig(task_weight=0.0, losses=(LossConfig(name="qkv_relation"),))
TEACHER = {"layers": 4, "hidden": 64, "heads": 4, "mlp": 256, "positions": LENGTH}
SMALL = SubSpace("small", {"layers": (1, 2), "heads": (1, 2), "hidden": (16, 24), "mlp_ratio": (2.0, 3.0)})
LARGE = SubSpace("large", {"layers": (3, 4), "heads": (3, 4), "hidden": (40, 48), "mlp_ratio": (3.0, 4.0)})
AXES = {name: sorted({*SMALL.choices[name], *LARGE.choices[name]}) for name in SMALL.choices}


class MaskedCharacters(Task):
    """Windows of text, 15 % of whose characters are masked: name them. An epoch draws `windows` of them."""

    metric: ClassVar[Metric] = Metric("accuracy")

    def __init__(self, text: str, windows: int) -> None:
        super().__init__()
        alphabet = sorted(set(text))
        codes = torch.tensor([alphabet.index(c) for c in alphabet])
        table = dict(zip(alphabet, (codes + 2).tolist(), strict=True))  # 0 pads, 1 masks
        data = torch.tensor([table[c] for c in text])
        cut = int(0.9 * len(data))
        self.codes = {"train": data[:cut], "validation": data[cut:], "test": data[cut:]}
        self.windows = {"train": windows, "validation": 256, "test": 256}
        self.size_of_alphabet = len(alphabet) + 2

    def prepare(self, cache_dir: Any = None, progress: Any = None) -> None:
        """Nothing to do."""

    @property
    def io(self) -> IOSpec:
        """Logits over the alphabet for every character."""
        return IOSpec("tokens", (LENGTH,), self.size_of_alphabet, self.size_of_alphabet, "masked_lm")

    @property
    def fingerprint(self) -> str:
        """Hash of text and windows."""
        return content_hash([len(self.codes["train"]), self.windows["train"], self.size_of_alphabet])

    def size(self, split: Split) -> int:
        """Return the number of windows of a pass."""
        return self.windows[split]

    def batches(
        self, split: Split, *, batch_size: int, epoch: int = 0, seed: int = 0, train: bool = False
    ) -> Iterator[Batch]:
        """Yield windows at random places; on validation always the same."""
        numbers = derive_seed(seed, split, epoch) if train else derive_seed(0, split)
        generator = torch.Generator().manual_seed(numbers)
        text, n = self.codes[split], self.windows[split]
        places = torch.randint(len(text) - LENGTH, (n,), generator=generator)
        masked = torch.rand(n, LENGTH, generator=generator) < 0.15
        for begin in range(0, n, batch_size):
            rows = slice(begin, min(n, begin + batch_size))
            ids = text[places[rows, None] + torch.arange(LENGTH)]
            hidden = masked[rows]
            inputs = {"input_ids": ids.masked_fill(hidden, 1), "attention_mask": torch.ones_like(ids)}
            yield Batch(inputs, ids.masked_fill(~hidden, IGNORED), torch.arange(rows.start, rows.stop), epoch=epoch)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``(B, N, V)``."""
        logits: Tensor = model(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross entropy of the masked characters."""
        assert batch.labels is not None
        return F.cross_entropy(output.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the share of masked characters that are named."""
        asked = labels != IGNORED
        return float((outputs.argmax(-1) == labels)[asked].float().mean())

    def example(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return ids and mask."""
        batch = next(self.batches("validation", batch_size=batch_size))
        return batch.inputs["input_ids"], batch.inputs["attention_mask"]


def make_teacher(host: Host, task: MaskedCharacters, steps: int) -> SingleTeacher:
    """Train the network that students are cut from, on the masked characters alone."""
    sizes = {name: [TEACHER[name]] for name in ("layers", "hidden", "heads")}
    space = host.create(Kind.SEARCH_SPACE, "encoder", {"teacher": TEACHER, **sizes, "mlp_ratio": [4.0]})
    with seeded(0, "benchmark teacher"):
        model = space.build(space.default(), task.io)
    with torch.no_grad():
        # BERT's initial weights are for BERT's width; from them a network this narrow stays at letter frequencies.
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(10.0 if "embeddings" in name else 6.0)
    training = TrainingConfig(batch_size=64, lr=2e-3, distinct_epochs=None)
    objective = ObjectiveConfig(task_weight=1.0, losses=())
    result = train(model, task, None, objective, training, epochs=1000, steps=steps, seed=0)
    assert result.evaluation is not None
    say(f"teacher: {result.evaluation.score:.3f} of the masked characters, loss {result.evaluation.loss:.3f}")
    return SingleTeacher(model, label="character model", fingerprint=weights_hash(model))


class Bench:
    """What all arms of a seed share."""

    def __init__(self, host: Host, task: MaskedCharacters, teacher: SingleTeacher, steps: int, alone: int) -> None:
        self.host, self.task, self.teacher, self.steps, self.alone = host, task, teacher, steps, alone
        self.space: SearchSpace = host.create(Kind.SEARCH_SPACE, "encoder", {"teacher": TEACHER, **AXES})
        self.training = TrainingConfig(batch_size=64, lr=1e-3, distinct_epochs=None)
        self.held_out = HeldOut(task, teacher, RELATION, host=host, samples=256)

    def supernet(self, subspace: SubSpace, steps: int, seed: int) -> Supernet:
        """Train one set of shared weights."""
        with seeded(seed, "supernet"):
            net = self.space.supernet(self.task.io, self.teacher.model, subspace=subspace if subspace.name else None)
        rungs = ladder(self.space, self.task.io, subspace)
        with timed(f"seed {seed}: {subspace.name or 'wide'}, {len(rungs)} points, {steps} steps"):
            train_supernet(
                net, self.space, rungs, self.task, self.teacher, RELATION, self.training, epochs=1000, steps=steps,
                seed=seed, host=self.host,
            )  # fmt: skip
        return net

    def loss(self, model: nn.Module, arch: Architecture) -> float:
        """Return the held-out relation loss of a stand-alone network."""
        space = self.space
        terms = self.held_out.terms(model.eval(), lambda s, t: layer_map_of(space, arch, s, t), label="student")
        return terms["total"]

    def distilled(self, arch: Architecture, seed: int) -> float:
        """Return the held-out relation loss of a student that starts from the teacher and is distilled alone."""
        with seeded(seed, "student"):
            student = self.space.build(arch, self.task.io)
        self.space.inherit(student, arch, self.teacher.model)
        train(
            student, self.task, self.teacher, RELATION, self.training, epochs=1000, steps=self.alone, seed=seed,
            host=self.host, layer_map=self.space.layer_map(arch, self.held_out_geometry()),
        )  # fmt: skip
        return self.loss(student, arch)

    def held_out_geometry(self) -> Any:
        """Return the teacher's geometry."""
        from nasdistill.trace import describe

        batch = next(self.task.batches("validation", batch_size=2))
        return describe(self.teacher.model, lambda model: self.task.forward(model, batch))


def tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Kendall's tau."""
    found = correlation("kendall", list(first), list(second), resamples=10)
    return 0.0 if found is None else found.value


def run_seed(bench: Bench, seed: int) -> list[dict[str, Any]]:
    """Return a row for each arm."""
    io, rng = bench.task.io, random.Random(seed)
    students = [rng.sample(list(members(bench.space, part)), 4) for part in (SMALL, LARGE)]
    with timed(f"seed {seed}: 8 students alone, {bench.alone} steps each"):
        alone = [[bench.distilled(arch, seed) for arch in part] for part in students]
    smallest, largest = ladder(bench.space, io, SMALL)[0], ladder(bench.space, io, LARGE)[-1]
    wide = bench.supernet(WHOLE, bench.steps, seed)
    rows = []
    for arm, nets in (
        ("wide", [wide, wide]),
        ("partitioned", [bench.supernet(part, bench.steps // 2, seed) for part in (SMALL, LARGE)]),
        ("partitioned, longer", [bench.supernet(part, bench.steps, seed) for part in (SMALL, LARGE)]),
    ):
        with_shared = [
            [bench.loss(net.extract(arch), arch) for arch in part] for net, part in zip(nets, students, strict=True)
        ]
        rows.append(
            {
                "arm": arm, "seed": seed, "steps": bench.steps,
                "smallest": bench.loss(nets[0].extract(smallest), smallest),
                "largest": bench.loss(nets[1].extract(largest), largest),
                "mean": statistics.fmean(chain(*with_shared)), "tau": tau([*chain(*with_shared)], [*chain(*alone)]),
                "tau_within": statistics.fmean(tau(a, b) for a, b in zip(with_shared, alone, strict=True)),
                "inherited": with_shared, "alone": alone,
            }
        )  # fmt: skip
        say(f"seed {seed}, {arm}: " + ", ".join(f"{k} {rows[-1][k]:.4f}" for k in ("smallest", "largest", "tau")))
    return rows


def main() -> None:
    """Run all seeds and print the table."""
    args = parser(__doc__.splitlines()[0], seeds=3).parse_args()
    start(args)
    path = data_folder(args, "tinyshakespeare")
    file = path if path.is_file() else next(p for p in sorted(path.rglob("*.txt")) if p.stat().st_size > 500_000)
    host = Host.load(third_party=False)
    task = MaskedCharacters(file.read_text(encoding="utf-8"), windows=1280)
    steps, alone = (20, 10) if args.quick else (400, 150)
    with timed("teacher"):
        teacher = make_teacher(host, task, 40 if args.quick else 2500)
    bench = Bench(host, task, teacher, steps, alone)
    rows = [row for seed in range(1 if args.quick else args.seeds) for row in run_seed(bench, seed)]
    shown = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        line: dict[str, Any] = {"arm": arm}
        for name in ("smallest", "largest", "mean", "tau", "tau_within"):
            line[name], line[f"{name}_sd"] = mean_sd([row[name] for row in rows if row["arm"] == arm])
        shown.append(line)
    arms = {arm: [row for row in rows if row["arm"] == arm] for arm in (line["arm"] for line in shown)}
    notes = [
        f"{arm}: better than wide at the {end} student in "
        f"{sum(p[end] < w[end] for p, w in zip(arms[arm], arms['wide'], strict=True))} of {len(arms[arm])} seeds"
        for arm in arms
        for end in ("smallest", "largest")
        if arm != "wide"
    ]
    finish(
        args, shown,
        (
            ("arm", "arm", ""), ("smallest", "loss, smallest", ".4f"), ("smallest_sd", "sd", ".4f"),
            ("largest", "loss, largest", ".4f"), ("largest_sd", "sd", ".4f"), ("mean", "mean of 8", ".4f"),
            ("mean_sd", "sd", ".4f"),
            ("tau", "tau, all 8", "+.2f"),
            ("tau_sd", "sd", ".2f"), ("tau_within", "tau within parts", "+.2f"), ("tau_within_sd", "sd", ".2f"),
        ),
        {
            "rows": rows, "steps": steps, "alone": alone,
            "notes": notes,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
