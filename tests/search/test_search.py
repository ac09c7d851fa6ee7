"""Whole searches: what they record, that they repeat, and that one bad part costs no more than itself."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape

import optuna
import pytest
import torch
from toys_search import tiny, write_digits

from nasdistill.cli.search import closing_lines
from nasdistill.errors import NasdistillError, TargetUnavailableError, UsageError
from nasdistill.host import Host
from nasdistill.interfaces import Candidate
from nasdistill.report.collect import collect
from nasdistill.report.sections.front import headline
from nasdistill.report.sections.proxies import proxies
from nasdistill.search.pareto import non_dominated
from nasdistill.search.proxyhealth import ProxyWatch
from nasdistill.search.reasons import nothing_finished, reasons
from nasdistill.search.result import build_result
from nasdistill.search.run import run_search
from nasdistill.spec.component import Kind
from nasdistill.store import RunDirectory, load_weights, read_student


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "search-cache"))


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """One finished run, looked at by many tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "search-cache"))
        events = []
        out = tmp_path_factory.mktemp("run") / "run"
        result = run_search(tiny(digits), out, host=Host.load(third_party=False), listener=events.append)
    return RunDirectory.open(out), result, events


def test_the_result_object_has_the_documented_keys(finished):
    _, result, _ = finished
    assert {"run", "state", "teacher", "front", "trials", "seconds", "proxies"} <= set(result)
    assert result["state"] == "finished"
    assert {"score", "test_score", "latency_ms", "params"} <= set(result["teacher"])
    assert result["front"], "a front of at least one student"
    for student in result["front"]:
        assert {"id", "score", "test_score", "latency_ms", "params", "macs", "architecture"} <= set(student)
        for value in student["latency_ms"].values():
            assert value["low"] <= value["value"] <= value["high"]
    trials = result["trials"]
    assert trials["complete"] + trials["pruned"] + trials["failed"] == 6
    assert trials["running"] == 0
    assert trials["repeated"] >= 0
    assert {"params", "macs", "nwot"} <= set(result["proxies"])
    for quality in result["proxies"].values():
        assert {"spearman", "kendall", "n"} <= set(quality)
    json.dumps(result, allow_nan=False)


def test_show_gives_the_same_object_as_the_search(finished):
    run, result, _ = finished
    assert build_result(run) == result


def test_the_front_is_non_dominated_and_students_load_bit_equal(finished, digits):
    run, result, _ = finished
    rows = [(-s["score"], s["latency_ms"]["targets:simulated"]["value"]) for s in result["front"]]
    assert len(non_dominated(rows)) == len(rows)
    host = Host.load(third_party=False)
    options = {host.canonical(Kind.SEARCH_SPACE, s.name): s.options for s in tiny(digits).space}
    for student in result["front"]:
        arch, io, weights, provenance = read_student(run.student(student["id"]))
        model = host.create(Kind.SEARCH_SPACE, arch.space, options[arch.space]).build(arch, io)
        model.load_state_dict(weights)
        trial = load_weights(run.weights(provenance["trial"], provenance["epochs"]))
        assert all(torch.equal(trial[name], value) for name, value in model.state_dict().items())
        assert provenance["test"]["score"] == student["test_score"]
        assert arch.to_json() == student["architecture"]


def test_the_study_is_an_ordinary_optuna_study(finished):
    run, result, _ = finished
    study = optuna.load_study(study_name="search", storage=run.study_url)
    assert len(study.trials) == 6 + result["trials"]["repeated"]
    assert all(t.state.is_finished() for t in study.trials)
    assert study.metric_names == ["accuracy", "latency_ms simulated"]
    names = {tuple(sorted(t.params)) for t in study.trials}
    assert len(names) == 1, "all parameters in all trials"
    complete = [t for t in study.trials if t.state is optuna.trial.TrialState.COMPLETE]
    assert len(complete) == result["trials"]["complete"]
    assert all(t.user_attrs["feasible"] for t in complete)


