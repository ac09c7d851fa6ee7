"""A text classifier made 2 and 4 times faster: funnel and supernet against a truncated teacher and random search.

Teacher: all-MiniLM-L6-v2 fine-tuned on SST-2 (all training labels, trained on first use and kept). Students come from
`encoder`, start from the teacher's weights and are distilled on the training sentences:

- ``funnel`` and ``supernet``: the two strategies, each with the number of optimiser steps that the table shows;
- ``random``: points drawn at random, each distilled in full, as many as fit into the funnel's steps;
- ``first k layers``: the teacher cut off after its k-th layer with its classifier, distilled with the same steps as one
  student.

For each speed-up the student with the best validation accuracy among those at most so slow is taken, and its test
accuracy reported, also as a share of the teacher's. Latency: one sentence of the reference length in onnxruntime, one
thread, against the teacher in the same rounds.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import data_folder, finish, mean_sd, parser, say, start
from _text import encoder_folder, fine_tuned
from torch import nn

import nasdistill
from nasdistill.distill import evaluate, train
from nasdistill.files import cache_folder, read_json
from nasdistill.host import Host
from nasdistill.host.adapting import adapt_config
from nasdistill.measure import Meter
from nasdistill.search.events import Event
from nasdistill.search.parts import create_components, open_parts
from nasdistill.search.run import run_search
from nasdistill.seeds import derive_seed
from nasdistill.spec.config import RunConfig, parse_config
from nasdistill.store import RunDirectory

SPEEDUPS = (2, 4)
Point = dict[str, Any]
"""``ratio`` to the teacher's latency, ``validation`` and ``test`` accuracy, ``params``."""


