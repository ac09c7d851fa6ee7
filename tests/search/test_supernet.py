"""The supernet strategy: whole searches, where students start from, and runs that are cut and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from toys_search import outcome, tiny, write_digits

from nasdistill.cli.timeleft import TimeLeft
from nasdistill.errors import NasdistillError, UsageError
from nasdistill.files import read_json
from nasdistill.host import Host
from nasdistill.host.configcheck import config_problems, search_setting
from nasdistill.interfaces import SharedWeights, SubSpace
from nasdistill.report import write_report
from nasdistill.search.opening import open_bench
from nasdistill.search.run import resume_search, run_search
from nasdistill.search.work import Job
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.config import parse_config
from nasdistill.spec.io import IOSpec
from nasdistill.store import RunDirectory, load_weights, read_student
from nasdistill.testing.hosts import isolated_host
from nasdistill.testing.kit.session import PlannedSession
from nasdistill_strategies.supernet import SupernetSearch

from toy_elastic import RowSpace  # isort: skip

ELASTIC = Path(__file__).parents[1] / "toy_elastic.py"
SIZES = {"width": [8, 16], "heads": [1, 2], "ratio": [1, 2], "depth": [1, 2]}  # two sub-spaces of eight points


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz", 160)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "supernet-cache"))
        yield


def host():
    return Host.load(third_party=False, files=[ELASTIC])


def config(data, **changes):
    options = {
        "supernet_epochs": 2, "loss": "kd", "finalists": 3, "epochs": 2, "max_latency_ratio": 100.0, "evaluations": 16,
        "lr": 0.01,
    }  # fmt: skip
    values = {
        "space": [{"name": "toy_elastic:rows", "options": SIZES}],
        "proxy": [{"name": "params"}],
        "training__checkpoint_seconds": 0.0,
        "search__trials": 4,
        "search__baselines": "none",
        "search__strategy": "supernet",
        "search__strategy_options": options,
    }
    return tiny(data, **{**values, **changes})


def found(result, run):
    """Return what a repeated run must share, the shared weights' records among it."""
    records = {p.parent.name: read_json(p) for p in sorted(run.glob("supernets/*/record.json"))}
    starts = [o["start"] for o in RunDirectory.open(run).outcomes()]
    return {**outcome(result, run), "records": records, "starts": starts}


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """An unbroken run, its events, and what a repeated one must share."""
    run, events = tmp_path_factory.mktemp("supernet") / "run", []
    result = run_search(config(digits), run, host=host(), listener=events.append)
    return run, result, events, found(result, run)


@pytest.mark.paper("2201.12507", "strategies:supernet")
def test_every_student_of_every_sub_space_is_scored_and_the_best_are_distilled(whole):
    run, result, events, shared = whole
    outcomes = list(RunDirectory.open(run).outcomes())
    assert len(outcomes) == 16
    assert all(o["proxies"]["inherited"] is not None for o in outcomes)
    for o in outcomes:
        width = o["architecture"]["params"]["width"]
        assert o["start"] == {8: "rows-narrow", 16: "rows-wide"}[width]
    assert sum(o["state"] == "complete" for o in outcomes) == 3
    assert 1 <= len(result["front"]) <= 3
    assert result["proxies"]["inherited"]["n"] == 3, "the report says how well it ranked those that were distilled"
    assert set(shared["records"]) == {"rows-narrow", "rows-wide"}
    for record in shared["records"].values():
        assert record["architectures"] == 8
        assert record["steps"] == 2 * 3  # 96 training samples in batches of 40
        assert record["history"][-1]["total"] < record["history"][0]["total"]
    assert not list(run.glob("supernets/*/checkpoint*"))
    plan = next(event for event in events if event.kind == "plan")
    rows = {row["rung"]: row for row in plan.facts["rungs"]}
    assert "trials   16 architectures: supernet's number for search.trials = 4" in plan.text.splitlines()
    assert rows["supernet"]["candidates"] == 2
    assert rows["supernet"]["seconds"] > rows["full"]["seconds"] / 3
    assert {"supernet", "inherited", "latency", "full"} <= {event.rung for event in events if event.kind == "rung"}
    steps = [event for event in events if event.kind == "step" and event.rung == "inherited"]
    assert [(event.done, event.total) for event in steps][-1] == (16, 16)
    assert all(", inherited score -0.0" in event.text for event in steps)


def test_students_say_where_they_start_from(whole):
    run, result, _, shared = whole
    for student in result["front"]:
        provenance = read_student(RunDirectory.open(run).student(student["id"]))[3]
        record = shared["records"][provenance["start"]["supernet"]]
        assert provenance["start"]["weights_sha256"] == record["weights_sha256"]
        assert provenance["start"]["steps"] == record["steps"]
        told = read_json(run / "trials" / f"{provenance['trial']:04d}" / "outcome.json")
        assert told["inherited"]["supernet"] == told["start"]
        assert told["inherited"]["copied"] == told["cost"]["params"]


