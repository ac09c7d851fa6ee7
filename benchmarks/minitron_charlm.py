"""Pruning a character language model to half its size: what to keep, and how to train what is left.

A teacher of 4 layers (width 64, 4 heads, 256 neurons; in Llama's style 2 key/value heads and 176 gated neurons) learns
tinyshakespeare by characters. Students have half its parameters, the deepest shape of that size. For each style:

- *kept*: the most important heads, neurons and channels by activations (as the paper has it), a random choice, the
  least important ones; each as cut (zero-shot), and after the same distillation; beside it fresh weights of that shape.
- *trained*: by the KL of the logits alone, or by the cross entropy of the text; equal steps, order and learning rate.
- *order*: several shapes of that size, ranked as cut and after the distillation; Kendall's tau between the two orders
  says whether the loss right after cutting may choose the shape.

Reported is the cross entropy per character on the validation split in nats, mean and standard deviation over seeds. A
seed changes the order of the data, fresh weights, the calibration batches and the random choice. Nothing was chosen by
these figures: temperature 1 as in the paper, one learning rate for all arms.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from _common import data_folder, finish, mean_sd, parser, say, start, timed
from torch import nn

from nasdistill.distill import evaluate, train
from nasdistill.files import cache_folder, content_hash
from nasdistill.host import Host
from nasdistill.interfaces import Batch, SearchSpace, Task, TeacherSession
from nasdistill.interfaces.teacher import SingleTeacher
from nasdistill.measure.rank import kendall
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.weights import state_hash

CE = ObjectiveConfig(task_weight=1.0, losses=())
KD = ObjectiveConfig(task_weight=0.0, losses=(LossConfig(name="logit_kl"),))
LENGTH = 64
"""Characters of a sample."""
COMMON = {"layers": 4, "width": 64, "heads": 4, "positions": LENGTH, "tied": True}
STYLES: dict[str, dict[str, Any]] = {
    "gpt2": {**COMMON, "style": "gpt2", "mlp": 256},
    "llama": {**COMMON, "style": "llama", "kv_heads": 2, "mlp": 176},
}
ARMS: tuple[tuple[str, str, ObjectiveConfig], ...] = (
    ("importance", "KD", KD), ("importance", "CE", CE), ("random", "KD", KD), ("inverse", "KD", KD),
    ("fresh", "KD", KD), ("fresh", "CE", CE),
)  # fmt: skip
TRAINING = TrainingConfig(batch_size=32, lr=1e-3, weight_decay=0.02, distinct_epochs=None)
TEACHING = TrainingConfig(batch_size=32, lr=3e-3, weight_decay=0.02, distinct_epochs=None)
CALIBRATION = 4
"""Batches of 64 samples that parts are ranked on."""


def space_of(host: Host, style: str, **more: Any) -> SearchSpace:
    found: SearchSpace = host.create(Kind.SEARCH_SPACE, "decoder", {**STYLES[style], **more})
    return found


def half_of(host: Host, style: str, task: Task, ranking: str = "importance", seed: int = 0) -> SearchSpace:
    """Return the space of students with half the teacher's parameters."""
    return space_of(host, style, vocabulary=task.io.vocabulary, params=0.5, ranking=ranking, ranking_seed=seed)


def teacher_of(host: Host, style: str, task: Task, steps: int) -> TeacherSession:
    """Train the teacher on first use."""
    space = space_of(host, style)
    with seeded(0, "benchmark teacher", style):
        model = space.build(space.default(), task.io)
    record = [task.fingerprint, space.options.model_dump(mode="json"), TEACHING.model_dump(), steps, torch.__version__]
    path = cache_folder() / "benchmarks" / f"{content_hash(record)[:16]}.safetensors"
    train(
        model, task, None, CE, TEACHING, epochs=passes(task, steps, TEACHING), steps=steps, seed=0, checkpoint=path,
        on_epoch=lambda row: say(f"teacher {style}, epoch {row.epoch + 1}: loss {row.terms['total']:.3f}"),
    )  # fmt: skip
    return SingleTeacher(model, label=f"teacher {style}", fingerprint=state_hash(model))


