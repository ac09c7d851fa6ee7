"""Fixtures for the tests of plugin packages; pytest finds them when nasdistill is installed.

pytest imports this file in every session of every project in the environment, so it imports nothing of nasdistill
before a fixture is used.

======================  ===============================================================================================
``nasdistill_host``     a host with the bundled plugins only; ``nasdistill_host.add(module, "acme")`` loads yours
``nasdistill_cli``      runs a command line in this process: ``nasdistill_cli("plugins", "list", "--json").stdout``
``tiny_space``          a search space of 48 networks of a few hundred parameters, for images
``tiny_teacher``        a small network trained on real digits, in eval mode, frozen
``simulated_target``    a target whose latency is a formula: the same nanoseconds on every machine
======================  ===============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from nasdistill.host import Host
    from nasdistill.interfaces import SearchSpace, Target


@dataclass(frozen=True)
class CommandResult:
    """What a command line did.

    Attributes:
        code: exit code.
        stdout: its result.
        stderr: progress, warnings, errors.
    """

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The last line of standard output, as JSON."""
        import json

        return json.loads(self.stdout.strip().splitlines()[-1])


@pytest.fixture
def nasdistill_host() -> Host:
    """Return a host of its own: bundled plugins, nothing of the environment."""
    from nasdistill.testing import isolated_host

    return isolated_host()


@pytest.fixture
def nasdistill_cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., CommandResult]]:
    """Return a function that runs a command line in this process, with installed plugins as a user has them."""
    import logging

    from nasdistill.cli import main

    logger = logging.getLogger("nasdistill")
    handlers, level = list(logger.handlers), logger.level

    def run(*words: object) -> CommandResult:
        capsys.readouterr()
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return CommandResult(code, said.out, said.err)

    yield run
    logger.handlers[:] = handlers  # a command with -v sets up logging
    logger.setLevel(level)


@pytest.fixture
def tiny_space() -> SearchSpace:
    """Return a search space of 48 small networks for images, with the canonical id ``local:tiny``."""
    from nasdistill.spec.component import Kind
    from nasdistill.testing import isolated_host
    from nasdistill.testing.kit.space import TINY_SPACE

    space: SearchSpace = isolated_host(TINY_SPACE).create(Kind.SEARCH_SPACE, "local:tiny")
    return space


@pytest.fixture
def tiny_teacher() -> nn.Module:
    """Return a small network that was trained on digits ``(B, 1, 8, 8)``, 10 classes; a copy for each test."""
    from nasdistill.testing.kit import teacher

    return teacher.tiny_teacher()


@pytest.fixture
def simulated_target() -> Target:
    """Return the bundled target whose latency is a formula."""
    from nasdistill.spec.component import Kind
    from nasdistill.testing import isolated_host

    target: Target = isolated_host().create(Kind.TARGET, "simulated")
    return target
