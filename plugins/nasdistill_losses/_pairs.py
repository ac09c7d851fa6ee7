"""Which signal of the student learns from which of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from nasdistill.errors import MismatchError
from nasdistill.interfaces import ModelGeometry, Site
from nasdistill.spec.options import ComponentOptions
from nasdistill.trace import even_layer_map
from nasdistill_losses._tokens import grid_of

Pair = tuple[Site, Site]


class PairOptions(ComponentOptions):
    """Options of the losses that compare layers."""

    layers: Literal["map", "last"] | tuple[tuple[int, int], ...] = Field(
        "map",
        description="Which layers are paired: `map` takes the search space's layer map for blocks, equal resolutions "
        "(else an even spread) for stage maps, and the last of each where one side has blocks and the other stage "
        "maps; `last` the last of each; a list gives [student, teacher] pairs, negative counting from the end.",
    )
    student_signal: Literal["auto", "hidden", "norm", "features"] = Field(
        "auto", description="Signal of the student: block outputs, outputs of each block's first norm, stage maps, or "
        "what it has (blocks first).",
    )  # fmt: skip
    teacher_signal: Literal["auto", "hidden", "norm", "features"] = Field(
        "auto", description="Signal of the teacher, likewise."
    )


def choose_pairs(
    options: PairOptions, student: ModelGeometry, teacher: ModelGeometry, layer_map: Mapping[int, int], name: str
) -> list[Pair]:
    """Return the pairs of sites that a loss compares.

    Args:
        options: which layers and signals.
        student: what exists in the student.
        teacher: what exists in the teacher.
        layer_map: student block -> teacher block.
        name: the loss, for messages.

    Raises:
        MismatchError: a model has no such signal.
    """
    ours, theirs = choose_signals(options, student, teacher, name)
    counts = student.count(ours), teacher.count(theirs)
    if options.layers == "last" or (options.layers == "map" and _kind(ours) != _kind(theirs)):
        numbers = [(-1, -1)]
    elif options.layers == "map":
        known = dict(layer_map) if _kind(ours) == "block" else _by_resolution(student, teacher)
        numbers = sorted((known or even_layer_map(*counts)).items())
    else:
        numbers = list(options.layers)
    if not numbers:
        raise MismatchError(f"{name}: no pair of layers was chosen", hint="Set options.layers to 'map' or 'last'.")
    return [
        (resolve(student, Site(ours, i), name, "student"), resolve(teacher, Site(theirs, j), name, "teacher"))
        for i, j in numbers
    ]


def choose_signals(options: PairOptions, student: ModelGeometry, teacher: ModelGeometry, name: str) -> tuple[str, str]:
    """Return the names of the sites that are compared. Raises MismatchError where a model has nothing to compare."""
    return _signal(options.student_signal, student, name), _signal(options.teacher_signal, teacher, name)


def resolve(geometry: ModelGeometry, site: Site, name: str, side: str) -> Site:
    """Return a site with a non-negative layer. Raises MismatchError for one that the model lacks."""
    try:
        return geometry.resolve(site)
    except KeyError as error:
        raise MismatchError(
            f"{name} cannot be used with this {side}: {error.args[0]}",
            hint="Choose a loss that fits both models, such as `kd`, or other layers.",
        ) from None


def shapes_text(student: ModelGeometry, ours: Site, teacher: ModelGeometry, theirs: Site) -> str:
    """Return ``student (2, 16, 8) at q.1, teacher (3, 16, 8) at q.3`` with the models' labels."""
    return (
        f"{student.label} has {student[ours].shape} at {ours} (student), "
        f"{teacher.label} has {teacher[theirs].shape} at {theirs} (teacher)"
    )


def _signal(choice: str, geometry: ModelGeometry, name: str) -> str:
    if choice != "auto":
        if not geometry.count(choice):
            raise MismatchError(
                f"{name}: {geometry.label} has no site {choice}; it has "
                f"{', '.join(sorted({s.name for s in geometry.sites})) or 'none'}",
                hint="Choose another signal, or `auto`.",
            )
        return choice
    for signal in ("hidden", "features"):
        if geometry.count(signal):
            return signal
    raise MismatchError(f"{name}: {geometry.label} has neither blocks nor stage maps to compare")


def _kind(signal: str) -> str:
    return "map" if signal == "features" else "block"


def _by_resolution(student: ModelGeometry, teacher: ModelGeometry) -> dict[int, int]:
    """Return student stage -> teacher stage of the same grid."""
    theirs = {grid: stage for stage, grid in _grids(teacher).items()}
    return {stage: theirs[grid] for stage, grid in _grids(student).items() if grid in theirs}


def _grids(geometry: ModelGeometry) -> dict[int, tuple[int, int] | None]:
    """Return stage -> grid."""
    return {
        s.layer: grid_of(shape) for s, shape in geometry.sites.items() if s.name == "features" and s.layer is not None
    }
