"""The journal of a run: what is on record of every trial, and what of it a resumed strategy has not asked for yet.

A record's ``journal`` has one entry per rung, in order: what the rung found out, or the failure it ended with. A run
that was cut short is walked through again; whatever has an entry is taken from there instead of being done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from nasdistill.files import file_hash
from nasdistill.interfaces import Candidate, Evaluation
from nasdistill.search.work import Job, Outcome
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import Cost
from nasdistill.spec.measurement import TargetReport
from nasdistill.store import RunDirectory


class Journal:
    """Reads and writes the trials' records.

    Args:
        run: where they are.
        notify: called with a line when something on record is of no use any more.

    Attributes:
        records: trial number -> what its record has beside the candidate's own fields.
    """

    def __init__(self, run: RunDirectory, notify: Callable[[str], None]) -> None:
        self.run = run
        self.records: dict[int, dict[str, Any]] = {}
        self._notify = notify
        self._recorded: dict[int, dict[str, Any]] = {}
        self._pending: dict[int, list[str]] = {}

    def restore(self) -> int:
        """Take in what an earlier process recorded; return the number of trials."""
        self._recorded = {value["number"]: value for value in self.run.outcomes()}
        self._pending = {number: list(value.get("journal", {})) for number, value in self._recorded.items()}
        return len(self._recorded)

    @property
    def known_trials(self) -> int:
        """How many trials an earlier process started."""
        return max(self._recorded, default=-1) + 1

    def architecture(self, number: int) -> Architecture | None:
        """Return the architecture that an earlier process recorded for a trial."""
        value = self._recorded.get(number, {}).get("architecture")
        return None if value is None else Architecture.from_json(value)

    def state(self, number: int) -> str | None:
        """Return the state that an earlier process recorded for a trial."""
        state: str | None = self._recorded.get(number, {}).get("state")
        return state

    def begin(self, number: int, origin: str) -> dict[str, Any]:
        """Open a trial's record, with what is in it already, and return it."""
        own = {item.name for item in fields(Candidate)}
        known = {key: value for key, value in self._recorded.get(number, {}).items() if key not in own}
        self.records[number] = {"seconds": {}, "rungs": {}, "journal": {}, "origin": origin} | known
        return self.records[number]

    def add(self, job: Job, key: str, outcome: Outcome) -> Mapping[str, Any]:
        """Put down what came of a job and return its entry; nothing is written yet."""
        record, found = self.records[job.number], dict(outcome.found)
        record["seconds"][job.rung] = outcome.seconds
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
        entry: dict[str, Any] = found if outcome.failure is None else {"failure": outcome.failure}
        record["journal"][key] = entry
        self._pending.pop(job.number, None)
        return entry

    def replay(self, number: int, key: str) -> Mapping[str, Any] | None:
        """Return a rung's entry where an earlier process has made it and this one has not asked for it before."""
        entry: dict[str, Any] | None = self.records[number]["journal"].get(key)
        if entry is None or key not in self._pending.get(number, ()):
            return None
        if "weights_sha256" in entry and not self._has_weights(number, entry):
            self._notify(f"trial {number}: its weights are missing or damaged; trained again")
            return None
        self._pending[number].remove(key)
        return entry

    def keep_end(self, candidate: Candidate) -> bool:
        """Make a candidate what its record says where that has an end; return whether it has.

        So it is when the strategy decides otherwise than before, though the trial is finished: what is finished stays.
        """
        recorded = self._recorded.get(candidate.number, {})
        if not self._pending.get(candidate.number) or recorded.get("state", "running") == "running":
            return False
        del self._pending[candidate.number]
        known = candidate_from_json(recorded)
        for item in fields(Candidate):
            setattr(candidate, item.name, getattr(known, item.name))
        return True

    def weights_hash(self, number: int, epochs: int) -> str | None:
        """Return the recorded hash of a candidate's weights after so many epochs."""
        entries = self.records[number]["journal"].values()
        return next((e["weights_sha256"] for e in entries if e.get("epochs") == epochs and "weights_sha256" in e), None)

    def write(self, candidate: Candidate) -> None:
        """Write a trial's record, unless what is on disk knows more than this replay does yet."""
        if not self._pending.get(candidate.number):
            self.run.write_trial(candidate.number, outcome_json(candidate, self.records[candidate.number]))

    def _has_weights(self, number: int, entry: Mapping[str, Any]) -> bool:
        try:
            return bool(file_hash(self.run.weights(number, entry["epochs"])) == entry["weights_sha256"])
        except OSError:
            return False


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
        "start": candidate.start,
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
        start=value.get("start", ""),
    )
