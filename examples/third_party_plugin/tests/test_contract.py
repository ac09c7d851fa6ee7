"""Every rule of nasdistill's contract that concerns this plugin, one test each."""

from nasdistill.testing import parametrize_with_checks


@parametrize_with_checks("acme")
def test_contract(check):
    check()