def test_events_tell_the_plan_the_rungs_and_the_front(finished):
    _, _, events = finished
    kinds = [event.kind for event in events]
    assert kinds.index("plan") < kinds.index("rung")
    assert {"message", "plan", "rung", "step", "epoch", "front", "done"} <= set(kinds)
    plan = next(event for event in events if event.kind == "plan")
    assert plan.facts["seconds"] > 0
    assert plan.facts["seconds"] == sum(row["seconds"] for row in plan.facts["rungs"])
    phases = [event.text for event in events if event.kind == "phase"]
    assert phases[:2] == ["opening the data and the teacher", "evaluating the teacher"]
    assert phases[-1] == "final report"
    rungs = {event.rung for event in events if event.kind == "rung"}
    assert {row["rung"] for row in plan.facts["rungs"]} <= rungs, "every rung of the plan comes"


def test_a_teacher_that_knows_nothing_is_warned_of_once(finished):
    run, _, events = finished  # its teacher has random weights and gives every digit the same class
    told = [event.text for event in events if event.kind == "message" and "no better than chance" in event.text]
    assert len(told) == 1
    assert told[0].startswith("warning: teacher timm:test_resnet")
    assert "accuracy is 0.1000, and the same answer for every sample has 0.1000" in told[0]
    assert told[0].removeprefix("warning: ") in unescape(headline(collect(run)).html)


def test_no_pickles_and_no_absolute_paths_of_ours(finished):
    run, _, _ = finished
    suffixes = {path.suffix for path in run.path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".db", ".db-wal", ".db-shm", ".lock"}
    for path in run.path.rglob("*.json"):
        if path.name != "config.json":
            assert str(run.path.parent) not in path.read_text()


def test_a_moved_run_shows_the_same_front(finished, tmp_path):
    run, result, _ = finished
    moved = shutil.copytree(run.path, tmp_path / "elsewhere")
    again = build_result(RunDirectory.open(moved))
    assert again["front"] == result["front"]
    assert again["run"] == str(moved)
    assert json.loads((moved / "result.json").read_text()) == {**result, "run": "."}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished, digits, tmp_path):
    run, result, _ = finished
    again = run_search(tiny(digits), tmp_path / "again", host=Host.load(third_party=False))
    strip = ("run", "seconds")
    assert {k: v for k, v in again.items() if k not in strip} == {k: v for k, v in result.items() if k not in strip}
    for path in sorted(run.path.glob("trials/*/weights-*.safetensors")):
        one, two = load_weights(path), load_weights(tmp_path / "again" / path.relative_to(run.path))
        assert all(torch.equal(one[name], two[name]) for name in one)
    other = run_search(tiny(digits, search__seed=1), tmp_path / "other", host=Host.load(third_party=False))
    assert [s["id"] for s in other["front"]] != [s["id"] for s in result["front"]]


@pytest.mark.parametrize("strategy", ["random", "exhaustive"])
def test_other_strategies_and_samplers(digits, tmp_path, strategy):
    config = tiny(
        digits,
        search__strategy=strategy,
        search__strategy_options={"epochs": 1},
        search__sampler="random",
        search__trials=3,
        space=[{"name": "resnet_s0", "options": {"blocks": [1], "width": [8, 16], "stages": [2]}}],
    )
    result = run_search(config, tmp_path / "run", host=Host.load(third_party=False))
    assert result["trials"]["complete"] == 3
    assert result["trials"]["failed"] == 0


def test_an_exhausted_space_ends_the_search_early(digits, tmp_path):
    config = tiny(
        digits,
        search__trials=9,
        space=[{"name": "resnet_s0", "options": {"blocks": [1], "width": [8], "stages": [2], "stem_stride": [1, 2]}}],
    )
    result = run_search(config, tmp_path / "run", host=Host.load(third_party=False))
    trials = result["trials"]
    assert trials["complete"] + trials["pruned"] + trials["failed"] == 2, "the space has two points"
    assert trials["repeated"] >= 20
    assert result["state"] == "finished"


@pytest.mark.parametrize("sampler", ["nsga2", "gp", "qmc"])
def test_every_sampler_proposes(digits, tmp_path, sampler):
    config = tiny(digits, search__sampler=sampler, search__trials=4)
    result = run_search(config, tmp_path / "run", host=Host.load(third_party=False))
    trials = result["trials"]
    assert trials["complete"] + trials["pruned"] + trials["failed"] == 4
    assert result["front"]


