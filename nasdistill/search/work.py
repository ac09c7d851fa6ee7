"""The work on one candidate: one rung of one trial, in whatever process.

A :class:`Job` says what to do in plain values, a :class:`Workbench` does it, and the :class:`Outcome` comes back as
JSON-able values. The search itself, its worker processes and a resumed run therefore all handle the same thing: what a
rung found out about a candidate. Nothing in here touches the study or the trial's record.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from nasdistill.distill import train
from nasdistill.errors import ISOLATED, NasdistillError, TrialFailure, is_fatal, one_line
from nasdistill.interfaces import SearchSpace
from nasdistill.measure import Meter
from nasdistill.measure.proxies import ProxyOutcome, run_proxy
from nasdistill.search.parts import Parts
from nasdistill.search.shared import SupernetShelf
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import Cost
from nasdistill.spec.measurement import Budget
from nasdistill.store import RunDirectory, load_weights, save_weights

Progress = Callable[[int, Mapping[str, float]], None]
"""Told (epoch, means of the loss terms) after every epoch."""


class StopSearch(BaseException):
    """Somebody asked the search to stop; raised where nothing is half done."""


@dataclass(frozen=True, slots=True)
class Job:
    """One rung for one candidate.

    Attributes:
        kind: ``static``, ``proxies``, ``inherited``, ``latency`` or ``distill``.
        rung: name of the rung, which seeds depend on.
        number: trial number.
        architecture: what is worked on.
        trained: epochs that its weights have had; 0 for a network as it starts.
        weights_sha256: hash of the file with those weights.
        epochs: for ``distill``, epochs in all afterwards.
        budget: for ``latency``, instead of the meter's own.
        start: id of the shared weights that an untrained network takes its own from; empty: the teacher's.
        by, samples: for ``inherited``, as :meth:`nasdistill.interfaces.SearchSession.inherited` takes them.
    """

    kind: str
    rung: str
    number: int
    architecture: Architecture
    trained: int = 0
    weights_sha256: str | None = None
    epochs: int = 0
    budget: Budget | None = None
    start: str = ""
    by: str = "loss"
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job.

    Attributes:
        found: JSON-able values, by the job's kind: ``static`` -> ``cost``; ``proxies`` -> ``proxies``, ``problems``,
            ``proxy_seconds``; ``inherited`` -> ``value``, ``start`` and what it is made of; ``latency`` -> ``target``,
            ``report``; ``distill`` -> ``evaluation``, ``steps``, ``skipped_losses``, ``history``, ``weights_sha256``.
            Inherited tensors are told as ``inherited``.
        failure: why the trial failed, None when it did not.
        fatal: the machine and not the candidate is to blame (a full disk): the run cannot go on.
        seconds: wall time.
    """

    found: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    fatal: bool = False
    seconds: float = 0.0


def failure_text(error: BaseException) -> str:
    """Return what an exception says about a trial, in one line."""
    if isinstance(error, TrialFailure):
        return f"{error.reason}: {error.message}"
    if isinstance(error, NasdistillError):
        return f"{type(error).__name__}: {error}"
    return one_line(error, 500)


