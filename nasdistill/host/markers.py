"""The two pluggy markers; plugins use ``nasdistill.hookimpl``."""

from __future__ import annotations

import pluggy

PROJECT = "nasdistill"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
