"""How well training-free proxies rank students, beside the two sizes that they have to beat.

Three pools, each scored with every bundled proxy and with sums of log ranks of several:

- ``space``: random points of `resnet_s0` on the digits, distilled for a few epochs from ``builtin:digits``;
- ``width``: points of one width and stem (8 x 8 digits, blocks per stage in {1, 3, 5, 7}), distilled from a ResNet of
  the same width, so that DisWOT's semantic term is defined;
- ``published``: the 64 CIFAR-100 ResNets of DisWOT (arXiv:2303.15678) against their published accuracies after
  distillation. Scored on real CIFAR-10 images with a head of ten classes (CIFAR-100 is not at hand), teacher a
  ResNet-56 with random weights, as in that study.

Truth is the mean accuracy over seeds on the images not trained on; its own reliability (correlation between seeds)
bounds what any proxy can reach. Scores are means over seeds of initial weights and batches. "Given params" is the
partial Spearman correlation with the parameter count held fixed: what a proxy says that the size has not said.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _common
import torch

from nasdistill.distill import TeacherCache, evaluate, train
from nasdistill.files import cache_folder
from nasdistill.host import Host
from nasdistill.interfaces import Batch, SearchSpace, SingleTeacher, Task, TeacherSession
from nasdistill.measure.proxies import ProxyOutcome, consensus, run_proxy
from nasdistill.measure.rank import correlation, kendall, partial_spearman, spearman, top_k_regret
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ObjectiveConfig, TrainingConfig, load_preset

PROXIES: dict[str, tuple[str, dict[str, Any]]] = {
    "params": ("params", {}),
    "macs": ("macs", {}),
    "grad_norm": ("grad_norm", {}),
    "snip": ("snip", {}),
    "synflow": ("synflow", {}),
    "nwot": ("nwot", {}),
    "jacov": ("jacov", {}),
    "zico": ("zico", {}),
    "diswot": ("diswot", {}),
    "diswot, N(0,1)": ("diswot", {"init": "normal"}),
    "diswot, semantic": ("diswot", {"terms": "semantic"}),
    "diswot, relation": ("diswot", {"terms": "relation"}),
    "cka": ("cka", {}),
}
SUMS = {
    "log ranks: nwot + zico": ("nwot", "zico"),
    "log ranks: nwot + jacov + macs": ("nwot", "jacov", "macs"),
    "log ranks: nwot + jacov + synflow": ("nwot", "jacov", "synflow"),
}
COLUMNS = [
    ("pool", "pool", ""),
    ("proxy", "proxy", ""),
    ("n", "n", "d"),
    ("failed", "failed", "d"),
    ("spearman", "Spearman", "+.3f"),
    ("spearman_interval", "95 %", ""),
    ("seed_sd", "sd over seeds", ".3f"),
    ("beyond", "given params", "+.3f"),
    ("kendall", "Kendall", "+.3f"),
    ("kendall_interval", "95 %", ""),
    ("regret", "top-3 regret (points)", ".2f"),
    ("seconds", "s per score", ".3f"),
]


@dataclass(slots=True)
class Pool:
    """Architectures with what became of them.

    Attributes:
        name: of the pool.
        points: the architectures.
        truth: accuracy in percent of each, higher is better.
        scores: proxy -> one list of outcomes (by architecture) per seed.
        facts: anything to report beside the table.
    """

    name: str
    points: list[Architecture]
    truth: list[float]
    scores: dict[str, list[list[ProxyOutcome]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Run."""
    parser = _common.parser(__doc__.splitlines()[0], seeds=3)
    parser.add_argument("--pool", action="append", choices=("space", "width", "published"), help="only this pool")
    parser.add_argument("--points", type=int, default=24, metavar="N", help="architectures that are trained, per pool")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="epochs of their distillation")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="samples per batch that proxies see")
    args = parser.parse_args()
    _common.start(args)
    if args.quick:
        args.seeds, args.points, args.epochs, args.batch = 1, 6, 1, 4
    wanted = args.pool or (["width", "published"] if args.quick else ["space", "width", "published"])
    host = Host.load(third_party=False)
    pools = []
    for name in wanted:
        with _common.timed(f"pool {name}"):
            pools.append({"space": trained, "width": trained, "published": published}[name](host, args, name))
    rows = [row for pool in pools for row in table(pool)]
    notes = [note for pool in pools for note in remarks(pool)]
    _common.finish(args, rows, COLUMNS, {"notes": notes, "pools": {pool.name: as_json(pool) for pool in pools}})


# ---- truth ---------------------------------------------------------------------------------------------------------


