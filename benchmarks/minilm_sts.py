"""Students of a sentence encoder found by search: Spearman on STS-B against latency in onnxruntime.

Teacher: all-MiniLM-L6-v2 (6 layers, width 384) with its published weights; its row proves loading, tokenising and
pooling (published: 82.0 on the test pairs). Students come from `encoder`, started from the teacher's weights and
distilled on sentences of the training file alone: no score of the data set and no test sentence is seen before the
last evaluation. Validation pairs choose the front.

Beside the front, with the same objective, data and number of steps as a fully distilled student:

- ``first k layers``: the teacher cut off after its k-th layer, the usual thing to do by hand;
- ``random start``: the front's own architectures without the teacher's weights.

Latency: one sentence of the reference length, one thread, all networks timed head to head in the same rounds.
"""

from __future__ import annotations

import copy
import csv
import math
import tempfile
from pathlib import Path
from typing import Any

from _common import data_folder, finish, mean_sd, parser, say, start
from _text import encoder_folder
from torch import nn

import nasdistill
from nasdistill.distill import evaluate, train
from nasdistill.files import cache_folder
from nasdistill.host import Host
from nasdistill.host.adapting import adapt_config
from nasdistill.measure import Meter
from nasdistill.search.events import Event
from nasdistill.search.parts import Parts, create_components, open_parts
from nasdistill.search.run import run_search
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.config import RunConfig, parse_config

NAME = "stsb-en-{}.csv"
SHARES = (0.1, 0.2, 0.4, 0.7)
"""Shares of the teacher's latency for which the slowest network in reach is compared, over seeds."""


