"""The session a strategy works through: every rung, recorded trial by trial.

Each method does one rung for a list of candidates, writes each candidate's record before going on to the next, and
turns a failure into that trial's outcome. A rung that a record already has is not done again.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import optuna
import torch
from optuna.trial import TrialState
from torch import nn

from nasdistill.distill import train
from nasdistill.errors import NasdistillError, TrialFailure, one_line
from nasdistill.interfaces import Candidate, Evaluation, Prepared, SearchSpace
from nasdistill.measure import Meter
from nasdistill.measure.proxies import ProxyOutcome, run_proxy
from nasdistill.search.events import Event, Listener
from nasdistill.search.pareto import non_dominated, rank_order
from nasdistill.search.parts import Parts
from nasdistill.search.study import Proposals
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import Cost
from nasdistill.spec.measurement import Budget, TargetReport
from nasdistill.store import RunDirectory, load_weights, save_weights

_GIVE_UP = 20
"""Proposals in a row without a new architecture after which a space counts as exhausted."""

TEACHER = "teacher"
"""Name of the teacher among the models that are timed together."""


class Session:
    """Implements :class:`nasdistill.interfaces.SearchSession` for one run.

    Args:
        run: where everything is recorded.
        parts: opened and checked parts.
        proposals: the study.
        meters: target id -> meter, the primary one first.
        listener: told what happens.
    """

    def __init__(
        self,
        run: RunDirectory,
        parts: Parts,
        proposals: Proposals,
        meters: Mapping[str, Meter],
        listener: Listener,
    ) -> None:
        self.run = run
        self.parts = parts
        self.proposals = proposals
        self.meters = dict(meters)
        self.listener = listener
        self.seed = parts.config.search.seed
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.candidates: dict[int, Candidate] = {}
        self.records: dict[int, dict[str, Any]] = {}
        self.teacher_reports: dict[str, TargetReport] = {}
        self._seen: dict[Architecture, int] = {}
        self._repeats = 0

    # ---- budget ---------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> int:
        """How many trials were asked for."""
        return self.parts.config.search.trials

    @property
    def remaining(self) -> int:
        """How many may still be proposed; repeats of an architecture do not count."""
        left = self.time_left()
        proposed = len(self.candidates) - self._repeats
        return 0 if left is not None and left <= 0 else max(0, self.trials - proposed)

    @property
    def primary_target(self) -> str:
        """The target whose latency is the second objective."""
        return next(iter(self.meters))

    def time_left(self) -> float | None:
        """Seconds until the time limit, None without one."""
        limit = self.parts.config.search.timeout
        return None if limit is None else limit - (time.monotonic() - self.started)

    # ---- proposing ------------------------------------------------------------------------------------------------

    def ask(self, n: int) -> list[Candidate]:
        """Propose up to `n` new candidates; duplicates and invalid points are told at once and left out."""
        found: list[Candidate] = []
        misses = 0
        while len(found) < n and self.remaining > 0 and misses < _GIVE_UP:
            repeats = self._repeats
            candidate = self._start(*self.proposals.ask())
            # A small space runs out of new points: the sampler is asked a few more times, then we go on without.
            misses = misses + 1 if self._repeats > repeats else 0
            if candidate.alive:
                found.append(candidate)
        return found

    def propose(self, architectures: Sequence[Architecture]) -> list[Candidate]:
        """Propose given architectures as trials of the study."""
        found = [self._start(self.proposals.enqueue(arch), arch) for arch in architectures[: self.remaining]]
        return [c for c in found if c.alive]

    def spread(self, n: int) -> list[Architecture]:
        """Return up to `n` new random architectures, the same number from every space in turn."""
        rng = self._rng("spread")
        return self._fresh(n, [partial(space.sample, rng) for space in self.parts.spaces.values()])

    def neighbours(self, candidates: Sequence[Candidate], n: int) -> list[Architecture]:
        """Return up to `n` new architectures, each one mutation away from one of `candidates` in turn."""
        rng = self._rng("neighbours")
        return self._fresh(n, [partial(self.space(c).mutate, self.arch(c), rng) for c in candidates])

    def _rng(self, purpose: str) -> random.Random:
        """Return randomness that depends on how far the search is, not on what this process did before."""
        return random.Random(derive_seed(self.seed, purpose, len(self.candidates)))

    def _fresh(self, n: int, sources: Sequence[Callable[[], Architecture]]) -> list[Architecture]:
        """Draw from the sources in turn, leaving out what was proposed before; give up where nothing new comes."""
        found: list[Architecture] = []
        for attempt in range(_GIVE_UP * n if sources else 0):
            if len(found) == n:
                break
            architecture = sources[attempt % len(sources)]()
            if architecture not in self._seen and architecture not in found:
                found.append(architecture)
        return found

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every architecture of every space."""
        for space in self.parts.spaces.values():
            yield from space.enumerate()

    def _start(self, trial: optuna.Trial, architecture: Architecture | None) -> Candidate:
        candidate = Candidate(trial.number, architecture)
        self.candidates[trial.number] = candidate
        self.records[trial.number] = {"seconds": {}, "rungs": {}}
        if architecture is None:
            self._finish(candidate, "pruned", "violates a constraint of its space")
        elif architecture in self._seen:
            self._repeats += 1
            self.records[trial.number]["repeats"] = self._seen[architecture]
            self._finish(candidate, "pruned", f"same architecture as trial {self._seen[architecture]}")
        else:
            self._seen[architecture] = trial.number
            self._record(candidate)
        return candidate

    # ---- rungs ----------------------------------------------------------------------------------------------------

    def check(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``static``: analytic cost and the constraints on it."""
        limits = self.parts.config.constraints

        def work(candidate: Candidate) -> None:
            candidate.cost = self.space(candidate).cost(self.arch(candidate), self.parts.task.io)
            if limits.max_params is not None:
                candidate.constraints["params"] = candidate.cost.params / limits.max_params - 1
            if limits.max_macs is not None:
                candidate.constraints["macs"] = candidate.cost.macs / limits.max_macs - 1
            self._enforce(candidate)

        return self._rung("static", candidates, work, lambda c: c.cost is not None)

    def score(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``proxies``: every configured proxy; a failing proxy is recorded and does not end the trial."""

        def work(candidate: Candidate) -> None:
            # Proxies score the network as it would start without a teacher's weights: that is what they are defined on.
            model = self.build(candidate, inherit=False).to(self.parts.device)
            outcomes = self.run_proxies(model, candidate.cost)
            candidate.proxies |= {name: outcome.value for name, outcome in outcomes.items()}
            record = self.records[candidate.number]
            record["proxy_problems"] = {name: o.problem for name, o in outcomes.items() if o.problem}
            record["proxy_seconds"] = {name: o.seconds for name, o in outcomes.items()}

        names = set(self.parts.components.proxies)
        return self._rung("proxies", candidates, work, lambda c: names <= set(c.proxies))

    def run_proxies(self, model: nn.Module, cost: Cost | None) -> dict[str, ProxyOutcome]:
        """Score a network with every configured proxy."""
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

    def measure(
        self, candidates: Sequence[Candidate], *, budget: Budget | None = None, together: bool = False
    ) -> list[Candidate]:
        """Rung ``latency``: the primary target, one by one; `together`: every target, in the teacher's own rounds."""
        if together:
            return self._measure_together(candidates, budget)
        self.measure_teacher()
        name = self.primary_target

        def work(candidate: Candidate) -> None:
            label = f"trial{candidate.number:04d}"
            candidate.targets[name] = self.meters[name].report(
                self.build(candidate).cpu(), self.example(), label, budget
            )
            self._limit_latency(candidate)
            self._enforce(candidate)

        return self._rung("latency", candidates, work, lambda c: name in c.targets)

    def _limit_latency(self, candidate: Candidate) -> None:
        """Compare the upper end of the latency's interval with the limit, where there is one."""
        limit = self.parts.config.constraints.max_latency_ms
        if limit is not None:
            candidate.constraints["latency_ms"] = candidate.targets[self.primary_target].latency.high_ms / limit - 1

    def measure_teacher(self) -> dict[str, TargetReport]:
        """Measure the teacher on every target, once."""
        if not self.teacher_reports:
            start = time.monotonic()
            teacher = self.parts.teacher.model.cpu()
            for name, meter in self.meters.items():
                self.teacher_reports[name] = meter.report(teacher, self.example(), name=TEACHER)
            teacher.to(self.parts.device)
            self.spent("latency", time.monotonic() - start)
        return self.teacher_reports

    def latency_ratio(self, candidate: Candidate) -> float:
        """Return the candidate's latency on the primary target relative to the teacher's."""
        report = candidate.targets.get(self.primary_target)
        if report is None:
            return math.inf
        return report.latency.value_ms / self.measure_teacher()[self.primary_target].latency.value_ms

    def _measure_together(self, candidates: Sequence[Candidate], budget: Budget | None) -> list[Candidate]:
        start = time.monotonic()
        alive = [c for c in candidates if c.state in ("running", "complete")]
        self.listener(Event("rung", f"timing {len(alive)} students head to head with the teacher", "final latency"))
        teacher = self.parts.teacher.model.cpu()
        for name, meter in self.meters.items():
            alive, reports = self._time_together(meter, alive, budget)
            self.teacher_reports[name] = reports[TEACHER]
            for candidate in alive:
                candidate.targets[name] = reports[str(candidate.number)]
        teacher.to(self.parts.device)
        for candidate in alive:
            self._limit_latency(candidate)
            self._record(candidate)
        self.spent("final latency", time.monotonic() - start)
        return alive

    def _time_together(
        self, meter: Meter, candidates: Sequence[Candidate], budget: Budget | None
    ) -> tuple[list[Candidate], dict[str, TargetReport]]:
        """Time candidates and teacher in the same rounds; return those that could be prepared, and all reports.

        Trained weights may fail a check that the first ones passed: such a student cannot be served, so it fails.
        """
        with contextlib.ExitStack() as stack:
            prepared: dict[str, Prepared] = {}

            def prepare(label: str, model: nn.Module) -> None:
                prepared[label] = meter.prepare(model, self.example(), label)
                stack.callback(prepared[label].close)

            prepare(TEACHER, self.parts.teacher.model)
            alive = [c for c in candidates if self._attempt(c, lambda c: prepare(str(c.number), self.build(c).cpu()))]
            return alive, meter.report_prepared(prepared, baseline=TEACHER, budget=budget)

    def distill(self, candidates: Sequence[Candidate], epochs: int, rung: str) -> list[Candidate]:
        """Rung `rung`: train up to `epochs` epochs in all and evaluate on validation."""
        config, task = self.parts.config, self.parts.task

        def work(candidate: Candidate) -> None:
            model = self.build(candidate).to(self.parts.device)
            arch = self.arch(candidate)
            number = candidate.number

            def on_epoch(report: Any) -> None:
                self.listener(
                    Event(
                        "epoch",
                        f"trial {number}: epoch {report.epoch + 1}, loss {report.terms.get('total', math.nan):.3f}",
                        rung,
                        trial=number,
                        facts={"epoch": report.epoch, **report.terms},
                    )
                )

            result = train(
                model,
                task,
                self.parts.teacher,
                config.objective,
                config.training,
                epochs=epochs - candidate.epochs,
                start_epoch=candidate.epochs,
                seed=derive_seed(self.seed, "train", arch.fingerprint, rung),
                data_seed=derive_seed(self.seed, "data"),
                host=self.parts.host,
                layer_map=self.space(candidate).layer_map(arch, self.parts.geometry) or None,
                cache=self.parts.cache,
                device=self.parts.device,
                on_epoch=on_epoch,
                student_label=f"trial {number}",
            )
            digest = save_weights(result.model, self.run.weights(number, epochs))
            assert result.evaluation is not None
            candidate.score, candidate.loss = result.evaluation.score, result.evaluation.loss
            candidate.epochs = epochs
            candidate.results[rung] = result.evaluation
            self.records[number]["rungs"][rung] = {
                "epochs": epochs,
                "steps": result.steps,
                "skipped_losses": list(result.skipped),
                "weights_sha256": digest,
            }
            self.records[number].setdefault("history", []).extend(
                {"rung": rung, "epoch": row.epoch, **row.terms} for row in result.history
            )

        return self._rung(rung, candidates, work, lambda c: c.epochs >= epochs)

    # ---- ranking and telling --------------------------------------------------------------------------------------

    def orient(self, score: float) -> float:
        """Return a score so that lower is better."""
        return -score if self.parts.task.metric.higher_is_better else score

    def objectives(self, candidate: Candidate) -> tuple[float, ...]:
        """Return (error or negated score, latency in ms), lower is better, infinity where unknown."""
        score = math.inf if candidate.score is None else self.orient(candidate.score)
        report = candidate.targets.get(self.primary_target)
        return score, math.inf if report is None else report.latency.value_ms

    def rank(self, candidates: Sequence[Candidate], values: Sequence[Sequence[float]]) -> list[Candidate]:
        """Return candidates by non-dominated rank, then crowding."""
        return [candidates[i] for i in rank_order(values)]

    def prune(self, candidates: Sequence[Candidate], reason: str) -> None:
        """Take candidates out of the race."""
        for candidate in candidates:
            if candidate.alive:
                self._finish(candidate, "pruned", reason)

    def complete(self, candidates: Sequence[Candidate]) -> None:
        """Tell the study the objective values of finished candidates."""
        for candidate in candidates:
            if candidate.alive:
                self._finish(candidate, "complete", "")
        self.listener(Event("front", self._best_line(), facts={"size": len(self.front())}))

    def history(self) -> list[Candidate]:
        """Return all candidates by trial number."""
        return [self.candidates[number] for number in sorted(self.candidates)]

    def front(self) -> list[Candidate]:
        """Return the feasible non-dominated candidates among the complete ones, fastest first."""
        done = [c for c in self.history() if c.state == "complete" and c.feasible]
        keep = [done[i] for i in non_dominated([self.objectives(c) for c in done])]
        return sorted(keep, key=lambda c: self.objectives(c)[-1])

    # ---- models ---------------------------------------------------------------------------------------------------

    def arch(self, candidate: Candidate) -> Architecture:
        """Return a candidate's architecture."""
        assert candidate.architecture is not None
        return candidate.architecture

    def space(self, candidate: Candidate) -> SearchSpace:
        """Return the space a candidate belongs to."""
        return next(s for s in self.parts.spaces.values() if s.id == self.arch(candidate).space)

    def build(self, candidate: Candidate, *, inherit: bool = True) -> nn.Module:
        """Return the candidate's network: trained weights where there are any, else its start, in eval mode."""
        arch = self.arch(candidate)
        space = self.space(candidate)
        with seeded(self.seed, "init", arch.fingerprint):
            model = space.build(arch, self.parts.task.io)
        if inherit and candidate.epochs > 0:
            model.load_state_dict(load_weights(self.run.weights(candidate.number, candidate.epochs)))
        elif inherit and self.parts.config.training.inherit:
            report = space.inherit(model, arch, self.parts.teacher.model, calibration=self.parts.calibration)
            if report is not None:
                self.records[candidate.number]["inherited"] = {"copied": report.copied, "total": report.total}
        return model.eval()

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return one sample, the input of every latency measurement."""
        return self.parts.task.example(1)

    # ---- records --------------------------------------------------------------------------------------------------

    def _rung(
        self,
        rung: str,
        candidates: Sequence[Candidate],
        work: Callable[[Candidate], None],
        is_done: Callable[[Candidate], bool],
    ) -> list[Candidate]:
        """Do `work` for each candidate that is alive and has not had this rung; return those still alive."""
        todo = [c for c in candidates if c.alive and not is_done(c)]
        if todo:
            self.listener(Event("rung", f"{rung}: {len(todo)} candidates", rung, total=len(todo)))
        for done, candidate in enumerate(todo, start=1):
            start = time.monotonic()
            self._attempt(candidate, work)
            seconds = time.monotonic() - start
            self.records[candidate.number]["seconds"][rung] = seconds
            self.spent(rung, seconds)
            if candidate.alive:
                candidate.rung = rung
            self._record(candidate)
            self.listener(Event("step", self._line(candidate), rung, done, len(todo), candidate.number))
        return [c for c in candidates if c.alive]

    def _attempt(self, candidate: Candidate, work: Callable[[Candidate], None]) -> bool:
        """Do `work` for a candidate; whatever it raises becomes the trial's outcome. Return whether it went well."""
        try:
            work(candidate)
        except TrialFailure as error:
            self._finish(candidate, "failed", f"{error.reason}: {error.message}")
        except NasdistillError as error:
            self._finish(candidate, "failed", f"{type(error).__name__}: {error}")
        except Exception as error:  # one bad candidate never takes the rest down
            if isinstance(error, OSError) and error.errno in _FATAL:
                raise
            self._finish(candidate, "failed", one_line(error))
        else:
            return True
        return False

    def spent(self, rung: str, seconds: float) -> None:
        """Add to the seconds that a rung has taken."""
        self.seconds[rung] = self.seconds.get(rung, 0.0) + seconds
        self.run.write("seconds.json", self.seconds)

    def _enforce(self, candidate: Candidate) -> None:
        self.proposals.constrain(candidate.number, candidate.constraints)
        broken = {name: value for name, value in candidate.constraints.items() if value > 0}
        if broken:
            limits = ", ".join(f"{name} over by {value:.1%}" for name, value in broken.items())
            self._finish(candidate, "pruned", f"infeasible: {limits}")

    def _finish(self, candidate: Candidate, state: str, reason: str) -> None:
        """Write the record first, then tell the study: a kill in between leaves a trial that can be told again."""
        candidate.state = state  # type: ignore[assignment]
        candidate.reason = reason
        self._record(candidate)
        values = None
        if state == "complete":
            score, latency = candidate.score, candidate.targets[self.primary_target].latency.value_ms
            assert score is not None
            values = (score, latency)
        self.proposals.annotate(
            candidate.number,
            {
                "feasible": candidate.feasible,
                "violation": max([0.0, *candidate.constraints.values()]),
                "rung": candidate.rung,
                "reason": reason[:200],
                "params": candidate.cost.params if candidate.cost else None,
                "macs": candidate.cost.macs if candidate.cost else None,
                "architecture": candidate.architecture.id if candidate.architecture else None,
            },
        )
        trial_state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[state]
        self.proposals.tell(candidate.number, trial_state, values)
        self.run.event("trial", number=candidate.number, state=state, reason=reason[:200])

    def _record(self, candidate: Candidate) -> None:
        self.run.write_trial(candidate.number, outcome_json(candidate, self.records[candidate.number]))

    def _line(self, candidate: Candidate) -> str:
        if not candidate.alive and candidate.state != "complete":
            return f"trial {candidate.number}: {candidate.state} ({candidate.reason})"
        parts = [f"trial {candidate.number}"]
        if candidate.architecture is not None:
            parts.append(candidate.architecture.space.split(":", 1)[-1])
        if candidate.cost is not None:
            parts.append(f"{candidate.cost.params / 1e3:.0f}k params")
        report = candidate.targets.get(self.primary_target)
        if report is not None:
            parts.append(f"{report.latency.value_ms:.3f} ms")
        if candidate.score is not None:
            parts.append(f"{self.parts.task.metric.name} {candidate.score:.4f}")
        return ", ".join(parts)

    def _best_line(self) -> str:
        front = self.front()
        if not front:
            return "no complete student yet"
        best = min(front, key=lambda c: self.objectives(c)[0])
        return (
            f"front of {len(front)}; best {self.parts.task.metric.name} {best.score:.4f} at "
            f"{self.objectives(best)[-1]:.3f} ms"
        )


_FATAL = frozenset({28, 30, 122})  # no space left, read-only file system, quota exceeded: nothing more can be recorded


def outcome_json(candidate: Candidate, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's record as JSON-able values."""
    cost = candidate.cost
    return {
        "number": candidate.number,
        "state": candidate.state,
        "rung": candidate.rung,
        "reason": candidate.reason,
        "architecture": None if candidate.architecture is None else candidate.architecture.to_json(),
        "cost": None if cost is None else {"params": cost.params, "macs": cost.macs, "activations": cost.activations},
        "proxies": candidate.proxies,
        "targets": {name: report.to_json() for name, report in candidate.targets.items()},
        "score": candidate.score,
        "loss": candidate.loss,
        "epochs": candidate.epochs,
        "constraints": candidate.constraints,
        "results": {rung: asdict(result) for rung, result in candidate.results.items()},
        **record,
    }


def candidate_from_json(value: Mapping[str, Any]) -> Candidate:
    """Return the candidate of a trial's record."""
    arch, cost = value.get("architecture"), value.get("cost")
    return Candidate(
        number=value["number"],
        architecture=None if arch is None else Architecture.from_json(arch),
        state=value["state"],
        rung=value["rung"],
        cost=None if cost is None else Cost(**cost),
        proxies=dict(value.get("proxies", {})),
        targets={name: TargetReport.from_json(report) for name, report in value.get("targets", {}).items()},
        score=value.get("score"),
        loss=value.get("loss"),
        epochs=value.get("epochs", 0),
        results={rung: Evaluation(**result) for rung, result in value.get("results", {}).items()},
        reason=value.get("reason", ""),
        constraints=dict(value.get("constraints", {})),
    )
