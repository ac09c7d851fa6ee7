"""``nasdistill papers``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from fake_distributions import write_distribution

KEYS = ["number", "title", "arxiv", "components", "state", "left_out"]
ACME = """
from nasdistill import hookimpl
from nasdistill.spec.component import AttentionSpec, RecipeSpec

@hookimpl
def nasdistill_attention_variants():
    sources = ("https://arxiv.org/abs/2310.01777",)
    return [AttentionSpec("mla", "acme:M", "latent", references=sources, left_out="Rope.")]

@hookimpl
def nasdistill_recipes():
    return [RecipeSpec("mla", "acme:R", "upcycling", references=("arXiv:2310.01777v2",))]
"""


def listed(cli_here, *words, **options):
    done = cli_here("papers", *words, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_json_has_all_systems_and_exactly_the_promised_keys(cli_here):
    entries = listed(cli_here)
    assert [entry["number"] for entry in entries] == list(range(1, 73))
    for entry in entries:
        assert list(entry) == KEYS
        assert entry["state"] in ("works", "partial", "planned")
        assert (entry["state"] == "planned") is (not entry["components"])
        assert entry["left_out"] or entry["state"] == "works"
    installed = {entry["id"] for entry in json.loads(cli_here("plugins", "list", "--json").stdout)}
    assert {name for entry in entries for name in entry["components"]} <= installed


def test_what_is_there_today(cli_here):
    entries = {entry["number"]: entry for entry in listed(cli_here)}
    assert (entries[66]["state"], entries[66]["arxiv"]) == ("works", "2202.06258")
    assert entries[7]["components"] == ["losses:minilm", "losses:minilmv2", "recipes:teacher_assistant"]
    assert entries[7]["state"] == "works"
    assert "proxies:diswot" in entries[33]["components"]
    assert entries[33]["state"] == "partial"
    assert "semantic term" in entries[33]["left_out"]
    assert entries[1]["left_out"].startswith("no loss (")


def test_no_torch_is_loaded():
    code = (
        "import sys; from nasdistill.cli import main; code = main(['papers']); "
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + 72
    assert "72 of 72 systems: " in done.stderr
    assert "works" in done.stderr


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["33"], [33]),
        (["7", "05"], [5, 7]),
        (["minilm"], [7]),
        (["MINILMV2"], [7]),
        (["2012.15828"], [7]),
        (["arXiv:2303.15678"], [33]),
        (["proxies:diswot"], [33]),
        (["dataset", "distillation"], [17, 45]),
        (["tokenizer"], [60]),
        (["codebook", "tokens"], []),
        (["²"], []),  # a digit, but no number
        (["٣٣"], [33]),
    ],
)
def test_searching(cli_here, words, numbers):
    assert [entry["number"] for entry in listed(cli_here, *words)] == numbers


def test_words_that_no_title_has_are_sought_in_the_parts(cli_here):
    assert [entry["number"] for entry in listed(cli_here, "router")] == [49, 64]


def test_states_are_a_filter(cli_here):
    parts = {state: listed(cli_here, "--state", state) for state in ("works", "partial", "planned")}
    assert {entry["state"] for entry in parts["works"]} == {"works"}
    assert sorted(entry["number"] for part in parts.values() for entry in part) == list(range(1, 73))
    assert listed(cli_here, "33", "--state", "planned") == []
    wrong = cli_here("papers", "--state", "done")
    assert wrong.returncode == 2
    assert "works" in wrong.stderr


def test_one_paper_is_told_in_detail(cli_here):
    done = cli_here("papers", "33")
    assert done.returncode == 0
    for text in ("DisWOT", "https://arxiv.org/abs/2303.15678", "partial", "proxies:diswot", "losses:relation (in part)",
                 "left out", "Grad-CAM"):  # fmt: skip
        assert text in done.stdout
    planned = cli_here("papers", "1").stdout
    assert "U-Net" in planned
    assert "left out" not in planned


def test_nothing_found_is_said_with_what_was_meant(cli_here):
    done = cli_here("papers", "minilmm")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no system fits 'minilmm'. Did you mean 'minilm'" in done.stderr
    assert "no system fits 'zen'" in cli_here("papers", "zen").stderr  # not the middle of "frozen"
    both = cli_here("papers", "minilm", "--state", "planned")
    assert both.stderr == "no system in the state 'planned' fits 'minilm'.\n"
    unknown = cli_here("papers", "73")
    assert unknown.returncode == 2
    assert "from 1 to 72" in unknown.stderr


def test_components_of_others_count(cli_here, tmp_path):
    write_distribution(tmp_path / "site", "acme-dist", modules={"acme": ACME}, entries={"acme": "acme"})
    [entry] = listed(cli_here, "51", site=tmp_path / "site")
    assert (entry["components"], entry["state"]) == (["acme:mla"], "partial")
    assert entry["left_out"].startswith("no loss (")
    assert entry["left_out"].endswith("; acme:mla: Rope")
    text = cli_here("papers", "51", site=tmp_path / "site").stdout
    assert text.count("acme:mla") == 3  # as attention, as recipe, and for what it leaves out
    [without] = json.loads(cli_here("papers", "51", "--json", "--no-plugin", "acme", site=tmp_path / "site").stdout)
    assert without["state"] == "planned"