def trained(host: Host, args: Any, name: str) -> Pool:
    """Distil the students of a pool on the digits and score them."""
    task: Task = host.create(Kind.TASK, "image_classification", {"data": "digits"})
    task.prepare(cache_folder(), _common.say)
    preset = load_preset("digits")
    training = preset.training.model_copy(update={"threads": args.threads, "inherit": False, "device": "cpu"})
    rng = random.Random(derive_seed(0, "proxy_rank", name))
    if name == "space":
        space: SearchSpace = host.create(Kind.SEARCH_SPACE, "resnet_s0")
        points = list({space.sample(rng) for _ in range(20 * args.points)})
        points = sorted(points, key=lambda arch: arch.fingerprint)[: args.points]
        provider = host.create(Kind.TEACHER, "builtin")
        teacher: TeacherSession = provider.open("digits", task, cache_dir=cache_folder(), progress=_common.say)
    else:
        axes: dict[str, Any] = {"width": [16], "stem_stride": [1], "stages": [3]}
        if args.quick:
            axes |= {"width": [8], "blocks": [1, 3]}
        space = host.create(Kind.SEARCH_SPACE, "resnet_s0", axes)
        points = rng.sample(sorted(space.enumerate(), key=lambda arch: arch.fingerprint), args.points)
        teacher = resnet_teacher(space, task, training, epochs=2 if args.quick else 20)
    facts: dict[str, Any] = {
        "teacher": teacher.label,
        "teacher_accuracy": 100 * unseen_accuracy(teacher.model, task),
        "epochs": args.epochs,
    }
    by_seed: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(Path(folder))
        for seed in range(args.seeds):
            column = []
            for arch in points:
                with seeded(seed, "init", arch.fingerprint):
                    student = space.build(arch, task.io)
                train(
                    student, task, teacher, preset.objective, training,
                    epochs=args.epochs, seed=seed, data_seed=seed, host=host, cache=cache,
                )  # fmt: skip
                column.append(100 * unseen_accuracy(student, task))
            by_seed.append(column)
            _common.say(
                f"{name}: trained {len(points)} students, seed {seed}: {min(column):.1f} to {max(column):.1f} %"
            )
    truth = [statistics.fmean(values) for values in zip(*by_seed, strict=True)]
    facts["truth_by_seed"] = by_seed
    if args.seeds > 1:
        pairs = list(itertools.combinations(by_seed, 2))
        facts["truth_sd"] = statistics.fmean(statistics.stdev(values) for values in zip(*by_seed, strict=True))
        facts["truth_spearman_between_seeds"] = statistics.fmean(spearman(a, b) or 0.0 for a, b in pairs)
        facts["truth_kendall_between_seeds"] = statistics.fmean(kendall(a, b) or 0.0 for a, b in pairs)
    pool = Pool(name, points, truth, facts=facts)

    def batches(seed: int, number: int) -> tuple[Batch, ...]:
        found = task.batches("train", batch_size=args.batch, epoch=0, seed=seed, train=True)
        return tuple(itertools.islice(found, number))

    score(host, pool, space, task.io, batches, teacher.model, args, task.forward, task.loss)
    return pool


def resnet_teacher(space: SearchSpace, task: Task, training: TrainingConfig, epochs: int) -> TeacherSession:
    """Train the largest network of `space` on labels."""
    arch = space.architecture({axis.name: axis.choices[-1] for axis in space.axes()})
    with seeded(0, "teacher"):
        model = space.build(arch, task.io)
    objective = ObjectiveConfig(task_weight=1.0, losses=())
    with _common.timed("teacher"):
        train(model, task, None, objective, training, epochs=epochs, seed=0)
    return SingleTeacher(model, label=f"the largest of its space, {epochs} epochs", fingerprint=f"teacher-{epochs}")


def unseen_accuracy(model: torch.nn.Module, task: Task) -> float:
    """Return the accuracy over validation and test images together (a benchmark, not a search)."""
    results = [evaluate(model, task, split) for split in ("validation", "test")]
    return sum(result.score * result.n for result in results) / sum(result.n for result in results)


def published(host: Host, args: Any, name: str) -> Pool:
    """Score the 64 networks of the published table."""
    folder = _common.data_folder(args, "diswot_s0")
    archive = _common.data_folder(args, "cifar10_subset") / "cifar10_subset.zip"
    task: Task = host.create(Kind.TASK, "image_classification", {"data": str(archive), "augment": "none"})
    task.prepare(cache_folder(), _common.say)
    options = {"width": [16], "stem_stride": [1], "stages": [3], "blocks": [1, 3, 5, 7, 9]}
    space: SearchSpace = host.create(Kind.SEARCH_SPACE, "resnet_s0", options)
    accuracy = read_table(folder / "kd.txt")
    names = sorted(accuracy)
    if args.quick:
        names = random.Random(0).sample([name for name in names if max(name) <= "5"], args.points)
    points = [of_blocks(space, text) for text in names]
    with seeded(0, "teacher"):
        teacher = space.build(of_blocks(space, "999"), task.io).eval()
    pool = Pool(name, points, [accuracy[text] for text in names])
    alone = read_table(folder / "vanilla.txt")
    pool.facts |= {
        "teacher": "ResNet-56 with random weights",
        "names": names,
        "spearman_trained_alone": spearman([alone[text] for text in names], pool.truth),
        "kendall_trained_alone": kendall([alone[text] for text in names], pool.truth),
    }

    def batches(seed: int, number: int) -> tuple[Batch, ...]:
        found = task.batches("train", batch_size=args.batch, epoch=0, seed=seed, train=True)
        return tuple(itertools.islice(found, number))

    score(host, pool, space, task.io, batches, teacher, args, task.forward, task.loss)
    return pool