def test_constraints_are_kept_and_named(digits, tmp_path):
    config = tiny(digits, constraints={"max_params": 20_000, "max_latency_ms": 0.08})
    result = run_search(config, tmp_path / "run", host=Host.load(third_party=False))
    for student in result["front"]:
        assert student["params"] <= 20_000
        assert student["latency_ms"]["targets:simulated"]["high"] <= 0.08
    reasons = [o["reason"] for o in RunDirectory.open(tmp_path / "run").outcomes()]
    assert any("infeasible: params over by" in reason for reason in reasons)
    study = optuna.load_study(study_name="search", storage=RunDirectory.open(tmp_path / "run").study_url)
    infeasible = [t for t in study.trials if any(v > 0 for v in t.constraints.values())]
    assert infeasible
    assert all(not t.user_attrs["feasible"] for t in infeasible)


def test_a_time_limit_stops_proposing_and_still_finishes(digits, tmp_path):
    config = tiny(digits, search__timeout=1e-6)
    result = run_search(config, tmp_path / "run", host=Host.load(third_party=False))
    assert result["state"] == "finished"
    assert sum(result["trials"].values()) == 0
    assert result["front"] == []


class _Wrapped:
    """A host whose components of one kind are replaced by a broken one."""

    def __init__(self, host, kind, change):
        self._host, self._kind, self._change = host, kind, change

    def __getattr__(self, name):
        return getattr(self._host, name)

    def create(self, kind, name, options=None, **context):
        made = self._host.create(kind, name, options, **context)
        return self._change(made, name) if kind is self._kind else made


def test_a_proxy_that_raises_costs_only_its_score(digits, tmp_path):
    def change(proxy, name):
        if name == "nwot":
            proxy.score = lambda candidate: (_ for _ in ()).throw(RuntimeError("proxy is broken"))
        return proxy

    host = _Wrapped(Host.load(third_party=False), Kind.PROXY, change)
    events = []
    result = run_search(tiny(digits), tmp_path / "run", host=host, listener=events.append)
    assert result["front"]
    (told,) = [event.text for event in events if event.text.startswith("warning: proxy")]
    assert told == "warning: proxy proxies:nwot failed on trial 0: RuntimeError: proxy is broken"
    (failure,) = result["proxy_failures"]
    assert failure["failed"] == failure["of"] > 3
    said = f"roxy nwot failed on {failure['failed']} of {failure['failed']} candidates: RuntimeError: proxy is broken"
    assert f"P{said}." in closing_lines(result)
    assert f"P{said}" in str(proxies(collect(RunDirectory.open(tmp_path / "run"))).html)
    scored = [o for o in RunDirectory.open(tmp_path / "run").outcomes() if o["proxies"]]
    assert scored
    assert all(o["proxies"]["nwot"] is None for o in scored)
    assert all("proxy is broken" in o["proxy_problems"]["nwot"] for o in scored)


def test_an_exporter_that_fails_for_one_candidate_costs_that_trial(digits, tmp_path):
    from nasdistill.errors import TrialFailure

    failed = []

    def change(target, name):
        prepare = target.prepare

        def sometimes(request):
            if request.name.startswith("trial") and not failed:
                failed.append(request.name)
                raise TrialFailure("export_failed", "operator not supported")
            return prepare(request)

        target.prepare = sometimes
        return target

    host = _Wrapped(Host.load(third_party=False), Kind.TARGET, change)
    result = run_search(tiny(digits), tmp_path / "run", host=host)
    assert result["trials"]["failed"] == 1
    assert result["front"]
    reasons = [o["reason"] for o in RunDirectory.open(tmp_path / "run").outcomes() if o["state"] == "failed"]
    assert reasons == ["export_failed: operator not supported"]


def slow_down(prepared, factor):
    """Make a network prepared on the simulated target slower."""
    prepared._nanoseconds *= factor
    return prepared


def final_timing(change):
    """Return a host whose target treats the networks of the final timing (named by trial number) with `change`."""

    def wrap(target, name):
        prepare = target.prepare
        target.prepare = lambda request: (
            change(prepare(request), request) if request.name.isdigit() else prepare(request)
        )
        return target

    return _Wrapped(Host.load(third_party=False), Kind.TARGET, wrap)


