"""The generator: which checks a component has to pass, bound to the component."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nasdistill.errors import ISOLATED, UsageError, did_you_mean
from nasdistill.host import ComponentRecord, Host
from nasdistill.interfaces.base import Example
from nasdistill.seeds import torch_threads
from nasdistill.spec.component import Kind
from nasdistill.testing.attempt import attempt
from nasdistill.testing.declared import context_fault, declared
from nasdistill.testing.registry import Applies, Check, ComponentSkipped, Run, checks_of, skip_test
from nasdistill.testing.results import CheckResult, Status, title
from nasdistill.testing.subject import Subject


@dataclass(slots=True)
class _Gate:
    """What the gates of one subject said, asked once."""

    checks: Sequence[Check]
    results: dict[str, tuple[Status, str]] = field(default_factory=dict)
    absent: str = ""

    def result(self, gate: Check, subject: Subject, seconds: float) -> tuple[Status, str]:
        """Return what a gate says."""

        def run(subject: Subject) -> None:
            try:
                gate.run(subject)
            except ComponentSkipped as reason:
                self.absent = str(reason)
                raise

        if gate.name not in self.results:
            self.results[gate.name] = _attempt(run, subject, seconds)
        return self.results[gate.name]

    def closed(self, subject: Subject, before: Check, seconds: float) -> str:
        """Return why the first gate before `before` that is closed leaves nothing to say; empty when all are open."""
        for gate in self.checks:
            if gate.name == before.name:
                break
            if self.result(gate, subject, seconds)[0] == "failed":
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

    @property
    def about(self) -> tuple[str, str]:
        """The kind and the id of the component."""
        return self.subject.kind.value, self.subject.id

    @property
    def title(self) -> str:
        """What people call it: ``proxy acme:x: works``."""
        return title(*self.about, self.subject.example.name, self.check.name)

    def run(self, *, timeout: float = 0.0) -> CheckResult:
        """Run the check and return what came out; nothing but an interrupt is raised.

        Args:
            timeout: seconds after which it has failed; 0: never.
        """
        start = time.perf_counter()
        with torch_threads(1):  # the networks are tiny, and results do not depend on the machine then
            status, message = self._outcome(timeout)
        return CheckResult(
            component=self.subject.id, kind=self.subject.kind.value, check=self.check.name,
            example=self.subject.example.name, status=status, message=message, rule=self.check.rule,
            hint=self.check.hint, seconds=time.perf_counter() - start,
        )  # fmt: skip

    def _outcome(self, seconds: float) -> tuple[Status, str]:
        """Run the check behind its gates and hold the outcome against what was expected."""
        status: Status
        closed = self.gate.closed(self.subject, self.check, seconds)
        if closed:
            status, message = "skipped", closed
        elif self.check.gate:
            status, message = self.gate.result(self.check, self.subject, seconds)
        else:
            status, message = _attempt(self.check.run, self.subject, seconds)
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


def _attempt(run: Run, subject: Subject, seconds: float) -> tuple[Status, str]:
    """Run one check; what a component raises is its failure."""
    return attempt(lambda: run(subject), subject.name, seconds=seconds)


OPENING = "can_be_imported"
"""The first check of all, which asks for nothing but the class."""


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
        UsageError: an expected failure names no check of this kind, or one that the others depend on; an example names
            something that no check asks for.
    """
    checks = {item.name: item for item in checks_of(record.kind)}
    given = tuple(examples or ())
    for fault in filter(None, (context_fault(example, record.kind) for example in given)):
        raise UsageError(f"an example for {record.id} {fault}")
    first = _Gate([checks[OPENING]])
    # It is handed out before the class is imported here, so that whoever runs it at once can say what hangs or fails.
    yield BoundCheck(checks[OPENING], Subject(host, record, given[0] if given else Example(), seed=seed), "", first)
    imported = first.results.get(OPENING, ("passed", ""))[0] != "failed"

    uses, expected = _declared(host, record) if imported else ((Example(),), {})
    uses, expected = given or uses, {**expected, **(expected_failures or {})}
    _refuse(expected, checks, record)
    for number, use in enumerate(uses):
        if len(uses) > 1 and not use.name:
            use = Example(use.options, use.context, f"example {number}")
        subject = Subject(host, record, use, seed=seed, thorough=thorough)
        applying = [
            item for item in checks.values() if item.applies is None or (imported and _applies(item.applies, subject))
        ]
        gate = _Gate([item for item in applying if item.gate], dict(first.results), first.absent)
        for item in applying:
            if item.name == OPENING or (item.thorough and not thorough) or (number and not item.per_example):
                continue
            yield BoundCheck(item, subject, expected.get(item.name, ""), gate)


def _declared(host: Host, record: ComponentRecord) -> tuple[tuple[Example, ...], dict[str, str]]:
    """Return examples and expected failures of a component's class; a check says what keeps them from being read."""
    if record.kind is not Kind.COMMAND:
        with contextlib.suppress(*ISOLATED):
            return declared(host.load(record.kind, record.id), record.kind)
    return (Example(),), {}


def _applies(applies: Applies, subject: Subject) -> bool:
    """Whether a check is one for this component; it is, where finding out fails, and then says why."""
    try:
        return applies(subject)
    except ISOLATED:
        return True


def _refuse(expected: Mapping[str, str], checks: Mapping[str, Check], record: ComponentRecord) -> None:
    """Refuse expectations that name nothing, or would hide everything.

    Raises:
        UsageError: saying which.
    """
    for name in expected:
        if name not in checks:
            raise UsageError(
                f"expected_failures of {record.id} names {name!r}, which is no check of a {record.kind.value}. "
                f"{did_you_mean(name, sorted(checks))}"
            )
        if checks[name].gate:
            raise UsageError(
                f"expected_failures of {record.id} names {name!r}; where that fails the other checks are skipped, so "
                "nothing would be checked and all would look well",
                hint="Mend the component, or leave it out of the plugin until it works.",
            )