def shortened(source: Path, folder: Path, rows: int, judged: int | None) -> Path:
    """Write the first rows of the training file, and of the others where `judged` says so, and return the folder."""
    for split, count in (("train", rows), ("dev", judged), ("test", judged)):
        lines = (source / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.tsv").write_text("".join(lines[:count]), encoding="utf-8")
    return folder


def configuration(teacher: Path, data: Path, seed: int, method: str, quick: bool, students: int = 0) -> RunConfig:
    """Return one method's search."""
    full, trials = (1, 2) if quick else (4, 18)
    options: dict[str, Any] = {
        "funnel": {"round_size": 6, "short_epochs": 1, "full_epochs": full, "full_per_round": 2, "full_final": 4,
                   "max_latency_ratio": 0.55},
        "supernet": {"supernet_epochs": full, "finalists": 1 if quick else 6, "epochs": full,
                     "max_latency_ratio": 0.55},
        "random": {"epochs": full, "students": students, "max_latency_ratio": 0.55},
    }[method]  # fmt: skip
    if quick:
        options |= {"max_latency_ratio": 10.0}
        options |= {"evaluations": 4, "samples": 32, "subspaces": ["tiny"]} if method == "supernet" else {}
    values: dict[str, Any] = {
        "task": {"name": "text_classification", "options": {"data": str(data), "max_length": 64}},
        "teacher": {"name": f"hf:{teacher}"},
        "target": [{"name": "onnxruntime_cpu"}],
        "training": {"lr": 1e-3, "distinct_epochs": 1},
        "search": {
            "seed": seed, "trials": 400 if method == "random" else trials, "strategy": method,
            "strategy_options": options, "baselines": "none", **({"sampler": "random"} if method == "random" else {}),
        },
        "latency": {"max_seconds": 0.3 if quick else 1.0, "final_pairs": 20 if quick else 100},
    }  # fmt: skip
    return parse_config(values, where=method)


def searched(config: RunConfig, host: Host, label: str) -> tuple[list[Point], int]:
    """Run a search; return its fully distilled students and the optimiser steps of all."""

    def listener(event: Event) -> None:
        if event.kind == "phase":
            say(f"{label}: {event.text}")

    with tempfile.TemporaryDirectory(prefix="nasdistill-bench-") as folder:
        run_search(config, Path(folder) / "run", host=host, listener=listener)
        run = nasdistill.load_run(Path(folder) / "run", host=host)
        target = run.teacher["primary_target"]
        teacher_ms = run.teacher["targets"][target]["latency"]["value_ms"]
        task = host.create("task", run.config.task.name, run.config.task.options)
        task.prepare(cache_folder())
        points = []
        for student in (s for s in run.students if s.state == "complete"):
            ratio = student.targets[target].latency.value_ms / teacher_ms
            test = evaluate(student.model(), task, "test").score
            points.append({"ratio": ratio, "validation": student.score, "test": test, "params": student.params})
        directory = RunDirectory.open(Path(folder) / "run")
        steps = sum(rung.get("steps", 0) for outcome in directory.outcomes() for rung in outcome["rungs"].values())
        for record in Path(folder).glob("run/supernets/*/record.json"):
            steps += int(read_json(record).get("steps", 0))
    return points, steps


def truncated(config: RunConfig, host: Host, seed: int, counts: Sequence[int]) -> tuple[list[Point], int]:
    """Distil the teacher cut off after its first layers; return the students and the steps of one."""
    config = adapt_config(config, host)
    parts = open_parts(create_components(config, host), config, message=lambda text: None)
    full = int(config.search.strategy_options["full_epochs"])
    models: dict[str, nn.Module] = {"teacher": parts.teacher.model}
    points = []
    for count in counts:
        model = copy.deepcopy(parts.teacher.model)
        stock: Any = model.model
        stock.bert.encoder.layer = stock.bert.encoder.layer[:count]
        stock.config.num_hidden_layers = count
        model.requires_grad_(True)
        result = train(
            model, parts.task, parts.teacher, config.objective, config.training, epochs=full,
            seed=derive_seed(seed, "truncated", count), data_seed=derive_seed(config.search.seed, "data"), host=host,
            cache=parts.cache,
        )  # fmt: skip
        models[str(count)] = model.eval()
        assert result.evaluation is not None
        test = evaluate(model, parts.task, "test").score
        params = sum(p.numel() for p in model.parameters())
        points.append({"ratio": math.nan, "validation": result.evaluation.score, "test": test, "params": params})
        say(f"first {count} layers: test {test:.4f}")
    target = host.create("target", "onnxruntime_cpu")
    with tempfile.TemporaryDirectory() as folder, Meter(target, Path(folder), seed=seed) as meter:
        reports = meter.report_together(models, parts.task.example(1), baseline="teacher")
    for point, count in zip(points, counts, strict=True):
        point["ratio"] = reports[str(count)].latency.value_ms / reports["teacher"].latency.value_ms
    return points, full * math.ceil(parts.task.size("train") / config.training.batch_size)


def chosen(points: Sequence[Point], speedup: int) -> Point | None:
    """Return the point with the best validation accuracy among those that are fast enough."""
    fast = [point for point in points if point["ratio"] <= 1 / speedup]
    return max(fast, key=lambda point: (point["validation"], -point["ratio"]), default=None)


def main() -> None:
    """Run."""
    arguments = parser(__doc__.splitlines()[0], seeds=1)
    arguments.add_argument("--sentences", type=int, default=2500, metavar="N", help="training sentences (2500)")
    args = arguments.parse_args()
    start(args)
    host = Host.load(third_party=False)
    source = data_folder(args, "sst2")
    found: dict[str, list[tuple[list[Point], int]]] = {}
    with tempfile.TemporaryDirectory(prefix="nasdistill-sst2-") as folder:
        data = shortened(source, Path(folder), *((64, 48) if args.quick else (args.sentences, None)))
        options = {"data": str(data if args.quick else source), "tokenizer": str(encoder_folder()), "max_length": 64}
        whole = host.create("task", "text_classification", options)
        whole.prepare(cache_folder())
        teacher = fine_tuned(whole, epochs=1 if args.quick else 2, steps=2 if args.quick else None)
        opened = host.create("teacher", "hf").open(str(teacher), whole, cache_dir=cache_folder())
        accuracy = evaluate(opened.model, whole, "test").score
        say(f"teacher: test accuracy {accuracy:.4f}")
        for seed in range(1 if args.quick else args.seeds):
            funnel = configuration(teacher, data, seed, "funnel", args.quick)
            found.setdefault("funnel", []).append(searched(funnel, host, "funnel"))
            supernet = configuration(teacher, data, seed, "supernet", args.quick)
            found.setdefault("supernet", []).append(searched(supernet, host, "supernet"))
            cut = truncated(funnel, host, seed, (2,) if args.quick else (1, 2, 3))
            found.setdefault("first k layers", []).append(cut)
            students = max(1, round(found["funnel"][-1][1] / cut[1]))
            random = configuration(teacher, data, seed, "random", args.quick, min(students, 2 if args.quick else 99))
            found.setdefault("random", []).append(searched(random, host, "random"))
    rows: list[dict[str, Any]] = [{"method": "teacher", "speedup": 1.0, "test": 100 * accuracy, "retained": 100.0}]
    for speedup in SPEEDUPS:
        for method, runs in found.items():
            picks = [pick for points, _ in runs if (pick := chosen(points, speedup)) is not None]
            row: dict[str, Any] = {"method": method, "speedup": float(speedup), "runs": runs}
            row["steps"] = mean_sd([steps for _, steps in runs])[0]
            if picks:
                row["test"], row["sd"] = mean_sd([100 * pick["test"] for pick in picks])
                row["retained"] = row["test"] / accuracy
                row["ratio"] = mean_sd([pick["ratio"] for pick in picks])[0]
                row["params"] = int(mean_sd([pick["params"] for pick in picks])[0])
            rows.append(row)
    columns = [
        ("method", "method", ""), ("speedup", "at least x faster", ".0f"), ("test", "test accuracy", ".2f"),
        ("sd", "sd", ".2f"), ("retained", "retained %", ".1f"), ("ratio", "latency ratio", ".3f"),
        ("params", "params", ",d"), ("steps", "steps", ".0f"),
    ]  # fmt: skip
    finish(args, rows, columns, {"sentences": args.sentences})


if __name__ == "__main__":
    main()