def test_a_student_that_fails_the_final_timing_costs_only_itself(digits, tmp_path):
    from nasdistill.errors import TrialFailure

    failed = []

    def change(prepared, request):
        if not failed or request.name in failed:
            failed.append(request.name)
            raise TrialFailure("parity", "outputs differ")
        return prepared

    result = run_search(tiny(digits), tmp_path / "run", host=final_timing(change))
    assert result["state"] == "finished"
    assert failed
    assert result["trials"]["failed"] == 1
    assert result["front"], "the other students are kept"
    assert all(s["test_score"] is not None for s in result["front"])
    outcome = next(o for o in RunDirectory.open(tmp_path / "run").outcomes() if o["state"] == "failed")
    assert (str(outcome["number"]), outcome["reason"]) == (failed[0], "parity: outputs differ")
    saved = {path.name for path in (tmp_path / "run" / "students").iterdir()}
    assert saved == {s["id"] for s in result["front"]}


def test_a_student_that_joins_the_front_at_the_end_is_timed_like_the_rest(digits, tmp_path):
    first: list[str] = []
    rounds = []

    def change(prepared, request):
        if len(rounds) == 1:
            first.append(request.name)
        return slow_down(prepared, 50) if request.name in first else prepared

    def listener(event):
        if event.rung == "final latency":
            rounds.append(event)

    config = tiny(digits, search__strategy="random", search__strategy_options={"epochs": 1})
    result = run_search(config, tmp_path / "run", host=final_timing(change), listener=listener)
    assert len(rounds) >= 2, "somebody joined"
    numbers = {int(s["id"].split("-")[0]) for s in result["front"]}
    assert not numbers <= set(map(int, first))
    for outcome in RunDirectory.open(tmp_path / "run").outcomes():
        if outcome["number"] in numbers:
            assert "ratio" in outcome["targets"]["targets:simulated"]["info"]


def test_the_latency_limit_holds_for_the_final_timing_too(digits, tmp_path):
    config = tiny(digits, constraints={"max_latency_ms": 1.0})
    result = run_search(config, tmp_path / "run", host=final_timing(lambda made, _: slow_down(made, 1000)))
    assert result["trials"]["complete"] > 0
    assert result["front"] == []
    message, hint = nothing_finished(result)
    assert re.search(r"no student is within the limits: \d of 6 finished, but over max_latency_ms = 1 ms", message)
    assert "--max-latency-ms" in hint


def test_a_teacher_that_a_target_refuses_ends_the_run_with_nothing_left_behind(digits, tmp_path):
    from nasdistill.errors import TrialFailure

    def change(target, name):
        prepare = target.prepare

        def refuse(request):
            if request.name == "teacher":
                raise TrialFailure("export_failed", "teacher cannot be exported")
            return prepare(request)

        target.prepare = refuse
        return target

    host = _Wrapped(Host.load(third_party=False), Kind.TARGET, change)
    with pytest.raises(TrialFailure, match="teacher cannot be exported"):
        run_search(tiny(digits), tmp_path / "run", host=host)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["funnel", "training_free"])
def test_a_search_that_no_proxy_can_lead_ends_early_and_says_why(digits, tmp_path, strategy):
    def change(proxy, name):
        proxy.score = lambda candidate: (_ for _ in ()).throw(SystemExit(3))
        return proxy

    host = _Wrapped(Host.load(third_party=False), Kind.PROXY, change)
    options = {"max_latency_ratio": 100.0}
    config = tiny(digits, proxy=[{"name": "nwot"}], search__strategy=strategy, search__strategy_options=options)
    with pytest.raises(NasdistillError) as caught:
        run_search(config, tmp_path / "run", host=host)
    why = (
        "nothing can decide this search: proxy proxies:nwot failed on all 6 candidates of the pilot: it called sys.exit"
    )
    assert why in caught.value.message
    assert "score --sample 3 --proxy proxies:nwot" in caught.value.hint
    run = RunDirectory.open(tmp_path / "run")
    assert not list(run.outcomes())
    message, hint = nothing_finished(build_result(run))
    assert why in message
    assert "--timeout" not in hint


