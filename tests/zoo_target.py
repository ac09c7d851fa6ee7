"""Targets that are sound but for one thing."""

from __future__ import annotations

import copy
import itertools

import torch
from zoo_base import Broken

from nasdistill.interfaces import Availability, Prepared, Target
from nasdistill.measure import flatten_outputs
from nasdistill.spec.component import TargetSpec, TargetTags


class Copied(Prepared):
    def __init__(self, model, example):
        super().__init__()
        self.model, self.example = copy.deepcopy(model).eval(), example

    def run(self):
        self.outputs()

    def outputs(self):
        with torch.no_grad():
            return [tensor.clone() for tensor in flatten_outputs(self.model(*self.example))]


class Sound(Target):
    """torch, as it is."""

    prepared = Copied
    tolerance = 1e-6

    def probe(self):
        return Availability(True)

    def environment(self):
        return {"runtime": "torch"}

    def prepare(self, request):
        return self.prepared(request.model, request.example)


class Absent(Sound):
    """Says in order that it is not here."""

    def probe(self):
        return Availability(False, "the device is at the menders")

    def prepare(self, request):
        raise AssertionError("nobody should come here")


class RaisingProbe(Sound):
    """Raises when asked."""

    def probe(self):
        raise ImportError("no module named npu")


class SilentProbe(Sound):
    """Says no without a reason."""

    def probe(self):
        return Availability(False)


class Restless(Sound):
    """Its environment is another one each time."""

    count = itertools.count()

    def environment(self):
        return {"call": next(self.count)}


class NotJson(Sound):
    """Its environment holds an object."""

    def environment(self):
        return {"dtype": torch.float32}


class Rounded(Copied):
    def outputs(self):
        return [tensor.half().float() for tensor in super().outputs()]


class Rounding(Sound):
    """Computes in half precision and does not say so."""

    prepared = Rounded
    tolerance = 1e-6

    def prepare(self, request):  # exact where numbers are small integers
        return Rounded(request.model, request.example)


class FirstOnly(Copied):
    def outputs(self):
        return super().outputs()[:1]


class Narrow(Sound):
    """Returns the first output only."""

    prepared = FirstOnly


class Training(Copied):
    def __init__(self, model, example):
        super().__init__(model, example)
        model.train()


class Switching(Sound):
    """Puts the caller's network into training mode."""

    prepared = Training


class Walled(Copied):
    clock = "wall"


class WrongClock(Sound):
    """Times by another clock than it says."""

    prepared = Walled


class Drifting(Copied):
    clock = "simulated"
    count = itertools.count(1000)

    def elapsed_ns(self):
        return next(self.count)


class Unsteady(Sound):
    """A simulator that does not repeat itself."""

    prepared = Drifting


class Littering(Sound):
    """Writes a file that nobody asked for."""

    def prepare(self, request):
        (request.folder / "debug.txt").write_text("here")
        return super().prepare(request)


class Nameless(Sound):
    """Says that it exports, and names no file."""


class Tolerant(Copied):
    def run(self):
        pass

    def outputs(self):
        try:
            return super().outputs()
        except RuntimeError:
            return []


class Swallowing(Sound):
    """Runs what cannot run."""

    prepared = Tolerant


class Guessing(Copied):
    def peak_memory_bytes(self):
        return 0


class Guess(Sound):
    """Claims to need no memory."""

    prepared = Guessing


class Once(Copied):
    closed = False

    def close(self):
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


class CloseOnce(Sound):
    """Cannot be closed twice."""

    prepared = Once


class Lazy(Copied):
    done = False

    def run(self):
        if not self.done:
            self.outputs()
            self.done = True


class Idle(Sound):
    """Runs at the first call only, and is fast ever after."""

    prepared = Lazy


class Rough(Copied):
    calls = 0

    def outputs(self):
        self.calls += 1
        return [tensor.half().float() if self.calls > 2 else tensor for tensor in super().outputs()]


class Optimising(Sound):
    """Switches to half precision when it has seen a network often enough."""

    prepared = Rough


class Buffered(Copied):
    def outputs(self):
        found = super().outputs()
        self.buffers = getattr(self, "buffers", found)
        for buffer, tensor in zip(self.buffers, found, strict=True):
            buffer.copy_(tensor)
        return self.buffers

    def run(self):
        for buffer in getattr(self, "buffers", []):
            buffer.zero_()
        super().outputs()


class Overwriting(Sound):
    """Hands out its own buffers, and clears them for the next run."""

    prepared = Buffered


class Ticking(Copied):
    clock = "device"
    count = itertools.count()

    def __init__(self, model, example):
        super().__init__(model, example)
        self.nanoseconds = sum(p.numel() for p in model.parameters()) * (1 if next(self.count) % 2 else 4)

    def elapsed_ns(self):
        return self.nanoseconds


class Alternating(Sound):
    """Puts every second network on a slower part of its device."""

    prepared = Ticking


def spec(name, cls, **tags):
    return TargetSpec(
        name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",), tags=TargetTags(**tags)
    )


SOUND = [spec("sound", Sound), spec("absent", Absent)]
BROKEN = [
    Broken("probe_answers", spec("raising_probe", RaisingProbe), "no module named npu"),
    Broken("probe_answers", spec("silent_probe", SilentProbe), "no reason"),
    Broken("environment_is_recorded", spec("restless", Restless), "differs between two calls"),
    Broken("environment_is_recorded", spec("not_json", NotJson), "not JSON"),
    Broken("outputs_equal_torch", spec("rounding", Rounding), "stated tolerance is 1e-06"),
    Broken("two_runs_agree", spec("optimising", Optimising), "of run 1 and run 3"),
    Broken("two_runs_agree", spec("overwriting", Overwriting), "as handed out and after more runs"),
    Broken("two_timings_agree", spec("alternating", Alternating, clock="device"), "prepared twice"),
    Broken("several_inputs_and_outputs", spec("narrow", Narrow), "1 outputs instead of 2"),
    Broken("leaves_the_network_alone", spec("switching", Switching), "train/eval mode"),
    Broken("clock_is_true", spec("wrong_clock", WrongClock), "'wall'"),
    Broken("clock_is_true", spec("unsteady", Unsteady, clock="simulated"), "repeat itself"),
    Broken("exports_is_true", spec("littering", Littering), "debug.txt"),
    Broken("exports_is_true", spec("nameless", Nameless, exports=True), "`artefact` is None"),
    Broken("refuses_in_order", spec("swallowing", Swallowing), "as if nothing were wrong"),
    Broken("memory_is_a_fact", spec("guess", Guess), "returned 0"),
    Broken("can_be_closed_twice", spec("close_once", CloseOnce), "closed already"),
    Broken("more_work_takes_longer", spec("idle", Idle), "eight times the depth"),
]
