"""One set of weights, of which every architecture of a sub-space is a slice: what supernets of layered networks share.

The slice is taken as in "AutoDistil: Few-shot Task-agnostic Neural Architecture Search for Distilling Large Language
Models", arXiv 2201.12507: the top-left part of every matrix, norms over the slice only, layer i from the teacher's
layer floor(i * depth there / depth here).

`set_arch` puts the architecture's own network, a module without parameters, in place as the child
``active``; each forward hands it slices of the shared weights. So a sliced network has the modules, the layers and the
sites of the stand-alone one (plans of its sites may be kept per architecture), and computes by the same code; gradients
arrive in the shared weights.

The shared tensors are as wide as the widest member of the sub-space, not as the teacher: what no member reads is not
kept, trained or decayed. They have all layers of the teacher that some member reads.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nasdistill.errors import ArchitectureError
from nasdistill.interfaces import Supernet
from nasdistill.spec.architecture import Architecture

KEPT_NETWORKS = 512
"""Sliced networks that are kept for the next time their architecture is set; they hold modules, no weights."""

_Names = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor of a sliced network -> the shared tensor it is the top-left part of, and its shape."""


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are where fresh weights would be drawn: on the meta device that is slow, for nothing."""

    skipped: ClassVar[frozenset[Any]] = frozenset({nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in self.skipped:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


class SlicedWeights(Supernet):
    """Shared weights of networks whose layers stand in one module list.

    Attributes:
        stem: how the names of the layers' tensors begin, before the number.
        shared: the network that holds the weights; its layer j is layer ``layers[j]`` of the teacher.
        layers: the teacher's layers that are there.
        active: the network of the architecture set last; its tensors are slices of `shared`.

    Args:
        shared: network as large as the largest member in every tensor.
        layers: see above.
        build: architecture -> its network (weights do not matter).
        sources: architecture -> the teacher layer of each of its layers.
        first: set to begin with.
    """

    stem: ClassVar[str]

    def __init__(
        self,
        shared: nn.Module,
        layers: Sequence[int],
        build: Callable[[Architecture], nn.Module],
        sources: Callable[[Architecture], Sequence[int]],
        first: Architecture,
    ) -> None:
        super().__init__()
        self.shared = shared
        self.layers = tuple(layers)
        self._build, self._sources = build, sources
        self._networks: OrderedDict[Architecture, tuple[nn.Module, _Names]] = OrderedDict()
        self._names: _Names = {}
        self.arch = first
        self.set_arch(first)

    def set_arch(self, arch: Architecture) -> None:
        """Make the following forwards compute `arch`.

        Raises:
            ArchitectureError: it is no member of the sub-space that this supernet was made for.
        """
        if arch not in self._networks:
            self._networks[arch] = self._skeleton(arch)
            if len(self._networks) > KEPT_NETWORKS:
                self._networks.popitem(last=False)
        self._networks.move_to_end(arch)
        network, self._names = self._networks[arch]
        self.arch = arch
        self.active = network.train(self.training)
        self._fill(detached=True)

    def run(self, *inputs: Tensor | None) -> Tensor:
        """Compute the set architecture."""
        self._fill()
        try:
            return self.active(*inputs)  # type: ignore[no-any-return]
        finally:
            self._fill(detached=True)  # what lies around between forwards holds no graph, and can be copied

    def extract(self, arch: Architecture) -> nn.Module:
        """Return a stand-alone network with copied weights, in the same mode; the set architecture stays."""
        network = self._empty(arch)
        for name, tensor in self._slices(self._name_slices(network, arch)).items():
            path, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(path), leaf, nn.Parameter(tensor.detach().clone()))
        return network.train(self.training)

    def _skeleton(self, arch: Architecture) -> tuple[nn.Module, _Names]:
        """Return the network of `arch` without parameters, and what its tensors are slices of."""
        network = self._empty(arch)
        names = self._name_slices(network, arch)
        for module in network.modules():
            for name in [name for name, parameter in module._parameters.items() if parameter is not None]:
                del module._parameters[name]
        return network, names

    def _empty(self, arch: Architecture) -> nn.Module:
        """Return the network of `arch` with weights that take no memory; no generator is asked for numbers."""
        with torch.device("meta"), _NoDraws():
            return self._build(arch)

    def _name_slices(self, network: nn.Module, arch: Architecture) -> _Names:
        own = [name for name, _ in (*network.named_parameters(), *network.named_buffers()) if ".core." in name]
        if own:
            raise ArchitectureError(
                f"an attention variant with tensors of its own cannot share them in a supernet: {own[0]}",
                hint="Leave it out of the option `attention` of the space.",
            )
        shared = dict(self.shared.named_parameters())
        sources, names, problems = self._sources(arch), {}, []
        for name, tensor in network.named_parameters():
            match = re.match(re.escape(self.stem) + r"(\d+)\.(.*)", name)
            where = name
            if match:
                source = sources[int(match[1])]
                if source not in self.layers:
                    problems.append(f"teacher layer {source}")
                    continue
                where = f"{self.stem}{self.layers.index(source)}.{match[2]}"
            if where not in shared or any(a > b for a, b in zip(tensor.shape, shared[where].shape, strict=True)):
                problems.append(f"{name} of shape {tuple(tensor.shape)}")
                continue
            names[name] = where, tuple(tensor.shape)
        if problems:
            raise ArchitectureError(
                f"{dict(arch.params)} is no member of this supernet, which lacks {problems[0]}"
                + (f" and {len(problems) - 1} more" if problems[1:] else ""),
                hint="Make the supernet for the whole space, or set an architecture of its sub-space.",
            )
        return names

    def _slices(self, names: _Names) -> dict[str, Tensor]:
        """Return the slices of the shared weights; gradients flow through them."""
        shared = dict(self.shared.named_parameters())
        found = {}
        for name, (where, sizes) in names.items():
            tensor: Tensor = shared[where]
            for axis, size in enumerate(sizes):
                tensor = tensor if tensor.shape[axis] == size else tensor.narrow(axis, 0, size)
            found[name] = tensor
        return found

    def _fill(self, *, detached: bool = False) -> None:
        """Give the active network its tensors, as plain attributes."""
        for name, tensor in self._slices(self._names).items():
            path, _, leaf = name.rpartition(".")
            self.active.get_submodule(path).__dict__[leaf] = tensor.detach() if detached else tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> SlicedWeights:
        """Copy the weights; the kept networks are made again when they are needed."""
        twin: SlicedWeights = type(self).__new__(type(self))
        memo[id(self)] = twin
        shared = {"_build": self._build, "_sources": self._sources, "_networks": OrderedDict()}
        twin.__dict__.update(
            {k: shared[k] if k in shared else copy.deepcopy(v, memo) for k, v in self.__dict__.items()}
        )
        return twin