def test_proxies_that_fail_on_everything_end_a_search_that_is_under_way():
    events = []
    watch = ProxyWatch({"a": "acme:a", "b": "acme:b"}, ("a",), events.append)
    for number in range(19):
        watch.note(number, {"a": None, "b": 1.0}, {"a": "oh no"})
    with pytest.raises(NasdistillError, match="acme:a failed on all 20 candidates: oh no"):
        watch.note(19, {"a": None, "b": 1.0}, {"a": "oh no"})
    assert [event.text for event in events] == ["warning: proxy acme:a failed on trial 0: oh no"]
    saved = ProxyWatch({"a": "acme:a", "b": "acme:b"}, ("a", "b"), events.append)
    for number in range(40):
        saved.note(number, {"a": None, "b": 1.0}, {"a": "oh no"})


def test_a_pilot_that_fails_costs_only_the_estimate(digits, tmp_path):
    def change(space, name):
        sample, asked = space.sample, []

        def only_the_first_fails(rng):
            asked.append(rng)
            if len(asked) == 1:
                raise RuntimeError("no sample")  # the pilot's first
            return sample(rng)

        space.sample = only_the_first_fails
        return space

    host = _Wrapped(Host.load(third_party=False), Kind.SEARCH_SPACE, change)
    result = run_search(tiny(digits, search__trials=2), tmp_path / "run", host=host)
    assert result["state"] == "finished"
    assert result["front"]


def test_all_candidates_are_scored_with_the_same_draws(digits, tmp_path):
    seeds = []

    def change(proxy, name):
        score = proxy.score

        def listen(candidate):
            seeds.append(candidate.generator.initial_seed())
            return score(candidate)

        if name == "nwot":
            proxy.score = listen
        return proxy

    host = _Wrapped(Host.load(third_party=False), Kind.PROXY, change)
    run_search(tiny(digits, search__trials=4), tmp_path / "run", host=host)
    assert len(seeds) >= 2 + 4, "the pilot's two and the trials"
    assert len(set(seeds[2:])) == 1


def test_the_primary_target_comes_first_in_the_result(tmp_path):
    from nasdistill.spec.measurement import Latency, TargetReport

    run = RunDirectory.create(tmp_path / "run")
    latency = Latency(1.0, 0.9, 1.1, ratio=1.0, reference_ms=1.0, pairs=3, warmups=1, clock="cpu")
    reports = {name: TargetReport(name, latency).to_json() for name in ("targets:a", "targets:z")}
    run.write("teacher.json", {"primary_target": "targets:z", "targets": reports})
    assert list(build_result(run)["teacher"]["latency_ms"]) == ["targets:z", "targets:a"]


def test_a_teachers_training_is_told_by_epochs(digits, tmp_path):
    from nasdistill.interfaces import Teacher

    events = []

    def change(teacher: Teacher, name):
        real = teacher.open

        def train_first(*args, progress, **others):
            for epoch in (1, 2, 3):
                progress(f"acme: epoch {epoch} of 3, loss 0.5, about 2 s left")
            progress("acme: 3 epochs took 2 s")
            return real(*args, progress=progress, **others)

        teacher.open = train_first
        return teacher

    host = _Wrapped(Host.load(third_party=False), Kind.TEACHER, change)
    run_search(tiny(digits, search__trials=1), tmp_path / "run", host=host, listener=events.append)
    told = [(event.done, event.total) for event in events if event.kind == "epoch" and event.rung == "teacher"]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert any(event.kind == "message" and "3 epochs took" in event.text for event in events)


def test_reasons_are_counted_and_being_dominated_never_decides():
    candidates = [
        *(Candidate(n, None, "pruned", reason="dominated at the proxies") for n in range(5)),
        *(Candidate(n, None, "failed", reason=f"nan_loss: the loss is nan at step {n}") for n in range(5, 8)),
        Candidate(8, None, "pruned", reason="slower than 0.1 times the teacher (max_latency_ratio)"),
        Candidate(9, None, "pruned", reason="over", constraints={"params": 0.5, "macs": -0.5}),
        Candidate(10, None, "pruned", reason="over", constraints={"params": 0.25, "macs": -0.5}),
        Candidate(11, None, "running"),
        Candidate(12, None, "complete"),
    ]
    found = reasons(candidates, {"max_params": 1000, "max_macs": 10}, None, None)
    assert [(entry["state"], entry["n"]) for entry in found] == [
        ("pruned", 5), ("failed", 3), ("pruned", 2), ("pruned", 1)
    ]  # fmt: skip
    assert found[1]["reason"] == "nan_loss: the loss is nan at step 5"
    assert found[2]["reason"] == "over max_params = 1,000 parameters, the nearest at 1,250 parameters"
    assert found[3]["hint"] == "--set search.strategy_options.max_latency_ratio=VALUE changes that limit."
    trials = {"complete": 0, "pruned": 8, "failed": 3, "running": 1}
    message, hint = nothing_finished({"run": "r", "trials": trials, "reasons": found})
    assert message == "no student was finished: 3 of 12 failed: nan_loss: the loss is nan at step 5"
    assert hint == "nasdistill show --trials r lists every trial."
    message, hint = nothing_finished({"run": "r", "trials": trials, "reasons": found, "state": "interrupted"})
    assert message == "no student was finished: the run was interrupted with 1 trial unfinished"
    assert hint == "nasdistill resume r goes on."


