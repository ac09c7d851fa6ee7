"""A run directory, read as it is now: finished, running, killed or moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nasdistill.errors import NasdistillError, UsageError, did_you_mean, one_line
from nasdistill.files import read_json
from nasdistill.host import Host
from nasdistill.interfaces import Candidate, SearchSpace
from nasdistill.library.students import Source, Student
from nasdistill.search.journal import candidate_from_json
from nasdistill.search.result import build_result, front_of, student_id
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import RunConfig, parse_config
from nasdistill.store import ASSETS, RunDirectory, read_io, read_record


class Run:
    """What a search has found so far. Load it again to see what came since.

    Args:
        directory: the opened run directory.
        host: where components come from.

    Attributes:
        path: the folder.
    """

    path: Path

    def __init__(self, directory: RunDirectory, *, host: Host | None = None) -> None:
        self.path = directory.path
        self._directory = directory
        self._host = host or Host.load()
        self._teacher = self._table("teacher.json")
        self._final = self._table("final.json")
        self._outcomes: dict[int, Mapping[str, Any]] = {}
        self._candidates: dict[int, Candidate] = {}
        for outcome in directory.outcomes():
            if "repeats" in outcome:
                continue
            try:
                candidate = candidate_from_json(outcome)
            except (KeyError, TypeError, ValueError, NasdistillError) as error:
                raise UsageError(
                    f"a trial's record in {self.path / 'trials'} is damaged: {one_line(error)}",
                    hint="Take the damaged outcome.json out of its folder to go on without that trial.",
                ) from None
            self._outcomes[candidate.number] = outcome
            self._candidates[candidate.number] = candidate

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, host: Host | None = None) -> Run:
        """Open a run directory.

        Raises:
            UsageError: no run there, of another format version, or damaged.
        """
        return cls(RunDirectory.open(Path(path)), host=host)

    def _table(self, name: str) -> dict[str, Any]:
        value = self._directory.read(name)
        return value if isinstance(value, dict) else {}

    # ---- what is known --------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``running``, ``finished``, ``interrupted``, ``failed``, or ``killed``."""
        return self._directory.state()

    @property
    def teacher(self) -> dict[str, Any]:
        """Name, hash, score, size and latency of the teacher."""
        return dict(self._teacher)

    @property
    def metric(self) -> dict[str, Any]:
        """``name``, ``higher_is_better`` and ``unit`` of the scores."""
        return dict(self._teacher.get("metric") or {})

    @property
    def samples(self) -> int | None:
        """How many training samples its task has; None where an earlier version did not record it."""
        found = self._table("task.json").get("samples")
        return found if isinstance(found, int) else None

    @property
    def result(self) -> dict[str, Any]:
        """The object that ``nasdistill show --json`` prints."""
        return build_result(self._directory)

    @property
    def plugins(self) -> tuple[Mapping[str, Any], ...]:
        """The plugins that the run was started with: `plugin`, `distribution`, `version`."""
        return tuple(self._table("environment.json").get("plugins") or ())

    @cached_property
    def config(self) -> RunConfig:
        """The complete configuration.

        Raises:
            UsageError: it is not there or damaged.
        """
        return parse_config(self._directory.read("config.json"), where=str(self.path / "config.json"))

    @cached_property
    def students(self) -> list[Student]:
        """Every trial that was trained, by number; also those that were dropped on the way."""
        return [self._student(c) for c in self._candidates.values() if c.architecture is not None and c.epochs > 0]

    @cached_property
    def front(self) -> list[Student]:
        """The students distilled in full that no other beats in both score and latency, fastest first."""
        by_number = {student.id: student for student in self.students}
        members = front_of(list(self._candidates.values()), self._primary, self._higher)
        return [by_number[student_id(c)] for c in members if student_id(c) in by_number]

    def best(
        self,
        *,
        max_latency_ms: float | None = None,
        max_params: int | None = None,
        max_macs: int | None = None,
        target: str | None = None,
    ) -> Student:
        """Return the student with the best validation score within the limits; the faster one of equals.

        Only students distilled in full count, and where there is none yet, those that were trained longest.

        Args:
            max_latency_ms: limit on the upper end of the interval.
            max_params: limit on parameters.
            max_macs: limit on multiply-accumulates.
            target: which target's latency; the first one of the run by default.

        Raises:
            UsageError: there is none; says what the nearest one needs.
        """
        pool = [s for s in self.students if s.state == "complete" and s.feasible and s.score is not None]
        if not pool:
            trained = [s for s in self.students if s.score is not None]
            longest = max((s.epochs or 0 for s in trained), default=0)
            pool = [s for s in trained if s.epochs == longest]
        if not pool:
            raise UsageError(f"no student of {self.path} has been trained yet")
        chosen = self._target(target, pool)
        upper = "upper end of a latency's interval (which is what the limit is compared with)"
        limits: list[tuple[str, str, float | None, Callable[[Student], float | None]]] = [
            (f"{max_latency_ms} ms on {chosen}", upper, max_latency_ms, lambda s: _upper(s, chosen)),
            (f"{max_params} parameters", "figure", max_params, lambda s: s.params),
            (f"{max_macs} multiply-accumulates", "figure", max_macs, lambda s: s.macs),
        ]
        for name, what, limit, figure in limits:
            if limit is None:
                continue
            known = [(value, s) for s in pool if (value := figure(s)) is not None]
            pool = [s for value, s in known if value <= limit]
            if not pool:
                value, least = min(known, key=lambda pair: pair[0], default=(None, None))
                hint = None if least is None else f"The smallest {what} is {value:,.4g}, of student {least.id}."
                raise UsageError(f"no student of {self.path} is within {name}", hint=hint)
        sign = 1 if self._higher else -1
        return max(pool, key=lambda s: (sign * (s.score or 0.0), -(_upper(s, chosen) or float("inf"))))

    def student(self, identifier: str | int) -> Student:
        """Return a student by its id, the start of it, or its trial's number.

        Raises:
            UsageError: there is none; says why, or what there is.
        """
        text = str(identifier)
        number = int(text) if text.isdecimal() else None
        for student in self.students:
            if student.id.startswith(text) if number is None and text else int(student.id.partition("-")[0]) == number:
                return student
        if number in self._candidates:
            candidate = self._candidates[number]
            why = f"{candidate.state}: {candidate.reason}" if candidate.reason else candidate.state
            raise UsageError(f"trial {number} of {self.path} was not trained ({why}), so it has no weights")
        raise UsageError(
            f"no student {text!r} in {self.path}. {did_you_mean(text, [s.id for s in self.students])}",
            hint=f"nasdistill show {self.path} --trials lists all trials.",
        )

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self.state}, front of {len(self.front)}, {len(self.students)} students>"

    # ---- details --------------------------------------------------------------------------------------------------

    @property
    def _primary(self) -> str | None:
        return self._teacher.get("primary_target")

    @property
    def _higher(self) -> bool:
        return bool(self.metric.get("higher_is_better", True))

    def _target(self, wanted: str | None, pool: Sequence[Student]) -> str | None:
        """Return the id of a target given by its id or bare name."""
        if wanted is None:
            return self._primary
        names = sorted({name for student in pool for name in student.targets})
        found = [name for name in names if wanted in (name, name.split(":", 1)[-1])]
        if len(found) != 1:
            raise UsageError(f"no student of {self.path} was timed on target {wanted!r}. {did_you_mean(wanted, names)}")
        return found[0]

    def _student(self, candidate: Candidate) -> Student:
        assert candidate.architecture is not None
        targets = sorted(candidate.targets, key=lambda name: (name != self._primary, name))
        return Student(
            id=student_id(candidate),
            architecture=candidate.architecture,
            source=lambda: self._source(candidate),
            host=self._host,
            score=candidate.score,
            test_score=(self._final.get("students") or {}).get(str(candidate.number)),
            epochs=candidate.epochs,
            params=None if candidate.cost is None else candidate.cost.params,
            macs=None if candidate.cost is None else candidate.cost.macs,
            targets={name: candidate.targets[name] for name in targets},
            state=candidate.state,
            feasible=candidate.feasible,
            higher_is_better=self._higher,
        )

    def _source(self, candidate: Candidate) -> Source:
        """Return where a student's network is: its own folder once the search has saved it, else its trial."""
        assert candidate.architecture is not None
        arch = candidate.architecture
        outcome = self._outcomes[candidate.number]
        stated = (outcome.get("architecture") or {}).get("fingerprint", arch.fingerprint)
        copy = self._directory.trial(candidate.number) / "architecture.json"
        if stated != arch.fingerprint or (copy.exists() and Architecture.load(copy).fingerprint != arch.fingerprint):
            raise UsageError(
                f"the architecture of trial {candidate.number} in {self.path} was changed after it was trained, so its "
                "weights belong to another network",
                hint="nasdistill.build(FILE) builds the changed architecture with fresh weights.",
            )
        plugins = self.plugins
        folder = self._directory.student(student_id(candidate))
        if (folder / "provenance.json").exists():
            record = read_record(folder)
            if record.architecture.fingerprint != arch.fingerprint:
                raise UsageError(f"{folder} holds another architecture than trial {candidate.number} of its run")
            digest = record.provenance.get("weights_sha256")
            return Source(
                record.io, record.space_options, record.provenance, folder / "model.safetensors", digest, plugins,
                folder / ASSETS,
            )  # fmt: skip
        return Source(
            self._io(),
            self._space_options(arch.space),
            self._provenance(candidate, outcome),
            self._directory.weights(candidate.number, candidate.epochs),
            self._digest(candidate, outcome),
            plugins,
            self.path / ASSETS,
        )

    def _io(self) -> Any:
        """Return input and output of the run's networks; runs of earlier versions say it in their students only."""
        task = self._table("task.json")
        if task.get("io") is not None:
            return read_io(task["io"], where=str(self.path / "task.json"))
        for path in sorted((self.path / "students").glob("*/architecture.json")):
            value = read_json(path)
            if isinstance(value, dict) and value.get("io") is not None:
                return read_io(value["io"], where=str(path))
        raise UsageError(
            f"{self.path} does not say what goes into its networks (no task.json)",
            hint="It was killed before that was written, or made by an earlier version.",
        )

    def _space_options(self, space: str) -> Mapping[str, Any] | None:
        """Return the options that the configuration gives a space."""
        for item in self.config.space:
            try:
                same = self._host.canonical(Kind.SEARCH_SPACE, item.name) == space
            except NasdistillError:  # its plugin is not here; whoever builds it says so
                same = item.name in (space, space.split(":", 1)[-1])
            if same:
                return item.options
        return None

    @staticmethod
    def _digest(candidate: Candidate, outcome: Mapping[str, Any]) -> str | None:
        """Return the recorded hash of the weights after the candidate's last epoch."""
        rungs = outcome.get("rungs") or {}
        found = [rung.get("weights_sha256") for rung in rungs.values() if rung.get("epochs") == candidate.epochs]
        return next(iter(found), None)

    def _teaching(self, arch: Architecture | None) -> dict[str, Any]:
        """Return how a student was taught: a space may search that. None where its space is not here to say it."""
        if arch is None:
            return {"objective": None, "training": None}
        try:
            space: SearchSpace = self._host.create(Kind.SEARCH_SPACE, arch.space, self._space_options(arch.space))
            objective, training = space.teaching(arch, self.config.objective, self.config.training)
        except NasdistillError:  # whoever builds the student says what is missing
            return {"objective": None, "training": None}
        return {"objective": objective.model_dump(mode="json"), "training": training.model_dump(mode="json")}

    def _provenance(self, candidate: Candidate, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record of a student that the search has not saved itself, in the form of ``provenance.json``."""
        config, teacher, task = self.config, self._teacher, self._table("task.json")
        environment = self._table("environment.json")
        plugins = [p for p in environment.get("plugins") or () if p.get("distribution") != "nasdistill"]
        version = (environment.get("packages") or {}).get("nasdistill")
        test = (self._final.get("students") or {}).get(str(candidate.number))
        shared = self._table(f"supernets/{candidate.start}/record.json") if candidate.start else {}
        start = {"supernet": candidate.start, **{key: shared.get(key) for key in ("weights_sha256", "steps")}}
        return {
            "trial": candidate.number,
            "architecture": candidate.architecture.fingerprint if candidate.architecture else None,
            "teacher": {"name": config.teacher.name, "fingerprint": teacher.get("fingerprint")},
            "task": task or {"name": config.task.name, "fingerprint": teacher.get("task_fingerprint")},
            "software": {"nasdistill": version, "plugins": plugins},
            **self._teaching(candidate.architecture),
            "seed": config.search.seed,
            "epochs": candidate.epochs,
            "start": start if candidate.start else None,
            "validation": {"score": candidate.score, "loss": candidate.loss},
            "test": {"score": test},
            "cost": {"params": candidate.cost.params, "macs": candidate.cost.macs} if candidate.cost else None,
            "primary_target": self._primary,
            "targets": dict(outcome.get("targets") or {}),
            "run_state": self.state,
        }


def _upper(student: Student, target: str | None) -> float | None:
    """Return the upper end of a student's latency interval."""
    report = student.targets.get(target or "")
    return None if report is None else report.latency.high_ms
