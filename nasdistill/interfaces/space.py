"""Search spaces: from flat parameters to a network, its graph, its cost and its inherited weights."""

from __future__ import annotations

import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn

from nasdistill.errors import ArchitectureError, did_you_mean
from nasdistill.interfaces.base import Component
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.signals import ModelGeometry
from nasdistill.spec.architecture import Architecture, Axis, Value
from nasdistill.spec.io import Cost, IOSpec

if TYPE_CHECKING:
    import networkx as nx
    import optuna

    from nasdistill.interfaces.batch import Batch
    from nasdistill.spec.config import ObjectiveConfig, TrainingConfig


@dataclass(frozen=True, slots=True)
class InheritReport:
    """What `inherit` did.

    Attributes:
        copied: number of parameters that came from the teacher.
        total: number of the student's parameters.
        notes: what was ranked, sliced or left at its initial value.
    """

    copied: int
    total: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SubSpace:
    """A named restriction of a space: axis name -> allowed choices."""

    name: str
    choices: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    summary: str = ""


class Supernet(nn.Module, ABC):
    """Shared weights of a whole space."""

    @abstractmethod
    def set_arch(self, arch: Architecture) -> None:
        """Make the following forwards compute `arch`."""

    @abstractmethod
    def extract(self, arch: Architecture) -> nn.Module:
        """Return a stand-alone network equal to the sliced one (to 1e-6); its copied weights fit what `build` gives."""