def test_what_stands_in_brackets_is_an_option_for_what_a_strategy_dropped_only():
    def hint(state: str, text: str) -> str:
        [found] = reasons([Candidate(0, None, state=state, reason=text)], {}, None, None)
        return found["hint"]

    assert hint("pruned", "too many (keep_latency)") == (
        "--set search.strategy_options.keep_latency=VALUE changes that limit."
    )
    assert hint("failed", "mismatch: q.5 (student) is not q.5 (teacher)") == ""


def test_nan_losses_end_the_trial_with_a_reason(digits, tmp_path):
    config = tiny(digits, training__lr=1e30, training__grad_clip=None, training__warmup=0.0)
    result = run_search(config, tmp_path / "run", host=Host.load(third_party=False))
    assert result["state"] == "finished"
    assert result["front"] == []
    failed = [o for o in RunDirectory.open(tmp_path / "run").outcomes() if o["state"] == "failed"]
    assert failed
    assert all(o["reason"].startswith(("nan_loss", "diverged")) for o in failed)


def test_an_interrupt_keeps_what_is_finished(digits, tmp_path):
    def listener(event):
        if event.kind == "front":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"finished trials are kept: nasdistill show .*run"):
        run_search(tiny(digits), tmp_path / "run", host=Host.load(third_party=False), listener=listener)
    shown = build_result(RunDirectory.open(tmp_path / "run"))
    assert shown["state"] == "interrupted"
    assert shown["trials"]["complete"] >= 1
    assert shown["front"]
    assert shown["front"][0]["test_score"] is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"teacher": {"name": "timm:test_resnt"}}, UsageError, "test_resnet"),
        ({"teacher": {"name": "tim:test_resnet"}}, UsageError, "Did you mean 'timm:test_resnet'?"),
        ({"teacher": {"name": "resnet18"}}, UsageError, "Did you mean 'timm:resnet18'?"),
        ({"teacher": {"name": "resnt18"}}, UsageError, "Did you mean 'timm:resnet18' or "),
        ({"teacher": {"name": "digits"}}, UsageError, "Did you mean 'builtin:digits'?"),
        ({"teacher": {"name": "qqqqqq"}}, UsageError, "Known: builtin, diffusers, hf, timm, torch."),
        ({"space": [{"name": "resnet_so"}]}, UsageError, "Did you mean 'resnet_s0'?"),
        ({"space": [{"name": "spaces:resnet_so"}]}, UsageError, "Did you mean 'spaces:resnet_s0'"),
        ({"space": [{"name": "resnet_s0", "options": {"blokcs": [1]}}]}, UsageError, "blocks"),
        ({"proxy": [{"name": "synflo"}]}, UsageError, "synflow"),
        ({"search__strategy": "funel"}, UsageError, "funnel"),
        ({"search__sampler": "tpee"}, UsageError, "tpe"),
        ({"objective__losses": [{"name": "kdd"}]}, UsageError, "kd"),
        ({"task__options": {"data": "/nowhere/at/all"}}, UsageError, "/nowhere/at/all"),
        ({"task__name": "image_clasification"}, UsageError, "image_classification"),
        ({"proxy": [{"name": "nwot"}, {"name": "proxies:nwot"}]}, UsageError, "proxies:nwot more than once"),
        ({"training__device": "cdua"}, UsageError, "cdua"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing_behind(digits, tmp_path, changes, error, words):
    with pytest.raises(error) as caught:
        run_search(tiny(digits, **changes), tmp_path / "run", host=Host.load(third_party=False))
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_saved_model_given_without_its_teachers_name_is_told_how_to_write_it(tmp_path):
    from nasdistill.search.parts import locate_teacher

    folder = tmp_path / "resnet-50"  # close to a name of timm's
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=f"a folder with a config.json. Did you mean 'hf:{re.escape(str(folder))}'"):
        locate_teacher(Host.load(third_party=False), str(folder))


