"""The search by proxies and cost alone: its loop against a plain one, and whole runs that are cut and resumed."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import deque
from types import SimpleNamespace

import optuna
import pytest
from toys_search import outcome, tiny, write_digits

from nasdistill.cli import main
from nasdistill.cli.config import to_toml
from nasdistill.cli.search import override
from nasdistill.errors import NasdistillError, UsageError
from nasdistill.host import Host
from nasdistill.host.configcheck import check_strategy, short_names
from nasdistill.interfaces import SearchSetting, SearchSpace
from nasdistill.report import write_report
from nasdistill.report.sections.proxies import proxies
from nasdistill.search.advice import Advice
from nasdistill.search.run import resume_search, run_search
from nasdistill.search.study import Proposals
from nasdistill.seeds import derive_seed
from nasdistill.spec.architecture import Axis
from nasdistill.spec.component import Kind
from nasdistill.spec.config import load_preset
from nasdistill.spec.io import Cost, IOSpec
from nasdistill.store import RunDirectory
from nasdistill.testing.kit.session import PlannedSession
from nasdistill_strategies.training_free import TrainingFree, z_scores

IO = IOSpec("image", (1, 8, 8), 10)
OPTIMUM = (2, 0, 1, 2, 1, 0, 2, 1)


class Digits8(SearchSpace):
    """Eight axes of three choices; nothing is ever built."""

    id = "local:digits8"

    def axes(self):
        return tuple(Axis(f"a{i}", (0, 1, 2), 0) for i in range(8))

    def cost(self, arch, io):
        return Cost(params=10 + sum(arch.params.values()), macs=100 * (1 + sum(arch.params.values())), activations=1)

    def build(self, arch, io):
        raise NotImplementedError

    def graph(self, arch, io):
        raise NotImplementedError


def planted(arch):
    """How many axes are as in the optimum."""
    return float(sum(arch.params[f"a{i}"] == value for i, value in enumerate(OPTIMUM)))


class Planted(PlannedSession):
    """A session whose only proxy is the planted one."""

    proxies = ("planted",)

    def __init__(self, **options):
        super().__init__(Digits8(None), IO, **options)
        self.drawn, self.told = [], {}

    def score(self, candidates):
        def work(candidate):
            candidate.proxies = {"planted": planted(candidate.architecture)}

        return self._rung(candidates, "proxies", work)

    def neighbours(self, candidates, n, **options):
        self.drawn.append([c.number for c in candidates])
        return super().neighbours(candidates, n, **options)


def evolve(seed=0, trials=60, *, session=None, **options):
    session = session or Planted(trials=trials, seed=seed)
    strategy = TrainingFree({"population": 10, "tournament": 4, "finalists": 2, "epochs": 1, **options}, host=None)
    strategy.run(session)
    return session


def best(session):
    return max(planted(c.architecture) for c in session.history())


# ---- the loop -------------------------------------------------------------------------------------------------------


def plain_evolution(seed, *, trials, population, tournament):
    """Aging evolution in a dozen lines: (parents, architectures), by the same draws."""
    session = Planted(trials=trials, seed=seed)
    alive, seen, parents = deque(), [], []

    def rng(purpose):
        return random.Random(derive_seed(seed, purpose, len(seen)))

    for architecture in session.spread(population):
        alive.append((len(seen), architecture))
        seen.append(architecture)
    while len(seen) < trials:
        group = rng("strategy-tournament").sample(list(alive), tournament)
        parent = max(group, key=lambda member: (planted(member[1]), -member[0]))
        draw, child = rng("neighbours"), None
        while child is None or child in seen:
            child = session.space.mutate(parent[1], draw, 1)
        parents.append(parent[0])
        alive.popleft()
        alive.append((len(seen), child))
        seen.append(child)
    return parents, seen


@pytest.mark.parametrize("seed", range(5))
def test_the_loop_is_aging_evolution(seed):
    parents, architectures = plain_evolution(seed, trials=60, population=10, tournament=4)
    session = evolve(seed)
    assert [c.architecture for c in session.history()] == architectures
    assert session.drawn == [[number] for number in parents]


@pytest.mark.paper("2303.15678", "strategies:training_free")
def test_evolution_finds_the_planted_optimum_more_often_than_random_draws():
    """6,561 points and 120 evaluations: a random search meets the optimum once in 55 seeds."""
    seeds = range(10)
    evolved = [best(evolve(seed, 120)) for seed in seeds]
    drawn = [best(evolve(seed, 120, population=120, tournament=1)) for seed in seeds]
    assert sum(value == 8 for value in evolved) >= 7
    assert sum(value == 8 for value in drawn) <= 1
    assert sum(evolved) >= sum(drawn) + 10


def test_the_oldest_leaves_and_not_the_worst():
    members = []

    class Look(TrainingFree):
        def _parents(self, session, population, *rest):
            members.append([c.number for c in population])
            return super()._parents(session, population, *rest)

    strategy = Look({"population": 6, "tournament": 3, "finalists": 1, "epochs": 1}, host=None)
    strategy.run(Planted(trials=20))
    assert members == [list(range(i, i + 6)) for i in range(14)], "the six youngest, whatever their scores"


@pytest.mark.paper("2303.15678", "strategies:training_free")
def test_parents_are_the_best_of_their_tournament():
    session = evolve(1, 40, population=10, tournament=10)
    for step, (parent,) in enumerate(session.drawn):
        population = session.history()[step : step + 10]
        assert planted(session.history()[parent].architecture) == max(planted(c.architecture) for c in population)


def test_children_of_one_step_come_from_one_population():
    session = evolve(2, 30, children=5)
    assert len(session.history()) == 30
    assert [len(parents) for parents in session.drawn] == [5] * 4


def test_mutations_bound_the_axes_that_change():
    session = evolve(3, 40, mutations=3)
    history = session.history()
    distances = [
        sum(a != b for a, b in zip(child.params.values(), parent.params.values(), strict=True))
        for child, parent in zip(
            (c.architecture for c in history[10:]),
            (history[number].architecture for (number,) in session.drawn),
            strict=True,
        )
    ]
    assert set(distances) == {3}


@pytest.mark.paper("2303.15678", "strategies:training_free")
def test_every_evaluation_counts_once_and_nothing_is_scored_twice():
    session = evolve(0, 50, session=(counted := Counted(trials=50)))
    assert counted.scored == [c.number for c in session.history()]
    assert len({c.architecture for c in session.history()}) == 50
    strategy = TrainingFree({"evaluations": 50}, host=None)
    assert strategy.trials(3) == 50
    assert TrainingFree(None, host=None).trials(48) == 384


class Counted(Planted):
    """Notes who is scored."""

    def __init__(self, **options):
        super().__init__(**options)
        self.scored = []

    def score(self, candidates):
        self.scored += [c.number for c in candidates]
        return super().score(candidates)


def test_the_front_aim_keeps_small_ones_in_the_race():
    costs = {
        aim: sum(c.cost.macs for c in evolve(0, 80, aim=aim).history()[40:]) / 40 for aim in ("score", "front")
    }  # fmt: skip
    assert costs["front"] < costs["score"]


# ---- scores ---------------------------------------------------------------------------------------------------------


def strategy_values(rows, **options):
    scored = [
        SimpleNamespace(number=i, proxies=row, cost=SimpleNamespace(macs=i, params=-i)) for i, row in enumerate(rows)
    ]
    values = TrainingFree(options or None, host=None)._values(scored, sorted(rows[0]))
    return [values[i] for i in range(len(rows))]


@pytest.mark.parametrize("combine", ["rank", "zscore"])
def test_a_failed_proxy_ranks_last(combine):
    rows = [{"a": 5.0}, {"a": None}, {"a": -70.0}]
    worth = [-value for value, _ in strategy_values(rows, combine=combine)]
    assert worth[0] > worth[2] > worth[1]


def test_z_scores_are_sums_of_standardised_values():
    rows = {0: {"a": 1.0, "b": 10.0}, 1: {"a": 3.0, "b": 10.0}, 2: {"a": 5.0, "b": 10.0}}
    deviation = math.sqrt(8 / 3)
    assert z_scores(rows) == pytest.approx({0: -2 / deviation, 1: 0.0, 2: 2 / deviation})
    rows[1]["b"] = None
    assert z_scores(rows)[1] == pytest.approx(-1.0), "below the others, who all have the same"
    assert z_scores({0: {"a": None}}) == {0: -1.0}


def test_ranks_know_no_scale():
    values = strategy_values([{"a": 1.0, "b": 3e9}, {"a": 2.0, "b": 2e9}, {"a": 3.0, "b": 1e9}])
    assert values == strategy_values([{"a": -9.0, "b": 0.3}, {"a": 0.0, "b": 0.2}, {"a": 0.1, "b": 0.1}])
    assert [cost for _, cost in values] == [0.0, 1.0, 2.0]


def test_a_single_proxy_decides_alone_and_must_be_configured():
    strategy = TrainingFree({"proxy": "planted"}, host=None)
    assert strategy.deciding(("macs", "planted")) == ("planted",)
    strategy.check(SearchSetting(proxies=("macs", "planted")))
    with pytest.raises(UsageError, match="planted"):
        strategy.check(SearchSetting(proxies=("macs",)))
    with pytest.raises(UsageError, match="needs a proxy"):
        TrainingFree(None, host=None).check(SearchSetting())


def test_a_tournament_larger_than_the_population_is_refused():
    with pytest.raises(Exception, match="tournament = 8 is larger than population = 4"):
        TrainingFree({"population": 4}, host=None)


# ---- finalists ------------------------------------------------------------------------------------------------------


@pytest.mark.paper("2303.15678", "strategies:training_free")
def test_only_finalists_are_measured_and_distilled():
    session = evolve(0, 40, finalists=3)
    ends = {state: [c for c in session.history() if c.state == state] for state in ("complete", "pruned")}
    assert len(ends["complete"]) == 3
    assert all(c.epochs == 1 and c.targets for c in ends["complete"])
    assert all(not c.epochs and not c.targets for c in ends["pruned"])
    assert {c.reason for c in ends["pruned"]} == {"not among the finalists"}
    rows = [(-planted(c.architecture), c.cost.macs) for c in session.history()]
    for c in ends["complete"]:
        mine = (-planted(c.architecture), c.cost.macs)
        assert not any(a <= mine[0] and b <= mine[1] and (a, b) != mine for a, b in rows), "nobody dominates a finalist"


def test_finalists_that_are_too_slow_are_replaced():
    def slow(session, arch):
        return 5.0 if planted(arch) > 4 else 1.0

    class Slow(Planted):
        _latency_ms = slow

    session = evolve(0, 60, session=Slow(trials=60), finalists=4)
    reasons = [c.reason for c in session.history() if c.state == "pruned" and c.targets]
    assert reasons
    assert set(reasons) == {"slower than 1 times the teacher (max_latency_ratio)"}
    done = [c for c in session.history() if c.state == "complete"]
    assert done
    assert all(planted(c.architecture) <= 4 for c in done)
    assert sum(bool(c.targets) for c in session.history()) <= 12


# ---- samplers -------------------------------------------------------------------------------------------------------


def asked(sampler, path, n=24, seed=0):
    """What a sampler proposes when the planted proxy leads it."""
    host = Host.load(third_party=False)
    proposals = Proposals(
        f"sqlite:///{path}", {"digits8": Digits8(None)}, host.create(Kind.SAMPLER, sampler, None),
        metric_names=["a", "b"], directions=["maximize", "minimize"], seed=seed, trials=n,
    )  # fmt: skip
    advice, found, values = Advice(proposals, 2), [], {}
    while len(found) < n:
        advice.tell(values)
        architecture = advice.ask()
        if architecture is not None:
            found.append(architecture)
            values[architecture] = (-planted(architecture), 1.0)
    proposals.close()
    return found


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "qmc", "random"])
def test_every_sampler_proposes_the_same_again(sampler, tmp_path):
    n = 24 if sampler != "gp" else 5
    first = asked(sampler, tmp_path / "one.db", n)
    assert asked(sampler, tmp_path / "two.db", n) == first
    assert len(set(first)) > n // 2


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_learn_from_the_values_they_are_given(sampler, tmp_path):
    found = [planted(architecture) for architecture in asked(sampler, tmp_path / "study.db", 60)]
    assert sum(found[-20:]) > sum(found[:15]) * 20 / 15 + 20, "one more axis right, on average"


def test_the_sampler_sees_the_values_of_the_moment(tmp_path):
    """A rank within a growing pool changes for old trials too."""
    proposals = Proposals(
        f"sqlite:///{tmp_path}/study.db", {"digits8": Digits8(None)}, Host.load(third_party=False).create(
            Kind.SAMPLER, "tpe", None), metric_names=["a", "b"], directions=["maximize", "minimize"], seed=0, trials=9,
    )  # fmt: skip
    advice = Advice(proposals, 2)
    advice.tell({})
    first, second = advice.ask(), advice.ask()
    study = advice._study
    for values in ({first: (1.0, 5.0), second: (2.0, 6.0)}, {first: (2.0, 5.0), second: (1.0, 6.0)}):
        advice.tell(values)
        for deep in (True, False):
            assert [tuple(t.values) for t in study.get_trials(deepcopy=deep)] == [values[first], values[second]]
    seen = study.get_trials()
    seen[0].values = [9.0, 9.0]
    assert study.get_trials()[0].values == [2.0, 5.0], "copies are copies"
    advice.tell({first: (1.0, 5.0), second: (2.0, 6.0)})
    assert [t.values for t in study.get_trials()] == [[1.0, 5.0], [2.0, 6.0]]
    proposals.close()


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


LIMIT = 15_000


def config(digits, **changes):
    """A dozen evaluations of small ResNets that must keep a limit, three finalists."""
    options = {"evaluations": 12, "population": 5, "tournament": 3, "finalists": 3, "epochs": 1, "children": 2}
    space = [{"name": "resnet_s0", "options": {"blocks": [1, 2], "width": [4, 8, 16], "stages": [2, 3]}}]
    values = {"space": space, "search__strategy": "training_free", "constraints": {"max_params": LIMIT}, **changes}
    extra = {"max_latency_ratio": 100.0, **values.pop("options", {})}
    return tiny(digits, search__strategy_options={**options, **extra}, training__checkpoint_seconds=0.0, **values)


def host():
    return Host.load(third_party=False)


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """An unbroken run with its events."""
    run, events = tmp_path_factory.mktemp("whole") / "run", []
    patch = pytest.MonkeyPatch()
    patch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    result = run_search(config(digits), run, host=host(), listener=events.append)
    patch.undo()
    return RunDirectory.open(run), result, events, outcome(result, run)


def test_a_run_is_one_study_with_every_evaluation(whole):
    run, result, _, _ = whole
    assert result["trials"] == {"complete": 3, "pruned": 9, "failed": 0, "running": 0, "repeated": 0}
    outcomes = list(run.outcomes())
    assert all(set(o["proxies"]) == {"params", "nwot"} for o in outcomes)
    study = optuna.load_study(study_name="search", storage=run.study_url)
    states = [trial.state.name.lower() for trial in study.trials]
    assert states == [o["state"] for o in outcomes]
    for trial, o in zip(study.trials, outcomes, strict=True):
        assert trial.params == {f"resnet_s0.{name}": value for name, value in o["architecture"]["params"].items()}
        assert trial.user_attrs["params"] == o["cost"]["params"]
        assert trial.user_attrs["reason"] == o["reason"]
    assert {o["reason"] for o in outcomes if o["state"] == "pruned"} == {"not among the finalists"}
    light = [path for o in outcomes if o["state"] == "pruned" for path in run.trial(o["number"]).iterdir()]
    assert {path.name for path in light} == {"architecture.json", "outcome.json"}
    assert sum(path.stat().st_size for path in light) / 9 < 8_000


@pytest.mark.paper("2303.15678", "strategies:training_free")
def test_every_child_keeps_the_limit(digits, whole):
    run, _, _, _ = whole
    params = [o["cost"]["params"] for o in run.outcomes()]
    assert max(params) <= LIMIT
    space = host().create(Kind.SEARCH_SPACE, "resnet_s0", config(digits).space[0].options)
    sizes = [space.cost(arch, IO).params for arch in itertools.islice(space.enumerate(), 4000)]
    assert sum(size > LIMIT for size in sizes) > 0.2 * len(sizes), "the limit cuts something off"


def test_progress_is_one_series_and_the_plan_names_both_numbers(whole):
    _, _, events, _ = whole
    plan = next(event.text for event in events if event.kind == "plan")
    assert "proxies: about 12 candidates (evaluations proposed by aging evolution)" in " ".join(plan.split()).replace(
        ", 0 s", ""
    )
    assert "about 3 candidates, 1 epoch each (the finalists)" in plan
    assert [e.total for e in events if e.kind == "rung" and e.rung == "proxies"] == [12]
    steps = [(e.done, e.total) for e in events if e.kind == "step" and e.rung == "proxies"]
    assert steps == [(i, 12) for i in range(1, 13)]
    assert not [e for e in events if e.rung == "static"]


def test_the_report_says_that_few_were_distilled(whole):
    run, _, _, _ = whole
    report = write_report(run, host())
    assert not [s["problem"] for s in report.sections if s["problem"]]
    assert re.search(r"Only 3 (of 12 scored candidates|students) were distilled", report.path.read_text())
    quality = {"n": 5, "rung": "full", "spearman": 0.5, "spearman_interval": [-0.4, 0.9], "kendall": 0.4,
               "kendall_interval": [-0.4, 0.8], "top3_regret": 0.0}  # fmt: skip
    data = {"proxies": {"params": quality, "nwot": quality}, "outcomes": [{"proxies": {"nwot": 1.0}}] * 40}
    assert "Only 5 of 40 scored candidates were distilled: too few for a verdict" in proxies(data).html
    assert "Only" not in proxies({**data, "outcomes": data["outcomes"][:10]}).html


class Cut(BaseException):
    """The process ended here."""


@pytest.mark.parametrize(("rung", "moment"), [("proxies", 8), ("full", 2)])
def test_a_run_that_was_cut_and_resumed_is_the_run_that_was_not(digits, tmp_path, whole, rung, moment):
    seen = []

    def note(event):
        if event.rung == rung and event.kind == "step":
            seen.append(event)
            if len(seen) == moment:
                raise Cut

    with pytest.raises(Cut):
        run_search(config(digits), tmp_path / "run", host=host(), listener=note)
    steps = []
    result = resume_search(tmp_path / "run", host=host(), listener=lambda e: steps.append(e))
    assert outcome(result, tmp_path / "run") == whole[3]
    first = next(e for e in steps if e.kind == "step")
    if rung == "proxies":
        assert first.done == moment + 1, "progress goes on where it stood"
    study = optuna.load_study(study_name="search", storage=RunDirectory.open(tmp_path / "run").study_url)
    assert [t.user_attrs["architecture"] for t in study.trials] == [
        t.user_attrs["architecture"] for t in optuna.load_study(study_name="search", storage=whole[0].study_url).trials
    ]


def test_a_sampler_leads_a_run_that_can_be_resumed(digits, tmp_path):
    setting = config(digits, options={"search": "sampler", "evaluations": 10, "finalists": 1, "epochs": 1})
    seen = []

    def note(event):
        seen.append(event)
        if event.kind == "step" and event.rung == "proxies" and event.done == 6:
            raise Cut

    expected = outcome(run_search(setting, tmp_path / "whole", host=host()), tmp_path / "whole")
    with pytest.raises(Cut):
        run_search(setting, tmp_path / "run", host=host(), listener=note)
    assert "proposed by the sampler" in next(event.text for event in seen if event.kind == "plan")
    assert outcome(resume_search(tmp_path / "run", host=host()), tmp_path / "run") == expected
    assert expected["counts"]["complete"] == 1
    assert sum(expected["counts"].values()) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": ()}, "needs a proxy"),
        ({"options": {"proxy": "nwott"}}, "proxy 'nwott', which is to decide, is not configured. Did you mean 'nwot'"),
    ],
)
def test_a_search_without_its_proxy_is_refused_before_anything_is_made(
    digits, tmp_path, monkeypatch, capsys, changes, message
):
    setting = config(digits, **changes)
    monkeypatch.setattr("nasdistill.search.run.open_parts", lambda *_, **__: pytest.fail("the teacher was opened"))
    with pytest.raises(UsageError, match=re.escape(message)):
        run_search(setting, tmp_path / "run", host=host())
    assert not list(tmp_path.iterdir())
    (tmp_path / "search.toml").write_text(to_toml(setting.to_json()))
    assert main(["config", "validate", str(tmp_path / "search.toml")]) == 2
    assert f"search.toml: {message}" in capsys.readouterr().err.replace("the strategy training_free ", "")


def test_a_strategy_that_fails_at_the_configuration_is_named():
    class Broken(TrainingFree):
        def check(self, setting):
            raise ZeroDivisionError("by nought")

    strategy = Broken(None, host=None)
    strategy.id = "acme:broken"
    with pytest.raises(NasdistillError, match="strategy acme:broken failed when it looked at the configuration: Zero"):
        check_strategy(strategy, SearchSetting())


def test_names_are_short_while_they_are_different():
    assert short_names(["proxies:nwot", "acme:nwot", "acme:own"]) == ["nwot", "acme_nwot", "own"]


def test_deferred_trials_keep_their_numbers(tmp_path):
    space = Digits8(None)
    proposals = Proposals(
        f"sqlite:///{tmp_path}/study.db", {"digits8": space}, host().create(Kind.SAMPLER, "random", None),
        metric_names=["a", "b"], directions=["maximize", "minimize"], seed=0, trials=9,
    )  # fmt: skip
    draw = random.Random(0)
    archs = [space.sample(draw) for _ in range(5)]
    for number, arch in enumerate(archs):
        assert proposals.defer(number, arch) == (number, arch)
    proposals.annotate(1, {"reason": "late"})
    proposals.constrain(1, {"params": 0.5})
    proposals.tell(1, optuna.trial.TrialState.PRUNED)
    assert proposals.frozen() == [], "trial 0 is undecided"
    proposals.open([0])
    assert [t.state.name for t in proposals.frozen()] == ["RUNNING", "PRUNED"]
    assert proposals.frozen()[1].user_attrs == {"reason": "late"}
    assert proposals.frozen()[1].constraints == {"params": 0.5}
    number, arch = proposals.ask(5)
    assert number == 5
    assert [space.architecture({k.split(".")[1]: v for k, v in t.params.items()}) for t in proposals.frozen()] == [
        *archs, arch,
    ]  # fmt: skip
    proposals.tell(0, optuna.trial.TrialState.COMPLETE, (0.5, 1.0))
    assert [t.state.name for t in proposals.frozen()] == ["COMPLETE", "PRUNED", *["RUNNING"] * 4]
    proposals.close()


def test_another_strategy_by_set_starts_from_its_own_options(capsys, tmp_path):
    base = load_preset("digits")
    arguments = SimpleNamespace(
        set=["search.strategy=training_free", "search.strategy_options.finalists=4"], strategy=None, sampler=None,
        teacher=None, task=None, trials=None, timeout=None, seed=None, data=None, max_latency_ms=None, max_params=None,
        max_macs=None, workers=None, no_teacher_cache=False, space=None, target=None, proxy=None,
    )  # fmt: skip
    values = override(base.to_json(), arguments, base)
    assert values["search"]["strategy_options"] == {"finalists": 4}
    assert values["search"]["sampler"] == "tpe"
    code = main(["search", "--set", "search.strategy=training_free", "--set", "search.strategy_options.finalist=4",
                 "--out", str(tmp_path / "run")])  # fmt: skip
    assert code == 2
    assert "finalists" in capsys.readouterr().err
