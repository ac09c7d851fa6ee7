"""Checks of targets: what is prepared computes what torch computes, and says truthfully what it is.

How a target is timed is the host's business; here it is only asked whether more work takes longer, by a wide margin.
A target that is not available on this machine is skipped, with its own reason.
"""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import NasdistillError
from nasdistill.interfaces import Availability, Prepared, PrepareRequest, Target
from nasdistill.measure import flatten_outputs
from nasdistill.measure.guard import Guard
from nasdistill.spec.component import Kind
from nasdistill.testing.kit.models import SmallResNet, SmallViT, built, digits
from nasdistill.testing.registry import check, exercise, fail, skip
from nasdistill.testing.state import few, same
from nasdistill.testing.subject import Subject


class Sum(nn.Module):
    """Two inputs, two outputs in a mapping: the shape of things that are not images."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return sum and product, ``(B, C)`` each."""
        return {"sum": x + y, "product": x * y}


class Refusing(nn.Module):
    """A network that cannot run at all."""

    def forward(self, x: Tensor) -> Tensor:
        """Raise."""
        raise RuntimeError("this network does not run")


@contextlib.contextmanager
def prepared(subject: Subject, model: nn.Module, example: Sequence[Tensor]) -> Iterator[tuple[Prepared, Path]]:
    """Prepare a model in a folder of its own; yield what came out and the folder, and close it."""
    target = available(subject)
    with tempfile.TemporaryDirectory() as name:
        ready = target.prepare(PrepareRequest(model, tuple(example), Path(name)))
        try:
            yield ready, Path(name)
        finally:
            ready.close()


def available(subject: Subject) -> Target:
    """Return a new target; skip where it says that it does not work here."""
    target: Target = subject.create()
    try:
        answer = target.probe()
        usable, reason = answer.ok, answer.reason
    except Exception:  # a check of its own says so
        usable, reason = True, ""
    if not usable:
        skip(f"not available here: {reason}")
    return target


def image(batch: int = 1) -> tuple[Tensor]:
    """Return `batch` images of digits, as positional inputs."""
    return (digits(batch).image,)


@exercise(Kind.TARGET)
def use(subject: Subject) -> list[Any]:
    """Prepare a small network, run it and read its outputs."""
    with subject.seeded(), prepared(subject, built(SmallResNet).eval(), image()) as (ready, _):
        ready.run()
        return [tensor.clone() for tensor in ready.outputs()]


@check(Kind.TARGET, hint="Catch what the runtime's import raises, and say in `reason` what to install or change.")
def probe_answers(subject: Subject) -> None:
    """`probe` returns an Availability without raising, with a reason when the answer is no."""
    try:
        answer = subject.create().probe()
    except Exception as error:
        fail(f"probe raised {type(error).__name__}: {error}")
    if not isinstance(answer, Availability):
        fail(f"probe returned {type(answer).__name__}, not an Availability")
    if not answer.ok and not answer.reason.strip():
        fail("probe says no and gives no reason")


@check(Kind.TARGET, hint="Return versions, threads and precision as JSON values.")
def environment_is_recorded(subject: Subject) -> None:
    """`environment` returns what timings depend on as JSON, the same in every call."""
    target = available(subject)
    first = target.environment()
    try:
        text = json.dumps(first, allow_nan=False)
    except (TypeError, ValueError) as error:
        fail(f"environment is not JSON: {error}")
    if not first:
        fail("environment is empty")
    if json.dumps(target.environment()) != text:
        fail("environment differs between two calls")


@check(
    Kind.TARGET, hint="Compare the runtime's outputs with torch's in evaluation mode; raise `tolerance` if it rounds."
)
def outputs_equal_torch(subject: Subject) -> None:
    """The outputs equal torch's within the stated tolerance, for one image and for several."""
    tolerance = subject.create().tolerance
    for batch in (1, 3):
        for model in (_trained(built(SmallResNet)), built(SmallViT).eval()):
            with torch.no_grad():
                expected = model(*image(batch))
            with prepared(subject, model, image(batch)) as (ready, _):
                found = ready.outputs()
            _compare([expected], found, tolerance, f"{type(model).__name__} on {batch} images")