def test_a_target_without_its_runtime_says_what_to_install(digits, tmp_path):
    from nasdistill.interfaces import Availability

    def change(target, name):
        target.probe = lambda: Availability(False, "install 'nasdistill[onnx]'")
        return target

    host = _Wrapped(Host.load(third_party=False), Kind.TARGET, change)
    with pytest.raises(TargetUnavailableError, match=r"nasdistill\[onnx\]"):
        run_search(tiny(digits), tmp_path / "run", host=host)
    assert not (tmp_path / "run").exists()


def test_an_output_folder_in_use_is_refused_before_any_work(digits, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        run_search(tiny(digits), tmp_path, host=Host.load(third_party=False))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_global_state_is_left_as_found(digits, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    run_search(tiny(digits, search__trials=2), tmp_path / "run", host=Host.load(third_party=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_all_errors_of_ours_have_an_exit_code():
    assert NasdistillError("x").exit_code == 1


def test_spread_and_neighbours_are_new_and_belong_to_their_spaces(digits, tmp_path):
    from nasdistill.interfaces import Strategy

    class Look(Strategy):
        def run(self, session):
            first = session.propose(session.spread(4))
            spaces = [c.architecture.space for c in first]
            assert sorted(spaces) == ["spaces:conv_vit"] * 2 + ["spaces:resnet_s0"] * 2
            near = session.neighbours(first, 2)
            assert len(set(near) | {c.architecture for c in first}) == 6, "nothing twice"
            for architecture, parent in zip(near, first, strict=False):
                assert architecture.space == parent.architecture.space
            session.prune(first, "seen")
            self.seen = [c.architecture for c in first] + near

    looks = []

    def change(strategy, name):
        looks.append(Look())
        return looks[-1]

    for run in ("one", "two"):
        host = _Wrapped(Host.load(third_party=False), Kind.STRATEGY, change)
        run_search(tiny(digits), tmp_path / run, host=host)
    assert looks[0].seen == looks[1].seen


def test_a_disk_that_fills_up_ends_the_run_in_words_and_keeps_what_is_finished(digits, tmp_path, monkeypatch):
    from nasdistill.search import work as module

    saved = []

    def full(model, path):
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        saved.append(path)
        return real(model, path)

    real = module.save_weights
    monkeypatch.setattr(module, "save_weights", full)
    with pytest.raises(NasdistillError, match="No space left") as caught:
        run_search(tiny(digits), tmp_path / "run", host=Host.load(third_party=False))
    assert "nasdistill show" in str(caught.value)
    shown = build_result(RunDirectory.open(tmp_path / "run"))
    assert shown["state"] == "failed"
    assert sum(len(o["results"]) for o in RunDirectory.open(tmp_path / "run").outcomes()) == 3


def test_a_folder_of_colour_images_of_another_size(tmp_path):
    """Own data from a folder: three channels, not square, three classes, measured on ONNX Runtime too."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, name in enumerate(["cat", "dog", "emu"]):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 120, (20, 28, 3)) + 60 * (np.arange(3) == label)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    pytest.importorskip("onnxruntime")
    config = tiny(
        tmp_path / "images",
        search__trials=2,
        target=[{"name": "onnxruntime_cpu"}, {"name": "simulated"}],
        latency__max_seconds=0.1,
    )
    result = run_search(config, tmp_path / "run", host=Host.load(third_party=False))
    assert result["trials"]["failed"] == 0
    student = result["front"][0]
    _, io, weights, _ = read_student(RunDirectory.open(tmp_path / "run").student(student["id"]))
    assert (io.shape, io.outputs) == ((3, 20, 28), 3)
    assert set(student["latency_ms"]) == {"targets:onnxruntime_cpu", "targets:simulated"}
    assert weights
