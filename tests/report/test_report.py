"""The report as a page: complete without scripts, safe with any name, honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_toys import blocks
from toys_search import tiny, write_digits

from nasdistill import hookimpl
from nasdistill.cli import main
from nasdistill.errors import MismatchError, UsageError
from nasdistill.host import Host
from nasdistill.interfaces import ReportSection, Section
from nasdistill.report import collect, write_report
from nasdistill.report.compare import compare, gather
from nasdistill.report.page import banner_of, render_page, run_parts
from nasdistill.report.sections.baselines import baselines
from nasdistill.report.sections.course import field_of, hypervolume_steps, progress
from nasdistill.report.sections.front import beating_baselines, headline, recommended
from nasdistill.report.sections.importance import axis_importance
from nasdistill.report.sections.outcomes import kind_of, outcomes
from nasdistill.report.sections.proxies import verdicts
from nasdistill.report.sections.reproduce import toml_of
from nasdistill.search.baselines import depths, truncated
from nasdistill.search.run import run_search
from nasdistill.spec.component import ReportSectionSpec
from nasdistill.spec.config import parse_config
from nasdistill.store import RunDirectory
from nasdistill.testing.kit.report import TARGET, Reader, brief, latency, named_run, outcome, run_data, student


def check(html: str) -> Reader:
    """Parse a page and hold it to what every page promises."""
    page = Reader(html)
    assert not page.problems
    assert all(link.startswith("#") or link == "data:," for link in page.links), page.links
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    names = [name for name, _ in page.tags]
    assert names.count("script") == 1
    assert not {"iframe", "object", "embed", "base", "form"} & set(names)
    assert not re.search(r"url\(|@import", html)
    for name, values in page.tags:
        assert not any(key.startswith("on") for key in values), f"{name} {values}"
        if name == "svg":
            assert values.get("aria-label")
            assert values.get("role")
        if name == "th":
            assert values.get("scope") in ("row", "col")
    return page


def page_of(data, host=None) -> str:
    return render_page(data["name"], run_parts(data, host), banner=banner_of(data), gaps=data["gaps"])


def section(data, anchor):
    return next(part for part in run_parts(data) if part.anchor == anchor)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_the_headline_names_the_student_that_the_rule_recommends():
    data = run_data()
    assert recommended(data)["id"] == "0003-abcdef", "0.90 is not within 1 % of 0.98; 0.97 is not either, but best"
    data["front"][0]["score"] = 0.975
    assert recommended(data)["id"] == "0001-abcdef", "the fastest within 1 %"
    words = headline(data).data["sentence"]
    assert "0001-abcdef" in words
    assert "4 times as fast" in words
    assert "1.00 ms instead of 4.00 ms" in words


def test_the_recommendation_does_not_look_at_the_test_split():
    data = run_data()
    before = recommended(data)["id"]
    for item, value in zip(data["front"], (0.999, 0.1), strict=True):
        item["test_score"] = value
    assert recommended(data)["id"] == before


def test_lower_is_better_turns_everything_round():
    data = run_data(metric={"name": "loss", "higher_is_better": False, "unit": ""})
    data["teacher"]["score"] = 0.5
    data["front"] = [student(1, 0.9, 1.0), student(3, 0.502, 2.0)]
    assert recommended(data)["id"] == "0003-abcdef"
    check(page_of(data))
    assert "0.502" in page_of(data)


def test_a_proxy_that_loses_to_size_is_told():
    found = verdicts(run_data()["proxies"])
    assert len(found) == 1
    assert found[0].startswith("nwot loses to size: Spearman +0.20, params +0.70")
    assert "may be chance" in found[0]
    sure = {
        "macs": {"spearman": 0.9, "spearman_interval": [0.8, 0.95]},
        "p": {"spearman": 0.1, "spearman_interval": [0.0, 0.2]},
    }
    assert verdicts(sure) == ["p loses to size: Spearman +0.10, macs +0.90."]
    assert "beats size" in verdicts({**sure, "p": {"spearman": 0.99, "spearman_interval": [0.98, 1.0]}})[0]
    assert "no rank correlation" in verdicts({"p": {"spearman": None}})[0]


def test_reasons_are_counted_without_their_numbers():
    assert kind_of("nan_loss: the loss is nan at step 7") == kind_of("nan_loss: the loss is nan at step 1,200")
    data = run_data()
    data["outcomes"] += [outcome(5, "failed", None, 1.0, reason="nan_loss: the loss is nan at step 9"),
                         outcome(6, "pruned", None, 1.0, reason="same architecture as trial 1", repeats=1)]  # fmt: skip
    counted = {(r["state"], r["n"]) for r in outcomes(data).data["reasons"]}
    assert counted == {("failed", 2), ("pruned", 1), ("repeated", 1)}


def test_the_hypervolume_is_that_of_a_hand_computed_front():
    data = run_data()
    field = field_of(data)
    steps = hypervolume_steps(data, field)
    # The corner is (0.80, 4 ms), the box (1 - 0.80) * 4. Trial 0 is the corner's score and adds nothing.
    assert [s["trials"] for s in steps] == [1, 2, 4]
    assert steps[0]["hypervolume"] == pytest.approx(0)
    assert steps[1]["hypervolume"] == pytest.approx(0.10 * 3 / 0.8)
    assert steps[2]["hypervolume"] == pytest.approx((0.10 * 3 + 0.07 * 2) / 0.8)
    assert [s["seconds"] for s in steps] == [1, 2, 4]
    assert progress(data).data["corner"]["latency_ms"] == 4.0


def test_an_axis_that_decides_alone_is_found_important():
    axes = [{"name": "a", "choices": [1, 2, 3]}, {"name": "b", "choices": ["x", "y"]}, {"name": "c", "choices": [0, 1]}]
    rows = [({"a": a, "b": b, "c": 0}, 10.0 * a) for a in (1, 2, 3) for b in ("x", "y") for _ in range(4)]
    shares = axis_importance(axes, rows)
    assert next(iter(shares)) == "a"
    assert shares["a"] > 0.9
    assert "c" not in shares, "an axis with one value in all rows has no share"


def test_a_baseline_that_is_no_worse_is_said_in_the_headline():
    base = {"name": "teacher, 2 of 6 blocks", "kind": "truncated", "epochs": 0, "score": 0.975, "test_score": 0.97,
            "params": 10, "targets": {TARGET: latency(1.9)}}  # fmt: skip
    data = run_data(baselines=[base])
    assert beating_baselines(data, data["front"][1]) == ["teacher, 2 of 6 blocks"]
    assert beating_baselines(data, data["front"][0]) == [], "the other student is faster"
    assert "A simple baseline is no worse: teacher, 2 of 6 blocks" in headline(data).html
    assert "0003-abcdef is no better than teacher, 2 of 6 blocks" in baselines(data).html
    check(page_of(data))


def test_random_architectures_are_compared_after_one_rung():
    found = baselines(run_data()).data
    assert found["n"] == {"spread": 2, "sampler": 1}
    assert found["random_share"] == pytest.approx(0.10 * 3 / (0.10 * 3 + 0.07 * 2))
    without = run_data()
    for item in without["outcomes"]:
        item.pop("origin", None)
    assert "no distilled ones that are marked" in baselines(without).html


# ---- the page -------------------------------------------------------------------------------------------------------


def test_a_page_has_all_sections_and_keeps_its_promises():
    page = check(page_of(run_data()))
    for words in (
        "In one sentence", "The Pareto front", "Students", "Against simple baselines", "What the proxies were worth",
        "Hypervolume over the run", "What each rung cost", "What was dropped, and why", "how to repeat it",
    ):  # fmt: skip
        assert words in page.text
    assert "<!DOCTYPE html>" in page_of(run_data())


def test_an_empty_run_is_a_page_that_says_what_is_missing(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    report = write_report(run)
    page = check(report.path.read_text(encoding="utf-8"))
    assert "No student is finished" in page.text
    assert "not measured yet" in page.text
    assert all(s["problem"] is None for s in report.sections)


@pytest.mark.parametrize("state", ["running", "interrupted", "killed", "failed", "finished"])
def test_the_state_stands_at_the_top(state):
    data = run_data(state=state, status={"state": state, "reason": "the disk is <full>"})
    banner = banner_of(data)
    assert banner.kind == state
    html = page_of(data)
    assert f'class="state {state}"' in html
    if state == "failed":
        assert "the disk is &lt;full&gt;" in html


@pytest.mark.parametrize("n", [1, 500])
def test_any_number_of_trials_fits(n):
    data = run_data()
    data["outcomes"] = [
        outcome(i, "complete" if i % 3 else "pruned", 0.5 + i / 2000, 1 + i % 17, reason="r") for i in range(n)
    ]
    data["events"] = [{"event": "started", "time": 0.0}] + [
        {"event": "trial", "number": i, "time": float(i)} for i in range(n)
    ]
    html = page_of(data)
    check(html)
    assert len(html) < 700_000
    assert "could not be made" not in html


NASTY = st.text(st.sampled_from("<>\"'&;/=`{}%$\\\0\x1b\ud800 aonscript-\n"), max_size=30) | st.sampled_from(
    ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{ 7*7 }}", "]]>", "javascript:alert(1)",
     '" onmouseover="alert(1)', "<!--", "</style>", "&lt;b&gt;"]
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NASTY, NASTY, NASTY)
def test_no_name_or_reason_becomes_markup(name, reason, axis):
    harmless = {tag for tag, _ in check(page_of(named_run("a", "b", "c"))).tags}
    assert {tag for tag, _ in check(page_of(named_run(name, reason, axis))).tags} == harmless


def test_a_section_that_raises_is_one_line_and_the_rest_stands():
    data = run_data()
    data["seconds"] = {"short": "not a number", "full": 3.0}
    data["proxies"] = {"p": {"spearman": "x", "n": 3}}
    html = page_of(data)
    page = check(html)
    assert "This section could not be made" in page.text
    assert html.count('class="broken"') == 1
    assert "What was dropped, and why" in page.text


class Own(ReportSection):
    def render(self, run):
        return Section("Mine", f"<p>{len(run['outcomes'])} trials</p>", {"n": len(run["outcomes"])})


class Silent(ReportSection):
    def render(self, run):
        return None


class Broken(ReportSection):
    def render(self, run):
        raise RuntimeError("no <luck>")


class Plugin:
    @hookimpl
    def nasdistill_report_sections(self):
        return [ReportSectionSpec(n.lower(), f"test_report:{n}", "one") for n in ("Own", "Silent", "Broken")]


def test_sections_of_plugins_follow_ours_and_cannot_break_the_page(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "test_report", sys.modules[__name__])
    host = Host.load(third_party=False)
    host.add(Plugin(), "toys")
    parts = {part.anchor: part for part in run_parts(run_data(), host)}
    assert parts["plugin-toys-own"].html == "<p>5 trials</p>"
    assert "plugin-toys-silent" not in parts
    assert "no <luck>" in parts["plugin-toys-broken"].problem
    page = check(page_of(run_data(), host))
    assert "no <luck>" in page.text


def test_the_policy_names_the_hash_of_the_script_and_nothing_else():
    import base64
    import hashlib

    html = page_of(run_data())
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")


def test_the_configuration_shown_is_one_that_gives_the_same_run():
    config = parse_config({"search": {"trials": 7, "timeout": None}, "constraints": {"max_params": 5}}, where="t")
    import tomllib

    again = parse_config(tomllib.loads(toml_of(config.to_json())), where="again")
    # What has no value cannot be written in TOML; a missing key has its default, which for these is no value.
    assert again == config


# ---- real runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NASDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "report-cache"))
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A run with a teacher made of blocks, so that it has the truncated teacher too."""
    out = tmp_path_factory.mktemp("run") / "run"
    config = tiny(digits, teacher={"name": "torch:report_toys:blocks"}, search__baselines="distilled")
    run_search(config, out, host=Host.load(third_party=False))
    return RunDirectory.open(out)


