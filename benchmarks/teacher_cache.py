"""The same search with and without the teacher cache: time, and whether the weights are identical.

Latency decides which candidates go on, and timings differ between runs; the simulated target makes both runs take the
same decisions, so that their students can be compared weight by weight. The cache starts empty: filling it is part of
its time. The pilot that times one epoch before the search counts as distillation, because it fills the cache too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import _common
from _searches import one_search, quick

from nasdistill.files import cache_folder
from nasdistill.spec.config import load_preset, parse_config
from nasdistill.store import load_weights

import torch  # isort: skip


ORIGINAL = cache_folder()


def fresh_cache(folder: Path) -> Path:
    """Return a copy of the user's cache without teacher outputs: the trained teacher stays, its outputs start empty."""
    if ORIGINAL.is_dir():
        shutil.copytree(ORIGINAL, folder, ignore=shutil.ignore_patterns("teacher-outputs"))
    return folder


def main() -> None:
    """Run."""
    args = _common.parser(__doc__.splitlines()[0], seeds=1).parse_args()
    _common.start(args)
    rows = []
    with tempfile.TemporaryDirectory(prefix="nasdistill-bench-") as name:
        folder = Path(name)
        for seed in range(1 if args.quick else args.seeds):
            results, weights = {}, {}
            for cached in (False, True):
                values = load_preset("digits").to_json()
                values["search"] |= {"seed": seed, "trials": 16}
                values["search"]["strategy_options"] = {"round_size": 8, "full_epochs": 30}
                values["target"] = [{"name": "simulated", "options": {}}]
                if args.quick:
                    quick(values, targets=("simulated",), trials=4)
                values["training"]["teacher_cache"] = cached
                os.environ["NASDISTILL_CACHE"] = str(fresh_cache(folder / f"cache-{seed}-{cached}"))
                out = folder / f"{seed}-{cached}"
                results[cached] = one_search(
                    parse_config(values, where="preset"), label=f"seed {seed}, cache {cached}", folder=out
                )
                weights[cached] = {
                    f"{path.parent.name}/{path.stem}": load_weights(path)
                    for path in sorted((out / "run" / "trials").glob("*/weights-*.safetensors"))
                }
            same = weights[True].keys() == weights[False].keys() and all(
                weights[True][t].keys() == weights[False][t].keys()
                and all(torch.equal(weights[True][t][k], weights[False][t][k]) for k in weights[True][t])
                for t in weights[True]
            )
            training = {
                cached: sum(s for rung, s in result["seconds"].items() if rung in ("pilot", "short", "full"))
                for cached, result in results.items()
            }
            rows.append(
                {
                    "seed": seed,
                    "without": training[False],
                    "with": training[True],
                    "ratio": training[False] / training[True],
                    "search_ratio": results[False]["wall_seconds"] / results[True]["wall_seconds"],
                    "students": len(weights[True]),
                    "identical": "yes" if same else "NO",
                }
            )
    columns = [
        ("seed", "seed", "d"),
        ("without", "distillation s, no cache", ".1f"),
        ("with", "with cache", ".1f"),
        ("ratio", "ratio", ".2f"),
        ("search_ratio", "whole search", ".2f"),
        ("students", "students compared", "d"),
        ("identical", "weights identical", ""),
    ]
    _common.finish(args, rows, columns)


if __name__ == "__main__":
    main()
