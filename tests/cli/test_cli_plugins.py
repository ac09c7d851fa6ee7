"""``nasdistill plugins``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_distributions import write_distribution, write_proxy_plugin

from nasdistill import __version__

PARTS = """
from typing import Literal
from pydantic import Field
from nasdistill.interfaces import Proxy, ProxyScore
from nasdistill.spec.options import ComponentOptions, searchable

class Options(ComponentOptions):
    '''Options.'''
    power: float = Field(2.0, gt=0, le=10, description="Exponent [of the norm].")
    mode: Literal["a", "b"] = "a"
    width: int = searchable(4, choices=(2, 4, 8), description="Width.", ge=1)
    label: str | None = None
    needed: int
    pair: tuple[int, ...] = (1, 2)

class Score(Proxy):
    options_model = Options
    def score(self, request):
        return ProxyScore(1.0)
"""
PLUGIN = """
from nasdistill import hookimpl
from nasdistill.spec.component import LossSpec, ProxySpec, ProxyTags, Requirement

@hookimpl
def nasdistill_proxies():
    return [
        ProxySpec("rich_one", "acme_parts:Score", "scores a lot", references=("arXiv:1234.5678", "A. Author 2020"),
                  left_out="the second half", tags=ProxyTags(needs_labels=True)),
        ProxySpec("lacking", "acme_parts:Score", "needs more", requires=(Requirement("not_there", "acme[more]"),)),
        ProxySpec("twin", "acme_parts:Score", "a proxy"),
        ProxySpec("Bad", "acme_parts:Score", "a bad name"),
    ]

@hookimpl
def nasdistill_losses():
    return [LossSpec("twin", "acme_parts:Missing", "a loss")]
