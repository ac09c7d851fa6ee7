"""Shared weights of a run: what can be trained, their files, and what of them a candidate gets.

A run's folder has ``supernets/<id>/``: ``weights.safetensors`` and, once these are there, ``record.json``, which says
how they came about and their hash. Both are written atomically, so whoever finds a record finds the weights: a resumed
run, and the worker processes, which take candidates' starts and scores from the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nasdistill.distill import evaluate
from nasdistill.distill.stepping import EpochReport
from nasdistill.distill.subnetworks import WHOLE, find_subspace, ladder, raw_count
from nasdistill.distill.supernet import HeldOut, layer_map_of, train_supernet
from nasdistill.errors import ISOLATED, NasdistillError, TrialFailure, UsageError, is_fatal, one_line
from nasdistill.files import content_hash, file_hash
from nasdistill.interfaces import SearchSpace, SharedWeights, SubSpace, Supernet
from nasdistill.search.parts import Parts
from nasdistill.seeds import derive_seed, seeded
from nasdistill.spec.architecture import Architecture
from nasdistill.spec.component import Kind
from nasdistill.spec.config import ObjectiveConfig
from nasdistill.store import RunDirectory, load_weights, save_weights

LADDER = 4096
"""Sub-networks that a training draws from at most; a larger sub-space is represented by a random sample."""


class SupernetShelf:
    """The shared weights of one run, as one process sees them.

    Args:
        run: the run's folder.
        parts: opened parts.
    """

    def __init__(self, run: RunDirectory, parts: Parts) -> None:
        self.run, self.parts = run, parts
        self.seed = parts.config.search.seed
        self._loaded: tuple[str, Supernet] | None = None
        self._held_out: tuple[str, HeldOut] | None = None

    def all(self) -> tuple[SharedWeights, ...]:
        """Return every set that can be trained; see :meth:`SearchSession.supernets`."""
        found = []
        for name, space in self.parts.spaces.items():
            if self.parts.host.tags(Kind.SEARCH_SPACE, space.id).supernet:
                for subspace in space.subspaces() or (WHOLE,):
                    label = f"{name}-{subspace.name}" if subspace.name else name
                    found.append(SharedWeights(label, name, subspace.name, raw_count(space, subspace)))
        return tuple(found)

    def place(self, shared: SharedWeights) -> tuple[SearchSpace, SubSpace]:
        """Return space and sub-space. Raises UsageError where the run has none such."""
        space = self.parts.spaces.get(shared.space)
        if space is None:
            raise UsageError(f"the run has no space {shared.space!r}; it has {', '.join(self.parts.spaces)}")
        return space, find_subspace(space, shared.subspace)

    def folder(self, identifier: str) -> Path:
        """Return the folder of a set."""
        return self.run.path / "supernets" / identifier

    def record(self, identifier: str) -> dict[str, Any] | None:
        """Return what is on record of a set, None before its training ended."""
        return self.run.read(f"supernets/{identifier}/record.json")

    # ---- training -------------------------------------------------------------------------------------------------

    def train(
        self,
        shared: SharedWeights,
        epochs: int,
        *,
        objective: ObjectiveConfig | None = None,
        lr: float | None = None,
        others: int = 2,
        message: Callable[[str], None],
        on_epoch: Callable[[EpochReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> SharedWeights | None:
        """Train a set of weights, or find it trained; None when `should_stop` ended the training.

        Raises:
            OSError: the run cannot be written to.
        """
        config, (space, subspace) = self.parts.config, self.place(shared)
        objective = objective or config.objective
        training = config.training.model_copy(update={"ema": None} | ({} if lr is None else {"lr": lr}))
        facts = {
            "id": shared.id, "space": space.id, "subspace": subspace.name,
            "choices": {name: list(values) for name, values in subspace.choices.items()},
            "epochs": epochs, "others": others, "objective": objective.model_dump(mode="json"),
            "training": training.model_dump(mode="json"),
        }  # fmt: skip
        known = self.record(shared.id)
        if known is not None and known["plan"] == content_hash(facts):
            if "failure" in known:
                return replace(shared, failure=known["failure"])
            if self._intact(shared.id, known):
                return replace(shared, trained=True)
            message(f"supernet {shared.id}: its weights are missing or damaged; trained again")
        folder = self.folder(shared.id)
        folder.mkdir(parents=True, exist_ok=True)
        self._loaded = self._held_out = None
        told: dict[str, Any] = {**facts, "plan": content_hash(facts)}
        try:
            net = self._fresh(shared)
            rungs = ladder(space, self.parts.task.io, subspace, limit=LADDER, seed=self.seed)
            result = train_supernet(
                net, space, rungs, self.parts.task, self.parts.teacher, objective, training,
                epochs=epochs, others=others, seed=derive_seed(self.seed, "supernet", shared.id),
                data_seed=derive_seed(self.seed, "data"), host=self.parts.host, cache=self.parts.cache,
                device=self.parts.device, on_epoch=on_epoch, should_stop=should_stop,
                checkpoint=folder / "checkpoint.safetensors", checkpoint_seconds=training.checkpoint_seconds,
                label=f"supernet {shared.id}",
            )  # fmt: skip
            if result.stopped:
                return None
            told |= {
                "architectures": len(rungs), "steps": result.steps, "notes": result.notes,
                "skipped_losses": result.skipped,
                "history": [{"epoch": row.epoch, **row.terms} for row in result.history],
                "weights_sha256": save_weights(net, folder / "weights.safetensors"),
            }  # fmt: skip
        except ISOLATED as error:
            if is_fatal(error):
                raise OSError(one_line(error)) from error
            told["failure"] = _why(error)
        self.run.write(f"supernets/{shared.id}/record.json", told)
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return replace(shared, trained="failure" not in told, failure=told.get("failure", ""))

    def _intact(self, identifier: str, record: Mapping[str, Any]) -> bool:
        try:
            return bool(file_hash(self.folder(identifier) / "weights.safetensors") == record["weights_sha256"])
        except OSError:
            return False

    def _fresh(self, shared: SharedWeights) -> Supernet:
        """Return a set as it starts, from the teacher's weights where these are to be inherited."""
        space, subspace = self.place(shared)
        teacher = self.parts.teacher.model if self.parts.config.training.inherit else None
        more = {"subspace": subspace} if subspace.name else {}
        with seeded(self.seed, "init", "supernet", shared.id):
            return space.supernet(self.parts.task.io, teacher, **more)

    # ---- what candidates get --------------------------------------------------------------------------------------

    def extracted(self, identifier: str, arch: Architecture) -> Mapping[str, Tensor]:
        """Return the tensors of one architecture.

        Raises:
            UsageError: the set is not trained, or its file is not the one that was recorded.
        """
        return self._net(identifier).extract(arch).state_dict()

    def origin(self, identifier: str) -> dict[str, Any]:
        """Return where weights come from, for records."""
        record = self._trained(identifier)
        return {"supernet": identifier, "weights_sha256": record["weights_sha256"], "steps": record["steps"]}

    def score(self, identifier: str, model: nn.Module, arch: Architecture, *, by: str, samples: int) -> dict[str, Any]:
        """Score a network with its part of shared weights; higher ``value`` is better.

        Args:
            identifier: of the weights.
            model: the network, with these weights.
            arch: its architecture.
            by: ``loss`` (the objective the weights were trained on) or ``metric``.
            samples: held-out samples for the loss.

        Raises:
            TrialFailure: the score is not finite.
        """
        parts = self.parts
        model = model.to(parts.device)
        found: dict[str, Any]
        if by == "metric":
            result = evaluate(model, parts.task, "validation")
            higher = parts.task.metric.higher_is_better
            found = {"value": result.score if higher else -result.score, "score": result.score, "loss": result.loss}
        else:
            space = parts.space_of(arch)
            terms = self._listener(identifier, samples).terms(
                model, lambda student, teacher: layer_map_of(space, arch, student, teacher), label="the candidate"
            )
            found = {"value": -terms["total"], "terms": terms}
        if not abs(found["value"]) < float("inf"):
            raise TrialFailure("not_finite", f"its inherited score is {found['value']}")
        return found

    def _listener(self, identifier: str, samples: int) -> HeldOut:
        key = f"{identifier} {samples}"
        if self._held_out is None or self._held_out[0] != key:
            objective = ObjectiveConfig.model_validate(self._trained(identifier)["objective"])
            parts = self.parts
            size = parts.config.training.batch_size
            listener = HeldOut(
                parts.task, parts.teacher, objective, host=parts.host, device=parts.device, samples=samples,
                batch_size=size,
            )  # fmt: skip
            self._held_out = key, listener
        return self._held_out[1]

    def _net(self, identifier: str) -> Supernet:
        """Return trained weights; a process keeps the last set that it used."""
        if self._loaded is None or self._loaded[0] != identifier:
            record = self._trained(identifier)
            net = self._fresh(next(shared for shared in self.all() if shared.id == identifier))
            net.load_state_dict(load_weights(self.folder(identifier) / "weights.safetensors", record["weights_sha256"]))
            self._loaded = identifier, net.eval()
        return self._loaded[1]

    def _trained(self, identifier: str) -> dict[str, Any]:
        record = self.record(identifier)
        if record is None or "weights_sha256" not in record:
            raise UsageError(f"shared weights {identifier!r} are not trained in {self.run.path}")
        return record


def _why(error: BaseException) -> str:
    if isinstance(error, TrialFailure):
        return f"{error.reason}: {error.message}"
    return str(error) if isinstance(error, NasdistillError) else one_line(error, 500)
