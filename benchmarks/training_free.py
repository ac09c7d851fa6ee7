"""The training-free search against the funnel and random search in the same CPU time, on digits with short trainings.

The funnel runs first. Half of the CPU seconds that its rungs took go to every training-free search for scoring, the
other half pays for as many finalists as the funnel's own trainings say; random search proposes until that time is over.
All see the same teacher, spaces, data, latency cut and epochs. The search's clock counts CPU seconds here, because
other jobs on the machine would otherwise decide who gets how much.

The Kendall columns compare the proxies with the validation scores of students after the same rung, averaged over seeds
that have three or more. Those of a training-free search were chosen by the proxies; those of random search were not.
"""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import _common
from _searches import TIGHT, WIDE, one_search, ratio_rows

from nasdistill.search import session, work
from nasdistill.search.pareto import hypervolume
from nasdistill.spec.config import RunConfig, load_preset, parse_config

METHODS = ("funnel", "evolution (score)", "evolution (front)", "random")
PROXIES = ("params", "macs", "nwot", "cka")


def main() -> None:
    """Run."""
    args = _common.parser(__doc__.splitlines()[0], seeds=3).parse_args()
    _common.start(args)
    seeds = 1 if args.quick else args.seeds
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for seed in range(seeds):
        funnel, epochs = settings(seed, quick=args.quick), 4 if args.quick else 9
        first = cpu_search(parse_config(funnel, where="funnel"), label=f"funnel, seed {seed}")
        found["funnel"].append(facts(first))
        seconds = first["seconds"]
        budget = sum(seconds.get(rung, 0.0) for rung in ("static", "proxies", "latency", "short", "full"))
        # One step costs about the same in all rungs; 17 of them are an epoch of 1,078 images in batches of 64.
        each = (seconds["short"] + seconds["full"]) / first["steps"] * 17 * epochs
        finalists = max(2, round(budget / 2 / each))
        _common.say(f"budget {budget:.0f} s, a training {each:.1f} s, {finalists} finalists")
        shared = {"epochs": epochs, "max_latency_ratio": funnel["search"]["strategy_options"]["max_latency_ratio"]}
        free = {"evaluations": 5000, "finalists": finalists, **shared}
        if args.quick:
            free |= {"evaluations": 12, "population": 6, "tournament": 3}
        for name, strategy, options, limit in (
            ("evolution (score)", "training_free", free, budget / 2),
            ("evolution (front)", "training_free", {**free, "aim": "front"}, budget / 2),
            ("random", "random", shared, budget),
        ):
            values = settings(seed, quick=args.quick)
            values["search"] |= {"strategy": strategy, "strategy_options": options, "trials": 5000, "timeout": limit}
            if strategy == "random":
                values["search"] |= {"sampler": "random", "sampler_options": {}}
            found[name].append(facts(cpu_search(parse_config(values, where=name), label=f"{name}, seed {seed}")))
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"method": name, "runs": runs}
        for key in ("hv", "tight", "cpu", "wall", "scored", "distilled", "best"):
            row[key], row[f"{key}_sd"] = _common.mean_sd([run[key] for run in runs])
        for proxy in PROXIES:
            known = [run["kendall"][proxy] for run in runs if run["kendall"].get(proxy) is not None]
            row[f"kendall_{proxy}"] = statistics.fmean(known) if known else None
        rows.append(row)
    columns = [
        ("method", "method", ""),
        ("hv", "hypervolume", ".4f"),
        ("hv_sd", "sd", ".4f"),
        ("tight", "hv at (0.06, 0.30)", ".5f"),
        ("tight_sd", "sd", ".5f"),
        ("best", "best test score", ".4f"),
        ("cpu", "CPU s", ".0f"),
        ("wall", "wall s", ".0f"),
        ("scored", "scored", ".0f"),
        ("distilled", "distilled", ".1f"),
        *((f"kendall_{proxy}", f"Kendall {proxy}", "+.2f") for proxy in PROXIES),
    ]
    _common.finish(args, rows, columns, {"proxies": PROXIES[1:], "reference": {"wide": WIDE, "tight": TIGHT}})


def cpu_search(config: RunConfig, *, label: str) -> dict[str, Any]:
    """Run a search whose clock is this process's CPU time: for its time limit and for the seconds of its rungs."""
    clock = SimpleNamespace(monotonic=time.process_time)
    with mock.patch.object(session, "time", clock), mock.patch.object(work, "time", clock):
        return one_search(config, label=label)


def settings(seed: int, *, quick: bool) -> dict[str, Any]:
    """Return the digits preset with short trainings and measurements."""
    values = load_preset("digits").to_json()
    options = {"round_size": 6, "short_epochs": 3, "full_epochs": 9, "full_per_round": 2, "full_final": 3}
    if quick:
        options = {"round_size": 6, "short_epochs": 2, "full_epochs": 4, "full_per_round": 1, "full_final": 2}
    values["search"] |= {"seed": seed, "trials": 6 if quick else 12, "baselines": "none"}
    values["search"]["strategy_options"] |= options
    values["latency"] |= {"max_seconds": 0.3, "final_pairs": 20, "min_pairs": 5, "max_pairs": 20}
    return values


def facts(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the table needs of a run."""
    points, trials = ratio_rows(result), result["trials"]
    return {
        "hv": hypervolume(points, WIDE),
        "tight": hypervolume(points, TIGHT),
        "best": max((student["test_score"] for student in result["front"]), default=0.0),
        "cpu": result["cpu_seconds"],
        "wall": result["wall_seconds"],
        "scored": trials["complete"] + trials["pruned"] + trials["failed"],
        "distilled": trials["complete"],
        "kendall": {name: quality["kendall"] for name, quality in result["proxies"].items()},
        "n": max((quality["n"] for quality in result["proxies"].values()), default=0),
    }


if __name__ == "__main__":
    main()
