"""Small networks, some of them broken, each in its own way, in training only."""

from __future__ import annotations

import ctypes
import os
import time
from typing import ClassVar

import networkx as nx
import torch
from pydantic import Field
from torch import nn

from nasdistill.interfaces import SearchSpace
from nasdistill.spec.architecture import Architecture, Axis
from nasdistill.spec.io import Cost, IOSpec
from nasdistill.spec.options import ComponentOptions


def fail(kind: str) -> None:
    """Do what the fault `kind` does."""
    if kind == "exception":
        raise RuntimeError("this student raises")
    if kind == "exit":
        os._exit(3)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "hang":
        time.sleep(3600)
    if kind == "leak":
        kept = []
        for _ in range(64):  # 4 GiB
            kept.append(b"\x01" * 2**26)
            time.sleep(0.01)
        time.sleep(3600)


class Student(nn.Module):
    """One hidden layer."""

    def __init__(self, features: int, width: int, classes: int, fault: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes))
        self.fault = fault

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `(B, classes)`, where nothing is broken."""
        logits: torch.Tensor = self.layers(x)
        if self.training and torch.is_grad_enabled():
            fail(self.fault)
            return logits * float("nan") if self.fault == "nan" else logits
        return logits


def teacher() -> nn.Module:
    """Return a teacher for 8 x 8 digits with random weights, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Student(64, 32, 10, "").eval()


class FaultyOptions(ComponentOptions):
    """Options of `faulty`."""

    count: int = Field(60, ge=1, description="Students.")
    faults: dict[int, str] = Field(default_factory=dict, description="Index -> what is broken.")


class Faulty(SearchSpace):
    """Students by index; the width grows with it."""

    options_model: ClassVar[type[ComponentOptions]] = FaultyOptions
    options: FaultyOptions

    def axes(self) -> tuple[Axis, ...]:
        """Return the index."""
        return (Axis("index", tuple(range(self.options.count)), 0, ordered=True),)

    def build(self, arch: Architecture, io: IOSpec) -> nn.Module:
        """Return a student, broken where the options say so."""
        self.check(arch)
        index = int(arch.params["index"])
        return Student(_features(io), 8 + index, io.outputs, self.options.faults.get(index, ""))

    def cost(self, arch: Architecture, io: IOSpec) -> Cost:
        """Return the cost of two matrix products."""
        width = 8 + int(arch.params["index"])
        macs = _features(io) * width + width * io.outputs
        return Cost(macs + width + io.outputs, macs, width + io.outputs)

    def graph(self, arch: Architecture, io: IOSpec) -> nx.DiGraph:
        """Return two nodes."""
        graph = nx.DiGraph()
        graph.add_edge("hidden", "output")
        return graph


def _features(io: IOSpec) -> int:
    channels, height, width = io.shape
    return channels * height * width
