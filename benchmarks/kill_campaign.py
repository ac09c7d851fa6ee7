"""Kill a search at random moments, resume it, and compare it with the search that was not killed.

Target: the simulator, whose numbers repeat, so that a resumed run must have the same front, weights included. Every
search is a process of its own that gets SIGKILL at a moment drawn evenly over the time that an unbroken one takes from
its first step on. With ``--workers 2`` nothing that was finished may be lost; the front must be the same there too.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _common

from nasdistill.files import read_json
from nasdistill.store import RunDirectory

CONFIG: dict[str, Any] = {
    "task": {"name": "image_classification", "options": {"data": "digits"}},
    "teacher": {"name": "timm:test_resnet"},
    "space": [
        {"name": "resnet_s0", "options": {"blocks": [1], "width": [8, 16], "stages": [1, 2]}},
        {"name": "conv_vit", "options": {"width": [32, 64], "depth": [1, 2], "attention": ["softmax", "linear"]}},
    ],
    "target": [{"name": "simulated"}],
    "proxy": [{"name": "macs"}, {"name": "nwot"}],
    "objective": {"task_weight": 1.0, "losses": [{"name": "kd", "weight": 0.1}]},
    "training": {"batch_size": 128, "checkpoint_seconds": 0.0},
    "search": {
        "trials": 9,
        "strategy_options": {
            "round_size": 3, "short_epochs": 1, "full_epochs": 3, "full_final": 2, "max_latency_ratio": 100.0,
        },
    },
}  # fmt: skip


def child(mode: str, run: Path, workers: int) -> None:
    """Search or resume, and print the rung and the second of every event."""
    from nasdistill.host import Host
    from nasdistill.search.run import resume_search, run_search
    from nasdistill.spec.config import parse_config

    def listener(event: Any) -> None:
        if event.kind in ("phase", "rung", "step", "epoch", "front"):
            print(json.dumps([event.kind, event.rung or event.text, event.trial]), flush=True)

    host = Host.load(third_party=False)
    if mode == "resume":
        resume_search(run, host=host, listener=listener)
    else:
        values = {**CONFIG, "workers": {"count": workers}}
        run_search(parse_config(values, where="campaign"), run, host=host, listener=listener)


def start(mode: str, run: Path, workers: int) -> subprocess.Popen[str]:
    """Start a child."""
    command = [sys.executable, __file__, "--child", mode, "--run", str(run), "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def watch(process: subprocess.Popen[str], delay: float | None) -> tuple[list[list[Any]], float]:
    """Read a child's events; kill it `delay` seconds after its first step. Return the events and that time span."""
    assert process.stdout is not None
    events: list[list[Any]] = []
    begin = None
    killer = None
    for line in process.stdout:
        events.append(json.loads(line))
        if begin is None and events[-1][0] == "step":
            begin = time.perf_counter()
            if delay is not None:
                import threading

                killer = threading.Timer(delay, lambda: os.kill(process.pid, signal.SIGKILL))
                killer.start()
    process.wait()
    if killer is not None:
        killer.cancel()
    return events, 0.0 if begin is None else time.perf_counter() - begin


def outcome(run: Path) -> dict[str, Any]:
    """Return what must be the same: everything but durations and dates."""
    result = read_json(run / "result.json")
    weights = {p.parent.name: read_json(p)["state_sha256"] for p in sorted(run.glob("students/*/provenance.json"))}
    keys = ("number", "state", "reason", "architecture", "proxies", "score", "loss", "epochs", "history")
    trials = [{key: o.get(key) for key in keys} for o in RunDirectory.open(run).outcomes()]
    return {"front": result["front"], "weights": weights, "trials": trials, "proxies": result["proxies"]}


def one(number: int, base: Path, workers: int, expected: dict[str, Any], span: float) -> dict[str, Any]:
    """Kill and resume once."""
    run = base / f"run{number}"
    delay = random.Random(number).random() * span
    process = start("search", run, workers)
    events, _ = watch(process, delay)
    killed = process.returncode == -signal.SIGKILL
    before = {o["number"]: o for o in RunDirectory.open(run).outcomes()}
    finished = {n for n, o in before.items() if o["state"] != "running"}
    process = start("resume", run, workers)
    later, _ = watch(process, None)
    same = process.returncode == 0 and outcome(run) == expected
    redone = [trial for kind, _, trial in later if kind == "step" and trial in finished]
    after = {o["number"]: o for o in RunDirectory.open(run).outcomes()}
    lost = [n for n in finished if (after[n]["state"], after[n]["score"]) != (before[n]["state"], before[n]["score"])]
    shutil.rmtree(run, ignore_errors=True)
    where = next((rung for kind, rung, _ in reversed(events) if kind in ("rung", "step", "epoch", "phase")), "start")
    _common.say(f"{number}: {'killed' if killed else 'had finished'} in {where}, {len(finished)} finished, same {same}")
    return {"where": where, "killed": killed, "same": same, "lost": len(lost), "redone": len(redone)}


def main() -> None:
    """Run."""
    parser = _common.parser(__doc__.splitlines()[0], seeds=100)
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the searches (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="searches at the same time (default 1)")
    parser.add_argument("--child", choices=["search", "resume"], help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.run, args.workers)
        return
    _common.start(args)
    count = 4 if args.quick else args.seeds
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        os.environ["NASDISTILL_CACHE"] = str(base / "cache")
        _, _ = watch(start("search", base / "first", args.workers), None)  # fills the teacher's cache
        _, span = watch(start("search", base / "whole", args.workers), None)
        expected = outcome(base / "whole")
        assert outcome(base / "first") == expected, "two unbroken runs differ"
        with ThreadPoolExecutor(args.jobs) as pool:
            done = list(pool.map(lambda n: one(n, base, args.workers, expected, span), range(count)))
    rows = []
    for where, times in sorted(collections.Counter(d["where"] for d in done if d["killed"]).items()):
        these = [d for d in done if d["killed"] and d["where"] == where]
        rows.append(
            {
                "where": where,
                "kills": times,
                "same": sum(d["same"] for d in these),
                "lost": sum(d["lost"] for d in these),
                "redone": sum(d["redone"] for d in these),
            }
        )
    late = [d for d in done if not d["killed"]]
    total = {key: sum(d[key] for d in done) for key in ("same", "lost", "redone")}
    if late:
        rows.append({"where": "had just finished", "kills": len(late), "same": sum(d["same"] for d in late)})
    rows.append({"where": "all", "kills": count, **total})
    columns = [
        ("where", "killed in", ""), ("kills", "runs", ""), ("same", "same result", ""),
        ("lost", "finished trials lost", ""), ("redone", "finished trials redone", ""),
    ]  # fmt: skip
    meta = {"workers": args.workers, "span_seconds": span, "front": len(expected["front"]), "runs": done}
    _common.finish(args, rows, columns, meta)


if __name__ == "__main__":
    main()
