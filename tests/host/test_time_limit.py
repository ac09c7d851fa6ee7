"""Plugins that hang while they load."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_distributions import HANGS, PROXY_PLUGIN, write_distribution, write_proxy_plugin

from nasdistill.host import Host, Stage, timelimit
from nasdistill.host.timelimit import TimeLimitReached, load_seconds, time_limit
from nasdistill.spec.component import Kind

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")


@pytest.fixture(autouse=True)
def _real_clock_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelimit, "time", time)  # what hangs puts it forward
    monkeypatch.setenv("NASDISTILL_PLUGIN_TIMEOUT", "60")


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(600)",
        "while True:\n    pass",
        "import time\ntry:\n    time.sleep(600)\nexcept Exception:\n    pass",
        "import threading\nthreading.Event().wait()",
        "import subprocess\nsubprocess.run(['sleep', '600'])",
        # Swallows the first interruption, and the second comes.
        "import time\ntry:\n    time.sleep(600)\nexcept:\n    pass\ntime.sleep(600)",
        # Swallows it and is done: late all the same.
        "import time\ntry:\n    time.sleep(600)\nexcept:\n    pass",
    ],
)
def test_a_plugin_that_hangs_at_import(site: Path, source: str):
    write_distribution(site, "slow-dist", modules={"slow_module": HANGS + source}, entries={"slow": "slow_module"})
    write_proxy_plugin(site, "zz_good", "fine")
    host = Host.load()
    assert host.canonical(Kind.PROXY, "fine") == "zz_good:fine"
    [problem] = host.problems
    assert problem.stage is Stage.IMPORT
    assert str(problem) == (
        "plugin 'slow' (slow-dist 1.2) failed at import: it took longer than 60 s (NASDISTILL_PLUGIN_TIMEOUT sets the "
        "limit). Go on without it: nasdistill plugins disable slow, or once: --no-plugin slow"
    )


def test_a_plugin_that_hangs_in_a_hook(site: Path):
    source = PROXY_PLUGIN.format(component="cosine", module="slow_module").replace(
        "return [", "hang(); import time; yield from iter(lambda: time.sleep(600), 1); return ["
    )
    source = HANGS.removesuffix("hang()\n") + source
    write_distribution(site, "slow-dist", modules={"slow_module": source}, entries={"slow": "slow_module"})
    host = Host.load()
    [problem] = host.problems
    assert problem.stage is Stage.HOOK
    assert "longer than 60 s" in problem.cause
    assert host.plugin("slow").state == "broken"
    assert Host.load(**host.arguments).problems == [], "no worker process waits for it again"


def test_handler_and_timer_of_before_are_back():
    seen = []

    def own(number: int, frame: object) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGALRM, own)
    try:
        signal.setitimer(signal.ITIMER_REAL, 100.0, 50.0)
        with time_limit(60.0):
            assert signal.getsignal(signal.SIGALRM) is not own
            signal.signal(signal.SIGALRM, signal.SIG_IGN)  # whatever the plugin does to it
        assert signal.getsignal(signal.SIGALRM) is own
        remaining, interval = signal.setitimer(signal.ITIMER_REAL, 0.0)
        assert 0 < remaining <= 100
        assert interval == 50
        with pytest.raises(TimeLimitReached), time_limit(0.05):
            time.sleep(600)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert seen == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_what_the_body_raises_itself_goes_through():
    with pytest.raises(ZeroDivisionError), time_limit(60.0):
        _ = 1 / 0


def test_no_limit_where_there_can_be_none():
    with time_limit(0.0):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    done = []

    def load() -> None:
        with time_limit(0.05):
            time.sleep(0.1)
        done.append(True)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert done == [True]


def test_an_import_of_torch_is_awaited(monkeypatch: pytest.MonkeyPatch):
    """Cut in the middle, it could not be imported again in this process: it is awaited, and its time does not count."""
    import torch

    spec = torch.__spec__
    monkeypatch.setattr(spec, "_initializing", True, raising=False)
    with time_limit(0.05):
        time.sleep(0.15)

    def then_hang() -> None:
        with time_limit(0.05):
            time.sleep(0.1)
            spec._initializing = False
            time.sleep(600)

    with pytest.raises(TimeLimitReached):
        then_hang()


@pytest.mark.parametrize(
    ("text", "seconds", "wrong"),
    [("", 15, False), (" 2.5 ", 2.5, False), ("0", 0, False), ("soon", 15, True), ("-1", 15, True), ("nan", 15, True)],
)
def test_the_setting(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float, wrong: bool):
    monkeypatch.setenv("NASDISTILL_PLUGIN_TIMEOUT", text)
    found, notice = load_seconds()
    assert found == seconds
    assert (repr(text.strip()) in notice) is wrong
    assert Host.load(third_party=False).notices == ([notice] if wrong else [])


def test_a_limit_that_is_reached_before_the_import_is_no_clash_of_names(site: Path, monkeypatch: pytest.MonkeyPatch):
    write_proxy_plugin(site, "unlucky", "fine")

    @contextlib.contextmanager
    def over(seconds: float) -> Iterator[None]:
        if seconds:
            raise TimeLimitReached
        yield lambda: None

    monkeypatch.setattr("nasdistill.host.loading.time_limit", over)
    host = Host.load()
    [problem] = host.problems
    assert problem.stage is Stage.IMPORT
    assert problem.hint.startswith("Go on without it: nasdistill plugins disable unlucky")
    assert host.plugin("unlucky").state == "broken"
