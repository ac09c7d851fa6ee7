"""The measuring session: preparing, checking, reporting, and leaving everything as found."""

from __future__ import annotations

import json
import math

import pytest
import torch
from measure_fakes import FakeClock, FakePrepared
from torch import nn

from nasdistill.errors import TargetUnavailableError, TrialFailure
from nasdistill.interfaces import Availability, Target
from nasdistill.measure import Meter, deviation, environment, fingerprint, flatten_outputs
from nasdistill.measure.references import reference_models
from nasdistill.spec.measurement import Budget, TargetReport

MS = 1e6
EXAMPLE = (torch.ones(1, 4),)


class Timed(nn.Linear):
    """A network that says how long it takes."""

    def __init__(self, cost: float = MS) -> None:
        super().__init__(4, 3)
        self.cost = cost


class FakeTarget(Target):
    """Runs networks on the fake clock; `error` is added to what they compute."""

    def __init__(self, clock: FakeClock, **behaviour) -> None:
        super().__init__()
        self.clock = clock
        self.behaviour = {"available": True, "error": 0.0, "fail": None, **behaviour}
        self.made: list[Fake] = []

    def probe(self):
        ok = self.behaviour["available"]
        return Availability(ok, "" if ok else "the device is switched off")

    def environment(self):
        return {"runtime": "fake"}

    def prepare(self, request):
        if isinstance(self.behaviour["fail"], Exception) and isinstance(request.model, Timed):
            raise self.behaviour["fail"]
        path = request.folder / f"{request.name}.fake"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
        made = Fake(self, request, path)
        self.made.append(made)
        return made


class Fake(FakePrepared):
    def __init__(self, target: FakeTarget, request, path) -> None:
        cost = request.model.cost if isinstance(request.model, Timed) else 0.5 * MS
        super().__init__(target.clock, cost, request.name)
        self.artefact = path
        self.model, self.example, self.target = request.model, request.example, target

    def outputs(self):
        with torch.no_grad():
            return [
                t + self.target.behaviour["error"] * t.abs().max() for t in flatten_outputs(self.model(*self.example))
            ]


@pytest.fixture
def clock():
    return FakeClock()


def meter_for(clock, tmp_path, budget=None, **behaviour) -> Meter:
    return Meter(FakeTarget(clock, **behaviour), tmp_path, budget, clock=clock)


def test_report_has_everything(clock, tmp_path):
    with meter_for(clock, tmp_path) as meter:
        report = meter.report(Timed(2 * MS).eval(), EXAMPLE, "student")
    assert report.latency.value_ms == pytest.approx(2.0)
    assert report.latency.quality == "ok"
    assert (report.target, report.artefact_bytes, report.max_rel_error) == ("FakeTarget", 10, 0.0)
    assert report.peak_memory_bytes is None
    assert report.prepare_seconds > 0
    assert json.loads(json.dumps(report.to_json())) == json.loads(json.dumps(report.to_json()))
    assert TargetReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_together_gives_the_paired_ratio(clock, tmp_path):
    models = {"teacher": Timed(8 * MS).eval(), "student": Timed(1 * MS).eval()}
    with meter_for(clock, tmp_path) as meter:
        found = meter.report_together(models, EXAMPLE, baseline="teacher", budget=Budget(max_pairs=25))
        assert meter.rounds.names == ("teacher", "student")
    ratio = found["student"].info["ratio"]
    assert ratio.pop("to") == "teacher"
    assert ratio == {key: pytest.approx(0.125) for key in ("value", "low", "high")}
    assert found["teacher"].info["ratio"]["value"] == 1.0


def test_references_are_prepared_once_in_the_same_runtime_and_closed(clock, tmp_path):
    meter = meter_for(clock, tmp_path)
    meter.report(Timed().eval(), EXAMPLE, "a")
    meter.report(Timed().eval(), EXAMPLE, "b")
    made = {item.name: item for item in meter.target.made}
    assert sorted(made) == ["a", "b", *sorted(reference_models())]
    assert all(type(item) is Fake for item in meter.references().values())
    assert made["a"].closed
    assert made["b"].closed
    assert not made["reference_conv"].closed
    meter.close()
    assert made["reference_conv"].closed
    assert made["reference_small"].closed


def test_calibration_is_kept_and_can_be_given(clock, tmp_path):
    meter = meter_for(clock, tmp_path)
    meter.report(Timed().eval(), EXAMPLE)
    kept = meter.calibration
    assert kept == {name: pytest.approx(0.5) for name in reference_models()}
    meter.close()
    assert meter.calibration is kept
    again = Meter(
        FakeTarget(clock), tmp_path, clock=clock, calibration={name: 2 * value for name, value in kept.items()}
    )
    report = again.report(Timed(MS).eval(), EXAMPLE)
    assert report.latency.value_ms == pytest.approx(2.0)  # the scale of the given calibration
    assert "reference/calibration=0.50" in report.latency.flags


@pytest.mark.parametrize("error", [1e-2, math.nan, math.inf])
def test_wrong_numbers_are_a_failure_and_leave_nothing(clock, tmp_path, error):
    meter = meter_for(clock, tmp_path, error=error)
    meter._references = {"kept": FakePrepared(clock, MS)}
    with pytest.raises(TrialFailure, match="does not compute what torch computes") as caught:
        meter.report(Timed().eval(), EXAMPLE, "student")
    assert caught.value.reason == "parity"
    assert [item.closed for item in meter.target.made] == [True]
    assert list(tmp_path.iterdir()) == []