def test_a_finished_run_gives_a_whole_report(finished, host, tmp_path):
    report = write_report(finished, host, tmp_path / "sub" / "r.html")
    assert report.path == tmp_path / "sub" / "r.html"
    html = report.path.read_text(encoding="utf-8")
    page = check(html)
    assert report.gaps == ()
    assert [s["title"] for s in report.sections if s["problem"]] == []
    json.dumps(report.to_json(), allow_nan=False)
    data = collect(finished, host)
    for item in data["front"]:
        assert item["id"] in page.text
        assert f'id="arch-{item["id"]}"' in html
    assert {o["origin"] for o in data["outcomes"]} <= {"spread", "neighbour", "sampler"}
    assert str(finished.path) not in html, "a report can be given to others"


def test_the_truncated_teacher_is_measured_evaluated_and_distilled(finished):
    found = finished.read("baselines.json")["baselines"]
    assert [(b["blocks"], bool(b["epochs"])) for b in found] == [(1, False), (1, True), (2, False)]
    teacher = finished.read("teacher.json")
    assert found[0]["params"] < found[2]["params"] < teacher["params"]
    for item in found:
        assert 0 <= item["test_score"] <= 1
        assert set(item["targets"]) == set(teacher["targets"])
    assert found[0]["targets"] == found[1]["targets"], "training changes no latency"
    assert finished.read("seconds.json")["baselines"] > 0


