"""What a check found, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped", "xfailed", "xpassed"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome of one check of one component.

    Attributes:
        component: canonical id; the plugin's name for the checks of a plugin.
        kind: the component's kind; ``"plugin"`` for the checks of a plugin.
        check: the check's name.
        example: which of the component's examples, as text; empty for the only one.
        status: ``"xfailed"`` failed as expected; ``"xpassed"`` was expected to fail and did not, which counts as a
            failure, because the reason given is no longer true.
        message: what was seen, why it was skipped, or the reason for expecting the failure; empty when passed.
        rule: the rule, one sentence.
        hint: the likely fix, one sentence.
        seconds: duration.
    """

    component: str
    kind: str
    check: str
    example: str
    status: Status
    message: str
    rule: str
    hint: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return self.status not in ("failed", "xpassed")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{title(self.kind, self.component, self.example, self.check)} {self.status}"
        if self.status == "passed":
            return head
        if self.status != "failed":
            return f"{head}: {self.message}"
        return f"{head}: {self.message}\n  rule: {self.rule}\n  likely fix: {self.hint}"


def title(kind: str, component: str, example: str, check: str) -> str:
    """Return how people call a check of a component: ``search space acme:x (small): builds``."""
    return f"{kind.replace('_', ' ')} {component}{f' ({example})' if example else ''}: {check}"


def failures(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Return the results that have to be looked at."""
    return [result for result in results if not result.ok]