"""


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    write_distribution(
        folder, "acme-dist", modules={"acme_plugin": PLUGIN, "acme_parts": PARTS}, entries={"acme": "acme_plugin"}
    )
    return folder


def test_list_json_has_exactly_the_promised_keys(cli):
    done = cli("plugins", "list", "--json")
    assert done.returncode == 0
    entries = json.loads(done.stdout)
    assert len(entries) > 10
    for entry in entries:
        assert list(entry) == ["id", "kind", "plugin", "distribution", "version", "summary", "references"]
        assert entry["id"].startswith(entry["plugin"] + ":")
        assert (entry["distribution"], entry["version"]) == ("nasdistill", __version__)
        assert isinstance(entry["references"], list)


def test_list_by_kind(cli_here, acme: Path):
    for word in ("proxy", "proxies"):
        entries = json.loads(cli_here("plugins", "list", "--kind", word, "--json", site=acme).stdout)
        assert {entry["kind"] for entry in entries} == {"proxy"}
        assert "acme:rich_one" in [entry["id"] for entry in entries]
    wrong = cli_here("plugins", "list", "--kind", "prxy")
    assert wrong.returncode == 2
    assert "Did you mean 'proxy'" in wrong.stderr


def test_list_as_text_goes_to_stdout_whole(cli_here, acme: Path):
    done = cli_here("plugins", "list", site=acme)
    assert "acme:rich_one" in done.stdout
    assert "\x1b" not in done.stdout
    assert "failed at spec" in done.stderr


def test_problems(cli_here, acme: Path):
    write_distribution(acme, "broken-dist", modules={"broken_module": "1 / 0"}, entries={"broken": "broken_module"})
    done = cli_here("plugins", "list", "--problems", "--json", site=acme)
    assert done.returncode == 0
    assert done.stderr == ""
    problems = {problem["plugin"]: problem for problem in json.loads(done.stdout)}
    assert problems["acme"]["stage"] == "spec"
    assert problems["acme"]["component"] == "acme:Bad"
    assert (problems["broken"]["stage"], problems["broken"]["version"]) == ("import", "1.2")
    text = cli_here("plugins", "list", "--problems", site=acme)
    assert len(text.stdout.splitlines()) == 2
    assert cli_here("plugins", "list", "--problems", env={"NASDISTILL_PLUGINS": ""}).stdout == ""


def test_show_tells_everything(cli_here, acme: Path):
    details = json.loads(cli_here("plugins", "show", "rich_one", "--json", site=acme).stdout)
    assert details["id"] == "acme:rich_one"
    assert details["references"] == ["arXiv:1234.5678", "A. Author 2020"]
    assert details["left_out"] == "the second half"
    assert details["tags"]["needs_labels"] is True
    assert details["problem"] is None
    assert Path(details["source"]["file"]).name == "acme_parts.py"
    lines = (acme / "acme_parts.py").read_text().splitlines()
    assert lines[details["source"]["line"] - 1].startswith("class Score")
    options = {option["name"]: option for option in details["options"]}
    assert options["power"] == {
        "name": "power", "type": "float", "required": False, "default": 2.0, "bounds": {"gt": 0, "le": 10},
        "help": "Exponent [of the norm].", "search": None,
    }  # fmt: skip
    assert options["mode"]["type"] == "'a' | 'b'"
    assert options["width"]["search"] == [2, 4, 8]
    assert options["label"]["type"] == "str | none"
    assert options["needed"]["required"] is True
    assert options["pair"]["type"] == "tuple[int, ...]"


def test_show_as_text(cli, acme: Path):
    text = cli("plugins", "show", "acme:rich_one", site=acme).stdout
    for words in (
        "acme:rich_one", "scores a lot", "acme-dist 1.2", "acme_parts.py:", "arXiv:1234.5678", "the second half",
        "needs_labels = True", "> 0, <= 10", ">= 1; search: 2, 4, 8", "Exponent [of the norm].", "required",
    ):  # fmt: skip
        assert words in text


def test_show_of_a_component_that_lacks_an_extra(cli_here, acme: Path):
    details = json.loads(cli_here("plugins", "show", "lacking", "--json", site=acme).stdout)
    assert details["missing"] == ["not_there"]
    assert "pip install 'acme[more]'" in details["problem"]
    assert details["summary"] == "needs more"


def test_show_of_a_component_that_cannot_be_imported(cli_here, acme: Path):
    done = cli_here("plugins", "show", "twin", "--kind", "loss", site=acme)
    assert done.returncode == 0
    assert "has no 'Missing'" in done.stdout


def test_show_of_a_name_that_several_have(cli_here, acme: Path):
    done = cli_here("plugins", "show", "twin", site=acme)
    assert done.returncode == 2
    assert "acme:twin (proxy), acme:twin (loss)" in done.stderr
    assert "--kind" in done.stderr
    assert (
        json.loads(cli_here("plugins", "show", "twin", "--kind", "proxy", "--json", site=acme).stdout)["kind"]
        == "proxy"
    )


def test_show_of_nothing(cli_here):
    done = cli_here("plugins", "show", "synflw")
    assert done.returncode == 2
    assert "'synflow'" in done.stderr


def test_show_of_a_plugin(cli_here, acme: Path):
    details = json.loads(cli_here("plugins", "show", "acme", "--json", site=acme).stdout)
    assert (details["name"], details["state"], details["api"], details["bundled"]) == ("acme", "loaded", 1, False)
    assert len(details["components"]) == 4
    assert details["problems"][0]["component"] == "acme:Bad"
    assert "plugin API 1" in cli_here("plugins", "show", "acme", site=acme).stdout


def test_an_ambiguous_name_asks_for_the_id(cli_here, tmp_path: Path):
    write_proxy_plugin(tmp_path / "site", "acme", "cosine")
    write_proxy_plugin(tmp_path / "site", "other", "cosine")
    done = cli_here("plugins", "show", "cosine", site=tmp_path / "site")
    assert done.returncode == 2
    assert "acme:cosine (proxy), other:cosine (proxy)" in done.stderr
