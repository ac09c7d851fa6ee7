"""How repeatable is a latency? Six networks, measured again and again, by our estimate and by a raw median.

Every pass measures each network alone, as a search does. The spread of an estimator is the standard deviation of the
logarithms of its values over the passes (so: relative), per network; the table shows its median and worst over
networks. `covered` is how often a pass' nominal 95 % interval holds the median of all passes. `--load N` runs N busy
processes in every other pass.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import finish, parser, say, start

BUSY = ("while True: pass", "import numpy as np\na = np.ones(3_000_000)\nwhile True: a = a * 1.0000001")
COLUMNS = (
    ("target", "target", ""),
    ("estimator", "estimator", ""),
    ("spread", "median spread %", ".1f"),
    ("worst", "worst spread %", ".1f"),
    ("covered", "covered %", ".0f"),
)


def networks() -> dict[str, Any]:
    """Six networks from 10 microseconds to 2 milliseconds."""
    from torch import Tensor, nn

    from nasdistill.measure.references import ReferenceAttention
    from nasdistill.seeds import seeded

    class Residual(nn.Module):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, width, 3, padding=1)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
                for _ in range(depth)
            )
            self.head = nn.Linear(width, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return self.head(x.mean((2, 3)))

    class Transformer(nn.Module):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, width, 2, 2)
            self.blocks = ReferenceAttention(width, depth)

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.stem(x).flatten(2).transpose(1, 2))

    with seeded(0, "latency noise"):
        return {
            "conv 4x2": Residual(4, 2).eval(),
            "conv 16x4": Residual(16, 4).eval(),
            "conv 64x8": Residual(64, 8).eval(),
            "transformer 16x1": Transformer(16, 1).eval(),
            "transformer 64x2": Transformer(64, 2).eval(),
            "transformer 128x6": Transformer(128, 6).eval(),
        }


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Keep some processes busy."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY[i % 2]]) for i in range(processes)]
    try:
        if running:
            time.sleep(0.5)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def spread(values: list[float]) -> float:
    """Relative standard deviation, in percent."""
    return 100 * statistics.stdev(math.log(value) for value in values)


def measure(target: Any, passes: int, pairs: int, busy: int, pause: float) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return one row per estimator, and the raw values."""
    import torch

    from nasdistill.measure import Meter
    from nasdistill.spec.measurement import Budget

    example = (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)
    models = networks()
    values: dict[str, dict[str, list[float]]] = {key: {name: [] for name in models} for key in ("ours", "wall", "cpu")}
    intervals: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    flags: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter(target, Path(folder), Budget(max_seconds=5.0, min_pairs=pairs, max_pairs=pairs))
        for i in range(passes):
            with load(busy if i % 2 else 0):
                for name, model in models.items():
                    latency = meter.report(model, example, name.replace(" ", "_")).latency
                    assert latency.wall is not None
                    assert latency.cpu is not None
                    values["ours"][name].append(latency.value_ms)
                    values["wall"][name].append(latency.wall.p50)
                    values["cpu"][name].append(latency.cpu.p50)
                    intervals[name].append((latency.low_ms, latency.high_ms))
                    flags[latency.quality] = flags.get(latency.quality, 0) + 1
            say(f"{target.id}: pass {i + 1} of {passes}, quality so far {flags}")
            time.sleep(pause)
        meter.close()
    hits = [low <= statistics.median(values["ours"][name]) <= high for name in models for low, high in intervals[name]]
    labels = {"wall": "median of wall time", "cpu": "median of CPU time", "ours": "paired ratio (ours)"}
    rows = []
    for key, label in labels.items():
        spreads = {name: spread(found) for name, found in values[key].items()}
        rows.append({
            "target": target.id, "estimator": label, "spread": statistics.median(spreads.values()),
            "worst": max(spreads.values()), "covered": 100 * statistics.fmean(hits) if key == "ours" else None,
            "spreads": spreads,
        })  # fmt: skip
    raw = [{"target": target.id, "network": name, **{key: values[key][name] for key in values}} for name in models]
    return rows, raw


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument(
        "--passes", type=int, metavar="N", help="measurements of every network (default 12; quick 3)"
    )
    arguments.add_argument("--pairs", type=int, default=50, metavar="N", help="rounds of one measurement (default 50)")
    arguments.add_argument("--load", type=int, default=0, metavar="N", help="busy processes in every other pass")
    args = arguments.parse_args()
    start(args)

    from nasdistill.host import Host
    from nasdistill.spec.component import Kind

    passes = max(2, args.passes or (3 if args.quick else 12))
    host = Host.load(third_party=False)
    rows, raw = [], []
    for name in ("onnxruntime_cpu", "torch_cpu"):
        target = host.create(Kind.TARGET, name)
        if not target.probe().ok:
            say(f"{name} left out: {target.probe().reason}")
            continue
        found, values = measure(target, passes, args.pairs, args.load, 0.0 if args.quick else 3.0)
        rows += found
        raw += values
    finish(args, rows, COLUMNS, {"passes": passes, "pairs": args.pairs, "load": args.load, "raw": raw})


if __name__ == "__main__":
    main()
