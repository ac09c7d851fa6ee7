"""The session a strategy works through: every rung, recorded trial by trial.

Each method does one rung for a list of candidates, writes each candidate's record as soon as its work is done, and
turns a failure into that trial's outcome.

A run that was cut short is resumed by running its strategy again from the start: whatever a trial's journal already
has is taken from there instead of being done, so the strategy sees the values it saw before, takes the same decisions,
and goes on where the records end. A strategy needs nothing for that but to decide by what the session tells it.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from optuna.trial import TrialState
from torch import nn

from nasdistill.distill.stepping import EpochReport
from nasdistill.errors import ISOLATED, UsageError, is_fatal
from nasdistill.interfaces import INHERITED, Candidate, Evaluation, SearchSpace, SharedWeights
from nasdistill.measure import Meter
from nasdistill.search.drawing import GIVE_UP, Drawing
from nasdistill.search.events import FINAL_LATENCY, SUPERNET, Event, Listener, many
from nasdistill.search.journal import Journal
from nasdistill.search.limits import Limits
from nasdistill.search.pareto import non_dominated, rank_order
from nasdistill.search.parts import Parts
from nasdistill.search.progress import Progress, front_line, trial_line
from nasdistill.search.proxyhealth import ProxyWatch
from nasdistill.search.study import Proposals
from nasdistill.search.together import TEACHER, time_together
from nasdistill.search.work import Job, Outcome, StopSearch, Workbench, epoch_line, failure_text
from nasdistill.search.workers import Crew, Here
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.config import ObjectiveConfig
from nasdistill.spec.io import Cost
from nasdistill.spec.measurement import Budget, TargetReport
from nasdistill.store import RunDirectory

_LONG = 50
"""Candidates from which on pruning them shows its progress."""


class Session:
    """Implements :class:`nasdistill.interfaces.SearchSession` for one run.

    Args:
        run: where everything is recorded.
        parts: opened and checked parts.
        proposals: the study.
        meters: target id -> meter, the primary one first.
        listener: told what happens.
        crew: does the work; by default this process.
        should_stop: asked between and within trials; True ends the search with :class:`StopSearch`.

    Attributes:
        spent_before: seconds of the time limit that earlier processes used.
        resumed: whether an earlier process began this run.
    """

    def __init__(
        self,
        run: RunDirectory,
        parts: Parts,
        proposals: Proposals,
        meters: Mapping[str, Meter],
        listener: Listener,
        *,
        crew: Crew | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.run = run
        self.parts = parts
        self.proposals = proposals
        self.meters = dict(meters)
        self.listener = listener
        self.bench = Workbench(run, parts, meters)
        self.crew: Crew = Here(self.bench) if crew is None else crew
        self.should_stop = should_stop
        proxies = {name: proxy.id for name, (proxy, _) in parts.components.proxies.items()}
        self.proxy_watch = ProxyWatch(proxies, parts.components.strategy.deciding(tuple(proxies)), listener)
        self.seed = parts.config.search.seed
        self.started = time.monotonic()
        self.spent_before = 0.0
        self.resumed = False
        self.seconds: dict[str, float] = {}
        self.candidates: dict[int, Candidate] = {}
        self.journal = Journal(run, lambda text: self.listener(Event("message", text)))
        self.limits = Limits(parts.config.constraints)
        self.drawing = Drawing(parts, proposals, self.limits, self._check_stop)
        self.progress = Progress(listener)
        self.teacher_reports: dict[str, TargetReport] = {}
        self._repeats = 0

    def restore(self) -> int:
        """Take in what an earlier process recorded, before the strategy runs; return the number of trials."""
        trials = self.journal.restore()
        with contextlib.suppress(UsageError):  # what rungs cost is worth no resumed run
            self.seconds = dict(self.run.read("seconds.json") or {})
        with contextlib.suppress(UsageError):
            self.spent_before = float((self.run.read("clock.json") or {}).get("seconds", 0.0))
        facts = self.run.read("teacher.json") or {}
        self.teacher_reports = {
            name: TargetReport.from_json(value) for name, value in facts.get("search_targets", {}).items()
        }
        self.resumed = bool(trials)
        return trials

    # ---- budget ---------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> int:
        """How many trials there are to be."""
        return self.parts.components.strategy.trials(self.parts.config.search.trials)

    @property
    def proxies(self) -> tuple[str, ...]:
        """The names of the configured proxies."""
        return tuple(self.parts.components.proxies)

    @property
    def remaining(self) -> int:
        """How many may still be proposed; repeats of an architecture do not count."""
        left = self.time_left()
        if left is not None and left <= 0:  # what was proposed before the time was up stays proposed
            return max(0, self.journal.known_trials - len(self.candidates))
        return max(0, self.trials - (len(self.candidates) - self._repeats))

    @property
    def parallel(self) -> int:
        """How many candidates are worked on at the same time."""
        return max(1, self.parts.config.workers.count)

    @property
    def primary_target(self) -> str:
        """The target whose latency is the second objective."""
        return next(iter(self.meters))

    def time_left(self) -> float | None:
        """Seconds until the time limit, None without one."""
        limit = self.parts.config.search.timeout
        return None if limit is None else limit - self.spent_before - (time.monotonic() - self.started)

    # ---- proposing ------------------------------------------------------------------------------------------------

    def ask(self, n: int) -> list[Candidate]:
        """Propose up to `n` new candidates; duplicates and invalid points are told at once and left out."""
        found: list[Candidate] = []
        misses = 0
        while len(found) < n and self.remaining > 0 and misses < GIVE_UP:
            repeats = self._repeats
            self._check_stop()
            number = len(self.candidates)
            candidate = self._start(*self.proposals.ask(number, self.journal.architecture(number)))
            # A small space runs out of new points: the sampler is asked a few more times, then we go on without.
            misses = misses + 1 if self._repeats > repeats else 0
            if candidate.alive:
                found.append(candidate)
        return found

    def propose(self, architectures: Sequence[Architecture], *, defer: bool = False) -> list[Candidate]:
        """Propose given architectures as trials of the study; `defer` tells its database later."""
        enqueue = self.proposals.defer if defer else self.proposals.enqueue
        found = []
        for architecture in architectures[: self.remaining]:
            self._check_stop()
            number = len(self.candidates)
            known = self.journal.architecture(number)
            if known is not None and known != architecture:
                self.listener(
                    Event("message", f"trial {number} stays as recorded; the strategy would now propose another")
                )
            self.drawing.origins.setdefault(architecture, "given")
            found.append(self._start(*enqueue(number, known or architecture)))
        return [c for c in found if c.alive]

    def _check_stop(self) -> None:
        if self.should_stop():
            raise StopSearch

    def suggest(self, values: Mapping[int, Sequence[float]], n: int) -> list[Architecture]:
        """Return up to `n` new architectures within the limits that the sampler would try next, given these values."""
        return self.drawing.suggest({self.arch(self.candidates[number]): row for number, row in values.items()}, n)

    def spread(self, n: int, *, feasible: bool = False) -> list[Architecture]:
        """Return up to `n` new random architectures, the same number from every space in turn."""
        # One at a time gives every space its turn, too.
        return self.drawing.spread(n, self.rng("spread"), begin=len(self.candidates), feasible=feasible)

    def neighbours(
        self, candidates: Sequence[Candidate], n: int, *, changes: int = 1, feasible: bool = False
    ) -> list[Architecture]:
        """Return up to `n` new architectures, each one mutation away from one of `candidates` in turn."""
        parents, rng = [self.arch(c) for c in candidates], self.rng("neighbours")
        return self.drawing.neighbours(parents, n, rng, changes=changes, feasible=feasible)

    def rng(self, purpose: str) -> random.Random:
        """Return randomness that depends on how far the search is, not on what this process did before."""
        return random.Random(derive_seed(self.seed, purpose, len(self.candidates)))

    def series(self, *rungs: str, total: int) -> None:
        """Show the progress of `total` candidates that pass these rungs in many calls as that of the last rung."""
        self.progress.series(*rungs, total=total)

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every architecture of every space."""
        for space in self.parts.spaces.values():
            yield from space.enumerate()

    def _start(self, number: int, architecture: Architecture | None) -> Candidate:
        candidate = Candidate(number, architecture)
        self.candidates[number] = candidate
        seen = self.drawing.seen
        origin = "sampler" if architecture is None else self.drawing.origins.get(architecture, "sampler")
        record = self.journal.begin(number, origin)
        if architecture is None:
            self._finish(candidate, "pruned", "violates a constraint of its space")
        elif architecture in seen:
            self._repeats += 1
            record["repeats"] = seen[architecture]
            self._finish(candidate, "pruned", f"same architecture as trial {seen[architecture]}")
        else:
            seen[architecture] = number
            self.journal.write(candidate)
        return candidate

    # ---- rungs ----------------------------------------------------------------------------------------------------

    def check(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``static``: analytic cost and the constraints on it."""
        return self._rung("static", "static", candidates, lambda c: c.cost is not None)

    def score(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``proxies``: every configured proxy; a failing proxy is recorded and does not end the trial."""
        names = set(self.parts.components.proxies)
        return self._rung("proxies", "proxies", candidates, lambda c: names <= set(c.proxies))

    # ---- shared weights -------------------------------------------------------------------------------------------

    def supernets(self) -> tuple[SharedWeights, ...]:
        """Return every set of shared weights that can be trained."""
        return self.bench.shelf.all()

    def train_supernet(
        self,
        shared: SharedWeights,
        epochs: int,
        *,
        objective: ObjectiveConfig | None = None,
        lr: float | None = None,
        others: int = 2,
    ) -> SharedWeights:
        """Train shared weights in this process, or take them from the run's folder; see the interface."""
        shelf, start = self.bench.shelf, time.monotonic()
        label = f"supernet {shared.id}"
        self.listener(Event("rung", f"{label}: {many(epochs, 'epoch')}", SUPERNET, total=1))

        def on_epoch(report: EpochReport) -> None:
            text = f"{label}: epoch {report.epoch + 1} of {epochs}, loss {report.terms['total']:.4g}"
            self.listener(Event("epoch", text, SUPERNET, facts={"epoch": report.epoch, **report.terms}))

        found = shelf.train(
            shared, epochs, objective=objective, lr=lr, others=others,
            message=lambda text: self.listener(Event("message", text)), on_epoch=on_epoch, should_stop=self.should_stop,
        )  # fmt: skip
        self.spent(SUPERNET, time.monotonic() - start)
        if found is None:
            raise StopSearch
        text = f"{label}: {found.failure}" if found.failure else f"{label}: trained"
        self.listener(Event("step", text, SUPERNET, 1, 1))
        return found

    def members(
        self, shared: SharedWeights, n: int, *, near: Sequence[Candidate] = (), changes: int = 1
    ) -> list[Architecture]:
        """Return up to `n` new architectures of a sub-space within the limits on size; see the interface."""
        space, subspace = self.bench.shelf.place(shared)
        parents = [self.arch(c) for c in near]
        return self.drawing.members(space, subspace, n, self.rng("members"), parents=parents, changes=changes)

    def inherited(
        self,
        candidates: Sequence[Candidate],
        shared: SharedWeights,
        *,
        by: Literal["loss", "metric"] = "loss",
        samples: int = 256,
    ) -> list[Candidate]:
        """Rung ``inherited``: score each candidate with its part of trained shared weights; see the interface."""
        return self._rung(
            INHERITED, INHERITED, candidates, lambda c: INHERITED in c.proxies, start=shared.id, by=by, samples=samples
        )

    # ---- latency and distillation ---------------------------------------------------------------------------------

    def measure(
        self, candidates: Sequence[Candidate], *, budget: Budget | None = None, together: bool = False
    ) -> list[Candidate]:
        """Rung ``latency``: the primary target, one by one; `together`: every target, in the teacher's own rounds."""
        if together:
            return self._measure_together(candidates, budget)
        self.measure_teacher()
        name = self.primary_target
        return self._rung("latency", "latency", candidates, lambda c: name in c.targets, budget=budget)

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
        self.listener(
            Event("rung", f"timing {many(len(alive), 'student')} head to head with the teacher", FINAL_LATENCY)
        )
        teacher = self.parts.teacher.model.cpu()
        for name, meter in self.meters.items():
            reports = self._time_together(meter, alive, budget)
            alive = [c for c in alive if str(c.number) in reports]
            self.teacher_reports[name] = reports[TEACHER]
            for candidate in alive:
                candidate.targets[name] = reports[str(candidate.number)]
        teacher.to(self.parts.device)
        for candidate in alive:
            candidate.constraints |= self.limits.latency(candidate.targets[self.primary_target].latency)
            self.journal.write(candidate)
        self.spent(FINAL_LATENCY, time.monotonic() - start)
        return alive

    def _time_together(
        self, meter: Meter, candidates: Sequence[Candidate], budget: Budget | None
    ) -> dict[str, TargetReport]:
        """Time candidates and teacher in the same rounds; return the reports of those that could be prepared.

        Trained weights may fail a check that the first ones passed: such a student cannot be served, so it fails.
        """
        by_name = {str(c.number): c for c in candidates}
        models: dict[str, Callable[[], nn.Module]] = {TEACHER: lambda: self.parts.teacher.model}
        models |= {name: partial(self._on_cpu, candidate) for name, candidate in by_name.items()}
        return time_together(
            meter, models, self.example(), budget,
            attempt=lambda name, work: self._attempt(by_name[name], lambda _: work()),
        )  # fmt: skip

    def _on_cpu(self, candidate: Candidate) -> nn.Module:
        return self.build(candidate).cpu()

    def distill(self, candidates: Sequence[Candidate], epochs: int, rung: str) -> list[Candidate]:
        """Rung `rung`: train up to `epochs` epochs in all and evaluate on validation."""
        return self._rung("distill", rung, candidates, lambda c: c.epochs >= epochs, epochs=epochs)

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
        alive = [c for c in candidates if c.alive]
        if len(alive) > _LONG:
            self.listener(Event("rung", f"pruned: {many(len(alive), 'candidate')}", "pruned", total=len(alive)))
        for done, candidate in enumerate(alive, start=1):
            self._check_stop()
            self._finish(candidate, "pruned", reason)
            if len(alive) > _LONG:  # telling the database takes a while; the bar moves, no line is printed
                self.listener(Event("step", "", "pruned", done, len(alive), candidate.number))

    def complete(self, candidates: Sequence[Candidate]) -> None:
        """Tell the study the objective values of finished candidates."""
        for candidate in candidates:
            if candidate.alive:
                self._finish(candidate, "complete", "")
        front = self.front()
        text = front_line(front, self.primary_target, self.parts.task.metric)
        self.listener(Event("front", text, facts={"size": len(front)}))

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
        return self.bench.space(self.arch(candidate))

    def build(self, candidate: Candidate) -> nn.Module:
        """Return the candidate's network: trained weights where there are any, else its start, in eval mode."""
        arch, number, epochs = self.arch(candidate), candidate.number, candidate.epochs
        return self.bench.build(arch, number, epochs, self._weights(candidate), start=candidate.start)

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return one sample, the input of every latency measurement."""
        return self.bench.example()

    def _weights(self, candidate: Candidate) -> str | None:
        """Return the recorded hash of a candidate's latest weights."""
        return self.journal.weights_hash(candidate.number, candidate.epochs)

    # ---- records --------------------------------------------------------------------------------------------------

    def _rung(
        self,
        kind: str,
        rung: str,
        candidates: Sequence[Candidate],
        is_done: Callable[[Candidate], bool],
        *,
        epochs: int = 0,
        budget: Budget | None = None,
        start: str | None = None,
        by: str = "loss",
        samples: int = 0,
    ) -> list[Candidate]:
        """Have a rung done for each candidate that is alive and has not had it; return those still alive."""
        key = f"{rung} {epochs}" if epochs else rung
        todo = [c for c in candidates if c.alive and not is_done(c)]
        replayed = {c.number for c in todo if self._replay(c, kind, rung, key)}
        todo = [c for c in todo if c.number not in replayed]
        shown = self.progress.begin(rung, len(todo), len(replayed))
        if not todo:
            return [c for c in candidates if c.alive]
        jobs = [
            Job(
                kind, rung, c.number, self.arch(c), c.epochs, self._weights(c), epochs, budget,
                c.start if start is None else start, by, samples,
            )
            for c in todo
        ]  # fmt: skip
        if kind == "distill" and self.parallel > 1:
            # The longest first: a large one that comes last would keep one worker busy and the others waiting.
            macs = {c.number: c.cost.macs if c.cost else 0 for c in todo}
            jobs.sort(key=lambda job: -macs[job.number])
        self.proposals.open([c.number for c in todo] if kind in ("latency", "distill") else [])
        shown.announce()

        def progress(job: Job, epoch: int, terms: Mapping[str, float]) -> None:
            facts = {"epoch": epoch, **terms}
            self.listener(Event("epoch", epoch_line(job.number, epoch, terms), rung, trial=job.number, facts=facts))

        results = self.crew.map(jobs, progress=progress, should_stop=self.should_stop)
        with contextlib.closing(results):
            for job, outcome in results:
                candidate = self.candidates[job.number]
                self._take(candidate, job, key, outcome)
                shown.step(candidate.number, trial_line(candidate, self.primary_target, self.parts.task.metric))
        return [c for c in candidates if c.alive]

    def _take(self, candidate: Candidate, job: Job, key: str, outcome: Outcome) -> None:
        """Record what came of a job and let the candidate know."""
        if outcome.fatal:
            raise OSError(outcome.failure)
        entry = self.journal.add(job, key, outcome)
        self.spent(job.rung, outcome.seconds)
        self._apply(candidate, job.kind, job.rung, entry)
        if candidate.alive:
            self.journal.write(candidate)
        if "proxies" in entry:
            problems = self.journal.records[candidate.number]["proxy_problems"]
            self.proxy_watch.note(candidate.number, entry["proxies"], problems)

    def _apply(self, candidate: Candidate, kind: str, rung: str, entry: Mapping[str, Any]) -> None:
        """Let a candidate know what a rung found out, just now or in an earlier process."""
        if "failure" in entry:
            self._finish(candidate, "failed", entry["failure"])
            return
        if kind == "static":
            candidate.cost = Cost(**entry["cost"])
            candidate.constraints |= self.limits.size(candidate.cost)
        elif kind == "proxies":
            candidate.proxies |= entry["proxies"]
        elif kind == INHERITED:
            candidate.proxies[INHERITED], candidate.start = entry["value"], entry["start"]
        elif kind == "latency":
            candidate.targets[entry["target"]] = TargetReport.from_json(entry["report"])
            candidate.constraints |= self.limits.latency(candidate.targets[self.primary_target].latency)
        else:
            result = Evaluation(**entry["evaluation"])
            candidate.score, candidate.loss, candidate.epochs = result.score, result.loss, entry["epochs"]
            candidate.results[rung] = result
        candidate.rung = rung
        if kind in ("static", "latency"):
            self._enforce(candidate)

    def _replay(self, candidate: Candidate, kind: str, rung: str, key: str) -> bool:
        """Take a rung from the journal, where it has it; return whether it did."""
        entry = self.journal.replay(candidate.number, key)
        if entry is not None:
            self._apply(candidate, kind, rung, entry)
        return entry is not None

    def _attempt(self, candidate: Candidate, work: Callable[[Candidate], None]) -> bool:
        """Do `work` for a candidate; whatever it raises becomes the trial's outcome. Return whether it went well."""
        try:
            work(candidate)
        except ISOLATED as error:  # one bad candidate never takes the rest down
            if is_fatal(error):
                raise OSError(failure_text(error)) from error
            self._finish(candidate, "failed", failure_text(error))
            return False
        return True

    def spent(self, rung: str, seconds: float) -> None:
        """Add to the seconds that a rung has taken."""
        self.seconds[rung] = self.seconds.get(rung, 0.0) + seconds
        self.run.write("seconds.json", self.seconds)
        self.run.write("clock.json", {"seconds": self.spent_before + time.monotonic() - self.started})

    def _enforce(self, candidate: Candidate) -> None:
        self.proposals.constrain(candidate.number, candidate.constraints)
        broken = {name: value for name, value in candidate.constraints.items() if value > 0}
        if broken:
            limits = ", ".join(f"{name} over by {value:.1%}" for name, value in broken.items())
            self._finish(candidate, "pruned", f"infeasible: {limits}")

    def _finish(self, candidate: Candidate, state: str, reason: str) -> None:
        """Write the record first, then tell the study: a kill in between leaves a trial that can be told again."""
        if self.journal.keep_end(candidate):
            state, reason = candidate.state, candidate.reason
        candidate.state = state  # type: ignore[assignment]
        candidate.reason = reason
        self.journal.write(candidate)
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
        if self.journal.state(candidate.number) != state:
            self.run.event("trial", number=candidate.number, state=state, reason=reason[:200])