def test_what_is_measured_and_distilled_are_the_shared_weights(whole):
    run, _, _, _ = whole
    bench = open_bench(run, host().arguments)
    first, *_, last = (o for o in RunDirectory.open(run).outcomes() if o["state"] == "complete")
    for told in (first, last):
        arch = bench.parts.space_of(architecture(told)).architecture(told["architecture"]["params"])
        model = bench.build(arch, told["number"], start=told["start"])
        net = bench.parts.spaces["rows"].supernet(
            bench.parts.task.io, subspace=SubSpace("", {"width": (arch.params["width"],)})
        )
        net.load_state_dict(load_weights(run / "supernets" / told["start"] / "weights.safetensors"))
        x = bench.parts.task.example(4)[0]
        net.eval().set_arch(arch)
        with torch.no_grad():
            torch.testing.assert_close(model(x), net(x), rtol=0, atol=1e-6)
        again = bench.do(Job("inherited", "inherited", told["number"], arch, start=told["start"], samples=256))
        assert again.found["value"] == told["proxies"]["inherited"]
    # A record that speaks of another file is not believed.
    bench.shelf._loaded = None
    path = run / "supernets" / last["start"] / "weights.safetensors"
    kept = path.read_bytes()
    path.write_bytes(kept[:-4] + b"????")
    try:
        lost = bench.do(Job("latency", "latency", last["number"], architecture(last), start=last["start"]))
        assert "is not the file that was recorded" in lost.failure
    finally:
        path.write_bytes(kept)


def architecture(told):
    return Architecture.from_json(told["architecture"])


def test_the_report_and_the_time_left_take_it(whole):
    run, _, events, _ = whole
    report = write_report(RunDirectory.open(run), host())
    assert [section["title"] for section in report.sections if section["problem"]] == []
    plan = next(event for event in events if event.kind == "plan")
    left = TimeLeft(plan.facts, 0.0)
    assert left.seconds(0.0) == pytest.approx(plan.facts["seconds"])
    left.begin("supernet", 1, 0.0)
    left.step("supernet", 1.0)
    left.begin("inherited", 16, 1.0)
    assert left.seconds(1.0) > 0


class Cut(BaseException):
    """The process ended here."""


@pytest.mark.parametrize(
    ("kind", "rung", "moment", "workers"),
    [
        ("epoch", "supernet", 3, 0),
        pytest.param("step", "inherited", 5, 1, marks=pytest.mark.slow),
        ("step", "full", 2, 0),
    ],
)
def test_a_run_that_was_cut_is_the_run_that_was_not(digits, tmp_path, whole, kind, rung, moment, workers):
    """Cut in the training of the second set, in the middle of scoring (a worker goes on), and at the end."""
    seen = []

    def cut(event):
        if (event.kind, event.rung) == (kind, rung):
            seen.append(event)
            if len(seen) == moment:
                raise Cut

    run = tmp_path / "run"
    with pytest.raises(Cut):
        run_search(config(digits), run, host=host(), listener=cut)
    moved, again = tmp_path / "moved", []
    shutil.move(run, moved)
    assert found(resume_search(moved, host=host(), listener=again.append, workers=workers), moved) == whole[3]
    epochs = sum(event.kind == "epoch" and event.rung == "supernet" for event in again)
    assert epochs == (1 if rung == "supernet" else 0), "no epoch is trained twice"
    scored = sum(event.kind == "step" and event.rung == "inherited" for event in again)
    assert scored == {"supernet": 16, "inherited": 16 - moment, "full": 0}[rung]


def test_a_sub_space_larger_than_its_share_is_sampled_and_then_searched_around_the_best(digits, tmp_path):
    values = config(digits, constraints__max_params=4000).to_json()
    values["search"]["strategy_options"] |= {"evaluations": 6, "subspaces": ["wide"], "score": "metric", "finalists": 1}
    run = tmp_path / "run"
    result = run_search(parse_config(values, where="test"), run, host=host())
    outcomes = list(RunDirectory.open(run).outcomes())
    assert 4 <= len(outcomes) <= 6
    origins = [o["origin"] for o in outcomes]
    assert origins[:3] == ["spread"] * 3
    assert set(origins[3:]) == {"neighbour"}
    assert all(o["architecture"]["params"]["width"] == 16 for o in outcomes)
    assert all(o["cost"]["params"] <= 4000 for o in outcomes)
    assert all(o["journal"]["inherited"]["score"] == o["proxies"]["inherited"] for o in outcomes)
    assert result["trials"]["complete"] == 1