def passes(task: Task, steps: int, training: TrainingConfig) -> int:
    """Return the passes that hold so many steps."""
    return -(-steps // -(-task.size("train") // training.batch_size))


def calibration(task: Task, seed: int) -> list[Batch]:
    """Return some training batches."""
    batches = task.batches("train", batch_size=64, seed=seed, train=True)
    return [batch for batch, _ in zip(batches, range(CALIBRATION), strict=False)]


def student_of(
    space: SearchSpace, arch: Architecture, task: Task, teacher: TeacherSession | None, seed: int
) -> nn.Module:
    """Return a student, cut from the teacher or fresh."""
    with seeded(seed, "student"):
        model = space.build(arch, task.io)
    if teacher is not None:
        report = space.inherit(model, arch, teacher.model, calibration=calibration(task, seed))
        if report is None or report.copied != report.total:
            raise RuntimeError("the student does not start from the teacher")
    return model


def loss_of(model: nn.Module, task: Task) -> float:
    return evaluate(model, task, "validation").loss


def trained(
    model: nn.Module, task: Task, teacher: TeacherSession, objective: ObjectiveConfig, steps: int, seed: int, host: Host
) -> float:
    """Train a student in place and return its loss on the validation split."""
    result = train(
        model, task, teacher if objective.losses else None, objective, TRAINING, steps=steps,
        epochs=passes(task, steps, TRAINING), seed=seed, data_seed=derive_seed(seed, "data"), host=host,
    )  # fmt: skip
    assert result.evaluation is not None
    return result.evaluation.loss


def run_seed(host: Host, style: str, task: Task, teacher: TeacherSession, steps: int, seed: int) -> dict[str, Any]:
    """Return zero-shot and trained losses of every arm."""
    arch = half_of(host, style, task).default()
    found: dict[str, Any] = {"seed": seed, "zero": {}, "trained": {}}
    for kept, way, objective in ARMS:
        space = half_of(host, style, task, "importance" if kept == "fresh" else kept, seed)
        model = student_of(space, arch, task, None if kept == "fresh" else teacher, seed)
        if kept not in found["zero"]:
            found["zero"][kept] = loss_of(model, task)
        found["trained"][f"{kept}, {way}"] = trained(model, task, teacher, objective, steps, seed, host)
        say(
            f"{style}, seed {seed}, {kept}, {way}: {found['zero'][kept]:.3f} as cut, "
            f"{found['trained'][f'{kept}, {way}']:.3f} trained"
        )
    return found


def run_order(
    host: Host, style: str, task: Task, teacher: TeacherSession, steps: int, count: int
) -> list[dict[str, Any]]:
    """Return zero-shot and trained loss of several shapes of one size, evenly from all of them."""
    space = half_of(host, style, task)
    inside = list(space.enumerate())
    chosen = [inside[(2 * i + 1) * len(inside) // (2 * count)] for i in range(count)] if len(inside) > count else inside
    found = []
    for arch in chosen:
        model = student_of(space, arch, task, teacher, 0)
        zero = loss_of(model, task)
        loss = trained(model, task, teacher, KD, steps, 0, host)
        sizes = {name: value for name, value in arch.params.items() if "." not in name}
        found.append({"sizes": sizes, "params": space.cost(arch, task.io).params, "zero": zero, "trained": loss})
        say(f"{style}, {' '.join(f'{name} {size}' for name, size in sizes.items())}: {zero:.3f} as cut, {loss:.3f}")
    return found


def rows_of(
    style: str, teacher: float, params: tuple[int, int], runs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return one row per arm, the teacher first."""
    rows: list[dict[str, Any]] = [{"style": style, "kept": "all (teacher)", "params": params[0], "trained": teacher}]
    for kept, way, _ in ARMS:
        zero, zero_sd = mean_sd([run["zero"][kept] for run in runs])
        loss, loss_sd = mean_sd([run["trained"][f"{kept}, {way}"] for run in runs])
        rows.append(
            {
                "style": style, "kept": kept, "way": way, "params": params[1], "zero": zero, "zero_sd": zero_sd,
                "trained": loss, "sd": loss_sd, "runs": list(runs),
            }
        )  # fmt: skip
    return rows


def claims(style: str, runs: Sequence[dict[str, Any]], order: Sequence[dict[str, Any]]) -> list[str]:
    """Return in how many seeds each expected order holds, as sentences."""
    tau = kendall([row["zero"] for row in order], [row["trained"] for row in order])
    zero = sum(run["zero"]["importance"] < run["zero"]["random"] < run["zero"]["inverse"] for run in runs)

    def before(first: str, second: str) -> str:
        return f"{sum(run['trained'][first] < run['trained'][second] for run in runs)} of {len(runs)}"

    return [
        f"{style}: as cut, importance < random < inverse in {zero} of {len(runs)} seeds; trained, KD < CE in "
        f"{before('importance, KD', 'importance, CE')}, cut with CE < fresh with CE in "
        f"{before('importance, CE', 'fresh, CE')}, cut with KD < fresh with KD in "
        f"{before('importance, KD', 'fresh, KD')}.",
        f"{style}: Kendall's tau of the order as cut and the order trained, over {len(order)} shapes: "
        + ("undefined" if tau is None else f"{tau:+.2f}"),
    ]


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--style", choices=tuple(STYLES), help="only this style")
    options.add_argument("--teacher-steps", type=int, default=1500, metavar="N", help="steps of a teacher's training")
    options.add_argument("--steps", type=int, default=200, metavar="N", help="steps of a student's training")
    options.add_argument("--shapes", type=int, default=6, metavar="N", help="shapes whose order is compared")
    args: argparse.Namespace = options.parse_args()
    if args.quick:
        args.teacher_steps, args.steps, args.shapes = min(args.teacher_steps, 60), min(args.steps, 10), 2
    start(args)
    host = Host.load(third_party=False)
    text = data_folder(args, "tinyshakespeare") / "input.txt"
    share = 0.05 if not args.quick else 0.01
    task: Task = host.create(
        Kind.TASK, "causal_lm",
        {"data": str(text), "max_length": LENGTH, "validation_share": share, "test_share": share},
    )  # fmt: skip
    task.prepare(cache_folder(), say)
    rows: list[dict[str, Any]] = []
    notes, orders = [], {}
    for style in [args.style] if args.style else STYLES:
        with timed(f"{style}: teacher"):
            teacher = teacher_of(host, style, task, args.teacher_steps)
            loss = loss_of(teacher.model, task)
        space = half_of(host, style, task)
        params = space_of(host, style), space
        sizes = tuple(item.cost(item.default(), task.io).params for item in params)
        with timed(f"{style}: students"):
            seeds = range(1 if args.quick else args.seeds)
            runs = [run_seed(host, style, task, teacher, args.steps, seed) for seed in seeds]
        with timed(f"{style}: shapes"):
            orders[style] = run_order(host, style, task, teacher, args.steps, args.shapes)
        rows += rows_of(style, loss, (sizes[0], sizes[1]), runs)
        notes += claims(style, runs, orders[style])
    finish(
        args,
        rows,
        [
            ("style", "style", ""), ("kept", "kept", ""), ("way", "trained by", ""), ("params", "params", ",d"),
            ("zero", "as cut, nats", ".3f"), ("zero_sd", "sd", ".3f"), ("trained", "trained, nats", ".3f"),
            ("sd", "sd", ".3f"),
        ],
        {"notes": notes, "shapes": orders, "steps": args.steps, "teacher_steps": args.teacher_steps},
    )  # fmt: skip


if __name__ == "__main__":
    main()