@dataclass(frozen=True, slots=True)
class ModelingSource:
    """How a network is built from plain data, without the space: what an exporter needs to write the network's code.

    An exporter copies the source of `factory`, of `parts` and of all they use out of the packages they come from;
    torch, numpy and the standard library stay imports. So these must not need a host, options models or files.

    Attributes:
        factory: a module-level function ``factory(config, parts) -> nn.Module``.
        config: what to call it with: JSON-able, one list entry per layer. Options must be complete.
        parts: name used in `config` -> class (attention cores; created as ``Class(options, geometry=...)``).
        sizes: sizes of the whole under the names that transformers' configurations use (``hidden_size``,
            ``num_hidden_layers``), for tools that read those; empty where these names do not apply.
        per_layer: layer -> what differs there (``num_attention_heads``, ``intermediate_size``), for transformers'
            ``per_layer_config``.
    """

    factory: Callable[[Mapping[str, Any], Mapping[str, type]], nn.Module]
    config: Mapping[str, Any]
    parts: Mapping[str, type] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    per_layer: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StockModel:
    """A network that a class of transformers can be configured to: its folder opens without any code of ours.

    Attributes:
        config: the content of ``config.json``: ``model_type``, ``architectures`` and sizes.
        weights: from the network's tensors to those of the class named in ``architectures``, by name; tied tensors
            once. The tensors must not be changed in place.
    """

    config: Mapping[str, Any]
    weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class SearchSpace(Component, ABC):
    """A space of architectures.

    A subclass gives `axes`, `build`, `cost` and `graph`; sampling, Optuna suggestions, mutation, crossover,
    validation and enumeration follow from the axes. Axes are flat and always all present; one that does not matter
    for a point is *inactive* and holds its default there, so equal networks are equal architectures.

    Contract (checked for every space): valid points build and run; `cost` equals the built module's parameters
    exactly and its counted MACs; JSON, hash and fingerprint round-trip across processes; mutation and crossover stay
    inside; axis names and choices are the same in every call; an invalid point is refused with every reason.

    Attributes:
        version: raise it when the same parameters would build another network.
        inner_option: the option that names another space as ``{name, options}`` whose networks this one's are; that
            space adapts to the teacher too.
    """

    version: ClassVar[int] = 1
    inner_option: ClassVar[str | None] = None

    @classmethod
    def adapted(cls, options: Mapping[str, Any], teacher: TeacherInfo) -> dict[str, Any]:
        """Return options to fill in from the teacher (the sizes of its network), such as are not given.

        What it returns is put beside `options` before the space is created, and recorded with the run and with every
        student, which are then built without the teacher.

        Raises:
            MismatchError: this space cannot serve students of such a teacher; says what is missing.
        """
        return {}

    @abstractmethod
    def axes(self) -> tuple[Axis, ...]:
        """Return all axes, in a fixed order."""

    @abstractmethod
    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return the network with fresh weights from torch's global generator (the caller seeds it).

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """

    @abstractmethod
    def cost(self, arch: Architecture, io: IOSpec) -> Cost:
        """Return the analytic cost of one forward of one sample."""

    @abstractmethod
    def graph(self, arch: Architecture, io: IOSpec) -> nx.DiGraph:
        """Return the network as a connected acyclic graph; nodes carry ``op``, ``label``, ``shape``, ``params``."""

    def accepts(self, io: IOSpec) -> str | None:
        """Return why this space cannot serve `io`, or None when it can."""
        return None

    def constraints(self, params: Mapping[str, Value]) -> list[str]:
        """Return violated relations between axes, as sentences (beyond each axis' choices)."""
        return []

    def inherit(
        self, student: nn.Module, arch: Architecture, teacher: nn.Module, *, calibration: Sequence[Batch] = ()
    ) -> InheritReport | None:
        """Start `student` from the weights of `teacher`, in place.

        Returns:
            What was copied, or None when this teacher is of another family (the student then keeps its own start).
        """
        return None

    def layer_map(self, arch: Architecture, teacher: ModelGeometry) -> dict[int, int]:
        """Return student layer -> teacher layer for layer-wise losses; the default spreads them evenly, last on
        last.
        """
        depth = self.depth(arch)
        if depth < 1 or teacher.layers < 1:
            return {}
        return {i: math.ceil((i + 1) * teacher.layers / depth) - 1 for i in range(depth)}

    def depth(self, arch: Architecture) -> int:
        """Return the number of blocks (0 where the word has no meaning)."""
        return 0

    def supernet(self, io: IOSpec, teacher: nn.Module | None = None, *, subspace: SubSpace | None = None) -> Supernet:
        """Return shared weights for the whole space, or for one of :meth:`subspaces`, started from the teacher's.

        Raises:
            NotImplementedError: this space has none (tag ``supernet=False``).
        """
        raise NotImplementedError(f"space {self.id} has no supernet")

    def teaching(
        self, arch: Architecture, objective: ObjectiveConfig, training: TrainingConfig
    ) -> tuple[ObjectiveConfig, TrainingConfig]:
        """Return how a student of `arch` is trained; as the run says, unless the space searches that too."""
        return objective, training

    def stock_model(self, arch: Architecture, io: IOSpec) -> StockModel | None:
        """Return the class of transformers that computes the same as `arch`, or None where there is none."""
        return None

    def modeling_source(self, arch: Architecture, io: IOSpec) -> ModelingSource | None:
        """Return how `arch` is built without this space, for exporters that write self-contained code.

        The default is None: such exporters then refuse this space, the others (``torch``, ``onnx``) serve it.
        """
        return None

    def subspaces(self) -> tuple[SubSpace, ...]:
        """Return named restrictions of this space."""
        return ()

    # ---- what follows from the axes ---------------------------------------------------------------------------

    def architecture(self, params: Mapping[str, Value]) -> Architecture:
        """Return the canonical architecture for `params`; missing axes take their default.

        Raises:
            ArchitectureError: listing every violation.
        """
        arch = Architecture.of(self.id, self.canonical(params), self.version)
        self.check(arch)
        return arch

    def canonical(self, params: Mapping[str, Value]) -> dict[str, Value]:
        """Return all axes, the inactive ones at their default; unknown names are kept for `validate` to report."""
        axes = self.axes()
        full = {axis.name: params.get(axis.name, axis.default) for axis in axes}
        # Values that are no choice stay for `validate`, too; no axis is asked about them.
        valid = {axis.name: full[axis.name] if full[axis.name] in axis.choices else axis.default for axis in axes}
        clean = {axis.name: full[axis.name] if axis.is_active(valid) else axis.default for axis in axes}
        return {**clean, **{name: value for name, value in params.items() if name not in clean}}

    def validate(self, arch: Architecture) -> list[str]:
        """Return every reason why `arch` is not a point of this space; empty when it is."""
        found = []
        if arch.space != self.id:
            found.append(f"it belongs to space {arch.space!r}, not {self.id!r}")
        if arch.version != self.version:
            found.append(f"it was made for version {arch.version} of the space, this is version {self.version}")
        axes = {axis.name: axis for axis in self.axes()}
        found += [f"unknown axis {name!r}. {did_you_mean(name, axes)}" for name in arch.params if name not in axes]
        for name, axis in axes.items():
            if name not in arch.params:
                found.append(f"axis {name!r} is missing")
                continue
            value = arch.params[name]
            # 1 == 1.0 in Python, but they differ in JSON: the type belongs to the choice.
            if not any(value == choice and type(value) is type(choice) for choice in axis.choices):
                found.append(f"{name} = {value!r} is not one of {', '.join(map(repr, axis.choices))}")
        if not found:
            for name, axis in axes.items():
                if not axis.is_active(arch.params) and arch.params[name] != axis.default:
                    found.append(f"{name} is inactive here and must be {axis.default!r}, not {arch.params[name]!r}")
            found.extend(self.constraints(arch.params))
        return found

    def check(self, arch: Architecture) -> None:
        """Raise ArchitectureError with every violation when `arch` is not a point of this space."""
        violations = self.validate(arch)
        if violations:
            raise ArchitectureError(
                f"not a valid architecture of {self.id}: " + "; ".join(violations),
                hint=f"nasdistill spaces show {self.id} lists the axes and their choices.",
            )

    def sample(self, rng: random.Random) -> Architecture:
        """Return a random point: every axis uniform, redrawn until the constraints hold."""
        for _ in range(10_000):
            params = self.canonical({axis.name: rng.choice(axis.choices) for axis in self.axes()})
            if not self.constraints(params):
                return Architecture.of(self.id, params, self.version)
        raise ArchitectureError(
            f"space {self.id}: no valid point in 10,000 random draws; its constraints are too tight"
        )

    def suggest(self, trial: optuna.trial.BaseTrial, prefix: str = "") -> Architecture:
        """Return the point that an Optuna trial proposes; all axes are suggested, inactive ones ignored.

        Raises:
            ArchitectureError: the proposed values violate the constraints (the caller records it as infeasible).
        """
        params: dict[str, Value] = {}
        for axis in self.axes():
            value = trial.suggest_categorical(prefix + axis.name, list(axis.choices))
            params[axis.name] = cast("Value", value)
        return self.architecture(params)

    def mutate(self, arch: Architecture, rng: random.Random, changes: int = 1) -> Architecture:
        """Return a neighbour: `changes` active axes get another value (an adjacent one where the axis is ordered)."""
        for _ in range(1_000):
            params = dict(arch.params)
            active = [a for a in self.axes() if len(a.choices) > 1 and a.is_active(params)]
            for axis in rng.sample(active, min(changes, len(active))):
                here = axis.choices.index(params[axis.name])
                if axis.ordered:
                    others = [i for i in (here - 1, here + 1) if 0 <= i < len(axis.choices)]
                else:
                    others = [i for i in range(len(axis.choices)) if i != here]
                params[axis.name] = axis.choices[rng.choice(others)]
            params = self.canonical(params)
            if not self.constraints(params):
                return Architecture.of(self.id, params, self.version)
        return arch

    def crossover(self, first: Architecture, second: Architecture, rng: random.Random) -> Architecture:
        """Return a child that takes each axis from one parent or the other."""
        for _ in range(1_000):
            params = self.canonical({a.name: rng.choice((first, second)).params[a.name] for a in self.axes()})
            if not self.constraints(params):
                return Architecture.of(self.id, params, self.version)
        return first

    def raw_size(self) -> int:
        """Return the product of all axes' choices, inactive repeats and constraint violations included."""
        return math.prod(len(axis.choices) for axis in self.axes())

    def size(self) -> int:
        """Return the number of distinct points.

        The default enumerates up to a million raw points and otherwise returns `raw_size`; spaces override it with a
        closed form.
        """
        return sum(1 for _ in self.enumerate()) if self.raw_size() <= 1_000_000 else self.raw_size()

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every distinct point once, in a fixed order."""
        seen = set()
        axes = self.axes()
        for values in itertools.product(*(axis.choices for axis in axes)):
            params = self.canonical({axis.name: value for axis, value in zip(axes, values, strict=True)})
            if self.constraints(params):
                continue
            arch = Architecture.of(self.id, params, self.version)
            if arch not in seen:
                seen.add(arch)
                yield arch

    def default(self) -> Architecture:
        """Return the point of all defaults."""
        return self.architecture({})

    def features(self, arch: Architecture) -> dict[str, Any]:
        """Return the active axes only: what a person wants to see of a point."""
        return {a.name: arch.params[a.name] for a in self.axes() if a.is_active(arch.params)}