def test_a_killed_or_damaged_run_still_gives_a_report(finished, host, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    (copy / "status.json").write_text('{"state": "running"}')
    for name in ("final.json", "baselines.json", "environment.json", "result.json", "seconds.json"):
        (copy / name).unlink()
    (copy / "trials" / "0001" / "outcome.json").write_text('{"torn')
    shutil.rmtree(copy / "students")
    report = write_report(RunDirectory.open(copy), host)
    page = check(report.path.read_text(encoding="utf-8"))
    assert "Killed: no process is at it any more" in page.text
    assert "Test scores are not known yet" in page.text
    (copy / "teacher.json").write_text("[1, 2")
    report = write_report(RunDirectory.open(copy), host)
    assert any("teacher.json" in gap for gap in report.gaps)
    check(report.path.read_text(encoding="utf-8"))


def test_the_command_writes_and_prints(finished, capsys, tmp_path):
    assert main(["report", str(finished.path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["state"] == "finished"
    assert value["bytes"] == (finished.path / "report" / "index.html").stat().st_size
    assert main(["report", str(finished.path), "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2


def test_a_report_that_fails_does_not_fail_the_search(finished, host, capsys, monkeypatch):
    from nasdistill.cli.report import report_after

    report_after(finished.path, host)
    assert "Report: " in capsys.readouterr().err
    monkeypatch.setattr("nasdistill.report.write_report", lambda *_: 1 / 0)
    report_after(finished.path, host)
    assert "no report: " in capsys.readouterr().err


# ---- the truncated teacher ------------------------------------------------------------------------------------------


def test_depths_are_about_a_third_and_two_thirds():
    assert depths(12) == [1, 4, 8]
    assert depths(6) == [1, 2, 4]
    assert depths(2) == [1]
    assert depths(1) == []
    assert depths(0) == []


def test_a_truncated_network_is_its_first_blocks():
    model = blocks().eval()
    cut = truncated(model, 3, 2)
    image = torch.randn(2, 1, 8, 8)
    assert len(cut.blocks) == 2
    assert len(model.blocks) == 3, "the original is untouched"
    model.blocks[2].attn.proj.weight.data.zero_()
    model.blocks[2].attn.proj.bias.data.zero_()
    model.blocks[2].mlp.fc2.weight.data.zero_()
    model.blocks[2].mlp.fc2.bias.data.zero_()
    assert torch.allclose(cut(image), model(image), atol=1e-6), "a block that adds nothing may as well be missing"


def test_a_timm_transformer_can_be_cut_and_a_resnet_is_left_alone():
    import timm

    vit = timm.create_model("test_vit", num_classes=3).eval()
    layers = len(vit.blocks)
    cut = truncated(vit, layers, 1)
    assert cut(torch.randn(1, 3, 160, 160)).shape == (1, 3)
    resnet = timm.create_model("test_resnet")
    assert truncated(resnet, 17, 4) is None
    assert truncated(vit, layers, layers) is None
    assert truncated(vit, layers, 0) is None


# ---- compare --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(finished, tmp_path_factory):
    """The same run under another name: what is compared must then be equal."""
    path = tmp_path_factory.mktemp("second") / "other"
    shutil.copytree(finished.path, path)
    return path


def test_runs_and_students_are_compared_under_one_protocol(finished, second, host, tmp_path, capsys):
    single = next((finished.path / "students").iterdir())
    result = compare([finished.path, second, single], host)
    json.dumps(result, allow_nan=False)
    names = [row["name"] for row in result["networks"]]
    assert names[0] == "teacher"
    assert len(set(names)) == len(names)
    rows = {row["name"]: row for row in result["networks"]}
    for row in result["networks"][1:]:
        assert row["problem"] is None
        assert row["test_score"] == row["recorded_test_score"], "evaluated anew, the same weights score the same"
        assert row["latency_ms"]["low"] <= row["latency_ms"]["value"]
    for item in (finished.path / "students").iterdir():
        one, two = rows[f"run/{item.name}"], rows[f"other/{item.name}"]
        assert {**one, "name": "", "group": ""} == {**two, "name": "", "group": ""}
    volumes = result["hypervolume"]
    assert volumes["run"] == volumes["other"] >= volumes[single.name]
    assert result["protocol"]["split"] == "test"
    assert main(["compare", str(finished.path), str(second), "--out", str(tmp_path / "cmp")]) == 0
    assert "Hypervolume of other" in capsys.readouterr().out
    check((tmp_path / "cmp" / "index.html").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "cmp" / "compare.json").read_text())["runs"][1]["name"] == "other"


def test_other_data_is_refused_with_both_fingerprints(finished, second, host, tmp_path):
    path = tmp_path / "foreign"
    shutil.copytree(second, path)
    facts = json.loads((path / "teacher.json").read_text())
    mine = facts["task_fingerprint"]
    (path / "teacher.json").write_text(json.dumps({**facts, "task_fingerprint": "feedface"}))
    with pytest.raises(MismatchError) as caught:
        gather([finished.path, path], host)
    assert "feedface" in str(caught.value)
    assert mine in str(caught.value)


def test_what_cannot_be_compared_is_refused_in_words(finished, host, tmp_path):
    single = next((finished.path / "students").iterdir())
    empty = RunDirectory.create(tmp_path / "empty").path
    for paths, words in (
        ([finished.path, finished.path], "the same folder"),
        ([single], "no run among"),
        ([finished.path, tmp_path], "neither a run"),
        ([empty], "none of these runs has a finished student"),
    ):
        with pytest.raises(UsageError, match=words):
            gather(paths, host)
    assert main(["compare", str(finished.path)]) == 2


def test_a_plugin_that_is_gone_is_named_with_its_version(second, tmp_path, capsys):
    path = tmp_path / "mine"
    shutil.copytree(second, path)
    environment, config = (json.loads((path / f"{name}.json").read_text()) for name in ("environment", "config"))
    environment["plugins"].append({"plugin": "acme", "distribution": "nasdistill-acme", "version": "1.2"})
    (path / "environment.json").write_text(json.dumps(environment))
    space = config["space"]
    (path / "config.json").write_text(json.dumps({**config, "target": [{"name": "acme:box"}]}))
    assert main(["compare", str(path), str(second)]) == 2
    said = capsys.readouterr().err
    assert "plugin 'acme' (nasdistill-acme 1.2), not here now" in said
    assert "Install 'nasdistill-acme==1.2'" in said
    (path / "config.json").write_text(json.dumps({**config, "space": [{"name": "acme:net"}, *space]}))
    assert main(["report", str(path), "--out", str(tmp_path / "report.html")]) == 0
    said = capsys.readouterr().err
    assert "warning: the report lacks the search spaces: no search space named 'acme:net'" in said
    assert "nasdistill-acme 1.2" in said


@pytest.mark.parametrize("heading", ["report RUN", "compare RUN RUN_OR_STUDENT ..."])
def test_the_keys_are_the_documented_ones(finished, second, capsys, heading):
    """What docs/contracts.md says of ``--json`` is what the commands print: the same keys, neither more nor fewer."""
    text = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text(encoding="utf-8")
    [page] = re.findall(rf"^## `nasdistill {re.escape(heading)} --json`\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", page, re.MULTILINE)
    told = {key: says for keys, says in rows for key in re.findall(r"`([^`]+)`", keys)}
    assert (
        main([heading.split()[0], str(finished.path), *([str(second)] if "compare" in heading else []), "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(told)
    for key in ("protocol", "runs", "networks", "sections"):
        entry = found.get(key)
        for item in entry if isinstance(entry, list) else [entry] if entry else []:
            fields = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)|\{[^}]*\}", "", told[key])))
            assert fields == set(item), key


def test_helpers_of_the_toys_are_consistent():
    assert brief(2.0)["value"] == latency(2.0)["latency"]["value_ms"]
