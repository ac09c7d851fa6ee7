"""Every bundled component keeps the contract of its kind, the thorough checks included."""

from __future__ import annotations

import pytest

from nasdistill.host.bundled import BUNDLED, plugin_name
from nasdistill.testing import BoundCheck, isolated_host, parametrize_with_checks

HOST = isolated_host()


def pytest_generate_tests(metafunc):
    """Parametrise over the plugins one after the other; what only a thorough run does is slow."""
    parameters = []
    for module in BUNDLED:
        for parameter in parametrize_with_checks(plugin_name(module), host=HOST, thorough=True).args[1]:
            (check,) = parameter.values
            slow = isinstance(check, BoundCheck) and check.check.thorough
            marks = [*parameter.marks, *([pytest.mark.slow] if slow else [])]
            parameters.append(pytest.param(check, id=parameter.id, marks=marks))
    metafunc.parametrize("check", parameters)


def test_contract(check):
    check()
