"""A network as a list of steps: the one description from which both its cost and its graph are read.

A space writes each layer once, with its output shape and its cost. The cost of the network is then the sum over the
steps, and the graph has the steps as nodes, so the two cannot disagree.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasdistill.interfaces import SearchSpace
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import Cost, IOSpec

if TYPE_CHECKING:
    import networkx as nx

FREE = Cost(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Step:
    """One layer.

    Attributes:
        name: dotted path of the module, or of the operation's place.
        op: what it is: ``conv``, ``linear``, ``attention``, ``add`` ...
        shape: output of one sample, without the batch axis.
        cost: parameters, MACs and written elements.
        inputs: names of the steps it reads.
        label: what a person wants to see.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    cost: Cost
    inputs: tuple[str, ...]
    label: str


class Plan:
    """Steps in the order in which they run."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.steps: list[Step] = [Step("input", "input", shape, FREE, (), "input")]

    @property
    def last(self) -> str:
        """Name of the latest step."""
        return self.steps[-1].name

    def add(
        self,
        name: str,
        op: str,
        shape: tuple[int, ...],
        cost: Cost = FREE,
        *,
        after: str | tuple[str, ...] | None = None,
        label: str = "",
    ) -> str:
        """Append a step that reads `after` (the latest step by default) and return its name."""
        inputs = (self.last,) if after is None else (after,) if isinstance(after, str) else after
        self.steps.append(Step(name, op, shape, cost, inputs, label or op))
        return name

    def cost(self) -> Cost:
        """Return the sum over all steps."""
        return sum((step.cost for step in self.steps), FREE)

    def graph(self) -> nx.DiGraph:
        """Return the steps as nodes with ``op``, ``label``, ``shape``, ``params`` and ``macs``."""
        import networkx as nx

        graph = nx.DiGraph()
        for step in self.steps:
            graph.add_node(
                step.name,
                op=step.op,
                label=step.label,
                shape=step.shape,
                params=step.cost.params,
                macs=step.cost.macs,
            )
            graph.add_edges_from((source, step.name) for source in step.inputs)
        return graph


class PlannedSpace(SearchSpace):
    """A space that says its networks layer by layer; cost and graph follow from that."""

    @abstractmethod
    def plan(self, arch: Architecture, io: IOSpec) -> Plan:
        """Return the network layer by layer, for one sample (text: of the reference length ``io.shape[0]``).

        Raises:
            ArchitectureError: not a point of this space, or impossible for `io`.
        """

    def cost(self, arch: Architecture, io: IOSpec) -> Cost:
        """Return the sum over the layers of :meth:`graph`."""
        return self.plan(arch, io).cost()

    def graph(self, arch: Architecture, io: IOSpec) -> nx.DiGraph:
        """Return one node per layer, named as the module it stands for."""
        return self.plan(arch, io).graph()


def halvings_to(side: int, limit: int) -> int:
    """Return how often `side` must be halved (rounding up) until it is at most `limit`."""
    count = 0
    while side > limit:
        side = -(-side // 2)
        count += 1
    return count
