"""What the checks say of a proxy whose answer is no score at all."""

from __future__ import annotations

import pytest

from nasdistill import hookimpl
from nasdistill.host import Host
from nasdistill.interfaces import Proxy
from nasdistill.spec.component import ProxySpec
from nasdistill.testing import check_component
from nasdistill.testing.results import failures


class Bare(Proxy):
    """Returns the number itself."""

    def score(self, candidate):
        return 1.0


class Forgetful(Proxy):
    """Forgets to return anything."""

    def score(self, candidate):
        pass


class Hooks:
    """The plugin."""

    @hookimpl
    def nasdistill_proxies(self):
        return [
            ProxySpec(cls.__name__.lower(), f"{__name__}:{cls.__name__}", "answers wrongly", references=("original",))
            for cls in (Bare, Forgetful)
        ]


@pytest.mark.parametrize(("name", "kind"), [("bare", "float"), ("forgetful", "NoneType")])
def test_the_type_of_the_answer_is_named(name, kind):
    host = Host.load(third_party=False)
    host.add(Hooks(), "answers")
    broken = failures(check_component(name, host=host, on_fail="record"))
    assert broken
    assert all(f"it returned {kind} instead of a ProxyScore" in item.message for item in broken)
