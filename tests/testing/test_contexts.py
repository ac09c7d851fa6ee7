"""What examples say of their components' surroundings: the names are declared, and a misspelt one is an error."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest

from nasdistill import testing
from nasdistill.errors import UsageError
from nasdistill.interfaces import Example
from nasdistill.spec.component import Kind, TaskSpec
from nasdistill.testing import generate_checks, isolated_host
from nasdistill.testing.checks import common
from nasdistill.testing.kit.task import TINY_TASK, TinyTask
from nasdistill.testing.registry import context_names
from nasdistill.testing.subject import Subject

CHECKS = Path(testing.__file__).parent / "checks"


@pytest.mark.parametrize("kind", Kind, ids=str)
def test_what_the_checks_ask_an_example_for_is_declared(kind):
    """And nothing else is; the pages of the documentation are made from it."""
    sources = [CHECKS / f"{kind.value}.py", *(CHECKS / kind.value).glob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources if path.exists())
    asked = set(re.findall(r"""(?:context(?:\.get)?|made)\(\s*"(\w+)\"""", text))
    if "example_task(" in text:
        asked |= {"task", "task_options"}
    if kind is Kind.ATTENTION:
        assert re.findall(r'context\("(\w+)"', Path(common.__file__).read_text(encoding="utf-8")) == ["geometry"]
        asked.add("geometry")
    assert asked == set(context_names(kind))
    assert all(meaning and not meaning.endswith(".") for meaning in context_names(kind).values())


def results(cls, **arguments):
    model = "nasdistill.testing.kit.task:TinyTaskOptions"
    spec = TaskSpec("mine", f"{cls.__module__}:{cls.__name__}", "a task", options=model, references=("original",))
    host = isolated_host(spec)
    [record] = [record for record in host.specs(Kind.TASK) if record.id == "local:mine"]
    return [bound.run() for bound in generate_checks(host, record, **arguments)]


class Misspelt(TinyTask):
    examples = (Example(context={"other_option": {"samples": 40}}),)


def test_a_name_that_nobody_asks_for_is_an_error():
    [first] = [result for result in results(Misspelt) if result.status == "failed"]
    assert first.check == "can_be_imported"
    assert "examples[0] has 'other_option' in its context, which no check of a task asks for" in first.message
    assert "Did you mean 'other_options'" in first.message


def test_so_it_is_in_an_example_that_is_given():
    with pytest.raises(UsageError, match=r"has 'modell' in its context.*Did you mean 'model'"):
        results(TinyTask, examples=[Example(context={"modell": None})])


def test_what_an_example_makes_is_made_once_in_a_folder_that_goes_with_it():
    made = []

    def write(folder):
        made.append(folder)
        (folder / "x").write_text("x")
        return str(folder / "x")

    host = isolated_host(TINY_TASK)
    subject = Subject(host, next(iter(host.specs(Kind.TASK))), Example(context={"locator": write, "task": "tiny"}))
    assert subject.made("locator") == subject.made("locator")
    assert Path(subject.made("locator")).read_text() == "x"
    assert (subject.made("task"), subject.made("task_options")) == ("tiny", None)
    [folder] = made
    del subject
    gc.collect()
    assert not folder.exists()
