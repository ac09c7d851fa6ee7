"""New plugin packages, written from templates: ``nasdistill plugins new``."""

from nasdistill.scaffold.kinds import KindFacts, kind_facts
from nasdistill.scaffold.package import LICENSES, NewPlugin, render, write

__all__ = ["LICENSES", "KindFacts", "NewPlugin", "kind_facts", "render", "write"]
