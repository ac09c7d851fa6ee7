"""A student: what was found out about it, and its network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nasdistill.errors import UsageError, one_line
from nasdistill.host import Host
from nasdistill.interfaces.transform import Applied
from nasdistill.library.building import build_network, open_space
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.io import IOSpec
from nasdistill.spec.measurement import TargetReport
from nasdistill.store import ASSETS, load_weights, read_record

if TYPE_CHECKING:
    from nasdistill.interfaces import SearchSpace


@dataclass(frozen=True, slots=True)
class Source:
    """Where a student's network comes from.

    Attributes:
        io: input and output.
        space_options: options of its space.
        provenance: its record.
        weights: the file.
        weights_sha256: the file's hash; None where none was recorded.
        plugins: the plugins that were there (`plugin`, `distribution`, `version`).
        assets: folder of what serving it needs beside the weights; it may be missing.
        transforms: what the network went through after its space had built it.
    """

    io: IOSpec
    space_options: Mapping[str, Any] | None
    provenance: Mapping[str, Any]
    weights: Path
    weights_sha256: str | None
    plugins: Sequence[Mapping[str, Any]] = ()
    assets: Path | None = None
    transforms: Sequence[Applied] = ()


class Student:
    """A trained network that can be loaded, whether its run is finished, running, killed or gone.

    What the records say is here at once; the network's files are read, and their hashes compared, when they are needed.

    Attributes:
        id: its name in its run: number of the trial, and the start of the architecture's hash.
        architecture: what was built.
        score: the task's metric on the validation split; None when it was never evaluated.
        test_score: on the test split, which only the final report of a search looks at; None before.
        epochs: of distillation.
        params, macs: size and multiply-accumulates of one sample; None where not recorded.
        targets: target -> what it said, the one that the search minimised first.
        state: of its trial: ``complete`` students were distilled in full, others stopped on the way.
    """

    def __init__(
        self,
        *,
        id: str,
        architecture: Architecture,
        source: Callable[[], Source],
        host: Host,
        score: float | None = None,
        test_score: float | None = None,
        epochs: int | None = None,
        params: int | None = None,
        macs: int | None = None,
        targets: Mapping[str, TargetReport] | None = None,
        state: str = "complete",
        feasible: bool = True,
        higher_is_better: bool = True,
    ) -> None:
        self.id = id
        self.architecture = architecture
        self.score = score
        self.test_score = test_score
        self.epochs = epochs
        self.params = params
        self.macs = macs
        self.targets = dict(targets or {})
        self.state = state
        self.feasible = feasible
        self.higher_is_better = higher_is_better
        self._open = source
        self._host = host

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, host: Host | None = None) -> Student:
        """Return the student in a folder that a search or ``export --to torch`` has written.

        Raises:
            UsageError: incomplete, damaged, or changed by hand.
        """
        path = Path(folder)
        record = read_record(path)
        facts = record.provenance
        try:
            reports = {name: TargetReport.from_json(value) for name, value in (facts.get("targets") or {}).items()}
            metric = (facts.get("task") or {}).get("metric") or {}
            plugins = (facts.get("software") or {}).get("plugins") or ()
            cost, trial = facts.get("cost") or {}, facts.get("trial")
            values = {key: (facts.get(key) or {}).get("score") for key in ("validation", "test")}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path / 'provenance.json'} is damaged: {one_line(error)}") from None
        short = record.architecture.id[:6]
        first = facts.get("primary_target")
        source = Source(
            record.io, record.space_options, facts, path / "model.safetensors", facts.get("weights_sha256"), plugins,
            path / ASSETS, record.transforms,
        )  # fmt: skip
        return cls(
            id=short if trial is None else f"{trial:04d}-{short}",
            architecture=record.architecture,
            source=lambda: source,
            host=host or Host.load(),
            score=values["validation"],
            test_score=values["test"],
            epochs=facts.get("epochs"),
            params=cost.get("params"),
            macs=cost.get("macs"),
            targets={name: reports[name] for name in sorted(reports, key=lambda name: (name != first, name))},
            higher_is_better=bool(metric.get("higher_is_better", True)),
        )

    # ---- what is known --------------------------------------------------------------------------------------------

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds per call on the first target; None when it was not timed."""
        return next((report.latency.value_ms for report in self.targets.values()), None)

    @property
    def latencies(self) -> dict[str, dict[str, float]]:
        """Target -> ``value``, ``low``, ``high`` in milliseconds."""
        return {name: report.latency.brief() for name, report in self.targets.items()}

    @cached_property
    def _source(self) -> Source:
        return self._open()

    @property
    def io(self) -> IOSpec:
        """Input and output of the network."""
        return self._source.io

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from: teacher, task, objective, training, seed, scores, measurements, with hashes."""
        return dict(self._source.provenance)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How stored data becomes its input; empty where the task did not say."""
        return dict((self._source.provenance.get("task") or {}).get("preprocessing") or {})

    @property
    def assets(self) -> Path | None:
        """Folder of what serving it needs beside the weights (a tokenizer); None when there is nothing."""
        folder = self._source.assets
        return folder if folder is not None and folder.is_dir() else None

    @property
    def transforms(self) -> tuple[Applied, ...]:
        """What the network went through after its space had built it, first to last; mostly nothing."""
        return tuple(self._source.transforms)

    # ---- the network ----------------------------------------------------------------------------------------------

    def space(self) -> SearchSpace:
        """Return its search space, with the options it was built with.

        Raises:
            UnknownComponentError: the plugin is not here; it is named with the version that was recorded.
        """
        source = self._source
        return open_space(self.architecture.space, source.space_options, self._host, recorded=source.plugins)

    def weights(self) -> dict[str, Tensor]:
        """Return its tensors by name.

        Raises:
            UsageError: the file is missing, damaged, or not the one that was recorded.
        """
        return load_weights(self._source.weights, self._source.weights_sha256)

    def model(self) -> nn.Module:
        """Return a new copy of the network with its weights, on the CPU and in eval mode.

        Raises:
            UsageError: its files are missing or damaged, or do not fit each other.
            UnknownComponentError: a plugin is not here.
        """
        weights = self.weights()
        source = self._source
        network = build_network(
            self.space(), self.architecture, self.io, self._host, recorded=source.plugins, transforms=source.transforms
        )
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
            raise UsageError(
                f"the weights in {self._source.weights} do not fit architecture {self.architecture.id}: {lines[0]}",
                hint="One of the two was changed after the student was saved, or the space builds another network now.",
            ) from None
        return network

    def export(
        self, to: str, folder: str | os.PathLike[str], *, options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write it for another use; complete or not at all.

        Args:
            to: an exporter: ``torch``, ``onnx``, ``hf``, or a plugin's.
            folder: missing or empty.
            options: of the exporter.

        Returns:
            What ``export.json`` in the folder says, and ``folder``.

        Raises:
            UsageError: the folder is not empty, or the format does not exist for such a student.
            TrialFailure: this student cannot be written so; says why.
        """
        from nasdistill.library.exporting import export_student

        return export_student(self, to, Path(folder), options=options, host=self._host)

    def __repr__(self) -> str:
        facts = [] if self.score is None else [f"score {self.score:.4f}"]
        facts += [] if self.latency_ms is None else [f"{self.latency_ms:.4g} ms"]
        facts += [] if self.params is None else [f"{self.params:,} params"]
        return f"<Student {self.id} of {self.architecture.space}{': ' if facts else ''}{', '.join(facts)}>"
