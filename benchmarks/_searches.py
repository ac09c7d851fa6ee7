"""What the benchmarks that run whole searches share: run one, and read its front back per test image."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import say

from nasdistill.host import Host
from nasdistill.search.events import Event
from nasdistill.search.pareto import hypervolume
from nasdistill.search.run import run_search
from nasdistill.spec.component import Kind
from nasdistill.spec.config import RunConfig
from nasdistill.store import RunDirectory, read_student

WIDE = (0.15, 1.0)
"""Reference point in (test error, latency ratio to the transformer teacher)."""
TIGHT = (0.06, 0.30)
"""A closer reference point, which separates good fronts better."""

QUICK: dict[str, Any] = {
    "round_size": 6, "short_epochs": 1, "full_epochs": 2, "full_final": 2, "full_per_round": 1,
    "max_latency_ratio": 100.0,
}  # fmt: skip
"""The funnel's options of a quick run."""


def quick(values: dict[str, Any], *, targets: tuple[str, ...], trials: int = 6) -> dict[str, Any]:
    """Cut a configuration down to what shows that everything runs: small students, a teacher that knows nothing."""
    values["task"]["options"]["validation_shift"] = 0
    values["teacher"] = {"name": "timm:test_resnet", "options": {}}
    values["space"] = [
        {"name": "conv_vit", "options": {"stem_width": [8], "width": [32], "depth": [1], "reduction": [1]}},
        {"name": "resnet_s0", "options": {"width": [8], "stages": [2, 3], "blocks": [1]}},
    ]
    values["target"] = [{"name": name, "options": {}} for name in targets]
    values["latency"] |= {"max_seconds": 0.1, "final_pairs": 5, "min_pairs": 3, "max_pairs": 5}
    values["search"] |= {"trials": trials, "baselines": "none", "strategy_options": dict(QUICK)}
    return values


def one_search(
    config: RunConfig, *, label: str, folder: Path | None = None, single_calls: bool = False
) -> dict[str, Any]:
    """Run a search in a temporary folder and return its result, with CPU and wall seconds and the students' errors.

    With `single_calls` the result also has the ratios of :func:`single_call_ratios`.

    CPU seconds count the process without opening the teacher (training it on first use is not the search's work).
    """
    base = Path(tempfile.mkdtemp(prefix="nasdistill-bench-")) if folder is None else folder
    marks: dict[str, float] = {}

    def listener(event: Event) -> None:
        if event.kind == "plan":
            marks.setdefault("plan", time.process_time())
        if event.kind == "message":
            # The last message before the plan says that the teacher is ready.
            marks.setdefault("ready", time.process_time())
            if "plan" not in marks:
                marks["ready"] = time.process_time()

    host = Host.load(third_party=False)
    begin = time.perf_counter()
    try:
        result = run_search(config, base / "run", host=host, listener=listener)
        result["cpu_seconds"] = time.process_time() - marks.get("ready", 0.0)
        result["wall_seconds"] = time.perf_counter() - begin
        result["errors"] = test_errors(RunDirectory.open(base / "run"), config, host)
        result["steps"] = sum(
            rung["steps"]
            for outcome in RunDirectory.open(base / "run").outcomes()
            for rung in outcome["rungs"].values()
        )
        if single_calls:
            result["single_call_ratio"] = single_call_ratios(RunDirectory.open(base / "run"), config, host)
    finally:
        if folder is None:
            shutil.rmtree(base, ignore_errors=True)
    say(f"{label}: {len(result['front'])} students, {result['cpu_seconds']:.0f} CPU s, {result['steps']} steps")
    return result


