"""A third-party plugin with a search space some of whose students are broken; see `fault_campaign.py`."""

from __future__ import annotations

from nasdistill import hookimpl
from nasdistill.spec.component import SearchSpaceSpec


@hookimpl
def nasdistill_search_spaces() -> list[SearchSpaceSpec]:
    """Register the space."""
    return [SearchSpaceSpec("faulty", "faulty_space:Faulty", "small networks, some of them broken in training")]
