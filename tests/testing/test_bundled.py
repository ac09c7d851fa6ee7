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
            # In one process what one check has found out (gates, networks, spaces elsewhere) serves the next.
            group = check.subject.id if isinstance(check, BoundCheck) else check.about[1]
            if group.startswith("spaces:"):
                group = "spaces"
            marks = [*parameter.marks, pytest.mark.xdist_group(group), *([pytest.mark.slow] if slow else [])]
            parameters.append(pytest.param(check, id=parameter.id, marks=marks))
    metafunc.parametrize("check", parameters)


def test_contract(check):
    check()
