"""Exporters that are sound but for one thing."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import save, save_file
from zoo_base import Broken

from nasdistill.errors import TrialFailure
from nasdistill.files import write_json
from nasdistill.interfaces import Exporter
from nasdistill.spec.component import ExporterSpec


class Plain(Exporter):
    """Weights and the architecture; nothing is run."""

    def export(self, request):
        write_json(request.folder / "architecture.json", request.architecture.to_json())
        state = {name: tensor.clone() for name, tensor in request.model.state_dict().items()}
        (request.folder / "model.safetensors").write_bytes(save(state))
        return {"tensors": len(state)}


class Sound(Plain):
    """Builds the student again from what it wrote, and compares."""

    def export(self, request):
        facts = super().export(request)
        try:
            facts["parity"] = {"max_abs": self.compare(request)}
        except TrialFailure:
            self.clear(request.folder)
            raise
        except Exception as error:
            self.clear(request.folder)
            raise TrialFailure("export_failed", f"it does not run: {error}") from error
        return facts

    def compare(self, request):
        from safetensors.torch import load

        again = request.space.build(request.architecture, request.io).eval()
        again.load_state_dict(load((request.folder / "model.safetensors").read_bytes()))
        with torch.no_grad():
            gap = float((again(*request.example) - request.model(*request.example)).abs().max())
        if gap > 1e-4:
            raise TrialFailure("parity", f"it is off by {gap:.3g}")
        return gap

    def clear(self, folder):
        for path in folder.iterdir():
            path.unlink()


class Nothing(Exporter):
    """Writes nothing."""

    def export(self, request):
        return {}


class Beside(Plain):
    """Leaves a log beside its folder."""

    def export(self, request):
        (request.folder.parent / "export.log").write_text("done")
        return super().export(request)


class Local(Plain):
    """Leaves a temporary file where it stands."""

    def export(self, request):
        if not any(Path().iterdir()):
            Path("graph.tmp").write_text("nodes")
        return super().export(request)


class Tensors(Plain):
    """Has a tensor among its facts."""

    def export(self, request):
        return {**super().export(request), "largest": torch.ones(1)}


class Training(Plain):
    """Puts the student into training mode."""

    def export(self, request):
        request.model.train()
        return super().export(request)


class Noting(Plain):
    """Adds to the record that it was given."""

    def export(self, request):
        request.provenance["exported"] = True
        return super().export(request)


class Named(Plain):
    """Names its file after the folder."""

    def export(self, request):
        (request.folder / f"{request.folder.name}.bin").write_bytes(b"weights")
        return super().export(request)


class Located(Plain):
    """Says where it wrote."""

    def export(self, request):
        return {**super().export(request), "file": str(request.folder / "model.safetensors")}


class Traced(Plain):
    """Keeps the path of its own code in a file."""

    def export(self, request):
        write_json(request.folder / "source.json", {"file": str(Path(torch.__file__).parents[4] / "student.py")})
        return super().export(request)


class Pickling(Plain):
    """Saves as torch does."""

    def export(self, request):
        torch.save(request.model.state_dict(), request.folder / "model.bin")
        return super().export(request)


class Letting(Sound):
    """Lets every error through."""

    def export(self, request):
        facts = Plain.export(self, request)
        with torch.no_grad():
            request.model(*request.example)
        return facts


class Leaving(Sound):
    """Leaves what it has begun."""

    def export(self, request):
        Plain.export(self, request)
        try:
            with torch.no_grad():
                request.model(*request.example)
        except RuntimeError as error:
            raise TrialFailure("export_failed", "it does not run") from error
        return {}


class Unreasoned(Sound):
    """Has a reason of its own for everything."""

    def export(self, request):
        try:
            with torch.no_grad():
                request.model(*request.example)
        except RuntimeError as error:
            raise TrialFailure("bad_luck", "it does not run") from error
        return Plain.export(self, request)


class Claiming(Plain):
    """Claims a parity."""

    def export(self, request):
        return {**super().export(request), "parity": {"max_abs": 0.0}}


class Wordy(Sound):
    """Says in words how well it agrees."""

    def export(self, request):
        return {**super().export(request), "parity": "very good"}


class Numbered(Plain):
    """Numbers its files through the process's life."""

    count = itertools.count()

    def export(self, request):
        facts = super().export(request)
        save_file({"x": torch.ones(1)}, request.folder / f"part{next(self.count)}.safetensors")
        return facts


def spec(name, cls):
    return ExporterSpec(name, f"{__name__}:{cls.__name__}", "one of the zoo", references=("original",))


SOUND = [spec("sound", Sound), spec("plain", Plain)]
BROKEN = [
    Broken("writes_files", spec("nothing", Nothing), "the folder is empty"),
    Broken("writes_nowhere_else", spec("beside", Beside), "export.log beside its folder"),
    Broken("writes_nowhere_else", spec("local", Local), "graph.tmp in the working directory"),
    Broken("facts_are_json", spec("tensors", Tensors), "not JSON"),
    Broken("leaves_the_student_alone", spec("training", Training), "train/eval mode"),
    Broken("leaves_the_student_alone", spec("noting", Noting), "the provenance"),
    Broken("same_files_again", spec("named", Named), "elsewhere.bin"),
    Broken("same_seed_same_result", spec("numbered", Numbered), "part"),
    Broken("no_paths_of_this_machine", spec("located", Located), "in the facts"),
    Broken("no_paths_of_this_machine", spec("traced", Traced), "in source.json"),
    Broken("no_pickles", spec("pickling", Pickling), "model/data.pkl"),
    Broken("refuses_in_order", spec("letting", Letting), "RuntimeError instead of TrialFailure"),
    Broken("refuses_in_order", spec("leaving", Leaving), "left architecture.json, model.safetensors"),
    Broken("refuses_in_order", spec("unreasoned", Unreasoned), "'bad_luck'"),
    Broken("parity_is_compared", spec("claiming", Claiming), "whose answers change from call to call is exported"),
    Broken("parity_is_compared", spec("wordy", Wordy), "without a finite max_abs"),
]