class Workbench:
    """Everything one process needs to work on candidates.

    Args:
        run: the run's folder, where weights are.
        parts: opened parts.
        meters: target id -> meter, the primary one first.
    """

    def __init__(self, run: RunDirectory, parts: Parts, meters: Mapping[str, Meter]) -> None:
        self.run = run
        self.parts = parts
        self.meters = dict(meters)
        self.seed = parts.config.search.seed
        self.shelf = SupernetShelf(run, parts)
        self._inherited: dict[str, Any] = {}

    def do(
        self, job: Job, *, progress: Progress | None = None, should_stop: Callable[[], bool] | None = None
    ) -> Outcome:
        """Do a job; whatever the candidate raises becomes its outcome.

        Raises:
            StopSearch: `should_stop` said so in the middle of a training, which goes on from its checkpoint later.
        """
        start = time.monotonic()
        self._inherited = {}
        try:
            if job.kind == "static":
                found = self._static(job)
            elif job.kind == "proxies":
                found = self._proxies(job)
            elif job.kind == "inherited":
                model = self._start(job)
                score = self.shelf.score(job.start, model, job.architecture, by=job.by, samples=job.samples)
                found = {"start": job.start, **score}
            elif job.kind == "latency":
                found = self._latency(job)
            else:
                found = self._distill(job, progress, should_stop)
        except ISOLATED as error:  # one bad candidate never takes the rest down
            return Outcome({}, failure_text(error), is_fatal(error), time.monotonic() - start)
        if self._inherited:
            found["inherited"] = self._inherited
        return Outcome(found, seconds=time.monotonic() - start)

    # ---- the rungs ------------------------------------------------------------------------------------------------

    def _static(self, job: Job) -> dict[str, Any]:
        cost = self.space(job.architecture).cost(job.architecture, self.parts.task.io)
        return {"cost": {"params": cost.params, "macs": cost.macs, "activations": cost.activations}}

    def _proxies(self, job: Job) -> dict[str, Any]:
        # Proxies score the network as it would start without a teacher's weights: that is what they are defined on.
        model = self.build(job.architecture, inherit=False).to(self.parts.device)
        cost = self.space(job.architecture).cost(job.architecture, self.parts.task.io)
        outcomes = self.run_proxies(model, cost)
        return {
            "proxies": {name: outcome.value for name, outcome in outcomes.items()},
            "problems": {name: outcome.problem for name, outcome in outcomes.items() if outcome.problem},
            "proxy_seconds": {name: outcome.seconds for name, outcome in outcomes.items()},
        }

    def run_proxies(self, model: nn.Module, cost: Cost | None) -> dict[str, ProxyOutcome]:
        """Score a network with every configured proxy; a failing one is told in its own outcome."""
        proxies, task = self.parts.components.proxies, self.parts.task
        needed = max((proxy.batches_needed() for proxy, _ in proxies.values()), default=1)
        size = self.parts.config.training.batch_size
        batches = tuple(b for b, _ in zip(task.batches("train", batch_size=size), range(needed), strict=False))
        return {
            name: run_proxy(
                proxy,
                tags,
                model=model,
                teacher=self.parts.teacher.model if tags.needs_teacher else None,
                batches=batches,
                forward=task.forward,
                loss=task.loss,
                io=task.io,
                cost=cost,
                # One seed for all candidates: what a proxy draws then cancels in their order.
                seed=derive_seed(self.seed, "proxy", name),
            )
            for name, (proxy, tags) in proxies.items()
        }

    def _latency(self, job: Job) -> dict[str, Any]:
        name, meter = next(iter(self.meters.items()))
        model = self._start(job).cpu()
        report = meter.report(model, self.example(), f"trial{job.number:04d}", job.budget)
        return {"target": name, "report": report.to_json()}

    def _distill(self, job: Job, progress: Progress | None, should_stop: Callable[[], bool] | None) -> dict[str, Any]:
        parts, arch = self.parts, job.architecture
        config = parts.config
        model = self._start(job).to(parts.device)
        objective, training = self.space(arch).teaching(arch, config.objective, config.training)
        checkpoint = self.run.trial(job.number) / f"checkpoint-{job.epochs:04d}.safetensors"

        def on_epoch(report: Any) -> None:
            if progress is not None:
                progress(report.epoch, report.terms)

        result = train(
            model,
            parts.task,
            parts.teacher,
            objective,
            training,
            epochs=job.epochs - job.trained,
            start_epoch=job.trained,
            seed=derive_seed(self.seed, "train", arch.fingerprint, job.rung),
            data_seed=derive_seed(self.seed, "data"),
            host=parts.host,
            layer_map=self.space(arch).layer_map(arch, parts.geometry) or None,
            cache=parts.cache,
            device=parts.device,
            on_epoch=on_epoch,
            should_stop=should_stop,
            checkpoint=checkpoint,
            checkpoint_seconds=config.training.checkpoint_seconds,
            student_label=f"trial {job.number}",
        )
        if result.stopped:
            raise StopSearch
        digest = save_weights(result.model, self.run.weights(job.number, job.epochs))
        checkpoint.unlink(missing_ok=True)
        if result.evaluation is None:
            raise TrialFailure("no_score", "the task has no labelled validation split to score the student on")
        return {
            "evaluation": asdict(result.evaluation),
            "steps": result.steps,
            "skipped_losses": list(result.skipped),
            "history": [{"rung": job.rung, "epoch": row.epoch, **row.terms} for row in result.history],
            "weights_sha256": digest,
        }

    # ---- models ---------------------------------------------------------------------------------------------------

    def _start(self, job: Job) -> nn.Module:
        """Return the network that a job begins with."""
        return self.build(job.architecture, job.number, job.trained, job.weights_sha256, start=job.start)

    def space(self, arch: Architecture) -> SearchSpace:
        """Return the space an architecture belongs to."""
        return self.parts.space_of(arch)

    def build(
        self,
        arch: Architecture,
        number: int = 0,
        trained: int = 0,
        weights_sha256: str | None = None,
        *,
        inherit: bool = True,
        start: str = "",
    ) -> nn.Module:
        """Return a candidate's network in eval mode: trained weights where it has any, else as it starts.

        Args:
            arch: what to build.
            number: trial number.
            trained: epochs that its weights have had.
            weights_sha256: hash of the file with those.
            inherit: False leaves fresh weights.
            start: id of the shared weights that an untrained network starts from; empty: the teacher's.

        Raises:
            UsageError: a file with weights is damaged or not the one that was recorded.
        """
        space = self.space(arch)
        with seeded(self.seed, "init", arch.fingerprint):
            model = space.build(arch, self.parts.task.io)
        if inherit and trained > 0:
            model.load_state_dict(load_weights(self.run.weights(number, trained), weights_sha256))
        elif inherit and start:
            model.load_state_dict(self.shelf.extracted(start, arch))
            total = sum(parameter.numel() for parameter in model.parameters())
            self._inherited = {"copied": total, "total": total, **self.shelf.origin(start)}
        elif inherit and self.parts.config.training.inherit:
            report = space.inherit(model, arch, self.parts.teacher.model, calibration=self.parts.calibration)
            if report is not None:
                self._inherited = {"copied": report.copied, "total": report.total}
        return model.eval()

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return one sample, the input of every latency measurement."""
        return self.parts.task.example(1)


def epoch_line(number: int, epoch: int, terms: Mapping[str, float]) -> str:
    """Return an epoch of a trial in words."""
    return f"trial {number}: epoch {epoch + 1}, loss {terms.get('total', math.nan):.3f}"
