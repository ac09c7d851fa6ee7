"""Hypervolume of our front on digits, in the units of the rivals' table.

Everyone in that table had the same fixed split of scikit-learn's digits, shifts by one pixel, one thread and about six
CPU minutes after the teacher. Hypervolume is in (test error, onnxruntime latency relative to the transformer teacher)
with the reference point (0.15, 1.0); the rivals' figures below were measured once each under that protocol.
"""

from __future__ import annotations

import statistics

import _common
from _searches import TIGHT, WIDE, bootstrap_sd, one_search, quick, ratio_rows

from nasdistill.search.pareto import hypervolume
from nasdistill.spec.config import load_preset, parse_config

RIVALS = {
    "Torch-Pruning 1.6.1 + KD (CNN teacher)": 0.133,
    "whittle 0.6.0": 0.130,
    "modelopt 0.47 FastNAS": 0.129,
    "Optuna 5 TPE": 0.115,
    "Optuna random": 0.110,
    "hand-made (first k blocks, half width) + KD": 0.106,
    "Syne Tune 0.16 MO-ASHA": 0.104,
}

TRIALS, FULL_FINAL = 96, 22
"""Twice the preset's, which uses three of the six CPU minutes that everyone in the table had."""


def main() -> None:
    """Run."""
    args = _common.parser(__doc__.splitlines()[0], seeds=3).parse_args()
    _common.start(args)
    rows, meta = [], {"wide": WIDE, "tight": TIGHT, "notes": []}
    seeds = 1 if args.quick else args.seeds
    for seed in range(seeds):
        values = load_preset("digits").to_json()
        values["search"] |= {"seed": seed, "trials": TRIALS}
        values["search"]["strategy_options"]["full_final"] = FULL_FINAL
        if args.quick:
            quick(values, targets=("onnxruntime_cpu",))
        result = one_search(parse_config(values, where="preset"), label=f"seed {seed}", single_calls=True)
        ratios = result["single_call_ratio"]
        points = ratio_rows(result, ratios=ratios)
        best = min(points, default=(1.0, 1.0))
        rows.append(
            {
                "method": f"nasdistill, seed {seed}",
                "hv": hypervolume(points, WIDE),
                "sd": bootstrap_sd(result, WIDE, ratios),
                "tight": hypervolume(points, TIGHT),
                "repeated": hypervolume(ratio_rows(result), WIDE),
                "cpu_min": result["cpu_seconds"] / 60,
                "students": len(points),
                "best": f"{1 - best[0]:.3f} @ {best[1]:.3f}",
                "points": sorted(points, key=lambda p: p[1]),
                "teacher_test": result["teacher"]["test_score"],
            }
        )
    values = [row["hv"] for row in rows]
    rows.insert(
        0,
        {
            "method": "nasdistill, mean over seeds",
            "hv": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "tight": statistics.fmean(row["tight"] for row in rows),
            "repeated": statistics.fmean(row["repeated"] for row in rows),
            "cpu_min": statistics.fmean(row["cpu_min"] for row in rows),
        },
    )
    rows += [{"method": name, "hv": value} for name, value in RIVALS.items()]
    meta["notes"].append(
        "Latency as in the rivals' table: single calls right after the teacher's. The column 'repeated calls' has the "
        "search's own measurement instead, in which calls follow each other."
    )
    meta["notes"].append("sd: over seeds in the first row, over redrawn test images in the rows of single seeds.")
    columns = [
        ("method", "method", ""),
        ("hv", "hypervolume", ".4f"),
        ("sd", "sd", ".4f"),
        ("tight", "hv at (0.06, 0.30)", ".5f"),
        ("repeated", "hv, repeated calls", ".4f"),
        ("cpu_min", "CPU min", ".1f"),
        ("students", "students", "d"),
        ("best", "best accuracy @ ratio", ""),
    ]
    _common.finish(args, rows, columns, meta)


if __name__ == "__main__":
    main()
