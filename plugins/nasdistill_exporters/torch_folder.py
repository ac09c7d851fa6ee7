"""The plainest export: the folder that a run keeps for each student of its front.

``architecture.json`` says what to build (space, its options, input and output), ``model.safetensors`` holds the
weights, ``provenance.json`` where they come from, with the hashes of both. ``nasdistill.load`` gives the student back
bit for bit.
"""

from __future__ import annotations

from typing import Any

from nasdistill.files import content_hash, write_json
from nasdistill.interfaces import Exporter, ExportRequest
from nasdistill_exporters._files import copy_assets, write_tensors


class TorchFolder(Exporter):
    """A saved student."""

    def export(self, request: ExportRequest) -> dict[str, Any]:
        """Write the three files; see :class:`Exporter`."""
        described = {
            **request.architecture.to_json(),
            "io": request.io.to_json(),
            "space_options": request.space.options.model_dump(mode="json"),
        }
        if request.transforms:
            described["transforms"] = [step.to_json() for step in request.transforms]
        write_json(request.folder / "architecture.json", described)
        copy_assets(request, request.folder / "assets")
        digest = write_tensors(request.model.state_dict(), request.folder / "model.safetensors")
        facts = {**request.provenance, "architecture_sha256": content_hash(described), "weights_sha256": digest}
        write_json(request.folder / "provenance.json", facts)
        return {"weights_sha256": digest}