def shortened(source: Path, folder: Path, rows: int, pairs: int | None) -> Path:
    """Write the first rows of the training file, and the other files (their first pairs), and return the folder."""
    for split, count in (("train", rows), ("dev", pairs), ("test", pairs)):
        with open(source / NAME.format(split), encoding="utf-8", newline="") as file:
            kept = [row for row, _ in zip(csv.reader(file), range(count or 10**9), strict=False)]
        with open(folder / NAME.format(split), "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(kept)
    return folder


def configuration(data: Path, seed: int, quick: bool) -> RunConfig:
    """Return the search: what the task suggests, with the budget of this benchmark."""
    funnel = {"round_size": 6, "short_epochs": 1, "full_epochs": 4, "full_per_round": 2, "full_final": 4}
    if quick:
        funnel = {"round_size": 3, "short_epochs": 1, "full_epochs": 1, "full_per_round": 1, "full_final": 1}
    values: dict[str, Any] = {
        "task": {"name": "sentence_similarity", "options": {"data": str(data)}},
        "teacher": {"name": f"hf:{encoder_folder()}"},
        "target": [{"name": "onnxruntime_cpu"}],
        "training": {"lr": 1e-3, "distinct_epochs": 1},
        "search": {
            "seed": seed, "trials": 3 if quick else 18, "strategy": "funnel", "strategy_options": funnel,
            "baselines": "none",
        },
        "latency": {"max_seconds": 0.3 if quick else 1.5, "final_pairs": 20 if quick else 100},
    }  # fmt: skip
    return parse_config(values, where="benchmark")


def first_layers(teacher: nn.Module, count: int) -> nn.Module:
    """Return a copy of the teacher that ends after `count` layers, all of it to be trained."""
    model = copy.deepcopy(teacher)
    bert: Any = model.model
    bert.encoder.layer = bert.encoder.layer[:count]
    bert.config.num_hidden_layers = count
    return model.requires_grad_(True)


def trained(model: nn.Module, parts: Parts, epochs: int, seed: int, label: str) -> nn.Module:
    """Train a network as the search trains its students."""
    train(
        model, parts.task, parts.teacher, parts.config.objective, parts.config.training, epochs=epochs,
        seed=derive_seed(seed, "baseline", label), data_seed=derive_seed(seed, "data"), host=parts.host,
        cache=parts.cache, student_label=label,
    )  # fmt: skip
    return model.eval()


def one_seed(data: Path, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Search, train the baselines, time and score everything."""
    host = Host.load(third_party=False)
    config = configuration(data, seed, quick)
    epochs = config.search.strategy_options["full_epochs"]

    def listener(event: Event) -> None:
        if event.kind in ("message", "phase"):
            say(event.text)

    with tempfile.TemporaryDirectory(prefix="nasdistill-bench-") as folder:
        run_search(config, Path(folder) / "run", host=host, listener=listener)
        config = adapt_config(config, host)
        parts = open_parts(create_components(config, host), config, message=say)
        front = nasdistill.load_run(Path(folder) / "run", host=host).front
        models: dict[str, nn.Module] = {"teacher": parts.teacher.model}
        rows: list[dict[str, Any]] = [{"network": "teacher", "steps": 0}]
        steps = epochs * math.ceil(parts.task.size("train") / config.training.batch_size)
        for number, student in enumerate(front):
            name = f"found {number + 1}"
            models[name] = student.model()
            sizes = {k: v for k, v in student.architecture.params.items() if k != "attention"}
            rows.append({"network": name, "sizes": sizes, "steps": steps})
            space = parts.space_of(student.architecture)
            with seeded(seed, "random start", number):
                fresh = space.build(student.architecture, parts.task.io)
            models[f"random start {number + 1}"] = trained(fresh, parts, epochs, seed, f"random start {number + 1}")
            rows.append({"network": f"random start {number + 1}", "sizes": sizes, "steps": steps})
        for count in (2,) if quick else (1, 2, 3, 4):
            name = f"first {count} layers"
            models[name] = trained(first_layers(parts.teacher.model, count), parts, epochs, seed, name)
            rows.append({"network": name, "steps": steps})
        with Meter(host.create("target", "onnxruntime_cpu"), Path(folder) / "artefacts", seed=seed) as meter:
            reports = meter.report_together(models, parts.task.example(1), baseline="teacher")
        teacher_ms = reports["teacher"].latency.value_ms
        for row in rows:
            model = models[row["network"]]
            row["seed"] = seed
            row["params"] = sum(p.numel() for p in model.parameters())
            row["ms"] = reports[row["network"]].latency.value_ms
            row["ratio"] = row["ms"] / teacher_ms
            row["test"] = 100 * evaluate(model, parts.task, "test").score
            say(f"seed {seed}, {row['network']}: {row['test']:.2f} at {row['ms']:.3f} ms")
    return rows


def within(rows: list[dict[str, Any]], kind: str, share: float) -> list[float]:
    """Return, for each seed, the score of the slowest network of a kind within a share of the teacher's latency.

    On the front, and among first layers, the slowest is the one that scored best on the validation pairs.
    """
    found: dict[int, tuple[float, float]] = {}
    for row in rows:
        if row["network"].startswith(kind) and row["ratio"] <= share:
            found[row["seed"]] = max(found.get(row["seed"], (0.0, 0.0)), (row["ratio"], row["test"]))
    return [test for _, test in found.values()]


def main() -> None:
    """Run."""
    args = parser(__doc__.splitlines()[0], seeds=1)
    args.add_argument("--sentences", type=int, default=2000, metavar="N", help="pairs of the training file (2000)")
    args = args.parse_args()
    start(args)
    source = data_folder(args, "stsb_en")
    with tempfile.TemporaryDirectory(prefix="nasdistill-sts-") as folder:
        size = (30, 40) if args.quick else (args.sentences, None)
        data = shortened(source, Path(folder), *size)
        rows = [row for seed in range(1 if args.quick else args.seeds) for row in one_seed(data, seed, args.quick)]
    for row in rows:
        row["shown"] = " ".join(f"{key[0]}{value:g}" for key, value in row.get("sizes", {}).items())
    pairs: dict[Any, dict[str, float]] = {}
    for row in rows:
        kind = row["network"].rpartition(" ")[0]
        if kind in ("found", "random start"):
            pairs.setdefault((row["seed"], row["network"].rpartition(" ")[2]), {})[kind] = row["test"]
    gains = [pair["found"] - pair["random start"] for pair in pairs.values()]
    columns = [
        ("seed", "seed", "d"), ("network", "network", ""), ("shown", "sizes", ""), ("params", "params", ",d"),
        ("ms", "ms", ".3f"), ("ratio", "of the teacher", ".3f"), ("test", "Spearman x100", ".2f"),
        ("steps", "steps", "d"),
    ]  # fmt: skip
    gain, spread = mean_sd(gains)
    notes = [f"inherited start over random start: {gain:+.2f} +- {spread:.2f} points over {len(gains)} students"]
    for share in SHARES:
        for kind in ("found", "random start", "first"):
            scores = within(rows, kind, share)
            if scores:
                mean, spread = mean_sd(scores)
                notes.append(
                    f"within {share:g} of the latency, {kind}: {mean:.2f} +- {spread:.2f} ({len(scores)} seeds)"
                )
    finish(args, rows, columns, {"notes": notes, "cache": str(cache_folder().name)})


if __name__ == "__main__":
    main()
