"""How the time of each attention variant grows with the length: N tokens against 2 N, one CPU thread.

Every variant attends over the same q, k and v (1 sample, 4 heads of 32 channels), bidirectional and causal, once at
each length in turn, so that both lengths see the same machine. Times are CPU time of the process; a ratio is that of
the medians of one repetition, given as mean and standard deviation over the repetitions. `macs` is the ratio of the
analytic costs, `vs softmax` the time at the long length relative to softmax in the same direction.

Expected from the operation counts: a ratio of 2 where the cost is linear, 4 where it is quadratic. The Flowformer
paper's promise, as a target: less than 2.6 for `flow` from 2048 to 4096 tokens, where softmax takes more than 3.3.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from _common import finish, mean_sd, parser, say, start

from nasdistill.host import Host
from nasdistill.interfaces import AttentionContext, AttentionCore, AttentionGeometry, AttentionMask
from nasdistill.spec.component import Kind

HEADS, DIM = 4, 32
COLUMNS = [
    ("variant", "variant", ""), ("direction", "direction", ""), ("short_ms", "N (ms)", ".2f"),
    ("long_ms", "2N (ms)", ".2f"), ("ratio", "2N / N", ".2f"), ("ratio_sd", "+-", ".2f"),
    ("macs_ratio", "macs", ".2f"), ("vs_softmax", "vs softmax", ".2f"),
]  # fmt: skip


def times(core: AttentionCore, lengths: tuple[int, int], mask: AttentionMask | None, calls: int) -> list[float]:
    """Return the median CPU seconds of a call at each length."""
    inputs = {n: [torch.randn(1, HEADS, n, DIM) for _ in range(3)] for n in lengths}
    seconds: dict[int, list[float]] = {n: [] for n in lengths}
    with torch.inference_mode():
        for call in range(calls + 1):
            for n in lengths:
                begin = time.process_time()
                core(*inputs[n], AttentionContext(mask=mask))
                if call:  # the first one warms up
                    seconds[n].append(time.process_time() - begin)
    return [statistics.median(seconds[n]) for n in lengths]


def main() -> None:
    arguments = parser((__doc__ or "").splitlines()[0], seeds=5)
    arguments.add_argument("--tokens", type=int, default=2048, metavar="N", help="the shorter length (default 2048)")
    args = arguments.parse_args()
    start(args)
    if args.quick:
        args.seeds = min(args.seeds, 2)
    calls = 3 if args.quick else 7
    short, long = args.tokens, 2 * args.tokens

    host = Host.load(third_party=False)
    names = [record.id for record in host.specs(Kind.ATTENTION) if record.spec.tags.level == "core"]
    names.sort(key=lambda name: not host.tags(Kind.ATTENTION, name).exact)  # softmax first: the others refer to it
    rows: list[dict[str, Any]] = []
    softmax: dict[str, float] = {}
    for name in names:
        for direction in ("bidirectional", "causal"):
            causal = direction == "causal"
            if causal and host.tags(Kind.ATTENTION, name).causal == "no":
                continue
            geometry = AttentionGeometry(HEADS * DIM, HEADS, DIM, causal=causal)
            core = host.create(Kind.ATTENTION, name, geometry=geometry)
            mask = AttentionMask(causal=True) if causal else None
            say(f"{name} {direction}")
            measured = []
            for seed in range(args.seeds):
                torch.manual_seed(seed)
                measured.append(times(core, (short, long), mask, calls))
            ratio, sd = mean_sd([late / early for early, late in measured])
            short_ms, long_ms = (1e3 * statistics.median(column) for column in zip(*measured, strict=True))
            softmax.setdefault(direction, long_ms)
            costs = [type(core).cost(geometry, n, n).macs for n in (short, long)]
            rows.append(
                {
                    "variant": name, "direction": direction, "short_ms": short_ms, "long_ms": long_ms, "ratio": ratio,
                    "ratio_sd": sd, "macs_ratio": costs[1] / costs[0], "vs_softmax": long_ms / softmax[direction],
                    "complexity": host.tags(Kind.ATTENTION, name).complexity,
                }
            )  # fmt: skip
    finish(args, rows, COLUMNS, {"tokens": [short, long], "heads": HEADS, "head_dim": DIM, "calls": calls})


if __name__ == "__main__":
    main()
