"""The funnel against random search at the same number of distillation steps.

The funnel runs first; random search (sampler and strategy `random`: every proposal distilled in full) then gets as many
students as fit into the same number of optimiser steps; proposals slower than the funnel's limit cost it nothing but
their measurement. Both see the same teacher, spaces, data and training.
"""

from __future__ import annotations

import _common
from _searches import TIGHT, WIDE, one_search, quick, ratio_rows

from nasdistill.search.pareto import hypervolume
from nasdistill.spec.config import load_preset, parse_config


def main() -> None:
    """Run."""
    args = _common.parser(__doc__.splitlines()[0], seeds=5).parse_args()
    _common.start(args)
    seeds = 1 if args.quick else args.seeds
    found: dict[str, list[dict[str, float]]] = {"funnel": [], "random": []}
    for seed in range(seeds):
        values = load_preset("digits").to_json()
        values["search"]["seed"] = seed
        if args.quick:
            quick(values, targets=("simulated",))
        options = dict(values["search"]["strategy_options"])
        funnel = one_search(parse_config(values, where="funnel"), label=f"funnel, seed {seed}")
        steps_per_full = options["full_epochs"] * 17  # 1,078 training images in batches of 64
        values["search"] |= {
            "strategy": "random",
            "sampler": "random",
            "sampler_options": {},
            "strategy_options": {
                "epochs": options["full_epochs"],
                "students": max(1, round(funnel["steps"] / steps_per_full)),
                "max_latency_ratio": options["max_latency_ratio"],
            },
            "trials": 400,
        }
        random = one_search(parse_config(values, where="random"), label=f"random, seed {seed}")
        for name, result in (("funnel", funnel), ("random", random)):
            points = ratio_rows(result)
            found[name].append(
                {
                    "hv": hypervolume(points, WIDE),
                    "tight": hypervolume(points, TIGHT),
                    "steps": result["steps"],
                    "cpu": result["cpu_seconds"],
                    "proposed": sum(result["trials"][state] for state in ("complete", "pruned", "failed")),
                    "students": len(points),
                }
            )
    rows = []
    for name, runs in found.items():
        row: dict[str, object] = {"method": name, "runs": runs}
        for key in ("hv", "tight", "steps", "cpu", "proposed", "students"):
            row[key], row[f"{key}_sd"] = _common.mean_sd([run[key] for run in runs])
        rows.append(row)
    wins = sum(a["hv"] > b["hv"] for a, b in zip(found["funnel"], found["random"], strict=True))
    columns = [
        ("method", "method", ""),
        ("hv", "hypervolume", ".4f"),
        ("hv_sd", "sd", ".4f"),
        ("tight", "hv at (0.06, 0.30)", ".5f"),
        ("tight_sd", "sd", ".5f"),
        ("steps", "steps", ".0f"),
        ("cpu", "CPU s", ".0f"),
        ("proposed", "proposed", ".1f"),
        ("students", "students", ".1f"),
    ]
    _common.finish(args, rows, columns, {"notes": [f"funnel ahead in {wins} of {seeds} seeds"]})


if __name__ == "__main__":
    main()
