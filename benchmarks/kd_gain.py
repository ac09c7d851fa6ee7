"""When does distillation help? Labels alone, KD, KD with features, inherited weights: at equal steps, paired by seed.

Three settings:

- ``cifar10``: 7,500 training images of the CIFAR-10 subset, all labelled; the teacher (a ResNet of 0.3 million
  parameters) and the students (0.02 million) see the same images and labels.
- ``digits, few labels``: scikit-learn's digits of which a student may use 2 % of the labels, 20 or so. The teacher
  saw all labels of the training images, so this is the case of a good model that exists already, and of plentiful
  images without labels for its successor. It is not a comparison of equals: the labels reach the student through the
  teacher.
- ``digits, all labels``: everything is labelled for both. Small students reach the teacher's accuracy on labels alone,
  and nothing is left to gain.

All arms of a seed share order, augmentation, number of steps, and (but for inheritance) first weights. Reported is the
accuracy on the test split, mean and standard deviation over seeds; `gain` is the mean paired difference to labels alone
in points. Nothing was chosen by these figures: temperature 4, equal weights, one learning rate for all arms.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from _common import data_folder, finish, mean_sd, parser, say, start, timed

from nasdistill.distill import TeacherCache, evaluate, train
from nasdistill.files import cache_folder, content_hash
from nasdistill.host import Host
from nasdistill.interfaces import Task, TeacherSession
from nasdistill.interfaces.teacher import SingleTeacher
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig
from nasdistill.store import weights_hash

LABELS_ONLY = ObjectiveConfig(task_weight=1.0, losses=())
KD = LossConfig(name="kd", weight=0.5, options={"temperature": 4.0})
FEATURES = LossConfig(name="hidden", weight=0.5, options={"normalise": True})

ARMS: dict[str, tuple[ObjectiveConfig, bool]] = {
    # name: (objective, start from the teacher's weights)
    "labels alone": (LABELS_ONLY, False),
    "KD": (ObjectiveConfig(task_weight=0.5, losses=(KD,)), False),
    "KD + features": (ObjectiveConfig(task_weight=0.5, losses=(KD, FEATURES)), False),
    "inherited, labels alone": (LABELS_ONLY, True),
    "inherited + KD": (ObjectiveConfig(task_weight=0.5, losses=(KD,)), True),
}


@dataclass(frozen=True)
class Setting:
    """One task with its student."""

    name: str
    data: str
    options: tuple[tuple[str, Any], ...]
    space: str
    student: tuple[tuple[str, Any], ...]
    epochs: int
    teacher_epochs: int = 0


def settings(quick: bool, cifar: str) -> list[Setting]:
    """Return the settings; the quick ones only show that everything runs."""
    resnet = (("width", 8), ("stem_stride", 2), *((f"stage{i}.blocks", 1) for i in range(3)))
    vit = (("stem_width", 8), ("width", 32), ("depth", 1))
    epochs = 3 if quick else 30
    return [
        Setting(
            "cifar10", cifar, (("augment", "shift_flip"),), "resnet_s0", resnet, 1 if quick else 12, 1 if quick else 24
        ),
        Setting("digits, few labels", "digits", (("labels", 0.02),), "conv_vit", vit, epochs),
        Setting("digits, all labels", "digits", (), "conv_vit", vit, 1 if quick else epochs),
    ]


def prepared(host: Host, setting: Setting) -> Task:
    task: Task = host.create(Kind.TASK, "image_classification", {"data": setting.data, **dict(setting.options)})
    task.prepare()
    return task


def teacher_of(host: Host, setting: Setting, task: Task) -> TeacherSession:
    """Open the teacher; the one for CIFAR is trained on first use and kept like the bundled ones."""
    folder = cache_folder()
    if setting.data == "digits":
        opened: TeacherSession = host.create(Kind.TEACHER, "builtin").open(
            "digits", task, cache_dir=folder, progress=say
        )
        return opened
    space = host.create(Kind.SEARCH_SPACE, setting.space)
    arch = space.architecture({"width": 32, "stem_stride": 2, **{f"stage{i}.blocks": 1 for i in range(3)}})
    with seeded(0, "benchmark teacher"):
        model = space.build(arch, task.io)
    training = TrainingConfig(batch_size=64, lr=2e-3, weight_decay=0.05, ema=0.995, distinct_epochs=None)
    record = [task.fingerprint, arch.fingerprint, training.model_dump(), setting.teacher_epochs, torch.__version__]
    path = folder / "benchmarks" / f"{content_hash(record)[:16]}.safetensors"
    train(
        model, task, None, LABELS_ONLY, training,
        epochs=setting.teacher_epochs, seed=0, checkpoint=path,
        on_epoch=lambda row: say(f"teacher, epoch {row.epoch + 1}: loss {row.terms['total']:.3f}, {row.seconds:.0f} s"),
    )  # fmt: skip
    return SingleTeacher(model, label="benchmark teacher", fingerprint=weights_hash(model))


def run_seed(setting: Setting, seed: int, folder: str) -> list[dict[str, Any]]:
    """Train every arm of one seed, on one thread: several seeds run side by side, each in its own process."""
    torch.set_num_threads(1)
    host = Host.load(third_party=False)
    task = prepared(host, setting)
    teacher = teacher_of(host, setting, task)
    space = host.create(Kind.SEARCH_SPACE, setting.space)
    arch = space.architecture(dict(setting.student))
    training = TrainingConfig(batch_size=64, lr=2e-3, weight_decay=0.02, distinct_epochs=6)
    cache = TeacherCache(Path(folder))
    found = []
    for name, (objective, inherits) in ARMS.items():
        with seeded(seed, "student"):
            student = space.build(arch, task.io)
        if inherits and space.inherit(student, arch, teacher.model) is None:
            raise RuntimeError(f"{setting.space} does not inherit from this teacher")
        result = train(
            student, task, teacher, objective, training,
            epochs=setting.epochs, seed=seed, data_seed=derive_seed(seed, "data"), host=host,
            cache=None if FEATURES in objective.losses else cache,  # maps of every stage, for one arm only
        )  # fmt: skip
        test = evaluate(student, task, "test")
        assert result.evaluation is not None
        found.append(
            {
                "setting": setting.name, "arm": name, "seed": seed, "test": test.score,
                "validation": result.evaluation.score, "steps": result.steps, "seconds": result.seconds,
            }
        )  # fmt: skip
        say(f"{setting.name}, seed {seed}, {name}: {test.score:.4f} ({result.seconds:.0f} s)")
    return found


def run_seeds(setting: Setting, seeds: range, folder: str, jobs: int) -> list[dict[str, Any]]:
    """Run all seeds, side by side where there are several."""
    if len(seeds) == 1:
        return run_seed(setting, seeds[0], folder)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run_seed, setting, seed, folder) for seed in seeds]
        return [run for job in running for run in job.result()]


def rows_of(setting: Setting, runs: list[dict[str, Any]], teacher: float) -> list[dict[str, Any]]:
    """Return one row per arm, the teacher first."""
    rows: list[dict[str, Any]] = [{"setting": setting.name, "arm": "teacher", "test": 100 * teacher}]
    by_arm = {arm: {run["seed"]: run for run in runs if run["arm"] == arm} for arm in ARMS}
    base = by_arm["labels alone"]
    for arm, chosen in by_arm.items():
        test, sd = mean_sd([100 * run["test"] for run in chosen.values()])
        gain, gain_sd = mean_sd([100 * (run["test"] - base[seed]["test"]) for seed, run in chosen.items()])
        rows.append(
            {
                "setting": setting.name, "arm": arm, "test": test, "sd": sd,
                "gain": None if arm == "labels alone" else gain, "gain_sd": None if arm == "labels alone" else gain_sd,
                "steps": next(iter(chosen.values()))["steps"],
                "seconds": mean_sd([run["seconds"] for run in chosen.values()])[0], "runs": list(chosen.values()),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--jobs", type=int, default=2, metavar="N", help="processes side by side (default 2)")
    options.add_argument("--setting", action="append", metavar="NAME", help="only settings whose name contains this")
    args: argparse.Namespace = options.parse_args()
    start(args)
    seeds = range(1 if args.quick else args.seeds)
    host = Host.load(third_party=False)
    chosen = [
        setting
        for setting in settings(args.quick, str(args.data / "cifar10_subset" / "cifar10_subset.zip"))
        if not args.setting or any(part in setting.name for part in args.setting)
    ]
    if any(setting.data != "digits" for setting in chosen):
        data_folder(args, "cifar10_subset")
    rows: list[dict[str, Any]] = []
    for setting in chosen:
        with timed(f"{setting.name}: teacher"):
            task = prepared(host, setting)
            teacher = evaluate(teacher_of(host, setting, task).model, task, "test").score
        with (
            timed(f"{setting.name}: students"),
            tempfile.TemporaryDirectory(prefix="nasdistill-bench-") as folder,
        ):
            rows += rows_of(setting, run_seeds(setting, seeds, folder, args.jobs), teacher)
    notes = [
        "gain: mean paired difference to labels alone, in points of test accuracy; sd over seeds.",
    ]
    finish(
        args,
        rows,
        [
            ("setting", "setting", ""), ("arm", "arm", ""), ("test", "test, %", ".2f"), ("sd", "sd", ".2f"),
            ("gain", "gain, points", "+.2f"), ("gain_sd", "sd", ".2f"), ("steps", "steps", "d"),
            ("seconds", "s", ".1f"),
        ],
        {"notes": notes if not args.quick else [], "jobs": args.jobs},
    )  # fmt: skip


if __name__ == "__main__":
    main()
