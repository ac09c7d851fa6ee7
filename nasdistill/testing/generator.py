"""The generator: which checks a component has to pass, bound to the component."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nasdistill.errors import NasdistillError, UsageError, did_you_mean, one_line
from nasdistill.host import ComponentRecord, Host
from nasdistill.interfaces.base import Example
from nasdistill.seeds import torch_threads
from nasdistill.spec.component import Kind
from nasdistill.testing.registry import Check, CheckFailed, CheckSkipped, ComponentSkipped, checks_of, skip_test
from nasdistill.testing.results import CheckResult, Status
from nasdistill.testing.subject import Subject


@dataclass(slots=True)
class _Gate:
    """What the gates of one subject said, asked once."""

    checks: Sequence[Check]
    results: dict[str, tuple[Status, str]] = field(default_factory=dict)
    absent: str = ""

    def result(self, gate: Check, subject: Subject) -> tuple[Status, str]:
        """Return what a gate says."""
        if gate.name not in self.results:
            try:
                self.results[gate.name] = _attempt(gate, subject)
            except ComponentSkipped as reason:
                self.absent = str(reason)
                self.results[gate.name] = "skipped", self.absent
        return self.results[gate.name]

    def closed(self, subject: Subject, before: Check) -> str:
        """Return why the first gate before `before` that is closed leaves nothing to say; empty when all are open."""
        for gate in self.checks:
            if gate.name == before.name:
                break
            if self.result(gate, subject)[0] == "failed":
                return f"{gate.name} fails, which says it all"
            if self.absent:
                return self.absent
        return ""


@dataclass(frozen=True, slots=True)
class BoundCheck:
    """A check with the component it looks at. Calling it raises what a test runner understands.

    Attributes:
        check: the rule.
        subject: the component.
        expected: why it is known to fail; empty otherwise.
    """

    check: Check
    subject: Subject
    expected: str
    gate: _Gate = field(repr=False)

    @property
    def id(self) -> str:
        """Name for a test runner: ``component-check`` with the example between them where there are several."""
        return "-".join(part for part in (self.subject.id, self.subject.example.name, self.check.name) if part)

    def run(self) -> CheckResult:
        """Run the check and return what came out; nothing but an interrupt is raised."""
        start = time.perf_counter()
        with torch_threads(1):  # the networks are tiny, and results do not depend on the machine then
            status, message = self._outcome()
        return CheckResult(
            component=self.subject.id, kind=self.subject.kind.value, check=self.check.name,
            example=self.subject.example.name, status=status, message=message, rule=self.check.rule,
            hint=self.check.hint, seconds=time.perf_counter() - start,
        )  # fmt: skip

    def _outcome(self) -> tuple[Status, str]:
        """Run the check behind its gates and hold the outcome against what was expected."""
        status: Status
        closed = self.gate.closed(self.subject, self.check)
        if closed:
            status, message = "skipped", closed
        elif self.check.gate:
            status, message = self.gate.result(self.check, self.subject)
        else:
            status, message = _attempt(self.check, self.subject)
        if self.expected and status == "failed":
            status, message = "xfailed", self.expected
        elif self.expected and status == "passed":
            status, message = "xpassed", f"it was expected to fail ({self.expected}), and passes: drop the expectation"
        return status, message

    def __call__(self) -> None:
        """Run the check as a test.

        Raises:
            AssertionError: it failed, or was expected to fail and did not.
            unittest.SkipTest (pytest's own skip under pytest): it does not apply, or it failed as expected.
        """
        result = self.run()
        if not result.ok:
            raise AssertionError(str(result))
        if result.status in ("skipped", "xfailed"):
            skip_test(result.message)


def _attempt(check: Check, subject: Subject) -> tuple[Status, str]:
    """Run one check; what a component raises is its failure. Raises ComponentSkipped, which a gate may say."""
    try:
        check.run(subject)
    except ComponentSkipped:
        raise
    except CheckSkipped as reason:
        return "skipped", str(reason)
    except CheckFailed as failure:
        return "failed", f"{subject.name}: {failure}"
    except Exception as error:
        return "failed", f"{subject.name}: {_told(error)}"
    return "passed", ""


def _told(error: Exception) -> str:
    """Return an unforeseen exception as one line, with the place where it was raised."""
    text = str(error) if isinstance(error, NasdistillError) else one_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" (raised at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"it raised {text}{where}"


def generate_checks(
    host: Host,
    record: ComponentRecord,
    *,
    thorough: bool = False,
    expected_failures: Mapping[str, str] | None = None,
    examples: Sequence[Example] | None = None,
    seed: int = 0,
) -> Iterator[BoundCheck]:
    """Yield every check that a component has to pass.

    Args:
        host: where the component lives.
        record: the component.
        thorough: the slow ones too.
        expected_failures: check -> why it fails; added to what the component's class says.
        examples: uses to try instead of those of the class.
        seed: of everything random.

    Raises:
        UsageError: an expected failure names no check of this kind.
    """
    checks = checks_of(record.kind)
    known = {item.name for item in checks}
    try:
        found = None if record.kind is Kind.COMMAND else host.load(record.kind, record.id)
    except NasdistillError:
        found = None  # a check says so
    uses = tuple(getattr(found, "examples", None) or (Example(),)) if examples is None else tuple(examples)
    expected = {**getattr(found, "expected_failures", {}), **(expected_failures or {})}
    for name in expected:
        if name not in known:
            raise UsageError(
                f"expected_failures of {record.id} names {name!r}, which is no check of a {record.kind.value}. "
                f"{did_you_mean(name, sorted(known))}"
            )
    for number, use in enumerate(uses):
        if len(uses) > 1 and not use.name:
            use = Example(use.options, use.context, f"example {number}")
        subject = Subject(host, record, use, seed=seed, thorough=thorough)
        applying = [item for item in checks if item.applies is None or item.applies(subject)]
        gate = _Gate([item for item in applying if item.gate])
        for item in applying:
            if (item.thorough and not thorough) or (number and not item.per_example):
                continue
            yield BoundCheck(item, subject, expected.get(item.name, ""), gate)
