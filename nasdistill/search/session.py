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
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from optuna.trial import TrialState
from torch import nn

from nasdistill.errors import ISOLATED, UsageError, is_fatal
from nasdistill.files import file_hash
from nasdistill.interfaces import Candidate, Evaluation, Prepared, SearchSpace
from nasdistill.measure import Meter
from nasdistill.search.advice import Advice
from nasdistill.search.events import FINAL_LATENCY, Event, Listener, many
from nasdistill.search.pareto import non_dominated, rank_order
from nasdistill.search.parts import Parts
from nasdistill.search.study import Proposals
from nasdistill.search.summary import abbreviated
from nasdistill.search.work import Job, Outcome, StopSearch, Workbench, epoch_line, failure_text
from nasdistill.search.workers import Crew, Here
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import Cost
from nasdistill.spec.measurement import Budget, TargetReport
from nasdistill.store import RunDirectory

_GIVE_UP = 20
"""Proposals in a row without a new architecture after which a space counts as exhausted."""

_GIVE_UP_FITTING = 200
"""The same for architectures that must keep the limits on size, which most of a space may not."""

_LONG = 50
"""Candidates from which on pruning them shows its progress."""

TEACHER = "teacher"
"""Name of the teacher among the models that are timed together."""


@dataclass(slots=True)
class _Series:
    """Candidates that pass a rung in many calls, shown as one."""

    total: int
    done: int = 0
    announced: bool = False


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
        self.seed = parts.config.search.seed
        self.started = time.monotonic()
        self.spent_before = 0.0
        self.resumed = False
        self.seconds: dict[str, float] = {}
        self.candidates: dict[int, Candidate] = {}
        self.records: dict[int, dict[str, Any]] = {}
        self.teacher_reports: dict[str, TargetReport] = {}
        self._seen: dict[Architecture, int] = {}
        self._repeats = 0
        self._origins: dict[Architecture, str] = {}
        self._recorded: dict[int, dict[str, Any]] = {}
        self._pending: dict[int, list[str]] = {}
        self._advice: Advice | None = None
        self._series: dict[str, _Series | None] = {}

    def restore(self) -> int:
        """Take in what an earlier process recorded, before the strategy runs; return the number of trials."""
        self._recorded = {value["number"]: value for value in self.run.outcomes()}
        self._pending = {number: list(value.get("journal", {})) for number, value in self._recorded.items()}
        with contextlib.suppress(UsageError):  # what rungs cost is worth no resumed run
            self.seconds = dict(self.run.read("seconds.json") or {})
        with contextlib.suppress(UsageError):
            self.spent_before = float((self.run.read("clock.json") or {}).get("seconds", 0.0))
        facts = self.run.read("teacher.json") or {}
        self.teacher_reports = {
            name: TargetReport.from_json(value) for name, value in facts.get("search_targets", {}).items()
        }
        self.resumed = bool(self._recorded)
        return len(self._recorded)

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
            return max(0, self._known_trials - len(self.candidates))
        return max(0, self.trials - (len(self.candidates) - self._repeats))

    @property
    def _known_trials(self) -> int:
        """How many trials an earlier process started."""
        return max(self._recorded, default=-1) + 1

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
        while len(found) < n and self.remaining > 0 and misses < _GIVE_UP:
            repeats = self._repeats
            self._check_stop()
            candidate = self._start(*self.proposals.ask(len(self.candidates), self._known(len(self.candidates))))
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
            known = self._known(number)
            if known is not None and known != architecture:
                self.listener(
                    Event("message", f"trial {number} stays as recorded; the strategy would now propose another")
                )
            self._origins.setdefault(architecture, "given")
            found.append(self._start(*enqueue(number, known or architecture)))
        return [c for c in found if c.alive]

    def _known(self, number: int) -> Architecture | None:
        """Return the architecture that is on record for a trial."""
        value = self._recorded.get(number, {}).get("architecture")
        return None if value is None else Architecture.from_json(value)

    def _check_stop(self) -> None:
        if self.should_stop():
            raise StopSearch

    def suggest(self, values: Mapping[int, Sequence[float]], n: int) -> list[Architecture]:
        """Return up to `n` new architectures within the limits that the sampler would try next, given these values."""
        if self._advice is None:
            self._advice = Advice(self.proposals, len(next(iter(values.values()))) if values else 2)
        self._advice.tell({self.arch(self.candidates[number]): row for number, row in values.items()})
        found: list[Architecture] = []
        misses, most = 0, _GIVE_UP_FITTING if self._limited else _GIVE_UP
        while len(found) < n and misses < most:
            self._check_stop()
            architecture = self._advice.ask()
            new = architecture is not None and architecture not in self._seen and architecture not in found
            if architecture is not None and new and self._fits(architecture):
                found.append(architecture)
            else:
                misses += 1
        self._origins |= dict.fromkeys(found, "sampler")
        return found

    def spread(self, n: int, *, feasible: bool = False) -> list[Architecture]:
        """Return up to `n` new random architectures, the same number from every space in turn."""
        rng = self.rng("spread")
        sources = [partial(space.sample, rng) for space in self.parts.spaces.values()]
        begin = len(self.candidates) % len(sources)  # so that one at a time gives every space its turn, too
        found = self._fresh(n, sources[begin:] + sources[:begin], feasible)
        self._origins |= dict.fromkeys(found, "spread")
        return found

    def neighbours(
        self, candidates: Sequence[Candidate], n: int, *, changes: int = 1, feasible: bool = False
    ) -> list[Architecture]:
        """Return up to `n` new architectures, each one mutation away from one of `candidates` in turn."""
        rng = self.rng("neighbours")
        sources = [partial(self.space(c).mutate, self.arch(c), rng, changes) for c in candidates]
        found = self._fresh(n, sources, feasible)
        self._origins |= dict.fromkeys(found, "neighbour")
        return found

    def rng(self, purpose: str) -> random.Random:
        """Return randomness that depends on how far the search is, not on what this process did before."""
        return random.Random(derive_seed(self.seed, purpose, len(self.candidates)))

    def series(self, *rungs: str, total: int) -> None:
        """Show the progress of `total` candidates that pass these rungs in many calls as that of the last rung."""
        shown = _Series(total)
        self._series |= dict.fromkeys(rungs[:-1]) | {rungs[-1]: shown}

    def _fits(self, architecture: Architecture) -> bool:
        """Return whether an architecture keeps the limits that its analytic cost decides."""
        space = self.bench.space(architecture)
        over = self._size_violations(space.cost(architecture, self.parts.task.io)) if self._limited else {}
        return all(value <= 0 for value in over.values())

    @property
    def _limited(self) -> bool:
        limits = self.parts.config.constraints
        return limits.max_params is not None or limits.max_macs is not None

    def _size_violations(self, cost: Cost) -> dict[str, float]:
        """Return by how much of a limit a cost is over it."""
        limits, found = self.parts.config.constraints, {}
        if limits.max_params is not None:
            found["params"] = cost.params / limits.max_params - 1
        if limits.max_macs is not None:
            found["macs"] = cost.macs / limits.max_macs - 1
        return found

    def _fresh(
        self, n: int, sources: Sequence[Callable[[], Architecture]], feasible: bool = False
    ) -> list[Architecture]:
        """Draw from the sources in turn, leaving out what was proposed before; give up where nothing new comes."""
        found: list[Architecture] = []
        attempts = _GIVE_UP_FITTING if feasible and self._limited else _GIVE_UP
        for attempt in range(attempts * n if sources else 0):
            if len(found) == n:
                break
            architecture = sources[attempt % len(sources)]()
            new = architecture not in self._seen and architecture not in found
            if new and (not feasible or self._fits(architecture)):
                found.append(architecture)
        return found

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every architecture of every space."""
        for space in self.parts.spaces.values():
            yield from space.enumerate()

    def _start(self, number: int, architecture: Architecture | None) -> Candidate:
        candidate = Candidate(number, architecture)
        self.candidates[number] = candidate
        recorded = self._recorded.get(number, {})
        own = {f.name for f in fields(Candidate)} - {"number"}
        # Who proposed it: the report compares what was drawn at random with what the search found.
        origin = "sampler" if architecture is None else self._origins.get(architecture, "sampler")
        self.records[number] = {"seconds": {}, "rungs": {}, "journal": {}, "origin": origin} | {
            key: value for key, value in recorded.items() if key not in own and key != "number"
        }
        if architecture is None:
            self._finish(candidate, "pruned", "violates a constraint of its space")
        elif architecture in self._seen:
            self._repeats += 1
            self.records[number]["repeats"] = self._seen[architecture]
            self._finish(candidate, "pruned", f"same architecture as trial {self._seen[architecture]}")
        else:
            self._seen[architecture] = number
            self._record(candidate)
        return candidate

    # ---- rungs ----------------------------------------------------------------------------------------------------

    def check(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``static``: analytic cost and the constraints on it."""
        return self._rung("static", "static", candidates, lambda c: c.cost is not None)

    def score(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Rung ``proxies``: every configured proxy; a failing proxy is recorded and does not end the trial."""
        names = set(self.parts.components.proxies)
        return self._rung("proxies", "proxies", candidates, lambda c: names <= set(c.proxies))

    def measure(
        self, candidates: Sequence[Candidate], *, budget: Budget | None = None, together: bool = False
    ) -> list[Candidate]:
        """Rung ``latency``: the primary target, one by one; `together`: every target, in the teacher's own rounds."""
        if together:
            return self._measure_together(candidates, budget)
        self.measure_teacher()
        name = self.primary_target
        return self._rung("latency", "latency", candidates, lambda c: name in c.targets, budget=budget)

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
        self.listener(
            Event("rung", f"timing {many(len(alive), 'student')} head to head with the teacher", FINAL_LATENCY)
        )
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
        self.spent(FINAL_LATENCY, time.monotonic() - start)
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
        return self.bench.space(self.arch(candidate))

    def build(self, candidate: Candidate) -> nn.Module:
        """Return the candidate's network: trained weights where there are any, else its start, in eval mode."""
        return self.bench.build(
            self.arch(candidate), candidate.number, candidate.epochs, self._weights(candidate, candidate.epochs)
        )

    def example(self) -> tuple[torch.Tensor, ...]:
        """Return one sample, the input of every latency measurement."""
        return self.bench.example()

    def _weights(self, candidate: Candidate, epochs: int) -> str | None:
        """Return the recorded hash of a candidate's weights after so many epochs."""
        entries = self.records[candidate.number]["journal"].values()
        return next((e["weights_sha256"] for e in entries if e.get("epochs") == epochs and "weights_sha256" in e), None)

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
    ) -> list[Candidate]:
        """Have a rung done for each candidate that is alive and has not had it; return those still alive."""
        key = f"{rung} {epochs}" if epochs else rung
        todo = [c for c in candidates if c.alive and not is_done(c)]
        series = self._series[rung] if rung in self._series else _Series(len(todo))
        replayed = {c.number for c in todo if self._replay(c, kind, rung, key)}
        todo = [c for c in todo if c.number not in replayed]
        if series is not None and rung in self._series:
            series.done += len(replayed)
        elif series is not None:
            series.total = len(todo)
        if not todo:
            return [c for c in candidates if c.alive]
        jobs = [
            Job(kind, rung, c.number, self.arch(c), c.epochs, self._weights(c, c.epochs), epochs, budget) for c in todo
        ]
        if kind == "distill" and self.parallel > 1:
            # The longest first: a large one that comes last would keep one worker busy and the others waiting.
            macs = {c.number: c.cost.macs if c.cost else 0 for c in todo}
            jobs.sort(key=lambda job: -macs[job.number])
        self.proposals.open([c.number for c in todo] if kind in ("latency", "distill") else [])
        if series is not None and not series.announced:
            series.announced = True
            self.listener(Event("rung", f"{rung}: {many(series.total, 'candidate')}", rung, total=series.total))

        def progress(job: Job, epoch: int, terms: Mapping[str, float]) -> None:
            facts = {"epoch": epoch, **terms}
            self.listener(Event("epoch", epoch_line(job.number, epoch, terms), rung, trial=job.number, facts=facts))

        results = self.crew.map(jobs, progress=progress, should_stop=self.should_stop)
        with contextlib.closing(results):
            for job, outcome in results:
                candidate = self.candidates[job.number]
                self._take(candidate, job, key, outcome)
                if series is not None:
                    series.done += 1
                    text = f"{rung} {series.done}/{series.total}: {self._line(candidate)}"
                    self.listener(Event("step", text, rung, series.done, series.total, candidate.number))
        return [c for c in candidates if c.alive]

    def _take(self, candidate: Candidate, job: Job, key: str, outcome: Outcome) -> None:
        """Record what came of a job and let the candidate know."""
        if outcome.fatal:
            raise OSError(outcome.failure)
        record, found = self.records[candidate.number], dict(outcome.found)
        record["seconds"][job.rung] = outcome.seconds
        self.spent(job.rung, outcome.seconds)
        for name, column in (("problems", "proxy_problems"), ("proxy_seconds", "proxy_seconds")):
            if name in found:
                record[column] = found.pop(name)
        if "inherited" in found:
            record["inherited"] = found.pop("inherited")
        if "history" in found:
            history = [row for row in record.get("history", []) if row["rung"] != job.rung]
            record["history"] = history + found.pop("history")
        if "evaluation" in found:
            found["epochs"] = job.epochs
            names = ("epochs", "steps", "skipped_losses", "weights_sha256")
            record["rungs"][job.rung] = {name: found[name] for name in names}
        entry = found if outcome.failure is None else {"failure": outcome.failure}
        record["journal"][key] = entry
        self._pending.pop(candidate.number, None)
        self._apply(candidate, job.kind, job.rung, entry)
        if candidate.alive:
            self._record(candidate)

    def _apply(self, candidate: Candidate, kind: str, rung: str, entry: Mapping[str, Any]) -> None:
        """Let a candidate know what a rung found out, just now or in an earlier process."""
        if "failure" in entry:
            self._finish(candidate, "failed", entry["failure"])
            return
        if kind == "static":
            candidate.cost = Cost(**entry["cost"])
            candidate.constraints |= self._size_violations(candidate.cost)
        elif kind == "proxies":
            candidate.proxies |= entry["proxies"]
        elif kind == "latency":
            candidate.targets[entry["target"]] = TargetReport.from_json(entry["report"])
            self._limit_latency(candidate)
        else:
            result = Evaluation(**entry["evaluation"])
            candidate.score, candidate.loss, candidate.epochs = result.score, result.loss, entry["epochs"]
            candidate.results[rung] = result
        candidate.rung = rung
        if kind in ("static", "latency"):
            self._enforce(candidate)

    def _replay(self, candidate: Candidate, kind: str, rung: str, key: str) -> bool:
        """Take a rung from the journal, where it has it; return whether it did."""
        entry = self.records[candidate.number]["journal"].get(key)
        if entry is None or key not in self._pending.get(candidate.number, ()):
            return False
        if "weights_sha256" in entry and not self._has_weights(candidate, entry):
            self.listener(
                Event("message", f"trial {candidate.number}: its weights are missing or damaged; trained again")
            )
            return False
        self._pending[candidate.number].remove(key)
        self._apply(candidate, kind, rung, entry)
        return True

    def _has_weights(self, candidate: Candidate, entry: Mapping[str, Any]) -> bool:
        try:
            return bool(file_hash(self.run.weights(candidate.number, entry["epochs"])) == entry["weights_sha256"])
        except OSError:
            return False

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
        recorded = self._recorded.get(candidate.number, {})
        if self._pending.get(candidate.number) and recorded.get("state", "running") != "running":
            # The strategy decides otherwise than before, though this trial is finished: what is finished stays.
            self._take_over(candidate, recorded)
            state, reason = candidate.state, candidate.reason
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
        if recorded.get("state") != state:
            self.run.event("trial", number=candidate.number, state=state, reason=reason[:200])

    def _take_over(self, candidate: Candidate, recorded: Mapping[str, Any]) -> None:
        """Make a candidate what its record says."""
        del self._pending[candidate.number]
        known = candidate_from_json(recorded)
        for item in fields(Candidate):
            setattr(candidate, item.name, getattr(known, item.name))

    def _record(self, candidate: Candidate) -> None:
        if self._pending.get(candidate.number):
            return  # what is on disk knows more than this replay does yet
        self.run.write_trial(candidate.number, outcome_json(candidate, self.records[candidate.number]))

    def _line(self, candidate: Candidate) -> str:
        if not candidate.alive and candidate.state != "complete":
            return f"trial {candidate.number}: {candidate.state} ({candidate.reason})"
        parts = [f"trial {candidate.number}"]
        if candidate.architecture is not None:
            parts.append(candidate.architecture.space.split(":", 1)[-1])
        if candidate.cost is not None:
            parts.append(f"{abbreviated(candidate.cost.params)} params")
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
        state=value.get("state", "running"),
        rung=value.get("rung", "proposed"),
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