def test_small_deviations_are_reported(clock, tmp_path):
    with meter_for(clock, tmp_path, error=1e-6) as meter:
        assert meter.report(Timed().eval(), EXAMPLE).max_rel_error == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TrialFailure("export_failed", "no such operator"), "export_failed"),
        (RuntimeError("first line\nsecond line"), "prepare_failed"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    ],
)
def test_a_failing_export_is_a_reason(clock, tmp_path, error, reason):
    meter = meter_for(clock, tmp_path, fail=error)
    with pytest.raises(TrialFailure) as caught:
        meter.report(Timed().eval(), EXAMPLE, "student")
    assert caught.value.reason == reason
    assert "second line" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (RuntimeError("device lost"), "run_failed"),
    ],
)
@pytest.mark.parametrize("when", ["outputs", "run", "peak_memory_bytes"])
def test_what_a_run_raises_is_a_failure_of_the_trial(clock, tmp_path, monkeypatch, error, reason, when):
    def raising(self):
        if isinstance(self.model, Timed):
            raise error
        return original(self)

    original = getattr(Fake, when)
    monkeypatch.setattr(Fake, when, raising)
    with meter_for(clock, tmp_path) as meter:
        with pytest.raises(TrialFailure, match="student") as caught:
            meter.report(Timed().eval(), EXAMPLE, "student")
        assert caught.value.reason == ("prepare_failed" if (when, reason) == ("outputs", "run_failed") else reason)
        assert str(error) in str(caught.value)
        assert all(item.closed for item in meter.target.made if item.name == "student")


def test_a_network_that_is_too_large_is_out_of_memory(clock, tmp_path):
    class Huge(nn.Module):
        def forward(self, x):
            return torch.empty(1 << 60)

    with meter_for(clock, tmp_path) as meter, pytest.raises(TrialFailure, match="huge raises RuntimeError") as caught:
        meter.report(Huge().eval(), EXAMPLE, "huge")
    assert caught.value.reason == "out_of_memory"


def test_one_failure_closes_the_others(clock, tmp_path):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("cannot add (1, 4) and (1, 5)")

    meter = meter_for(clock, tmp_path)
    with pytest.raises(TrialFailure, match="broken raises ValueError: cannot add") as caught:
        meter.report_together({"fine": Timed().eval(), "broken": Broken().eval()}, EXAMPLE)
    assert caught.value.reason == "forward_failed"
    assert [(item.name, item.closed) for item in meter.target.made] == [("fine", True)]


def test_a_target_that_is_not_here_says_so(clock, tmp_path):
    with pytest.raises(TargetUnavailableError, match="switched off"):
        meter_for(clock, tmp_path, available=False).report(Timed().eval(), EXAMPLE)


def test_a_target_that_cannot_run_the_references_is_not_usable(clock, tmp_path):
    class Narrow(FakeTarget):
        def prepare(self, request):
            if not isinstance(request.model, Timed):
                raise TrialFailure("export_failed", "linear layers only")
            return super().prepare(request)

    meter = Meter(Narrow(clock), tmp_path, clock=clock)
    with pytest.raises(TargetUnavailableError, match=r"reference networks.*linear layers only"):
        meter.report(Timed().eval(), EXAMPLE)


def test_the_callers_network_stays_as_found(clock, tmp_path):
    model = Timed().train()
    model.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with meter_for(clock, tmp_path) as meter:
        meter.report(model, EXAMPLE)
    assert model.training
    assert not model.weight.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_artefacts_can_be_thrown_away(clock, tmp_path):
    with Meter(FakeTarget(clock), tmp_path, clock=clock, keep_artefacts=False) as meter:
        assert meter.report(Timed().eval(), EXAMPLE, "student").artefact_bytes == 10
    assert not (tmp_path / "student.fake").exists()


def test_compare_takes_what_prepare_returned(clock, tmp_path):
    with meter_for(clock, tmp_path) as meter:
        a, b = (meter.prepare(Timed(cost).eval(), EXAMPLE, name) for cost, name in ((MS, "a"), (2 * MS, "b")))
        assert meter.compare(a, b).verdict == "a<b"


def test_environment_names_no_person_and_no_place(clock, tmp_path):
    import getpass
    import os
    import platform

    found = meter_for(clock, tmp_path).environment()
    text = json.dumps(found)
    assert found["target_environment"] == {"runtime": "fake"}
    assert found["packages"]["torch"] == torch.__version__
    assert found["cpu"]["usable_cores"] >= 1
    assert len(found["fingerprint"]) == 64
    assert os.getcwd() not in text
    for word in (platform.node(), getpass.getuser()):
        assert len(word) < 5 or word not in text
    assert fingerprint() == fingerprint(environment())


def test_flatten_and_deviation():
    a, b = torch.tensor([1.0, -4.0]), torch.tensor([[2.0]])
    assert [t.shape for t in flatten_outputs({"x": a, "rest": (None, [b], 3)})] == [(2,), (1, 1)]
    assert deviation([a], [a]) == 0
    assert deviation([torch.tensor([1.0, -4.4])], [a]) == pytest.approx(0.1)
    assert deviation([a], [a, b]) == math.inf
    assert deviation([a[:1]], [a]) == math.inf
    assert deviation([a * math.nan], [a]) == math.inf
    assert deviation([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert deviation([torch.ones(2)], [torch.zeros(2)]) == math.inf