def test_a_supernet_whose_loss_is_not_finite_ends_with_its_reason(digits, tmp_path):
    values = config(digits, training__lr=1e30, training__grad_clip=None).to_json()
    values["search"]["strategy_options"] |= {"lr": 1e30, "subspaces": ["narrow"]}
    with pytest.raises(NasdistillError, match=r"no supernet could be trained: rows-narrow: nan_loss") as caught:
        run_search(parse_config(values, where="test"), tmp_path / "run", host=host())
    assert "supernet rows-narrow" in caught.value.message
    assert "nan_loss" in read_json(tmp_path / "run" / "supernets" / "rows-narrow" / "record.json")["failure"]


def test_spaces_without_a_supernet_are_refused_before_anything_starts(digits, tmp_path):
    wrong = config(digits, space=[{"name": "resnet_s0"}, {"name": "toy_elastic:rows"}])
    own = host()
    assert search_setting(wrong, own).supernets == ("rows",)
    with pytest.raises(UsageError, match="resnet_s0 has none") as caught:
        run_search(wrong, tmp_path / "run", host=own)
    assert "rows" in caught.value.hint
    assert not (tmp_path / "run").exists()
    assert "resnet_s0 has none" in str(config_problems(wrong, own, where="file.toml")[0])
    for options, words in (
        ({"loss": "nothing"}, "nothing"),
        ({"loss": "hidden"}, "trains parts of its own"),
        ({"subspaces": ["wide", "huge"]}, "no space has a sub-space 'huge'"),
    ):
        values = config(digits).to_json()
        values["search"]["strategy_options"] |= options
        with pytest.raises(NasdistillError, match=words):
            run_search(parse_config(values, where="test"), tmp_path / "run", host=own)
        assert not (tmp_path / "run").exists()
        assert words in str(config_problems(parse_config(values, where="test"), own, where="file.toml")[0])


def test_a_strategy_looks_at_the_spaces_that_follow_from_the_task():
    values = {"task": {"name": "text_classification"}, "search": {"strategy": "supernet"}}
    assert config_problems(parse_config(values, where="test"), host(), where="file.toml") == []
    values["teacher"] = {"name": "hf:./not-here"}  # told when it is opened
    assert config_problems(parse_config(values, where="test"), host(), where="file.toml") == []
    del values["teacher"]
    values["search"]["strategy_options"] = {"loss": "objective"}
    values["objective"] = {"losses": [{"name": "kd"}, {"name": "hidden_cos"}]}
    (problem,) = config_problems(parse_config(values, where="test"), host(), where="file.toml")
    assert "loss 'losses:hidden_cos' trains parts of its own" in problem.message
    values["objective"] = {"losses": [{"name": "kd"}]}
    values["space"] = [{"name": "resnet_s0"}]
    assert "resnet_s0 has none" in str(config_problems(parse_config(values, where="test"), host(), where="x")[0])


# ---- the strategy on a planned session -------------------------------------------------------------------------------


def planned(**options):
    session = PlannedSession(RowSpace(None), IOSpec("image", (1, 6, 6), 4), trials=48)
    strategy = SupernetSearch({"max_latency_ratio": 100.0, **options}, host=isolated_host())
    return session, strategy


def test_one_set_that_fails_costs_its_sub_space_only():
    class Failing(PlannedSession):
        def train_supernet(self, shared, epochs, **more):
            if shared.subspace == "narrow":
                return SharedWeights(**{**{k: getattr(shared, k) for k in ("id", "space", "subspace")}, "failure": "x"})
            return super().train_supernet(shared, epochs, **more)

    session = Failing(RowSpace(None), IOSpec("image", (1, 6, 6), 4), trials=48)
    planned()[1].run(session)
    assert {c.start for c in session.history()} == {"planned-wide"}
    assert sum(c.state == "complete" for c in session.history()) == 8


def test_an_unknown_sub_space_is_named():
    session, strategy = planned(subspaces=("tiny",))
    with pytest.raises(UsageError, match="no space has a sub-space 'tiny'") as caught:
        strategy.run(session)
    assert caught.value.hint == "There are narrow, wide."


def test_the_finalists_are_the_front_of_score_and_latency():
    session, strategy = planned(finalists=4)
    strategy.run(session)
    assert len(session.history()) == 48
    done = [c for c in session.history() if c.state == "complete"]
    assert len(done) == 4
    assert all(c.epochs == 60 and c.targets for c in done)
    best = max(session.history(), key=lambda c: c.proxies["inherited"])
    assert best in done
