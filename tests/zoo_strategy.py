"""Strategies that are sound but for one thing."""

from __future__ import annotations

import torch
from zoo_base import Broken

from nasdistill.interfaces import Strategy
from nasdistill.spec.component import StrategySpec


class Sound(Strategy):
    """Proposes in threes, distils the cheaper two, gives up the other."""

    def run(self, session):
        while session.remaining > 0:
            asked = session.ask(min(3, session.remaining))
            if not asked:
                break
            alive = session.measure(session.check(asked))
            keep = session.rank(alive, [(c.cost.macs,) for c in alive])[:2]
            session.prune([c for c in alive if c not in keep], self.reason)
            session.complete(self.distil(session, keep))

    reason = "one of three has to go"

    def distil(self, session, keep):
        return session.distill(keep, 2, "full")

    def plan(self, trials):
        return [{"rung": "full", "candidates": trials, "epochs": 2}]


class Forgetful(Sound):
    """Leaves what it does not want running."""

    def run(self, session):
        for candidate in session.ask(session.remaining):
            if candidate.number % 3 == 0:
                session.complete(session.distill([candidate], 2, "full"))


class Fearful(Sound):
    """Gives everything up."""

    def distil(self, session, keep):
        session.prune(keep, "too risky")
        return []


class Curt(Sound):
    """Gives no reason."""

    reason = ""


class Moody(Sound):
    """Decides by the global generator."""

    def distil(self, session, keep):
        return session.distill(keep, 1 + int(torch.randint(0, 1000, ()).item()), "full")


class Wavering(Sound):
    """Tosses a coin whether to go on."""

    def run(self, session):
        while session.remaining > 0 and (asked := session.ask(1)):
            session.complete(self.distil(session, asked))
            if torch.rand(()) < 0.2:
                break


class Trusting(Sound):
    """Believes that every training succeeds."""

    def distil(self, session, keep):
        alive = session.distill(keep, 2, "full")
        assert not alive or len(alive) == len(keep), "somebody died"
        return alive


class Counting(Sound):
    """Waits for the first success for ever."""

    def run(self, session):
        super().run(session)
        best = session.front()[0]
        assert best.score is not None


class Greedy(Sound):
    """Asks until it has had all trials of its budget."""

    def run(self, session):
        trials, seen = session.trials, 0
        while seen < trials:
            found = session.ask(3)
            seen = len(session.history()) if session.time_left() is None else trials
            session.complete(session.distill(found, 2, "full"))


class Overrunning(Sound):
    """Drops its tools when the time is up."""

    def run(self, session):
        waiting = []
        while session.remaining > 0:
            found = session.ask(1)
            if not found:
                break
            waiting += found
        if session.time_left() == 0.0:
            return
        session.complete(session.distill(waiting, 2, "full"))


class Halving(Sound):
    """Rounds down."""

    def run(self, session):
        asked = session.ask(session.remaining)
        keep = asked[: len(asked) // 2]
        session.prune(asked[len(asked) // 2 :], "the slower half")
        session.complete(session.distill(keep, 2, "full"))


class Boasting(Sound):
    """Plans more than the budget."""

    def plan(self, trials):
        return [{"rung": "full", "candidates": 10 * trials}]


class Choosy(Sound):
    """Cannot do without proxies, and does not say so."""

    def check(self, setting):
        assert setting.proxies


class NotJson(Sound):
    """Plans in tensors."""

    def plan(self, trials):
        return [{"rung": "full", "candidates": trials, "epochs": torch.ones(1)}]


def spec(name, cls):
    return StrategySpec(name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",))


SOUND = [spec("sound", Sound)]
BROKEN = [
    Broken("tells_every_trial", spec("forgetful", Forgetful), "still running at the end"),
    Broken("completes_students", spec("fearful", Fearful), "none of 12 trials"),
    Broken("gives_reasons", spec("curt", Curt), "without a reason"),
    Broken("decides_by_the_session_alone", spec("moody", Moody), "with other global seeds"),
    Broken("decides_by_the_session_alone", spec("wavering", Wavering), "and None"),
    Broken("survives_failing_trials", spec("trusting", Trusting), "somebody died"),
    Broken("survives_total_failure", spec("counting", Counting), "IndexError"),
    Broken("ends_when_the_space_is_exhausted", spec("greedy", Greedy), "does not end"),
    Broken("ends_when_time_is_up", spec("overrunning", Overrunning), "after the time was up"),
    Broken("works_with_one_trial", spec("halving", Halving), "the outcome is 1 pruned"),
    Broken("refuses_in_words", spec("choosy", Choosy), "a search without proxies raises AssertionError"),
    Broken("plan_is_well_formed", spec("boasting", Boasting), "expects 10 candidates"),
    Broken("plan_is_well_formed", spec("not_json", NotJson), "not JSON"),
]
