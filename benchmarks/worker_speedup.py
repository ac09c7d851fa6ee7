"""Two worker processes against one: time of the distillation rungs, and whether latencies stay the same.

The same search (latencies on the simulator decide, so that both take the same trials through the same rungs; the
real runtime is timed at the end) with one worker and with two. Trainings have one thread each; on a machine
with fewer than two free cores there is nothing to gain.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

from nasdistill.host import Host
from nasdistill.search.run import run_search
from nasdistill.spec.config import load_preset, parse_config
from nasdistill.store import RunDirectory

RUNGS = ("short", "full")


def main() -> None:
    """Run."""
    args = _common.parser(__doc__.splitlines()[0], seeds=2).parse_args()
    _common.start(args)
    rows: list[dict[str, Any]] = []
    for seed in range(1 if args.quick else args.seeds):
        found = {count: one(seed, count, quick=args.quick) for count in (1, 2)}
        ratios = [
            found[2]["latency"][name] / found[1]["latency"][name]
            for name in found[1]["latency"].keys() & found[2]["latency"].keys()
        ]
        rows.append(
            {
                "seed": seed,
                "one": found[1]["seconds"],
                "two": found[2]["seconds"],
                "speedup": found[1]["seconds"] / found[2]["seconds"],
                "same": "yes" if found[1]["scores"] == found[2]["scores"] else "NO",
                "latency": statistics.median(ratios) if ratios else None,
                "worst": max((abs(ratio - 1) for ratio in ratios), default=None),
                "compared": len(ratios),
            }
        )
    columns = [
        ("seed", "seed", ""), ("one", "1 worker, s", ".1f"), ("two", "2 workers, s", ".1f"),
        ("speedup", "speed-up", ".2f"), ("same", "same scores", ""),
        ("latency", "latency with 2 / with 1", ".3f"), ("worst", "largest deviation", ".3f"),
        ("compared", "students", ""),
    ]  # fmt: skip
    _common.finish(args, rows, columns, {"rungs": RUNGS})


def one(seed: int, workers: int, *, quick: bool) -> dict[str, Any]:
    """Search once; return wall seconds of the distillation rungs, scores, and latencies on the real runtime."""
    values = load_preset("digits").to_json()
    values["target"] = [{"name": "simulated"}, {"name": "onnxruntime_cpu"}]
    values["search"] |= {"seed": seed, "trials": 6 if quick else 24, "baselines": "none"}
    options = {"round_size": 12, "full_per_round": 2, "full_final": 6, "max_latency_ratio": 1.0}
    if quick:
        options |= {"round_size": 6, "short_epochs": 1, "full_epochs": 2, "full_final": 2}
    values["search"]["strategy_options"] |= options
    values["workers"] = {"count": workers}
    clock: dict[str, float] = dict.fromkeys(RUNGS, 0.0)
    began: dict[str, float] = {}

    def listener(event: Any) -> None:
        if event.kind == "rung" and event.rung in RUNGS:
            began[event.rung] = time.perf_counter()
        if event.kind == "step" and event.rung in RUNGS and event.done == event.total:
            clock[event.rung] += time.perf_counter() - began[event.rung]

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        config = parse_config(values, where="benchmark")
        result = run_search(config, run, host=Host.load(third_party=False), listener=listener)
        outcomes = list(RunDirectory.open(run).outcomes())
    _common.say(f"seed {seed}, {workers} workers: {json.dumps({k: round(v, 1) for k, v in clock.items()})}")
    latency = {s["id"]: s["latency_ms"]["targets:onnxruntime_cpu"]["value"] for s in result["front"]}
    return {
        "seconds": sum(clock.values()),
        "scores": [(o["number"], o["score"], o["state"]) for o in outcomes],
        "latency": latency,
    }


if __name__ == "__main__":
    main()