@check(Kind.TARGET, hint="Keep nothing between runs that changes what is computed; return copies of reused buffers.")
def two_runs_agree(subject: Subject) -> None:
    """Every run computes the same, bit for bit, and outputs that were handed out stay as they are."""
    with prepared(subject, _trained(built(SmallResNet)), image(3)) as (ready, _):
        first = ready.outputs()
        kept = [tensor.clone() for tensor in first]
        for number in range(2, 6):
            ready.run()
            if difference := same(kept, ready.outputs(), "the list of outputs"):
                fail(f"of run 1 and run {2 * number - 1}, {difference}")
        ready.run()
        if difference := same(kept, first, "the list of outputs"):
            fail(f"as handed out and after more runs, {difference}")


@check(Kind.TARGET, hint="Flatten mappings and tuples of outputs with nasdistill.measure.flatten_outputs.")
def several_inputs_and_outputs(subject: Subject) -> None:
    """A network with two inputs and a mapping of outputs is prepared too."""
    example = (torch.arange(6.0).reshape(2, 3), torch.ones(2, 3) * 3)
    model = Sum().eval()
    with prepared(subject, model, example) as (ready, _):
        ready.run()
        _compare(flatten_outputs(model(*example)), ready.outputs(), subject.create().tolerance, "two inputs")


@check(Kind.TARGET, hint="Work on a deep copy of the module.")
def leaves_the_network_alone(subject: Subject) -> None:
    """Preparing and running change nothing of the network that was handed over."""
    model = _trained(built(SmallResNet))
    guard = Guard({"network": model})
    with prepared(subject, model, image()) as (ready, _):
        ready.run()
    changed = guard.settle()
    if changed:
        fail(f"it changes {few(changed)}")


@check(Kind.TARGET, hint="Set `clock` of the Prepared to the one its times come from, and the tag to the same.")
def clock_is_true(subject: Subject) -> None:
    """The tag `clock` is the clock of the times, and a simulated one gives the same nanoseconds again."""
    times = []
    for _ in range(2):
        with prepared(subject, built(SmallResNet).eval(), image()) as (ready, _):
            if ready.clock != subject.tags.clock:
                fail(f"the tag says {subject.tags.clock!r}, what it prepares says {ready.clock!r}")
            times.append(ready.elapsed_ns())
    if any(value is not None and (not isinstance(value, int) or value <= 0) for value in times):
        fail(f"elapsed_ns returned {times}, which are not positive integers or None")
    if subject.tags.clock == "simulated" and (times[0] is None or times[0] != times[1]):
        fail(f"a simulated clock must repeat itself; it gave {times[0]} and {times[1]} ns for one network")


@check(Kind.TARGET, hint="Set `artefact` to the file written into request.folder; write nothing otherwise.")
def exports_is_true(subject: Subject) -> None:
    """The tag `exports` is true both ways: with it a file is left in the folder and named, without it nothing is."""
    with prepared(subject, built(SmallResNet).eval(), image()) as (ready, folder):
        files = sorted(path.name for path in folder.rglob("*") if path.is_file())
        if subject.tags.exports:
            if ready.artefact is None:
                fail("exports=True, and `artefact` is None")
            if not ready.artefact.is_file() or folder.resolve() not in ready.artefact.resolve().parents:
                fail(f"artefact {ready.artefact} is no file in the folder that was given")
        elif ready.artefact is not None or files:
            fail(f"exports=False, and it leaves {', '.join(files) or ready.artefact}")


@check(Kind.TARGET, hint='Raise TrialFailure("export_failed", ...) and remove what was begun.')
def refuses_in_order(subject: Subject) -> None:
    """A network that cannot run is refused with an error of nasdistill or fails when run, and leaves no file."""
    target = available(subject)
    with tempfile.TemporaryDirectory() as name:
        try:
            ready = target.prepare(PrepareRequest(Refusing().eval(), image(), Path(name)))
        except NasdistillError:
            left = [path.name for path in Path(name).rglob("*")]
            if left:
                fail(f"it refused, and left {', '.join(left)} in the folder")
            return
        except Exception as error:
            fail(f"it raised {type(error).__name__} instead of an error of nasdistill: {error}")
        try:
            ready.run()
        except Exception:  # as it should be: the network itself raises
            return
        finally:
            ready.close()
    fail("a network that raises was prepared and run as if nothing were wrong")