def read_table(path: Path) -> dict[str, float]:
    """Return blocks per stage (``"135"``) -> accuracy in percent."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {text: float(value) for text, value in (line.split() for line in lines if line.strip())}


def of_blocks(space: SearchSpace, text: str) -> Architecture:
    """Return the point with these blocks per stage."""
    return space.architecture({f"stage{i}.blocks": int(count) for i, count in enumerate(text)})


# ---- scores --------------------------------------------------------------------------------------------------------


def score(
    host: Host,
    pool: Pool,
    space: SearchSpace,
    io: Any,
    batches: Callable[[int, int], tuple[Batch, ...]],
    teacher: torch.nn.Module,
    args: Any,
    forward: Callable[..., Any],
    loss: Callable[..., Any],
) -> None:
    """Fill `pool.scores`: every proxy, every architecture, `args.seeds` times."""
    proxies = {
        label: (host.create(Kind.PROXY, name, options), host.tags(Kind.PROXY, name))
        for label, (name, options) in PROXIES.items()
    }
    number = max(proxy.batches_needed() for proxy, _ in proxies.values())
    pool.scores = {label: [[] for _ in range(args.seeds)] for label in proxies}
    for seed in range(args.seeds):
        shown = batches(seed, number)
        for arch in pool.points:
            with seeded(seed, "score", arch.fingerprint):
                model = space.build(arch, io)
            for label, (proxy, tags) in proxies.items():
                outcome = run_proxy(
                    proxy, tags, model=model, teacher=teacher, batches=shown, forward=forward, loss=loss, io=io,
                    cost=space.cost(arch, io), seed=seed,
                )  # fmt: skip
                pool.scores[label][seed].append(outcome)
        _common.say(f"{pool.name}: scored {len(pool.points)} students, seed {seed}")


def table(pool: Pool) -> list[dict[str, Any]]:
    """Return one row per proxy, per sum of log ranks, and for guessing."""
    means = {
        label: [mean_value([column[i].value for column in by_seed]) for i in range(len(pool.points))]
        for label, by_seed in pool.scores.items()
    }
    rows = []
    for label, by_seed in pool.scores.items():
        single = [spearman([outcome.value for outcome in column], pool.truth) for column in by_seed]
        rows.append(
            {
                **quality(pool, label, means[label]),
                "beyond": partial_spearman(means[label], pool.truth, means["params"]),
                "seed_sd": spread([value for value in single if value is not None]),
                "seconds": statistics.fmean(outcome.seconds for column in by_seed for outcome in column),
                "problems": sorted({o.problem for column in by_seed for o in column if o.problem}),
            }
        )
    for label, parts in SUMS.items():
        joint = consensus({i: {part: means[part][i] for part in parts} for i in range(len(pool.points))})
        scores = list(joint.values())
        row = quality(pool, label, scores)
        rows.append({**row, "beyond": partial_spearman(scores, pool.truth, means["params"])})
    guessing: list[float | None] = [0.0] * len(pool.points)
    rows.append(quality(pool, "guessing", guessing))
    return rows


def quality(pool: Pool, label: str, scores: Sequence[float | None]) -> dict[str, Any]:
    """Return correlations with intervals and the regret of one column of scores."""
    row: dict[str, Any] = {
        "pool": pool.name,
        "proxy": label,
        "n": len(scores),
        "failed": sum(score is None for score in scores),
        "regret": top_k_regret(scores, pool.truth, 3),
        "scores": list(scores),
    }
    for kind in ("spearman", "kendall"):
        found = correlation(kind, scores, pool.truth)
        if found is not None:
            row[kind] = found.value
            row[f"{kind}_interval"] = f"{found.low:+.2f} .. {found.high:+.2f}"
    return row


def mean_value(values: Sequence[float | None]) -> float | None:
    """Return the mean, None when any is missing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def remarks(pool: Pool) -> list[str]:
    """Return what belongs below the table."""
    facts: Mapping[str, Any] = pool.facts
    best = max(pool.truth)
    text = f"{pool.name}: truth from {min(pool.truth):.2f} to {best:.2f} %, teacher {facts['teacher']}"
    if "teacher_accuracy" in facts:
        text += f" ({facts['teacher_accuracy']:.2f} %), {facts['epochs']} epochs of distillation"
    if "truth_sd" in facts:
        text += (
            f"; one seed's truth varies by {facts['truth_sd']:.2f} points and agrees with another's with Spearman "
            f"{facts['truth_spearman_between_seeds']:.3f}, Kendall {facts['truth_kendall_between_seeds']:.3f}"
        )
    if "spearman_trained_alone" in facts:
        text += (
            f"; accuracy without a teacher ranks it with Spearman {facts['spearman_trained_alone']:.3f}, "
            f"Kendall {facts['kendall_trained_alone']:.3f}"
        )
    return [text + "."]


def as_json(pool: Pool) -> dict[str, Any]:
    """Return the facts of a pool, its architectures and truth."""
    return {**pool.facts, "points": [dict(arch.params) for arch in pool.points], "truth": pool.truth}


if __name__ == "__main__":
    main()
