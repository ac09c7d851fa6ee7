"""Every bundled component keeps the contract of its kind."""

from __future__ import annotations

from nasdistill.host.bundled import BUNDLED, plugin_name
from nasdistill.testing import isolated_host, parametrize_with_checks

HOST = isolated_host()


def pytest_generate_tests(metafunc):
    """Parametrise over the plugins one after the other."""
    marks = [parametrize_with_checks(plugin_name(module), host=HOST) for module in BUNDLED]
    parameters = [parameter for mark in marks for parameter in mark.args[1]]
    metafunc.parametrize("check", parameters)


def test_contract(check):
    check()
