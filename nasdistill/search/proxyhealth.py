"""Proxies that fail: told when it first happens, summed up at the end; a search that only they lead ends early."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nasdistill.errors import NasdistillError
from nasdistill.search.events import Event, Listener, many

_ENOUGH = 20
"""Candidates without a single score after which the proxies that decide will not give one to any other."""


class ProxyWatch:
    """Watches how the configured proxies do while a search is on.

    Args:
        ids: name -> canonical id of every configured proxy.
        deciding: the names of those whose scores the strategy decides by.
        listener: told of every proxy's first failure.
    """

    def __init__(self, ids: Mapping[str, str], deciding: Sequence[str], listener: Listener) -> None:
        self.ids = dict(ids)
        self.deciding = tuple(deciding)
        self.listener = listener
        self._told: set[str] = set()
        self._problems: dict[str, list[str]] = {name: [] for name in ids}
        self._scored = 0

    def note(self, number: int, values: Mapping[str, float | None], problems: Mapping[str, str]) -> None:
        """Take in the scores of one candidate.

        Args:
            number: its trial.
            values: proxy -> score, None for a failure.
            problems: proxy -> what went wrong.

        Raises:
            NasdistillError: all proxies that decide have failed on everything so far, which is enough to tell.
        """
        self._scored += 1
        for name, value in values.items():
            if value is not None:
                continue
            problem = problems.get(name) or "no score"
            self._problems.setdefault(name, []).append(problem)
            if name not in self._told:
                self._told.add(name)
                shown = self.ids.get(name, name)
                self.listener(Event("message", f"warning: proxy {shown} failed on trial {number}: {problem}"))
        if self._scored >= _ENOUGH:
            self._refuse_hopeless(many(self._scored, "candidate"))

    def refuse(self, outcomes: Sequence[Mapping[str, str | None]]) -> None:
        """Refuse proxies that decide and fail on everything.

        Args:
            outcomes: per candidate, proxy -> what went wrong, None where it has a score.

        Raises:
            NasdistillError: naming each with its cause.
        """
        if self.hopeless(outcomes):
            self._problems = {name: [outcome[name] or "" for outcome in outcomes] for name in self.deciding}
            self._scored = len(outcomes)
            self._refuse_hopeless(f"{many(len(outcomes), 'candidate')} of the pilot")

    def hopeless(self, outcomes: Sequence[Mapping[str, str | None]]) -> bool:
        """Return whether all proxies that decide failed on all of these candidates."""
        failed = all(outcome.get(name) is not None for outcome in outcomes for name in self.deciding)
        return bool(self.deciding) and bool(outcomes) and failed

    def _refuse_hopeless(self, candidates: str) -> None:
        if not self.deciding or any(len(self._problems.get(name, ())) < self._scored for name in self.deciding):
            return
        causes = {self.ids.get(name, name): _commonest(self._problems[name]) for name in self.deciding}
        said = "; ".join(f"proxy {name} failed on all {candidates}: {cause}" for name, cause in causes.items())
        first = next(iter(causes))
        raise NasdistillError(
            f"nothing can decide this search: {said}",
            hint=f"Choose another one with --proxy NAME; nasdistill score --sample 3 --proxy {first} tries it alone.",
        )


def _commonest(problems: Sequence[str]) -> str:
    return Counter(problems).most_common(1)[0][0]


def proxy_failures(
    outcomes: Iterable[Mapping[str, Any]], configured: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the proxies that failed on some candidates of a run, the worst first.

    Args:
        outcomes: the trials' records.
        configured: the configuration's entries `proxy`, whose names are shown.

    Returns:
        For each ``proxy`` (as the configuration names it), ``failed``, ``of`` (how many candidates it scored or failed
        on) and ``problem``, the commonest.
    """
    names: dict[str, str] = {}
    for entry in configured:
        name = str(entry.get("name"))
        names |= {name.replace(":", "_"): name} | ({} if name.split(":")[-1] in names else {name.split(":")[-1]: name})
    asked: Counter[str] = Counter()
    problems: dict[str, list[str]] = {}
    for outcome in outcomes:
        said = outcome.get("proxy_problems") or {}
        for name, value in (outcome.get("proxies") or {}).items():
            asked[name] += 1
            if value is None:
                problems.setdefault(name, []).append(str(said.get(name) or "no score"))
    found = [
        {"proxy": names.get(name, name), "failed": len(texts), "of": asked[name], "problem": _commonest(texts)}
        for name, texts in problems.items()
    ]
    return sorted(found, key=lambda entry: (-entry["failed"] / entry["of"], entry["proxy"]))


def failure_line(entry: Mapping[str, Any]) -> str:
    """Return an entry of :func:`proxy_failures` in words."""
    return f"proxy {entry['proxy']} failed on {entry['failed']} of {many(entry['of'], 'candidate')}: {entry['problem']}"