@check(Kind.TARGET, hint="Return bytes of one run, or None when they are not known; never an estimate.")
def memory_is_a_fact(subject: Subject) -> None:
    """`peak_memory_bytes` is None or a positive number of bytes."""
    with prepared(subject, built(SmallResNet).eval(), image()) as (ready, _):
        found = ready.peak_memory_bytes()
    if found is not None and (not isinstance(found, int) or isinstance(found, bool) or found <= 0):
        fail(f"peak_memory_bytes returned {found!r}")


@check(Kind.TARGET, hint="Make `close` safe to call again.")
def can_be_closed_twice(subject: Subject) -> None:
    """Closing twice is no error."""
    with prepared(subject, built(SmallResNet).eval(), image()) as (ready, _):
        ready.close()


@check(Kind.TARGET, thorough=True, hint="Run the whole network in `run`, and wait for the device before returning.")
def more_work_takes_longer(subject: Subject) -> None:
    """A network of eight times the depth takes clearly longer: `run` runs all of it, synchronously."""
    shallow, deep = (built(SmallResNet, width=16, depth=depth).eval() for depth in (1, 8))
    for _ in range(3):  # a busy machine may disturb one attempt
        fast, slow = _fastest(subject, shallow, deep)
        if slow >= 1.5 * fast:
            return
    fail(f"eight times the depth took {slow / 1e6:.3f} ms, after {fast / 1e6:.3f} ms for the shallow one")


@check(Kind.TARGET, thorough=True, hint="Do the same work in every run: no caches, no warm-up that never ends.")
def two_timings_agree(subject: Subject) -> None:
    """Two preparations of one network take as long: exactly by a simulated clock, to a factor of 2 by a real one."""
    seen = []
    for _ in range(3):  # a busy machine may disturb one attempt
        one, other = _timed(subject, *(built(SmallResNet, width=16, depth=4).eval() for _ in range(2)))
        if subject.tags.clock == "simulated" and {*one, *other} != {one[0]}:
            fail(f"a simulated clock gives {sorted({*one, *other})} ns for one network")
        seen.append((median(one), median(other)))
        if max(seen[-1]) <= 2 * min(seen[-1]):
            return
    told = "; ".join(f"{first / 1e6:.3f} and {second / 1e6:.3f} ms" for first, second in seen)
    fail(f"one network, prepared twice and run in turn, takes {told}")


# -- details ----------------------------------------------------------------------------------------------------------


def _trained(model: nn.Module) -> nn.Module:
    """Return a network whose normalisation statistics are not the initial ones, in eval mode."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        model(digits(64).image * 2 + 1)
    return model.eval()


def _fastest(subject: Subject, *models: nn.Module) -> list[int]:
    """Return the nanoseconds of each model's fastest run, all models in turn."""
    return [min(found) for found in _timed(subject, *models)]


def _timed(subject: Subject, *models: nn.Module) -> list[list[int]]:
    """Return the nanoseconds of each model's runs, all models in turn."""
    with contextlib.ExitStack() as stack:
        ready = [stack.enter_context(prepared(subject, model, image()))[0] for model in models]
        times: list[list[int]] = [[] for _ in ready]
        for _ in range(25):
            for item, found in zip(ready, times, strict=True):
                own = item.elapsed_ns()
                if own is None:
                    start = time.perf_counter_ns()
                    item.run()
                    own = time.perf_counter_ns() - start
                found.append(own)
    return times


def _compare(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float, where: str) -> None:
    """Fail unless all outputs agree within `tolerance` of the largest expected value."""
    if len(expected) != len(found):
        fail(f"{where}: {len(found)} outputs instead of {len(expected)}")
    for want, have in zip(expected, found, strict=True):
        if want.shape != have.shape:
            fail(f"{where}: an output of shape {tuple(have.shape)} instead of {tuple(want.shape)}")
        error = float((want.detach() - have).abs().max() / want.detach().abs().max().clamp_min(1e-12))
        if not error <= tolerance:
            fail(f"{where}: the outputs are off by {error:.2g} of the largest, the stated tolerance is {tolerance:g}")
