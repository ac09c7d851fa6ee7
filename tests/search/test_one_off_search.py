"""A search whose space and proxy come from one file: in workers, resumed, loaded, and refused without the file."""

from __future__ import annotations

import logging
import shutil
import sys

import pytest
from toys_search import resumable, write_digits

import nasdistill
from nasdistill.cli import main
from nasdistill.errors import UnknownComponentError, UsageError
from nasdistill.files import read_json, write_json
from nasdistill.host import Host
from nasdistill.search.run import resume_search, run_search

FILE = """
from nasdistill import hookimpl
from nasdistill.interfaces import Proxy, ProxyScore
from nasdistill.spec.component import ProxySpec, SearchSpaceSpec, SpaceTags
from nasdistill.spec.options import ComponentOptions
from nasdistill_spaces.resnet_s0 import ResNetS0, ResNetS0Options

class MySpace(ResNetS0):
    pass

class Options(ComponentOptions):
    '''Options.'''

class Deep(Proxy):
    options_model = Options
    def score(self, request):
        return ProxyScore(float(sum(1 for _ in request.model.modules())))

@hookimpl
def nasdistill_search_spaces():
    return [SearchSpaceSpec("mine", "one_off_search:MySpace", "my space", options="one_off_search:ResNetS0Options",
                            tags=SpaceTags(family="vision", inherits=True))]

@hookimpl
def nasdistill_proxies():
    return [ProxySpec("deep", "one_off_search:Deep", "counts modules", options="one_off_search:Options")]
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run in one worker process, and its plugin file."""
    folder = tmp_path_factory.mktemp("one-off")
    file = folder / "one_off_search.py"
    file.write_text(FILE)
    config = resumable(
        write_digits(folder / "digits.npz"),
        space=[{"name": "one_off_search:mine", "options": {"blocks": [1], "width": [8, 16], "stages": [2, 3]}}],
        proxy=[{"name": "deep"}, {"name": "params"}],
        search__trials=3,
        workers__count=1,
    )
    patch = pytest.MonkeyPatch()
    patch.setenv("NASDISTILL_CACHE", str(folder / "cache"))
    host = Host.load(third_party=False, files=[file])

    def edit(event):  # what the workers run is what the search was started with
        file.write_text("1 / 0")

    try:
        result = run_search(config, folder / "run", host=host, listener=edit)
    finally:
        patch.undo()
        file.write_text(FILE)
    sys.modules.pop("one_off_search", None)
    return folder / "run", file, result


def load(file) -> Host:
    return Host.load(third_party=False, files=[file])


def test_the_search_used_the_file_in_its_worker(finished):
    run, file, result = finished
    assert result["trials"]["failed"] == 0
    assert result["front"]
    assert result["front"][0]["architecture"]["space"] == "one_off_search:mine"
    assert result["proxies"]["deep"]["n"]
    [entry] = [p for p in read_json(run / "environment.json")["plugins"] if p["plugin"] == "one_off_search"]
    frozen = read_json(run / "frozen.json")
    assert frozen["files"] == {"one_off_search": entry}
    assert entry["file"] == "one_off_search.py"
    assert len(entry["sha256"]) == 64
    assert str(file.parent) not in str(frozen)  # a run may be moved to where the file lies elsewhere


@pytest.fixture(autouse=True)
def _broken_plugins_are_reported(monkeypatch):
    """A broken file is a problem to report here, also where the environment wants the first one raised."""
    monkeypatch.delenv("NASDISTILL_STRICT_PLUGINS", raising=False)


@pytest.fixture
def killed(finished, tmp_path):
    """A copy of the run that says it was killed."""
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    write_json(run / "status.json", {"state": "running"})
    return run


def test_resuming_without_the_file_says_what_is_needed(killed, capsys):
    with pytest.raises(UsageError, match=r"started with the plugin file one_off_search\.py, which was not given now"):
        resume_search(killed, host=Host.load(third_party=False))
    assert main(["resume", str(killed)]) == 2
    said = capsys.readouterr().err
    assert f"nasdistill resume {killed} --plugin one_off_search.py" in said
    broken = killed.parent / "one_off_search.py"
    broken.write_text("1 / 0")
    with pytest.raises(UsageError, match=r"one_off_search\.py, which is broken now"):
        resume_search(killed, host=load(broken))


def test_resuming_with_the_file_goes_on_and_a_change_is_told(finished, killed, monkeypatch):
    run, file, result = finished
    monkeypatch.setenv("NASDISTILL_CACHE", str(run.parent / "cache"))
    texts = []
    changed = killed.parent / "one_off_search.py"
    changed.write_text(f"{FILE}\n# a comment\n")
    again = resume_search(killed, host=load(changed), listener=lambda event: texts.append(event.text), workers=0)
    assert [text for text in texts if "plugin file" in text] == [
        f"warning: plugin file one_off_search.py has changed since {killed} was started, so results before and after "
        "may not compare"
    ]
    assert [s["id"] for s in again["front"]] == [s["id"] for s in result["front"]]
    write_json(killed / "status.json", {"state": "running"})
    texts.clear()
    resume_search(killed, host=load(file), listener=lambda event: texts.append(event.text), workers=0)
    assert not [text for text in texts if "plugin file" in text]


def test_students_are_loaded_with_the_file_only(finished, tmp_path, caplog):
    run, file, result = finished
    folder = run / "students" / result["front"][0]["id"]
    for source in (run, folder):
        found = nasdistill.load(source, host=Host.load(third_party=False))
        student = found.best() if source == run else found
        with pytest.raises(UnknownComponentError, match=r"\(one_off_search\.py \w+\), which was not given") as error:
            student.model()
        assert "--plugin one_off_search.py" in error.value.hint
    caplog.set_level(logging.WARNING)
    assert nasdistill.load(folder, host=load(file)).model() is not None
    assert caplog.messages == []
    changed = tmp_path / "one_off_search.py"
    changed.write_text(f"{FILE}\n# a comment\n")
    assert nasdistill.load(folder, host=load(changed)).model() is not None
    assert "plugin file one_off_search.py has changed since this was made" in caplog.text
