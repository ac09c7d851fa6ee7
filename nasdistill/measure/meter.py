"""A measuring session on one target: prepares networks, checks their numbers, times them beside the references."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from nasdistill.errors import ISOLATED, NasdistillError, TargetUnavailableError, TrialFailure, is_fatal, one_line
from nasdistill.interfaces.target import Prepared, PrepareRequest, Target
from nasdistill.measure.counting import evaluation_copy
from nasdistill.measure.environment import environment, fingerprint
from nasdistill.measure.memory import is_out_of_memory
from nasdistill.measure.outputs import deviation, flatten_outputs
from nasdistill.measure.protocol import (
    PROTOCOL_VERSION,
    Clock,
    Comparison,
    Rounds,
    calibrate,
    compare,
    measuring,
    simulated_latency,
    time_rounds,
)
from nasdistill.measure.references import REFERENCE_ID, reference_models
from nasdistill.seeds import derive_seed
from nasdistill.spec.measurement import Budget, TargetReport


class Meter:
    """Measures networks on one target.

    The references are prepared and calibrated when the first network is measured, and stay loaded until `close`.
    Latencies in milliseconds are comparable within one calibration: to compare with an earlier session on the same
    machine (a resumed search), give its `calibration`.

    Args:
        target: where to measure.
        folder: where artefacts are written, ``NAME.onnx`` and the like.
        budget: limits of one measurement.
        seed: root of orders and bootstraps; the same measurement of the same name has the same order.
        calibration: reference name -> milliseconds, from an earlier meter's `calibration`; None calibrates.
        keep_artefacts: False removes a network's file once it is measured.
        clock: where time comes from (tests).

    Attributes:
        target, folder, budget, seed: as given.
        rounds: raw timings of the last measurement, None before it and for simulated targets.
    """

    def __init__(
        self,
        target: Target,
        folder: Path,
        budget: Budget | None = None,
        seed: int = 0,
        *,
        calibration: Mapping[str, float] | None = None,
        keep_artefacts: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.target = target
        self.folder = Path(folder)
        self.budget = budget or Budget()
        self.seed = seed
        self.rounds: Rounds | None = None
        self._keep = keep_artefacts
        self._clock = clock
        self._calibration = None if calibration is None else dict(calibration)
        self._references: dict[str, Prepared] = {}
        self._probed = False

    def __enter__(self) -> Meter:
        """Return the meter itself; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def calibration(self) -> dict[str, float]:
        """Reference name -> calibrated milliseconds (calibrated now when it was not before); empty for a simulator.

        Raises:
            TargetUnavailableError: as :meth:`references`.
        """
        if self._calibration is None:
            references = self.references()
            if all(reference.clock == "simulated" for reference in references.values()):
                self._calibration = {}  # a simulator's numbers need no scale
                return self._calibration
            times = calibrate(list(references.values()), self.budget, self.seed, clock=self._clock)
            self._calibration = dict(zip(references, times, strict=True))
        return self._calibration

    def references(self) -> dict[str, Prepared]:
        """Return the references by name, prepared on this target.

        Raises:
            TargetUnavailableError: the target is not here, or cannot run them.
        """
        if not self._references:
            prepared: dict[str, Prepared] = {}
            try:
                for name, (model, example) in reference_models().items():
                    prepared[name] = self._prepare(model, example, name, self.folder / "references")
            except TrialFailure as error:
                for item in prepared.values():
                    item.close()
                raise TargetUnavailableError(
                    f"target {self.target.id} cannot run the reference networks that latencies are paired with: "
                    f"{error.message}",
                    hint="nasdistill doctor shows which targets work.",
                ) from error
            self._references = prepared
        return self._references

    def environment(self) -> dict[str, Any]:
        """Return everything that timings of this meter depend on, with its fingerprint."""
        found = {
            **environment(),
            "target": self.target.id,
            "target_environment": self.target.environment(),
            "references": REFERENCE_ID,
            "protocol": PROTOCOL_VERSION,
        }
        return {**found, "fingerprint": fingerprint(found)}

    def prepare(self, model: nn.Module, example: Sequence[Tensor], name: str = "model") -> Prepared:
        """Prepare a network and compare its outputs with torch's.

        Args:
            model: on the CPU; a copy is taken when it is not in eval mode. Otherwise the target may use it as it is:
                leave it unchanged until the result is closed.
            example: positional inputs; they give the batch.
            name: stem of the artefact's file name.

        Returns:
            The prepared network; its `info` has ``prepare_seconds`` and ``max_rel_error``. Close it after use.

        Raises:
            TrialFailure: ``"export_failed"``, ``"prepare_failed"``, ``"forward_failed"`` (the network itself raises),
                ``"out_of_memory"`` (in any of these), or ``"parity"``: the outputs differ from torch's by more than the
                target's tolerance.
            TargetUnavailableError: the target is not here.
        """
        return self._prepare(model, example, name, self.folder)

    def report(
        self, model: nn.Module, example: Sequence[Tensor], name: str = "model", budget: Budget | None = None
    ) -> TargetReport:
        """Prepare, check and time one network; arguments and errors as in :meth:`prepare`."""
        return self.report_together({name: model}, example, budget=budget)[name]

    def report_together(
        self,
        models: Mapping[str, nn.Module],
        example: Sequence[Tensor],
        *,
        baseline: str | None = None,
        budget: Budget | None = None,
    ) -> dict[str, TargetReport]:
        """Prepare and check several networks and time them head to head, in the same rounds.

        Args:
            models: name -> network.
            example: positional inputs, the same for all.
            baseline: one of the names: every report's ``info["ratio"]`` then has the paired ratio to it
                (``{"to", "value", "low", "high"}``), more exact than dividing two latencies.
            budget: instead of the meter's; its ``max_seconds`` counts once per network.

        Returns:
            Name -> report.

        Raises:
            TrialFailure, TargetUnavailableError: as :meth:`prepare` and :meth:`report_prepared`; nothing stays loaded.
        """
        prepared: dict[str, Prepared] = {}
        try:
            for name, model in models.items():
                prepared[name] = self._prepare(model, example, name, self.folder)
            return self.report_prepared(prepared, baseline=baseline, budget=budget)
        finally:
            for item in prepared.values():
                item.close()
                if not self._keep and item.artefact is not None:
                    for path in _files(item.artefact):
                        path.unlink(missing_ok=True)

    def report_prepared(
        self, prepared: Mapping[str, Prepared], *, baseline: str | None = None, budget: Budget | None = None
    ) -> dict[str, TargetReport]:
        """Time what :meth:`prepare` returned, head to head; arguments as in :meth:`report_together`.

        Raises:
            TrialFailure: ``"run_failed"`` or ``"out_of_memory"``: something raises while it is timed.
        """
        try:
            return self._report_prepared(prepared, baseline, budget or self.budget)
        except NasdistillError:
            raise
        except ISOLATED as error:
            if is_fatal(error):
                raise
            text = f"{', '.join(prepared)} cannot be timed on {self.target.id}:"
            raise _failure("run_failed", text, error) from error

    def _report_prepared(
        self, prepared: Mapping[str, Prepared], baseline: str | None, budget: Budget
    ) -> dict[str, TargetReport]:
        """Time what was prepared, and whatever it raises."""
        if all(item.clock == "simulated" for item in prepared.values()):
            self.rounds = None
            found = {name: simulated_latency(item) for name, item in prepared.items()}
        else:
            references, calibration = self.references(), self.calibration
            seed = derive_seed(self.seed, "rounds", *sorted(prepared))
            rounds = time_rounds(prepared, list(references.values()), budget, seed, clock=self._clock)
            self.rounds = rounds
            found = {name: rounds.latency(name, [calibration[key] for key in references]) for name in prepared}
        reports = {}
        for name, item in prepared.items():
            info = dict(item.info)
            seconds, error = info.pop("prepare_seconds"), info.pop("max_rel_error")
            report = TargetReport(
                target=self.target.id, latency=found[name], artefact_bytes=_bytes(item.artefact),
                max_rel_error=error, peak_memory_bytes=item.peak_memory_bytes(), prepare_seconds=seconds, info=info,
            )  # fmt: skip
            if baseline is not None:
                report = replace(report, info={**info, "ratio": self._ratio(found, name, baseline)})
            reports[name] = report
        return reports

    def compare(self, a: Prepared, b: Prepared, budget: Budget | None = None, *, margin: float = 0.02) -> Comparison:
        """Time two prepared networks head to head; see :func:`nasdistill.measure.compare`."""
        return compare(a, b, budget or self.budget, derive_seed(self.seed, "compare"), margin=margin, clock=self._clock)

    def close(self) -> None:
        """Release the references. The meter may be used again: they are then prepared anew, the calibration stays."""
        for item in self._references.values():
            item.close()
        self._references = {}

    # ---- inner steps ----------------------------------------------------------------------------------------------

    def _prepare(self, model: nn.Module, example: Sequence[Tensor], name: str, folder: Path) -> Prepared:
        """Prepare and check one network."""
        self._check_available()
        start = time.perf_counter()
        model = evaluation_copy(model)
        try:
            # no_grad, not inference mode: what a network caches in this forward must stay usable for training.
            with torch.random.fork_rng(devices=[]), measuring(1), torch.no_grad():
                expected = flatten_outputs(model(*example))
        except Exception as error:
            raise _failure("forward_failed", f"{name} raises", error) from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with torch.random.fork_rng(devices=[]), measuring(1):
                prepared = self.target.prepare(PrepareRequest(model, tuple(example), folder, name))
        except NasdistillError:
            raise
        except ISOLATED as error:
            if is_fatal(error):
                raise  # a full disk says nothing about the network
            raise _failure("prepare_failed", f"{name} on {self.target.id}:", error) from error
        try:
            prepared.info["max_rel_error"] = self._check(prepared, expected, name)
        except BaseException:
            prepared.close()
            for path in _files(prepared.artefact) if prepared.artefact is not None else ():
                path.unlink(missing_ok=True)
            raise
        prepared.info["prepare_seconds"] = time.perf_counter() - start
        return prepared

    def _check(self, prepared: Prepared, expected: Sequence[Tensor], name: str) -> float:
        """Return the deviation from torch, or refuse it."""
        try:
            with measuring(1):
                found = prepared.outputs()
        except NasdistillError:
            raise
        except ISOLATED as error:
            raise _failure("prepare_failed", f"{name} does not run on {self.target.id}:", error) from error
        error_found = deviation(found, expected)
        if error_found > self.target.tolerance:
            what = f"deviates by {error_found:.2g} of the largest output (accepted: {self.target.tolerance:.2g})"
            if math.isinf(error_found):
                shapes = ", ".join(str(tuple(tensor.shape)) for tensor in found)
                wanted = ", ".join(str(tuple(tensor.shape)) for tensor in expected)
                what = f"has outputs of shape {shapes} instead of {wanted}, or values that are not finite"
            raise TrialFailure("parity", f"{name} on {self.target.id} does not compute what torch computes: it {what}")
        return error_found

    def _ratio(self, found: Mapping[str, Any], name: str, baseline: str) -> dict[str, Any]:
        """Return the paired ratio of one network to the baseline."""
        if self.rounds is None:
            value = found[name].value_ms / found[baseline].value_ms
            return {"to": baseline, "value": value, "low": value, "high": value}
        ratio = self.rounds.interval(name, baseline)
        return {"to": baseline, "value": ratio.value, "low": ratio.low, "high": ratio.high}

    def _check_available(self) -> None:
        """Ask the target once whether it works here."""
        if not self._probed:
            availability = self.target.probe()
            if not availability.ok:
                raise TargetUnavailableError(
                    f"target {self.target.id} cannot be used here: {availability.reason}",
                    hint="nasdistill doctor shows which targets work; --target chooses others.",
                )
            self._probed = True


def _failure(reason: str, text: str, error: BaseException) -> TrialFailure:
    """Return what an error of a network or of a runtime means for the trial."""
    if is_out_of_memory(error):
        return TrialFailure(
            "out_of_memory", f"{text} {one_line(error)}", hint="Smaller networks, or a smaller batch, need less."
        )
    return TrialFailure(reason, f"{text} {one_line(error)}")


def _files(artefact: Path) -> list[Path]:
    """Return an artefact's files: ONNX keeps large weights beside the graph, in ``NAME.onnx.data``."""
    return [path for path in (artefact, artefact.with_name(artefact.name + ".data")) if path.is_file()]


def _bytes(artefact: Path | None) -> int | None:
    """Return an artefact's size on disk."""
    return None if artefact is None else sum(path.stat().st_size for path in _files(artefact))