def test_errors(run: RunDirectory, config: RunConfig, host: Host) -> dict[str, list[bool]]:
    """Return student id -> per test image, whether the saved student gets it wrong."""
    task = host.create(Kind.TASK, config.task.name, config.task.options)
    task.prepare()
    found = {}
    for folder in sorted(run.path.glob("students/*")):
        arch, io, weights, _ = read_student(folder)
        model = host.create(Kind.SEARCH_SPACE, arch.space, _space_options(config, arch.space, host)).build(arch, io)
        model.load_state_dict(weights)
        model.eval()
        wrong: list[bool] = []
        with torch.no_grad():
            for batch in task.batches("test", batch_size=256):
                assert batch.labels is not None
                wrong += (task.forward(model, batch).argmax(-1) != batch.labels).tolist()
        found[folder.name] = wrong
    return found


def single_call_ratios(
    run: RunDirectory, config: RunConfig, host: Host, *, passes: int = 3, pairs: int = 60
) -> dict[str, float]:
    """Return student id -> latency ratio as the rivals' table measured it.

    One plain ``session.run`` of the teacher, one of the student, CPU time of each, the median ratio over all pairs.
    Right after the large teacher a small network finds cold caches, so these ratios are higher than those of calls
    repeated back to back.
    """
    import onnxruntime

    from nasdistill.interfaces import PrepareRequest
    from nasdistill.search.parts import create_components, open_parts

    parts = open_parts(create_components(config, host), config, message=lambda text: None)
    target = host.create(Kind.TARGET, "onnxruntime_cpu")
    example = parts.task.example(1)
    models = {"teacher": parts.teacher.model.cpu().eval()}
    for folder in sorted(run.path.glob("students/*")):
        arch, io, weights, _ = read_student(folder)
        model = host.create(Kind.SEARCH_SPACE, arch.space, _space_options(config, arch.space, host)).build(arch, io)
        model.load_state_dict(weights)
        models[folder.name] = model.eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    calls = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            prepared = target.prepare(PrepareRequest(model, example, Path(folder), name))
            session = onnxruntime.InferenceSession(str(prepared.artefact), options, ["CPUExecutionProvider"])
            feed = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), example, strict=True)}
            calls[name] = lambda session=session, feed=feed: session.run(None, feed)
            prepared.close()

        def cpu(name: str) -> int:
            start = time.process_time_ns()
            calls[name]()
            return time.process_time_ns() - start

        ratios: dict[str, list[float]] = {name: [] for name in calls if name != "teacher"}
        for _ in range(10):
            for name in calls:
                cpu(name)
        for _ in range(passes):
            for name, values in ratios.items():
                for _ in range(pairs):
                    reference = cpu("teacher")
                    values.append(cpu(name) / reference)
    return {name: float(np.median(values)) for name, values in ratios.items()}


def _space_options(config: RunConfig, space: str, host: Host) -> dict[str, Any]:
    for item in config.space:
        if host.canonical(Kind.SEARCH_SPACE, item.name) == space:
            return dict(item.options)
    return {}


def ratio_rows(
    result: dict[str, Any], errors: dict[str, float] | None = None, ratios: dict[str, float] | None = None
) -> list[tuple[float, float]]:
    """Return (test error, latency ratio to the teacher on the first target) per student."""
    target = next(iter(result["teacher"]["latency_ms"]))
    return [
        (
            1 - student["test_score"] if errors is None else errors[student["id"]],
            student["latency_ratio"][target]["value"] if ratios is None else ratios[student["id"]],
        )
        for student in result["front"]
    ]


def bootstrap_sd(
    result: dict[str, Any],
    reference: tuple[float, float],
    ratios: dict[str, float] | None = None,
    *,
    draws: int = 300,
) -> float:
    """Return the standard deviation of the hypervolume when the test images are drawn again with replacement."""
    rng = np.random.default_rng(0)
    wrong = {name: np.array(values, dtype=float) for name, values in result["errors"].items()}
    if not wrong:
        return 0.0
    n = len(next(iter(wrong.values())))
    values = []
    for _ in range(draws):
        index = rng.integers(0, n, n)
        drawn = {name: float(value[index].mean()) for name, value in wrong.items()}
        values.append(hypervolume(ratio_rows(result, drawn, ratios), reference))
    return float(np.std(values))
