"""Components that break the rules of every kind; they are proxies, being the smallest kind."""

from __future__ import annotations

import dataclasses
import os
import random
import sys
import threading
import warnings
from typing import ClassVar

import torch
from pydantic import BaseModel, Field, field_validator
from zoo_base import Broken

from nasdistill.interfaces import Example, Proxy, ProxyInput, ProxyScore
from nasdistill.spec.component import ProxySpec, ProxyTags, Requirement
from nasdistill.spec.options import ComponentOptions


class Sound(Proxy):
    """The number of weights, as a negative power of ten."""

    def score(self, candidate: ProxyInput) -> ProxyScore:
        return ProxyScore(float(sum(parameter.numel() for parameter in candidate.model.parameters())))


class NotAProxy:
    """Derives from nothing."""


class WantsMore(Sound):
    """Its constructor refuses."""

    def __init__(self, options=None, *, host=None):
        super().__init__(options, host=host)
        raise RuntimeError("no licence found")


class Refuses(Sound):
    """Ends the process when it does not like the machine."""

    def __init__(self, options=None, *, host=None):
        super().__init__(options, host=host)
        sys.exit("no gpu")


class Quits(Sound):
    """Believes to be the main program."""

    def score(self, candidate):
        sys.exit(0)


class DictExample(Sound):
    """Writes its example as JSON."""

    examples = ({"options": {}},)


class OneExample(Sound):
    """Forgets the comma."""

    examples = Example()


class ListedOptions(Sound):
    """Lists what it is created with."""

    examples = (Example(options=["factor"]),)


class ListedFailures(Sound):
    """Names what it fails, not why."""

    expected_failures: ClassVar = ["prints_nothing"]


class Unreasoned(Sound):
    """Keeps the reason to itself."""

    expected_failures: ClassVar = {"prints_nothing": ""}


class Raises(Sound):
    """Never gets through."""

    def score(self, candidate):
        raise ZeroDivisionError("float division by zero")


class Undocumented(Sound):
    __doc__ = None


class UnhelpfulOptions(ComponentOptions):
    """Options nobody explains."""

    factor: float = 1.0


class Unhelpful(Sound):
    """Has an option without a description."""

    options_model = UnhelpfulOptions


class ShrinkingOptions(ComponentOptions):
    """Options that change whenever they are read."""

    factor: float = Field(8.0, description="a factor")

    @field_validator("factor")
    @classmethod
    def _halve(cls, value):
        return value / 2


class Shrinking(Sound):
    """Halves its option at every reading."""

    options_model = ShrinkingOptions


class LaxOptions(BaseModel):
    """Options that take anything."""

    factor: float = Field(1.0, description="a factor")


class Lax(Sound):
    """Ignores unknown options."""

    options_model = LaxOptions


class Counting(Sound):
    """Answers differently at every call."""

    calls = 0

    def score(self, candidate):
        type(self).calls += 1
        return ProxyScore(super().score(candidate).value + type(self).calls)


class Seeding(Sound):
    """Seeds torch for everybody."""

    def score(self, candidate):
        torch.manual_seed(0)
        return super().score(candidate)


class Drawing(Sound):
    """Draws from Python's global generator."""

    def score(self, candidate):
        random.random()
        return super().score(candidate)


class SettingVariables(Sound):
    """Leaves an environment variable behind, another one every time."""

    def score(self, candidate):
        os.environ["ZOO_CALLS"] = os.environ.get("ZOO_CALLS", "") + "x"
        return super().score(candidate)


class SettingConstants(Sound):
    """Sets the same switches every time, as if they were its own."""

    def score(self, candidate):
        os.environ["ZOO_MODE"] = "fast"
        warnings.simplefilter("ignore")
        return super().score(candidate)


class Threading(Sound):
    """Wants two threads, and says so when it is made."""

    def __init__(self, options=None, *, host=None):
        super().__init__(options, host=host)
        torch.set_num_threads(2)


class Chatty(Sound):
    """Prints its score."""

    def score(self, candidate):
        print("scored!")
        return super().score(candidate)


class Locked(Sound):
    """Holds a lock."""

    def __init__(self, options=None, *, host=None):
        super().__init__(options, host=host)
        self.lock = threading.Lock()


def spec(name: str, cls: type, **changes) -> ProxySpec:
    """Return the spec of a class of this module."""
    target = f"{__name__}:{cls.__name__}"
    sound = ProxySpec(
        name, target, "one of the zoo", references=("original",), tags=ProxyTags(needs_data=False, cost="analytic")
    )
    return dataclasses.replace(sound, **changes)


LACKING = (Requirement("no_such_package", "zoo[more]"),)
SOUND = [spec("sound", Sound), spec("absent", WantsMore, requires=LACKING)]
BROKEN = [
    Broken("can_be_imported", spec("missing", Sound, target="zoo_common:NoSuchClass"), "NoSuchClass"),
    Broken("can_be_imported", spec("no_proxy", NotAProxy), "does not derive from Proxy"),
    Broken("can_be_imported", spec("unnamed_options", Shrinking), "does not name their model"),
    Broken("can_be_imported", spec("dict_example", DictExample), "examples[0] is a dict, not an Example"),
    Broken("can_be_imported", spec("one_example", OneExample), "examples is one Example, not a tuple"),
    Broken("can_be_imported", spec("listed_options", ListedOptions), "examples[0] has a list for its options"),
    Broken("can_be_imported", spec("listed_failures", ListedFailures), "expected_failures is a list, not a mapping"),
    Broken("can_be_imported", spec("unreasoned", Unreasoned), "'prints_nothing': ''"),
    Broken("can_be_created", spec("wants_more", WantsMore), "no licence found"),
    Broken("can_be_created", spec("refuses", Refuses), "it called sys.exit('no gpu')"),
    Broken("works", spec("raises", Raises), "ZeroDivisionError"),
    Broken("works", spec("quits", Quits), "it called sys.exit(0)"),
    Broken("names_its_source", spec("sourceless", Sound, references=()), "references is empty"),
    Broken("names_its_source", spec("misquoted", Sound, references=("arxiv 2303.15678",)), "arxiv 2303.15678"),
    Broken("is_documented", spec("undocumented", Undocumented), "no docstring"),
    Broken("is_documented", spec("unhelpful", Unhelpful, options="zoo_common:UnhelpfulOptions"), "'factor'"),
    Broken("options_round_trip", spec("shrinking", Shrinking, options="zoo_common:ShrinkingOptions"), "read back as"),
    Broken("unknown_options_are_refused", spec("lax", Lax, options="zoo_common:LaxOptions"), "ignored"),
    Broken("same_seed_same_result", spec("counting", Counting), "differ"),
    Broken("leaves_the_process_as_found", spec("seeding", Seeding), "seed of torch's generator"),
    Broken("leaves_the_process_as_found", spec("drawing", Drawing), "Python's random state"),
    Broken("leaves_the_process_as_found", spec("setting", SettingVariables), "ZOO_CALLS"),
    Broken("leaves_the_process_as_found", spec("constants", SettingConstants), "ZOO_MODE"),
    Broken("leaves_the_process_as_found", spec("threading", Threading), "number of threads"),
    Broken("prints_nothing", spec("chatty", Chatty), "scored!"),
    Broken("can_be_copied", spec("locked", Locked), "lock"),
]
