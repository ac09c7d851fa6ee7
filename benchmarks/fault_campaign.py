"""Sixty trials on two workers, six of them broken: 54 must complete and six reasons be recorded.

The faults happen in training: an exception, ``os._exit``, a segmentation fault, a hang, a leak of 4 GiB, a loss that
is no number. ``--quick`` has twelve trials, six of them broken.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import _common

FAULTS = ("exception", "exit", "segfault", "hang", "leak", "nan")


def install(folder: Path) -> None:
    """Install the broken space as a third-party plugin in a folder, and put that on the path of all processes."""
    shutil.copytree(Path(__file__).parent / "faulty_plugin", folder)
    info = folder / "nasdistill_faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nasdistill-faulty\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[nasdistill]\nfaulty = faulty_plugin\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def main() -> None:
    """Run."""
    parser = _common.parser(__doc__.splitlines()[0], seeds=1)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds after which a worker hangs (default 30)")
    args = parser.parse_args()
    _common.start(args)
    trials = 12 if args.quick else 60
    gap = trials // len(FAULTS)
    faults = {gap * i + gap // 2: name for i, name in enumerate(FAULTS)}
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder) / "site")
        result, outcomes = search(Path(folder), trials, faults, args.timeout)
    rows = []
    for number, fault in faults.items():
        outcome = next(o for o in outcomes if o["architecture"]["params"]["index"] == number)
        rows.append(
            {"trial": outcome["number"], "fault": fault, "state": outcome["state"], "reason": outcome["reason"]}
        )
    good = [o for o in outcomes if o["architecture"]["params"]["index"] not in faults]
    complete = sum(o["state"] == "complete" for o in good)
    rows.append({"fault": "none", "state": f"{complete} of {len(good)} complete", "reason": ""})
    columns = [("trial", "trial", ""), ("fault", "fault", ""), ("state", "state", ""), ("reason", "reason", "")]
    meta = {"trials": trials, "complete": complete, "good": len(good), "state": result["state"]}
    _common.finish(args, rows, columns, meta)


def write_digits(path: Path) -> str:
    """Write scikit-learn's digits to a file: a worker that reads it starts sooner than one that imports the package."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    np.savez(path, x=(images.reshape(-1, 8, 8, 1) * 15).astype(np.uint8), y=labels)
    return str(path)


def search(
    folder: Path, trials: int, faults: dict[int, str], timeout: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search the space on two workers and return the result and the trials' records."""
    from nasdistill.host import Host
    from nasdistill.search.run import run_search
    from nasdistill.spec.config import parse_config
    from nasdistill.store import RunDirectory

    run = folder / "run"
    values = {
        "task": {"name": "image_classification", "options": {"data": write_digits(folder / "digits.npz")}},
        "teacher": {"name": "torch:faulty_space:teacher"},
        "space": [{"name": "faulty", "options": {"count": trials, "faults": faults}}],
        "target": [{"name": "simulated"}],
        "proxy": [],
        "search": {"strategy": "exhaustive", "strategy_options": {"epochs": 1}, "trials": trials},
        "workers": {"count": 2, "timeout": timeout, "memory_gb": 2.0},
    }

    def listener(event: Any) -> None:
        if event.kind in ("step", "rung"):
            _common.say(event.text)

    host = Host.load(only=["faulty"])
    result = run_search(parse_config(values, where="campaign"), run, host=host, listener=listener)
    return result, list(RunDirectory.open(run).outcomes())


if __name__ == "__main__":
    main()
