"""Commands that are sound but for one thing; each stands in a module of its own, in ``zoo_commands``."""

from __future__ import annotations

from zoo_base import Broken

from nasdistill.spec.component import CommandSpec


def spec(name, target):
    return CommandSpec(name, f"zoo_commands.{target}", "one of the zoo", references=("original",))


SOUND = [spec("sound", "sound:run"), spec("bare", "bare:run")]
BROKEN = [
    Broken("takes_the_arguments", spec("two", "sound:run_two"), "'config'"),
    Broken("takes_the_arguments", spec("later", "sound:run_later"), "asynchronous"),
    Broken("name_is_free", spec("search", "bare:run"), "built-in"),
    Broken("arguments_can_be_declared", spec("once", "once:run"), "the second 1"),
    Broken("arguments_can_be_declared", spec("clashing", "clashing:run"), "--share"),
    Broken("help_is_printed", spec("percent", "percent:run"), "--help raises"),
    Broken("arguments_are_explained", spec("silent", "silent:run"), "--share"),
    Broken("frames_options_are_left_alone", spec("loud", "loud:run"), "--debug"),
    Broken("asks_for_help_quickly", spec("heavy", "heavy:run"), "numpy"),
    Broken("asks_for_help_quickly", spec("hasty", "hasty:run"), "numpy"),
]
