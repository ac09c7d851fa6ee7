"""What docs/contracts.md says of ``--json`` is what the commands print: the same keys, neither more nor fewer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_distributions import write_distribution

PAGE = Path(__file__).parents[2] / "docs" / "contracts.md"
SMALL = '{"width": 8, "stages": 1, "stage0.blocks": 1}'
NAMES = re.compile(r"`([^`]+)`")
NESTED = re.compile(r"(list of |: )?\{(`[^{}]+`)\}")

# heading -> (words of a command, headings whose keys are printed too)
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plugins list": (("plugins", "list"), ()),
    "plugins show NAME": (("plugins", "show", "synflow"), ("plugins list",)),
    "plugins check NAME": (("plugins", "check", "params"), ()),
    "plugins new NAME --kind KIND": (("plugins", "new", "mine", "--kind", "proxy"), ()),
    "papers": (("papers",), ()),
    "spaces list": (("spaces", "list"), ()),
    "spaces show SPACE": (("spaces", "show", "resnet_s0"), ()),
    "spaces show SPACE --arch ARCH": (("spaces", "show", "resnet_s0", "--arch", SMALL), ("spaces sample SPACE",)),
    "spaces sample SPACE": (("spaces", "sample", "resnet_s0", "-n", "2"), ()),
    "score ...": (("score", "--space", "resnet_s0", "--arch", SMALL, "--proxy", "nwot"), ()),
    "measure ...": (
        ("measure", "--space", "resnet_s0", "--arch", SMALL, "--teacher", "timm:test_resnet", "--target", "simulated"),
        (),
    ),
    "doctor": (("doctor",), ()),
    "config show": (("config", "show"), ()),
}


ELSEWHERE = (
    "report RUN",
    "compare RUN RUN_OR_STUDENT ...",
    "export RUN_OR_STUDENT DIR --to FORMAT",
    "distill ARCH --epochs N --out DIR",
    "diagnose DIAGNOSTIC ...",
)
"""Headings of commands that need a run or a student, with a test in tests/report, tests/library, tests/diagnostics."""


def documented(heading: str) -> dict[str, str]:
    """Key -> what the page says of its value."""
    text = PAGE.read_text(encoding="utf-8")
    [section] = re.findall(
        rf"^## `nasdistill {re.escape(heading)} --json`\n(.*?)(?=^## )", text, re.DOTALL | re.MULTILINE
    )
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.MULTILINE)
    return {key: value for keys, value in rows for key in NAMES.findall(keys)}


def entries(value: Any) -> list[dict[str, Any]]:
    """The objects that stand in a value: itself, those of a list, or those under names that are not fixed."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    return [value] if isinstance(value, dict) else []


def test_every_command_of_the_page_is_tried():
    headings = re.findall(r"^## `nasdistill (.*?) --json`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    # The result object of a search has a test beside the search.
    assert headings == ["search --json`, `nasdistill show RUN", "resume RUN", *COMMANDS, *ELSEWHERE]


@pytest.mark.parametrize("heading", COMMANDS)
def test_the_keys_are_the_documented_ones(cli_here, tmp_path, heading):
    words, others = COMMANDS[heading]
    write_distribution(
        tmp_path / "site", "acme-dist", modules={"acme": "raise OSError('no')"}, entries={"acme": "acme"}
    )
    done = cli_here(*words, "--json", site=tmp_path / "site")
    assert done.returncode == 0, done.stderr
    told = {key: value for name in (heading, *others) for key, value in documented(name).items()}
    found = entries(json.loads(done.stdout))
    assert found
    nested = 0
    for entry in found:
        assert set(entry) == set(told)
        for key, says in told.items():
            shape = NESTED.search(says)
            if shape is None or entry[key] is None:
                continue
            listed, keys = shape.group(1), set(NAMES.findall(shape.group(2)))
            inner = entries(list(entry[key].values()) if listed == ": " else entry[key])
            assert isinstance(entry[key], list) == (listed == "list of ")
            for item in inner:
                assert set(item) == keys, f"{key}: {item}"
                nested += 1
    assert nested > 0 or not any(NESTED.search(says) for says in told.values())


def test_a_broken_plugin_is_among_the_documented_problems(cli_here, tmp_path):
    write_distribution(
        tmp_path / "site", "acme-dist", modules={"acme": "raise OSError('no')"}, entries={"acme": "acme"}
    )
    report = json.loads(cli_here("doctor", "--json", site=tmp_path / "site").stdout)
    [problem] = report["problems"]
    assert set(problem) == set(NAMES.findall(documented("doctor")["problems"]))
